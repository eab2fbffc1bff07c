"""Like runs side by side, unlike ones refused."""

import json
import math

import pytest

from orin.cli.main import main
from orin.compare import compare, ratio
from orin.errors import OrinError
from orin.plan import Plan
from tests.orin.test_report import CLOCKS, make_run


def watts(value, u95):
    return {"module_w": {"value": value, "u95": u95}, "rails_w": {"VDD_GPU_SOC": {"value": value / 2, "u95": u95}}}


def test_ratios_carry_the_errors_of_both():
    found = ratio({"value": 20.0, "u95": 0.4}, {"value": 30.0, "u95": 0.3})
    assert found.value == 1.5
    assert found.u95 == pytest.approx(1.5 * math.sqrt((0.4 / 20) ** 2 + (0.3 / 30) ** 2))
    assert found.resolved


def test_overlapping_intervals_are_not_resolved():
    assert not ratio({"value": 20.0, "u95": 0.4}, {"value": 20.5, "u95": 0.3}).resolved
    assert ratio({"value": 20.0, "u95": 0.4}, {"value": 20.8, "u95": 0.3}).resolved


def test_plain_figures_have_plain_ratios():
    assert ratio(4.0, 5.0).as_json() == {"value": 1.25, "u95": None, "resolved": True}
    assert ratio(None, 5.0) is None
    assert ratio(0.0, 5.0) is None


def test_figures_ratios_and_the_plan_fields_that_differ(tmp_path):
    a = make_run(tmp_path, end={"power": watts(34.0, 0.5)})
    b = make_run(
        tmp_path,
        plan=Plan(gpu_batch=128, dla_cores=1),
        end={"power": watts(20.0, 0.5), "loadgen": {"result_samples_per_second": 5100.0}},
    )
    found = compare(a, b)
    lines = {line.name: line for line in found.lines}
    assert lines["samples_per_s"].ratio.value == 0.75
    assert lines["module"].ratio.value == pytest.approx(20 / 34)
    assert lines["samples_per_joule"].ratio.value == pytest.approx(0.75 * 34 / 20)
    assert lines["VDD_GPU_SOC"].a == {"value": 17.0, "u95": 0.5}
    assert found.plan == {"gpu_batch": (256, 128), "dla_cores": (2, 1)}


@pytest.mark.parametrize(
    "start,named",
    [
        ({"provenance": "measured"}, "provenance is 'simulated'"),
        ({"board": "virtual:other"}, "board is 'virtual:agx-orin-64gb'"),
        ({"network": {"name": "other", "weights": "untrained (seeded)"}}, "network name is 'resnet50'"),
        ({"network": {"name": "resnet50", "weights": "checkpoint a.onnx"}}, "network weights is 'untrained (seeded)'"),
        ({"scenario": "server"}, "scenario is 'offline'"),
        ({"mode": "accuracy"}, "mode is 'performance'"),
        ({"stack": "mlperf-v3.0"}, "stack is 'trtexec-10.3'"),
        ({"clocks": {**CLOCKS, "gpu_mhz": 612.0}}, "clocks gpu_mhz is 1300.5"),
    ],
)
def test_unlike_runs_are_refused_by_the_field_that_differs(tmp_path, start, named):
    a, b = make_run(tmp_path), make_run(tmp_path, start=start)
    with pytest.raises(OrinError) as caught:
        compare(a, b)
    assert named in str(caught.value)
    assert b.folder.name in str(caught.value)


def test_power_modes_are_named_where_clocks_differ_and_only_there(tmp_path):
    top = make_run(tmp_path, plan=Plan(mode="MAXN"))
    low = make_run(tmp_path, plan=Plan(mode="15W"), start={"clocks": {**CLOCKS, "gpu_mhz": 408.0}})
    with pytest.raises(OrinError, match="power mode is 'MAXN' in .*, '15W' in"):
        compare(top, low)
    assert compare(top, make_run(tmp_path)).plan == {"mode": ("MAXN", None)}


def test_an_unfinished_run_is_refused(tmp_path):
    a, b = make_run(tmp_path), make_run(tmp_path, status="failed")
    with pytest.raises(OrinError, match="status 'failed', expected 'finished'"):
        compare(a, b)


def test_the_command_prints_a_table_that_is_labelled(tmp_path, capsys):
    a = make_run(tmp_path)
    b = make_run(tmp_path, plan=Plan(dla_batch=4), end={"power": watts(34.4, 0.5)})
    assert main(["compare", str(a.folder), str(b.folder)]) == 0
    text = capsys.readouterr().out
    assert text.count("SIMULATED: ") == 2
    assert max(len(line) for line in text.splitlines() if not line.startswith(("A: ", "B: "))) <= 100
    assert next(line for line in text.splitlines() if line.startswith("module, W")).split()[-2:] == ["not", "resolved"]
    assert next(line for line in text.splitlines() if line.startswith("dla_batch")).split() == ["dla_batch", "2", "4"]


def test_the_command_prints_one_json_object(tmp_path, capsys):
    runs = [str(make_run(tmp_path).folder) for _ in range(2)]
    assert main(["compare", *runs, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["a"]["samples_per_s"] == found["b"]["samples_per_s"] == 6800.0
    assert found["ratios"]["samples_per_s"] == {"value": 1.0, "u95": None, "resolved": True}
    assert found["ratios"]["module"]["resolved"] is False
    assert found["plan_differences"] == {}


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    a, b = make_run(tmp_path), make_run(tmp_path, start={"provenance": "measured"})
    assert main(["compare", str(a.folder), str(b.folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "provenance" in captured.err
