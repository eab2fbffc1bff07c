"""`orin tune`: runs kept as records, resumed with the same result, printed; what is refused."""

import argparse
import json

import numpy as np
import pytest

from orin.cli import tune as command
from orin.errors import OrinError
from orin.plan import Plan
from orin.predict import workloads
from orin.record import Batch, RunRecord, load_record
from orin.soc import soc
from orin.tune.placements import placements
from orin.tune.run import VirtualRunner, item_latency_ms, measurement_of, relative_u95, virtual_runner
from orin.tune.session import STATE

SOC = soc("agx-orin-64gb")
BOARD = ("--board", "virtual:agx-orin-64gb", "--seconds-per-run", "1", "--quiet")


def tune(*words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.handle(parser.parse_args([*map(str, words), *BOARD]))


@pytest.fixture(scope="module", autouse=True)
def one_placement():
    """Each set of rewrites reads the network anew: one is enough here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orin.tune.session.placements", lambda base: {base.rewrites: workloads(base)})
        yield


def answer(capsys, *words):
    assert tune(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning") / "resnet50"
    assert tune("resnet50", "--runs", 3, "-o", folder, "--json") == 0
    return folder


def test_writes_plan_report_and_a_record_for_every_run(done):
    kept = json.loads((done / STATE).read_text())
    assert len(kept["runs"]) == 3
    for run in kept["runs"]:
        for name in run["records"]:
            record = load_record(done / name)
            assert record.finished
            assert record["provenance"] == "simulated"
            assert Plan(**record["plan"]).as_json() == run["plan"]
    chosen = Plan.load(done / "plan.yaml").as_json()
    assert chosen in [run["plan"] for run in kept["runs"]]
    page = (done / "report.html").read_text()
    assert "SIMULATED" in page
    assert "<svg" in page


def test_goes_on_where_it_stopped_with_the_same_result(done, tmp_path, capsys):
    whole = answer(capsys, "resnet50", "--runs", 3, "-o", done)
    assert whole["resumed"] == 3
    kept = json.loads((done / STATE).read_text())
    kept["runs"] = kept["runs"][:2]  # as a killed tuning leaves it
    folder = tmp_path / "cut"
    folder.mkdir()
    (folder / STATE).write_text(json.dumps(kept))
    again = answer(capsys, "resnet50", "--runs", 3, "-o", folder)
    assert again["resumed"] == 2
    assert again["plan"] == whole["plan"]
    assert [run["measured"] for run in again["runs"]] == [run["measured"] for run in whole["runs"]]


def test_a_tuning_that_was_killed_in_a_run_ends_as_one_that_was_not(done, tmp_path, capsys, monkeypatch):
    whole = answer(capsys, "resnet50", "--runs", 3, "-o", done)
    measure, made = VirtualRunner.measure, []

    def killed(runner, plan, number):
        if number == 3 and not made:
            made.append(number)
            raise KeyboardInterrupt
        return measure(runner, plan, number)

    monkeypatch.setattr(VirtualRunner, "measure", killed)
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        tune("resnet50", "--runs", 3, "-o", folder)
    assert Plan.load(folder / "plan.yaml").as_json() in [run["plan"] for run in whole["runs"]]
    again = answer(capsys, "resnet50", "--runs", 3, "-o", folder)
    assert again["resumed"] == 2
    assert again["plan"] == whole["plan"]
    assert [run["measured"] for run in again["runs"]] == [run["measured"] for run in whole["runs"]]


def test_board_seconds_in_place_of_runs(tmp_path, capsys):
    found = answer(capsys, "resnet50", "--board-seconds", 1.3, "-o", tmp_path / "short")
    assert found["stopped_by"] == "1.3 board-seconds"
    assert found["board_seconds"] <= 1.3
    more = answer(capsys, "resnet50", "--board-seconds", 1.8, "-o", tmp_path / "short")
    assert more["resumed"] == len(found["runs"]) < len(more["runs"])


def test_prints_tables_that_fit(done, capsys):
    assert tune("resnet50", "--runs", 3, "-o", done) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "SIMULATED: 3 runs of resnet50"
    assert max(map(len, lines[:-4])) <= 100
    assert any(line.startswith("runner-up") for line in lines)


def test_another_question_in_the_same_folder_is_refused(done):
    with pytest.raises(OrinError, match="kind throughput, asked for latency"):
        tune("resnet50", "--runs", 3, "--objective", "latency", "-o", done)


def test_a_damaged_state_is_refused(tmp_path):
    (tmp_path / STATE).write_text("{")
    with pytest.raises(OrinError, match="cannot be used"):
        tune("resnet50", "-o", tmp_path)


def test_runs_out_of_range_are_refused(tmp_path):
    with pytest.raises(OrinError, match="--runs is 0, expected 1 to 1000"):
        tune("resnet50", "--runs", 0, "-o", tmp_path)


def test_board_seconds_out_of_range_are_refused(tmp_path):
    with pytest.raises(OrinError, match="--board-seconds is -1, expected a positive number"):
        tune("resnet50", "--board-seconds", -1, "-o", tmp_path)


def test_a_plan_that_cannot_run_is_a_failure_not_an_error(tmp_path):
    runner = virtual_runner("virtual:agx-orin-64gb", tmp_path, 1.0)
    found = runner.measure(Plan(precision="fp32"), 1)
    assert "fp32" in found.measurement.failure
    assert found.folders == ()


def record_of(tmp_path, ends_ms, samples=4, depth=2):
    """A run of the GPU alone whose items end at moments; each begins when the one before ended."""
    begins = [0, *ends_ms[:-1]]
    batches = tuple(Batch("gpu", round(b * 1e6), round(e * 1e6), samples) for b, e in zip(begins, ends_ms))
    plan = Plan(gpu_batch=samples, gpu_depth=depth, dla_cores=0)
    values = {
        "status": "finished",
        "provenance": "simulated",
        "network": {"name": "resnet50"},
        "board": "virtual:agx-orin-64gb",
        "stack": plan.stack,
        "scenario": "offline",
        "plan": plan.as_json(),
        "window_ns": [0, round(ends_ms[-1] * 1e6)],
        "power": {"module_w": {"value": 20.0, "u95": 1.0}, "rails_w": {}},
    }
    return RunRecord(tmp_path, values, batches)


def test_figures_of_a_run_by_hand(tmp_path):
    record = record_of(tmp_path, [20, 30, 40, 50, 60, 70, 80, 90, 100, 110])
    found = measurement_of([record], SOC)
    assert found.samples_per_s.value == pytest.approx(9 * 4 / 0.090)
    assert found.samples_per_s.u95 == pytest.approx(0.0)
    assert found.module_w.value == 20.0
    assert found.latency_ms.value == pytest.approx(20.0)
    assert found.seconds == pytest.approx(0.110)
    assert found.share["gpu"] == 1.0


def test_scatter_widens_the_interval(tmp_path):
    gaps = np.array([10.0, 12, 8, 11, 9, 10, 12, 8, 11, 9, 10, 10])
    record = record_of(tmp_path, list(np.cumsum(gaps)))
    inner = gaps[1:][1:-1]
    assert relative_u95(record) == pytest.approx(1.96 * inner.std(ddof=1) / inner.mean() / np.sqrt(len(inner)))


def test_few_items_still_have_a_latency(tmp_path):
    assert item_latency_ms(record_of(tmp_path, [100, 220])).value == pytest.approx(2 * 120)
    assert item_latency_ms(record_of(tmp_path, [100, 220], depth=1)).value == pytest.approx(120)


def test_placements_that_differ_are_kept_once():
    found = placements(Plan())
    assert next(iter(found)) == Plan().rewrites
    assert not found[Plan().rewrites].dla_gpu_layers
    assert any(work.dla_gpu_layers for work in found.values())
    values = list(found.values())
    assert all(one != other for at, one in enumerate(values) for other in values[:at])
