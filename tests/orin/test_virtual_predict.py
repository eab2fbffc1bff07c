"""Predictions: published anchors, steady state against all events, queueing theory, what is said about them."""

import json
from dataclasses import replace

import onnx
import pytest

from engines import zoo
from engines.engine import Workload
from orin.errors import OrinError
from orin.plan import Plan
from orin.predict import predict_plan, workloads
from orin.soc import AGX_ORIN_64GB_SOC as SOC
from orin.virtual.model import CostModel, clocks_of
from orin.virtual.predict import Options, Workloads, known_workloads, load_parameters, plan_shapes, predict

MLPERF = Plan(mode="MAXN", stack="mlperf-v3.0")
BATCH_1 = Plan(mode="MAXN", rewrites=(), gpu_batch=1, dla_batch=1)


def test_offline_on_all_three_accelerators():
    prediction = predict(MLPERF, SOC)
    assert prediction.samples_per_s == pytest.approx(6138.84, rel=0.15)  # MLPerf v2.0 Offline, MaxP
    assert sum(prediction.share.values()) == pytest.approx(1)
    assert 0.6 < prediction.share["gpu"] < 0.75
    assert 30 < prediction.module_w.value < 70
    assert prediction.samples_per_s < prediction.ceiling.samples_per_s
    assert all(0.99 < share <= 1 for share in prediction.utilisation.values())


def test_gpu_alone_and_dlas_alone():
    assert predict(replace(MLPERF, dla_cores=0), SOC).samples_per_s == pytest.approx(4500, rel=0.2)
    assert predict(replace(MLPERF, gpu_batch=0), SOC).samples_per_s == pytest.approx(2037, rel=0.02)


def test_streams_use_the_gpu_alone_and_match_published_means():
    single, multi = predict(MLPERF, SOC, "singlestream"), predict(MLPERF, SOC, "multistream")
    assert single.latency_ms["mean"] == pytest.approx(0.63041, rel=0.04)
    assert multi.latency_ms["mean"] == pytest.approx(2.170239, rel=0.04)
    assert multi.samples_per_s == pytest.approx(8e3 / multi.latency_ms["mean"])
    assert multi.share == {"gpu": 1.0, "dla0": 0.0, "dla1": 0.0}


def test_noise_spreads_latencies_a_little():
    exact, noisy = (predict(MLPERF, SOC, "multistream", options=Options(noise=on)) for on in (False, True))
    assert exact.latency_ms["p99"] == pytest.approx(exact.latency_ms["p50"])
    assert 1.005 < noisy.latency_ms["p99"] / noisy.latency_ms["p50"] < 1.03


@pytest.mark.parametrize(
    "plan",
    [
        MLPERF,
        replace(MLPERF, mode="15W", dla_batch=8),
        replace(MLPERF, gpu_batch=0, dla_loop=4, dla_cores=1, stack="trtexec-10.3"),
        replace(MLPERF, gpu_batch=16, dla_batch=16, gpu_depth=1, dla_depth=1),
        replace(MLPERF, rewrites=(), gpu_batch=64),
        replace(MLPERF, tail="gpu"),
    ],
)
def test_steady_state_is_all_events_carried_on(plan):
    steady = predict(plan, SOC, options=Options(seconds=15))
    full = predict(plan, SOC, options=Options(seconds=15, full=True))
    assert steady.samples_per_s == pytest.approx(full.samples_per_s, rel=2e-3)
    assert steady.module_w.value == pytest.approx(full.module_w.value, rel=2e-3)
    assert steady.dram_gb_per_s == pytest.approx(full.dram_gb_per_s, rel=2e-3)
    assert steady.share == pytest.approx(full.share, abs=2e-3)


@pytest.mark.parametrize("accelerators", [{"dla_cores": 0}, {"gpu_batch": 0}, {}])
def test_sparse_weights_are_faster_by_less_than_two_below_a_higher_ceiling(accelerators):
    dense, sparse = (predict(replace(MLPERF, sparsity=on, **accelerators), SOC) for on in (False, True))
    assert 1 < sparse.samples_per_s / dense.samples_per_s < 2
    assert sparse.ceiling.compute_samples_per_s == pytest.approx(2 * dense.ceiling.compute_samples_per_s)
    assert sparse.speed_sd > dense.speed_sd and any("2:4 sparsity" in note for note in sparse.notes)


def test_ten_minutes_are_predicted():
    assert predict(MLPERF, SOC).seconds == pytest.approx(600)


def test_two_gpu_layers_in_three_processes_halve_the_summed_solo_rates():
    # Published: 47.2 % of the sum of the three solo rates (trtexec, TensorRT 10.3)
    together = predict(BATCH_1, SOC, options=Options(seconds=20, processes="separate")).samples_per_s
    solo_gpu = predict(replace(BATCH_1, dla_cores=0), SOC, options=Options(seconds=20)).samples_per_s
    solo_dla = predict(replace(BATCH_1, gpu_batch=0, dla_cores=1), SOC, options=Options(seconds=20)).samples_per_s
    assert together / (solo_gpu + 2 * solo_dla) == pytest.approx(0.472, abs=0.02)
    one_process = predict(BATCH_1, SOC, options=Options(seconds=20)).samples_per_s
    rewritten = predict(replace(BATCH_1, rewrites=MLPERF.rewrites), SOC, options=Options(seconds=20)).samples_per_s
    assert together < one_process < rewritten


def test_the_tail_leaves_the_last_samples_to_who_ends_first():
    # A DLA batch of 64 takes 63 ms, the GPU's 64 samples 14 ms: the DLAs must take none of 64.
    plan = replace(MLPERF, dla_batch=64)
    prediction = predict(plan, SOC, options=Options(samples=64))
    assert prediction.share["gpu"] == 1
    many = predict(plan, SOC, options=Options(samples=6400))
    assert many.share["dla0"] > 0.1


def test_offline_answers_every_sample_it_was_asked():
    for samples in (1, 7, 257, 1000):
        prediction = predict(MLPERF, SOC, options=Options(samples=samples))
        assert prediction.samples_per_s * prediction.seconds == pytest.approx(samples)
        assert prediction.latency_ms["p99"] == pytest.approx(prediction.seconds * 1e3)


def test_server_on_one_accelerator_is_an_md1_queue():
    # Deterministic service one by one at Poisson arrivals: mean = D + rho D / (2 (1 - rho)), Pollaczek-Khinchine.
    plan = replace(MLPERF, gpu_batch=1, gpu_depth=1, dla_cores=0)
    model = CostModel(SOC, clocks_of(plan, SOC), plan.stack)
    shape = plan_shapes(plan, SOC, known_workloads(plan, load_parameters()))["gpu"]
    service_ms = (model.cost(shape, 1).solo_ns + model.cost(shape, 1).submit_ns) * 1e-6
    for load in (0.3, 0.6):
        options = Options(server_qps=load / service_ms * 1e3, seed=2)
        mean_ms = predict(plan, SOC, "server", options=options).latency_ms["mean"]
        assert mean_ms == pytest.approx(service_ms * (1 + load / (2 * (1 - load))), rel=0.03)


@pytest.mark.parametrize("network", ["resnet50", "bert-large"])  # of bert-large, the DLAs leave much to the GPU
def test_server_is_offered_four_fifths_of_offline(network):
    plan = Plan(network=network, mode="MAXN", gpu_batch=8)
    offline, server = (predict_plan(plan, SOC.name, scenario) for scenario in ("offline", "server"))
    assert server.samples_per_s == pytest.approx(0.8 * offline.samples_per_s, rel=0.03)


def test_server_serves_the_rate_it_is_asked_and_no_more_than_it_can():
    assert predict(MLPERF, SOC, "server", options=Options(server_qps=1000)).samples_per_s == pytest.approx(
        1000, rel=0.03
    )
    flooded = predict(MLPERF, SOC, "server", options=Options(server_qps=50_000))
    assert flooded.samples_per_s < 6600
    assert flooded.latency_ms["p99"] > 1000


def test_module_power_of_published_solo_runs():
    plan = replace(BATCH_1, clocks_mhz={"gpu": 812.0, "dla": 1369.6, "cpu": 1497.6}, mode=None)  # 50W, not fitted
    gpu = predict(replace(plan, dla_cores=0), SOC, options=Options(seconds=20))
    assert gpu.module_w.value == pytest.approx(19.34, rel=0.05)
    dla = predict(replace(plan, gpu_batch=0, dla_cores=1), SOC, options=Options(seconds=20))
    assert dla.module_w.value == pytest.approx(14.29, rel=0.05)
    assert dla.rails_w["VDD_CPU_CV"].value == pytest.approx(2.39, rel=0.05)


def test_json_has_the_documented_keys():
    values = json.loads(json.dumps(predict(MLPERF, SOC).as_json()))
    assert values["provenance"] == "simulated"
    assert values["board"] == "virtual:agx-orin-64gb"
    assert set(values["latency_ms"]) == {"mean", "p50", "p90", "p99"}
    assert set(values["power_w"]["module"]) == {"value", "u95"}
    assert set(values["power_w"]["rails"]) == {rail.name for rail in SOC.board.rails}
    assert values["samples_per_joule"]["value"] == pytest.approx(
        values["samples_per_s"] / values["power_w"]["module"]["value"]
    )
    total = sum(values["power_w"]["rails"][rail.name]["value"] for rail in SOC.board.total_rails())
    assert values["power_w"]["module"]["value"] == pytest.approx(total)


def test_an_unmeasured_network_needs_its_workload_and_gets_a_wide_interval():
    plan = replace(MLPERF, network="mine.onnx")
    with pytest.raises(OrinError, match="give its workloads"):
        predict(plan, SOC)
    work = Workload(macs=10**9, weight_bytes=10**7, activation_bytes=4 * 10**7)
    prediction = predict(plan, SOC, workloads=Workloads(work, work))
    assert prediction.samples_per_s_u95 / prediction.samples_per_s > 0.2
    low, high = prediction.interval()
    assert low * high == pytest.approx(prediction.samples_per_s**2)
    known = predict(MLPERF, SOC)
    assert high / low > 1.1 * known.interval()[1] / known.interval()[0]
    assert any("never measured" in note for note in prediction.notes)
    assert prediction.samples_per_s < prediction.ceiling.samples_per_s


def test_a_plan_without_mode_says_which_one_it_got():
    prediction = predict(replace(MLPERF, mode=None), SOC)
    assert prediction.clocks == SOC.clocks("MAXN")
    assert any("MAXN" in note for note in prediction.notes)


@pytest.mark.parametrize(
    ("scenario", "options"),
    [
        ("batch", Options()),
        ("offline", Options(seconds=0)),
        ("offline", Options(samples=-1)),
        ("server", Options(server_qps=float("nan"))),
        ("offline", Options(processes="two")),
    ],
)
def test_bad_requests_are_refused_in_one_line(scenario, options):
    with pytest.raises(OrinError, match="expected") as error:
        predict(MLPERF, SOC, scenario, options=options)
    assert "\n" not in str(error.value)


def test_a_governor_slows_a_gpu_that_has_little_to_do():
    plan = replace(MLPERF, gpu_batch=8, dla_cores=0)
    locked, governed = (
        predict(plan, SOC, "server", options=Options(seconds=5, server_qps=400, dvfs=dvfs)) for dvfs in (None, 0.7)
    )
    steps = SOC.gpu_steps_mhz(SOC.max_clocks.gpu_mhz)
    assert governed.clocks.gpu_mhz in steps[:-1] and governed.utilisation["gpu"] <= 0.7
    below = replace(plan, mode=None, clocks_mhz={"gpu": steps[max(0, steps.index(governed.clocks.gpu_mhz) - 1)]})
    slower = predict(below, SOC, "server", options=Options(seconds=5, server_qps=400))
    assert governed.clocks.gpu_mhz == steps[0] or slower.utilisation["gpu"] > 0.7
    assert governed.latency_ms["mean"] > locked.latency_ms["mean"]
    assert governed.module_w.value < locked.module_w.value
    assert any("clocks are caps" in note for note in governed.notes)


def test_a_governor_leaves_a_busy_gpu_at_its_cap():
    plan = replace(MLPERF, mode="30W")
    assert predict(plan, SOC, options=Options(dvfs=0.7)).clocks == predict(plan, SOC).clocks


def test_a_governor_lowers_the_clock_of_a_gpu_that_runs_nothing():
    found = predict(replace(MLPERF, gpu_batch=0), SOC, options=Options(dvfs=0.7))
    assert found.clocks.gpu_mhz == SOC.gpu_steps_mhz(SOC.max_clocks.gpu_mhz)[0]


@pytest.mark.parametrize("dvfs", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_that_no_governor_aims_at_is_refused(dvfs):
    with pytest.raises(OrinError, match="dvfs is"):
        predict(MLPERF, SOC, options=Options(dvfs=dvfs))


@pytest.mark.parametrize("open_axes", [(0,), (0, 2, 3)], ids=["batch", "batch and size"])
def test_a_file_is_predicted_as_the_network_in_it_is(open_axes, tmp_path):
    network = zoo.model("resnet50", with_weights=False)
    for axis in open_axes:
        network.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "n"
    onnx.save(network, tmp_path / "mine.onnx")
    assert workloads(Plan(network=str(tmp_path / "mine.onnx"))) == workloads(Plan(network="resnet50"))
    assert predict_plan(Plan(network=str(tmp_path / "mine.onnx")), SOC.name).samples_per_s > 0


def test_the_ceiling_of_a_stream_is_that_of_the_accelerator_that_answers_it():
    alone = replace(MLPERF, gpu_batch=8, dla_cores=0)
    both = replace(MLPERF, gpu_batch=8)
    for scenario in ("singlestream", "multistream"):
        assert predict(both, SOC, scenario).ceiling == predict(alone, SOC, scenario).ceiling
    assert predict(both, SOC).ceiling.compute_samples_per_s > predict(alone, SOC).ceiling.compute_samples_per_s


def test_clocks_in_force_win_over_those_that_a_plan_asks_for():
    held = SOC.clocks("30W")
    found = predict(replace(MLPERF, mode="a mode of the board's own"), SOC, options=Options(clocks=held))
    assert found.clocks == held
    assert found.samples_per_s == predict(replace(MLPERF, mode="30W"), SOC).samples_per_s
