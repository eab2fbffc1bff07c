"""`orin reproduce`: the published rows against their sources, errors and ratios against hand computation."""

import csv
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from orin.errors import OrinError
from orin.parts import LENGTHS, RNNT_PARTS, RNNT_STEPS, rnnt_workload
from orin.plan import Plan
from orin.predict import predict_plan
from orin.published import TABLES, published, xavier
from orin.published.reproduce import Reproduced, Reproduction, reproduce, succession
from power.quantity import ModuleQuantity, Quantity, WallQuantity
from power.wall import ANY_SUPPLY, SUPPLIES, supply
from tests.orin.commands import command

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
BENCHMARKS = {"bert-large": "bert-99", "unet3d": "3d-unet-99"}
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data")


@pytest.fixture(scope="module")
def dla_table():
    return reproduce("dla-table")


@pytest.fixture(scope="module")
def generations():
    return succession()


def read(name):
    with (DATA / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def mode_of(row):
    return "MaxQ" if row.plan.clocks_mhz else "MaxP"


@needs_data
def test_mlperf_v2_rows_are_those_of_the_submission():
    found = {(row["benchmark"], row["scenario"].lower(), row["mode"]): row for row in read("mlperf_v2.0.csv")}
    for row in published("mlperf-v2.0").rows:
        source = found.pop((BENCHMARKS.get(row.network, row.network), row.scenario, mode_of(row)))
        column = "throughput_samples_per_s" if row.unit == "samples/s" else "mean_latency_ms"
        assert row.published == pytest.approx(float(source[column]), rel=1e-3), row.id
        assert row.wall_w == (float(source["avg_power_w"]) if source["avg_power_w"] else None), row.id
    assert all(name.startswith("3d-unet") for name, *_ in found)  # the same runs under other names


@needs_data
def test_rows_marked_as_fitted_are_those_of_the_fit_data_and_no_other():
    fit = {(row["power_mode"], float(row["value"])) for row in read("published_fit.csv")}
    check = {(row["power_mode"], float(row["value"])) for row in read("published_check.csv")}
    for row in published("dla-table").rows:
        assert (row.plan.mode, row.published) in (fit if row.role == "fit" else check), row.id
    values = sorted(float(row["value"]) for row in read("published_fit.csv") if "v2.0" in row["source"])
    rows = sorted(row.published for row in published("mlperf-v2.0").rows if row.role == "fit")
    assert rows == pytest.approx(values, rel=1e-3)


@needs_data
def test_trtexec_rows_are_those_of_the_data():
    rows = {float(row["value"]): row for name in ("fit", "check") for row in read(f"published_{name}.csv")}
    for row in published("trtexec").rows:
        assert float(rows[row.published]["power_W"]) == row.module_w
        assert (row.role == "fit") == (row.published in {float(one["value"]) for one in read("published_fit.csv")})


@needs_data
def test_xavier_rows_are_the_fastest_of_their_kind():
    rows = [row for row in read("mlperf_xavier.csv") if row["device"] == "AGX Xavier" and row["scenario"] == "Offline"]
    for row in xavier().rows:
        of = [one for one in rows if one["benchmark"] == BENCHMARKS.get(row.network, row.network)]
        best = max(float(one["throughput_samples_per_s"]) for one in of if one["mode"] == "MaxP")
        assert row.samples_per_s == best
        maxq = next(one for one in of if one["mode"] == "MaxQ" and float(one["avg_power_w"]) == row.maxq_wall_w)
        assert row.maxq_samples_per_s == float(maxq["throughput_samples_per_s"])


def test_every_table_names_its_source_and_one_stack():
    for name in TABLES:
        table = published(name)
        assert table.source.startswith("github.com/") and {row.plan.stack for row in table.rows} == {table.stack}
        assert len({row.id for row in table.rows}) == len(table.rows)
        assert {row.role for row in table.rows} <= {"fit", "check", "aside"}


def test_an_unknown_table_names_the_known():
    with pytest.raises(OrinError, match="'mlperf' is not known; known: mlperf-v2.0, .*, xavier"):
        published("mlperf")


def made(network, published_value, predicted, role="check", wall=None):
    row = replace(published("dla-table").rows[0], network=network, published=published_value, role=role)
    module_w = ModuleQuantity(15.0, 1.0)
    if wall is None:
        return Reproduced(row, predicted, 0.0, module_w, None)
    return Reproduced(replace(row, wall_w=wall[0]), predicted, 0.0, module_w, WallQuantity(wall[1], 1.0))


def test_a_summary_takes_the_median_of_each_network_first():
    rows = (
        made("a", 100.0, 101.0),
        made("a", 100.0, 97.0, wall=(20.0, 25.0)),
        made("a", 100.0, 110.0),
        made("b", 100.0, 80.0),
        made("b", 100.0, 500.0, role="aside"),
        made("b", 100.0, 100.0, role="fit"),
    )
    speed, wall, fitted = Reproduction(published("dla-table"), rows).summaries
    assert (speed.quantity, speed.role, speed.rows, speed.networks) == ("speed", "check", 4, 2)
    assert speed.median == pytest.approx((0.03 + 0.20) / 2) and speed.worst == pytest.approx(-0.2)
    assert (wall.quantity, wall.rows) == ("wall W", 1) and wall.median == pytest.approx(0.25)
    assert (fitted.role, fitted.rows, fitted.median) == ("fit", 1, 0.0)


def test_a_row_is_inside_where_the_published_figure_lies_in_the_interval():
    near, far = (replace(made("a", 100.0, 110.0), u95=u95) for u95 in (10.5, 9.5))
    (speed,) = Reproduction(published("dla-table"), (near, far, near, near)).summaries
    assert speed.inside == pytest.approx(0.75)


def test_resnet50_of_the_dla_table_comes_close(dla_table):
    rows = [row for row in dla_table.rows if row.row.network == "resnet50"]
    assert len(rows) == 3 and all(abs(row.error) < 0.1 for row in rows)


def test_less_power_is_never_faster(dla_table):
    """Rows of one network are in the order of their modes."""
    for before, after in zip(dla_table.rows, dla_table.rows[1:]):
        if (before.row.network, before.row.part) == (after.row.network, after.row.part):
            assert after.predicted < before.predicted, after.row.id


def test_a_backbone_is_faster_than_its_network(dla_table):
    rates = {row.row.id: row.predicted for row in dla_table.rows}
    assert rates["retinanet-resnet34 backbone MAXN"] > 1.5 * rates["retinanet-resnet34 MAXN"]


def test_published_ratios_are_the_quotients_of_the_rows(generations):
    ratios = {ratio.network: ratio for ratio in generations.ratios}
    assert ratios["bert-large"].published_faster == pytest.approx(476.344 / 96.7259)
    per_watt = (4750.26 / 42.4171) / (1506.53 / 25.2402)
    assert ratios["resnet50"].published_per_watt == pytest.approx(per_watt)


def test_nvidias_claims_are_what_its_own_rows_come_to(generations):
    for claim in generations.claims:
        assert claim.published == pytest.approx(claim.claimed, rel=0.03), claim.name


def test_predicted_ratios_use_predicted_orin_and_recorded_xavier(generations):
    table = reproduce("mlperf-v2.0")
    orin = {row.row.id: row for row in table.rows}
    ratio = next(ratio for ratio in generations.ratios if ratio.network == "resnet50")
    assert ratio.predicted_faster == pytest.approx(orin["resnet50 Offline MaxP"].predicted / 2039.11)
    maxq = orin["resnet50 Offline MaxQ"]
    assert ratio.predicted_per_watt == pytest.approx(maxq.predicted / maxq.wall_w.value / (1506.53 / 25.2402))
    faster = [ratio.predicted_faster for ratio in generations.ratios]
    claims = {claim.name: claim.predicted for claim in generations.claims}
    assert claims["faster, on average"] == pytest.approx(statistics.mean(faster))
    assert claims["faster, at most"] == max(faster)


def test_rnnt_reads_its_weights_at_every_step():
    weights = {part.name: part.weights for part in RNNT_PARTS}
    # LSTM: 4 gates, input and state; two of 1024 on 240 features, three on two stacked steps
    assert weights["encoder inputs, before stacking"] == 4 * 1024 * (240 + 1024)
    assert weights["encoder, before stacking"] == 4 * 1024 * (1024 + 1024)
    assert weights["encoder inputs, after stacking"] == 4 * 1024 * (2048 + 1024 + 1024)
    assert weights["encoder, after stacking"] == 4 * 1024 * 3 * 1024
    assert weights["prediction"] == 2 * 4 * 320 * (320 + 320)
    work = rnnt_workload()
    assert work.macs == pytest.approx(
        sum(part.weights * part.per_step * RNNT_STEPS for part in RNNT_PARTS), abs=len(RNNT_PARTS)
    )
    again = sum(part.weights * (round(part.per_step * RNNT_STEPS) - 1) for part in RNNT_PARTS if part.recurrent)
    assert work.weight_bytes == sum(part.weights for part in RNNT_PARTS) + again


def test_rnnt_is_predicted_from_its_parts_on_the_gpu(capsys):
    alone, many = (
        predict_plan(Plan(network="rnnt", precision="fp16", gpu_batch=batch, dla_cores=0), "agx-orin-64gb")
        for batch in (1, 512)
    )
    assert many.samples_per_s > 10 * alone.samples_per_s  # weights are read once for all
    assert command(["predict", "rnnt", "--precision", "fp16"]) == 2
    assert "an LSTM is no layer of the DLA: set dla_cores: 0" in capsys.readouterr().err


def test_the_mean_volume_of_kits19_has_some_65_windows():
    assert (320 // 64 - 1) * (448 // 64 - 1) ** 2 == 144 and 320 * 448 * 448 == 64_225_280
    assert 60 < LENGTHS["unet3d"].graphs < 70


def test_wall_power_is_the_modules_and_one_constant():
    module = Quantity(20.0, 1.6)
    for one in (*SUPPLIES.values(), ANY_SUPPLY):
        wall = one.wall(module)
        assert type(wall) is WallQuantity and wall.value == pytest.approx(20.0 + one.added_w)
        assert wall.u95 == pytest.approx(math.hypot(1.6, one.u95_w)) and one.source
    assert supply("mlperf-v3.1") is supply("mlperf-v3.0") and supply("trtexec-10.3") is ANY_SUPPLY


@needs_data
def test_the_supply_of_v2_is_what_the_plug_read_at_idle():
    rows = [row for row in read("mlperf_v2.0.csv") if row["idle_before_w"] and row["benchmark"] != "3d-unet-99.9"]
    rows = [row for row in rows if (row["benchmark"], row["scenario"]) != ("3d-unet-99", "Offline")]
    idle_w = statistics.median(float(row["idle_before_w"]) for row in rows)
    assert SUPPLIES["mlperf-v2.0"].added_w == pytest.approx(idle_w - 7.6, abs=0.05)


def test_the_command_prints_rows_errors_and_summary(tmp_path, capsys):
    assert command(["reproduce", "dla-table", "--out", str(tmp_path), "--quiet"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].startswith("SIMULATED: ") and "stack trtexec-8.5" in lines[0] and not said.err
    assert all(len(line) <= 100 for line in lines)
    assert sum("fitted" in line for line in lines) == 12 + 1  # 12 rows and their summary
    assert any(line.startswith("speed, checked") for line in lines)
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page and "predicted over published" in page and "ssd-mobilenet 30W" in page


def test_the_command_as_json(tmp_path, capsys):
    assert command(["reproduce", "xavier", "--out", str(tmp_path), "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["provenance"] == "simulated" and Path(said["report"]).is_file()
    (table,) = said["tables"]
    assert len(table["ratios"]) == 5 and {claim["claimed"] for claim in table["claims"]} == {5.0, 3.4, 2.3}


def test_the_command_refuses_in_one_line(capsys):
    assert command(["reproduce", "mlperf-v9", "--quiet"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("orin reproduce: published table 'mlperf-v9' is not known") and not said.out


def test_module_watts_stand_apart_from_those_at_the_plug(tmp_path, capsys):
    assert command(["reproduce", "trtexec", "--out", str(tmp_path), "--json", "--quiet"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    for row in table["rows"]:
        assert row["wall"] is None
        power = row["module"]
        assert power["error"] == pytest.approx(power["predicted_w"]["value"] / power["published_w"] - 1)
    assert {(line["quantity"], line["role"]) for line in table["summary"]} == {
        (quantity, role) for quantity in ("speed", "module W") for role in ("check", "fit")
    }
