"""Costs of engines: against hand-computed laws and the published rows behind them."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from engines.engine import Workload
from orin.errors import OrinError
from orin.plan import STACKS, Plan
from orin.soc import AGX_ORIN_64GB_SOC as SOC
from orin.virtual.model import CostModel, EngineShape, clocks_of
from orin.virtual.parameters import PARAMETERS_PATH, load_parameters

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
RESNET = load_parameters().networks["resnet50"].workload
MAXQ = replace(SOC.max_clocks, gpu_mhz=612.0, emc_mhz=2133.0, cpu_mhz=576.0)


def model(stack="mlperf-v3.0", mode="MAXN", clocks=None):
    return CostModel(SOC, clocks or SOC.clocks(mode), stack)


def gpu(batch=256, precision="int8", network="resnet50", workload=RESNET):
    return EngineShape(network, "gpu", batch, precision, workload)


def dla(batch=2, precision="int8", layers=(), network="resnet50", workload=RESNET):
    return EngineShape(network, "dla", batch, precision, workload, layers)


def dla_pair_per_s(mode):
    return 2 * 2e9 / model("trtexec-8.5", mode).cost(dla(), 2).solo_ns


@pytest.mark.parametrize(("mode", "published", "tolerance"), [("MAXN", 2037, 1e-3), ("15W", 1072, 1e-3)])
def test_dla_table_rows_it_was_fitted_on(mode, published, tolerance):
    assert dla_pair_per_s(mode) == pytest.approx(published, rel=tolerance)


def test_dla_table_row_it_was_not_fitted_on():
    assert dla_pair_per_s("30W") == pytest.approx(1928, rel=0.01)


@pytest.mark.parametrize(
    ("clocks", "samples", "published_ms"),
    [(SOC.max_clocks, 1, 0.63041), (SOC.max_clocks, 8, 2.170239), (MAXQ, 1, 1.4785), (MAXQ, 8, 4.666)],
)
def test_mlperf_v30_mean_latencies(clocks, samples, published_ms):
    cost = model(clocks=clocks).cost(gpu(), samples)
    assert (cost.submit_ns + cost.solo_ns) * 1e-6 == pytest.approx(published_ms, rel=1e-3)


def test_gpu_image_time_follows_sms_and_clock_for_its_compute_share():
    def per_image(clocks):
        costs = model(clocks=clocks)
        return costs.cost(gpu(), 101).solo_ns - costs.cost(gpu(), 100).solo_ns

    half = replace(SOC.max_clocks, sms=8)
    share = load_parameters().networks["resnet50"].gpu.compute_share
    assert per_image(half) / per_image(SOC.max_clocks) == pytest.approx(1 + share)


def test_mlperf_v20_maxq_is_predicted_without_being_fitted():
    cost = model("mlperf-v2.0", clocks=replace(SOC.max_clocks, gpu_mhz=930.75, cpu_mhz=1036.8)).cost(gpu(), 1)
    assert (cost.submit_ns + cost.solo_ns) * 1e-6 == pytest.approx(0.911949, rel=0.03)


def test_launch_floor_binds_small_batches_only():
    trtexec, mlperf = model("trtexec-10.3"), model("mlperf-v3.0")
    assert trtexec.cost(gpu(), 1).solo_ns == pytest.approx(1.0132e6, rel=1e-3)
    assert trtexec.cost(gpu(), 64).solo_ns == mlperf.cost(gpu(), 64).solo_ns


def test_precisions_of_trtexec():
    clocks = replace(SOC.max_clocks, gpu_mhz=1290.0)
    costs = model("trtexec-10.3", clocks=clocks)
    assert costs.cost(gpu(1, "fp16"), 1).solo_ns == pytest.approx(1.0293e6, rel=2e-3)
    assert costs.cost(gpu(1, "fp32"), 1).solo_ns == pytest.approx(1.9375e6, rel=2e-3)
    assert costs.cost(dla(1, "fp16", ("pool", "flatten")), 1).solo_ns == pytest.approx(17.734e6, rel=2e-3)


def test_weights_are_amortised_up_to_the_batch_that_stays_in_sram():
    costs = model()
    one, two, eight = (costs.cost(dla(n), n).solo_ns / n for n in (1, 2, 8))
    weight_ms = load_parameters().networks["resnet50"].dla.weight_ms
    assert one - two == pytest.approx(weight_ms / 2 * 1e6, rel=1e-3)
    assert eight == pytest.approx(two)


def test_gpu_layers_cut_a_dla_engine_without_changing_its_dla_work():
    costs = model()
    whole, cut = costs.cost(dla(1), 1), costs.cost(dla(1, layers=("pool", "flatten")), 1)
    assert [s.resource for s in cut.segments] == ["dla", "gpu", "dla", "gpu"]
    assert sum(s.solo_ns for s in cut.segments if s.resource == "dla") == pytest.approx(whole.solo_ns)
    assert cut.dram_bytes == pytest.approx(whole.dram_bytes)
    assert cut.solo_ns == pytest.approx(1.2783e6, rel=1e-3)  # published, two fallback layers


def test_dla_runs_its_static_batch_however_few_samples_are_real():
    costs = model()
    assert costs.cost(dla(8), 1) is costs.cost(dla(8), 8)


def test_dla_without_fp32_says_what_to_do():
    with pytest.raises(OrinError, match="expected int8 or fp16"):
        model().cost(dla(precision="fp32"), 2)


def test_dram_traffic_of_published_emc_readings():
    costs = model("trtexec-10.3")
    assert costs.cost(gpu(1), 1).dram_bytes == pytest.approx(0.18 * 204.736e9 / 984.7, rel=0.01)
    assert costs.cost(dla(1), 1).dram_bytes == pytest.approx(0.15 * 204.736e9 / 779.1, rel=0.01)


def test_prior_of_an_unmeasured_network_is_near_one_that_was_published():
    # SSD-ResNet-34 at 1200x1200, 433 GOP: 7.48 ms an image on the GPU (batches 1 and 8), 2 DLA cores 83 images/s
    work = Workload(macs=216_500_000_000, weight_bytes=20_000_000, activation_bytes=450_000_000)
    costs = model("mlperf-v2.0")
    shape = gpu(8, network="ssd", workload=work)
    assert not costs.is_measured(shape)
    per_image_ms = (costs.cost(shape, 8).solo_ns - costs.cost(shape, 1).solo_ns) / 7e6
    assert per_image_ms == pytest.approx(7.48, rel=0.3)
    assert 2e9 / costs.cost(dla(1, network="ssd", workload=work), 1).solo_ns == pytest.approx(83, rel=0.3)
    assert any("never measured" in note for note in costs.notes([shape]))


def test_notes_name_the_stack_whose_parameters_stand_in():
    assert model("mlperf-v3.0").notes([gpu()]) == ()
    assert any("mlperf-v3.0" in note for note in model("mlperf-v2.1").notes([gpu()]))
    assert any("trtexec-8.5" in note for note in model("mlperf-v3.0").notes([dla()]))


def test_every_stack_of_a_plan_has_parameters():
    assert set(load_parameters().stacks) == set(STACKS)
    with pytest.raises(OrinError, match="known: mlperf-v2.0"):
        load_parameters().stack("tensorrt-4")


def test_clocks_of_a_plan():
    assert clocks_of(Plan(mode="MAXN"), SOC) == SOC.max_clocks
    assert clocks_of(Plan(), SOC) == SOC.clocks("MAXN")
    locked = clocks_of(Plan(clocks_mhz={"gpu": 612.0, "emc": 2133}), SOC)
    assert (locked.gpu_mhz, locked.emc_mhz, locked.dla_mhz) == (612.0, 2133, 1600.0)


@pytest.mark.parametrize(
    "clocks", [{"pva": 100.0}, {"gpu": 0}, {"gpu": 5000.0}, {"cpu": "fast"}, {"dla": float("nan")}]
)
def test_bad_clocks_are_refused_in_one_line(clocks):
    with pytest.raises(OrinError, match="clocks_mhz") as error:
        clocks_of(Plan(clocks_mhz=clocks), SOC)
    assert "\n" not in str(error.value)


def test_every_parameter_has_a_source_and_a_number():
    document = yaml.safe_load(PARAMETERS_PATH.read_text(encoding="utf-8"))
    sections = [document["shared"], document["power"], document["networks"]["resnet50"]["fit"]]
    sections += [stack["fit"] for stack in document["stacks"].values() if "fit" in stack]
    for section in sections:
        for name, entry in section.items():
            assert isinstance(entry["value"], (int, float)), name
            assert len(entry["source"]) > 10 and entry["source"] != "fitted", name


def test_damaged_parameters_are_named(tmp_path):
    path = tmp_path / "parameters.yaml"
    path.write_text("shared: {}\n")
    with pytest.raises(OrinError, match="parameters.yaml cannot be used"):
        load_parameters(path)


def test_reference_workload_is_that_of_the_zoo():
    zoo = pytest.importorskip("engines.zoo")
    made = zoo.graph("resnet50").workload
    for name in ("macs", "weight_bytes", "activation_bytes"):
        assert getattr(RESNET, name) == pytest.approx(getattr(made, name), rel=0.01), name


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="published rows are not here")
def test_stored_parameters_are_what_the_fit_gives(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    fit_virtual = importlib.import_module("fit_virtual")
    document = yaml.safe_load(PARAMETERS_PATH.read_text(encoding="utf-8"))
    for fitted in fit_virtual.fit(fit_virtual.read_rows(), document):
        place = document
        for key in fitted.path:
            place = place[key]
        assert place["value"] == pytest.approx(fitted.value, rel=1e-4), fitted.path
        assert place["source"] == fitted.source
