"""`orin predict --explain`: parts that add up to the prediction, floors by hand."""

import json

import pytest

from engines.zoo import graph
from orin.errors import OrinError
from orin.explain import explain
from orin.plan import Plan
from orin.soc import soc
from tests.orin.commands import command

BOARD = "agx-orin-64gb"
PLANS = {
    "all three": (Plan(stack="mlperf-v3.0"), "offline"),
    "GPU layers in the DLA's engine": (Plan(rewrites=(), mode="15W"), "offline"),
    "one DLA": (Plan(gpu_batch=0, dla_cores=1, mode="50W"), "offline"),
    "one sample at a time": (Plan(dla_cores=0, stack="mlperf-v3.0"), "singlestream"),
    "eight at a time": (Plan(gpu_batch=2, dla_cores=0), "multistream"),
}


@pytest.fixture(scope="module", params=PLANS)
def explained(request):
    plan, scenario = PLANS[request.param]
    return explain(plan, BOARD, scenario)


def test_the_parts_of_a_samples_time_are_one_over_the_rate(explained):
    prediction = explained.prediction
    for account in explained.accounts:
        rate = prediction.samples_per_s * prediction.share[account.accelerator]
        assert account.total_ms == pytest.approx(1e3 / rate)
        parts = (*(part.compute_ms for part in account.segments), account.waiting_ms, account.overhead_ms)
        assert all(part > -1e-3 for part in parts)


def test_the_joules_are_the_modules(explained):
    prediction = explained.prediction
    spent = explained.millijoules
    assert sum(spent.values()) == pytest.approx(1e3 * prediction.module_w.value / prediction.samples_per_s)
    assert all(part >= 0 for part in spent.values()) and spent["host and rest"] < 0.1 * sum(spent.values())


def test_layers_add_up_to_the_accelerator_s_own_time():
    plan, scenario = PLANS["all three"]
    for account in explain(plan, BOARD, scenario).accounts:
        layers_ms = sum(layer.solo_ns for layer in account.layers) / account.batch * 1e-6
        assert layers_ms == pytest.approx(account.compute_ms + account.dram_ms)
        assert {layer.op for layer in account.layers} == {"conv", "pool", "matmul"} - (
            {"matmul"} if account.accelerator != "gpu" else set()
        )


def test_nothing_beats_the_roofline(explained):
    assert all(account.floor_ms < account.total_ms for account in explained.accounts)


def test_floors_are_two_operations_a_mac_and_bytes_over_bandwidth():
    plan, scenario = PLANS["all three"]
    explained = explain(plan, BOARD, scenario)
    gpu, dla0, _ = explained.accounts
    macs = graph("resnet50").workload.macs
    assert gpu.floor_compute_ms == pytest.approx(2e3 * macs / (16 * 4096 * 1300.5e6))
    assert dla0.floor_compute_ms == pytest.approx(
        2e3 * macs / (2 * 8192 * 1600e6), rel=0.01
    )  # rewritten: a little more
    megabytes = sum(part.dram_mb for part in gpu.segments)
    assert gpu.floor_dram_ms == pytest.approx(
        megabytes * 1e9 / soc(BOARD).gpu_dram_bytes_per_s(explained.prediction.clocks)
    )


def test_alone_nothing_waits_and_streams_pay_the_submission():
    alone = explain(*PLANS["one DLA"][:1], BOARD).accounts[0]
    assert alone.waiting_ms == pytest.approx(0, abs=2e-3 * alone.total_ms)
    (stream,) = explain(PLANS["one sample at a time"][0], BOARD, "singlestream").accounts
    assert stream.batch == 1 and stream.overhead_ms > 0.05 * stream.total_ms


def test_layers_on_the_gpu_are_segments_of_their_own_and_wait_for_it():
    plan, scenario = PLANS["GPU layers in the DLA's engine"]
    accounts = {account.accelerator: account for account in explain(plan, BOARD, scenario).accounts}
    assert {part.resource for part in accounts["dla0"].segments} == {"dla", "gpu"}
    assert accounts["dla0"].waiting_ms > 0 and accounts["gpu"].waiting_ms > 0


def test_server_is_refused():
    with pytest.raises(OrinError, match="--explain takes offline, singlestream or multistream"):
        explain(Plan(), BOARD, "server")


def test_the_command_prints_within_100_columns(capsys):
    assert command(["predict", "resnet50", "--explain", "--no-rewrite"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 100 for line in lines) and sum(line.startswith("SIMULATED: ") for line in lines) == 4
    assert any(line.startswith("wall power") and "(any supply)" in line for line in lines)


def test_an_offline_prediction_has_one_latency_that_of_its_query(capsys):
    assert command(["predict", "resnet50"]) == 0
    assert "query latency       600 s: Offline is one query" in capsys.readouterr().out


def test_the_command_as_json(capsys):
    assert command(["predict", "resnet50", "--explain", "--json", "--stack", "mlperf-v3.0"]) == 0
    said = json.loads(capsys.readouterr().out)
    accounts = said["explanation"]["accelerators"]
    assert [account["accelerator"] for account in accounts] == ["gpu", "dla0", "dla1"]
    rates = sum(1e3 / account["total_ms"] for account in accounts)
    assert rates == pytest.approx(said["samples_per_s"])
    power = said["power_w"]
    assert power["wall"]["supply"] == "MLPerf v3.0's set-up" and power["wall"]["u95"] > power["module"]["u95"]


def test_without_it_nothing_is_explained(capsys):
    assert command(["predict", "resnet50", "--json"]) == 0
    assert "explanation" not in json.loads(capsys.readouterr().out)


def test_a_query_in_uneven_batches_waits_for_nothing():
    (account,) = explain(Plan(gpu_batch=3, dla_cores=0), BOARD, "multistream").accounts  # 3 + 3 + 2
    assert account.batch == 3 and account.segments[0].count == 3
    assert account.waiting_ms == pytest.approx(0, abs=1e-9)
