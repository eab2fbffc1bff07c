"""Costs of engines: published rows, limits of physics, what is said about them."""

from dataclasses import replace

import pytest
import yaml

from engines.costs import LayerWork
from engines.engine import Workload
from orin.errors import OrinError
from orin.plan import STACKS, Plan
from orin.soc import AGX_ORIN_64GB_SOC as SOC
from orin.soc import ORIN_NX_16GB_SOC
from orin.virtual.model import CostModel, EngineShape, clocks_of
from orin.virtual.parameters import PARAMETERS_PATH, document_of, load_parameters, save_document
from orin.virtual.predict import zoo_workload

RESNET = zoo_workload("resnet50")
MAXQ = replace(SOC.max_clocks, gpu_mhz=612.0, emc_mhz=2133.0, cpu_mhz=576.0)


def model(stack="mlperf-v3.0", mode="MAXN", clocks=None):
    return CostModel(SOC, clocks or SOC.clocks(mode), stack)


def gpu(batch=256, precision="int8", network="resnet50", workload=RESNET):
    return EngineShape(network, "gpu", batch, precision, workload)


def dla(batch=2, precision="int8", layers=(), network="resnet50", workload=RESNET):
    return EngineShape(network, "dla", batch, precision, workload, layers)


def dla_pair_per_s(mode):
    return 2 * 2e9 / model("trtexec-8.5", mode).cost(dla(), 2).solo_ns


@pytest.mark.parametrize(("mode", "published"), [("MAXN", 2037), ("30W", 1928), ("15W", 1072)])
def test_dla_table(mode, published):
    assert dla_pair_per_s(mode) == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(
    ("clocks", "samples", "published_ms"),
    [(SOC.max_clocks, 1, 0.63041), (SOC.max_clocks, 8, 2.170239), (MAXQ, 1, 1.4785), (MAXQ, 8, 4.666)],
)
def test_mlperf_v30_mean_latencies(clocks, samples, published_ms):
    cost = model(clocks=clocks).cost(gpu(), samples)
    assert (cost.submit_ns + cost.solo_ns) * 1e-6 == pytest.approx(published_ms, rel=0.04)


def test_mlperf_v20_maxq_is_predicted_without_being_fitted():
    cost = model("mlperf-v2.0", clocks=replace(SOC.max_clocks, gpu_mhz=930.75, cpu_mhz=1036.8)).cost(gpu(), 1)
    assert (cost.submit_ns + cost.solo_ns) * 1e-6 == pytest.approx(0.911949, rel=0.1)


def test_launch_floor_binds_small_batches_only():
    trtexec, mlperf = model("trtexec-10.3"), model("mlperf-v3.0")
    assert trtexec.cost(gpu(), 1).solo_ns == pytest.approx(1.0132e6, rel=0.02)
    assert trtexec.cost(gpu(), 1).solo_ns > 1.5 * mlperf.cost(gpu(), 1).solo_ns
    assert trtexec.cost(gpu(), 64).solo_ns == pytest.approx(0.5 * trtexec.cost(gpu(), 128).solo_ns, rel=0.03)


def test_mlperf_runs_the_second_stage_of_resnet50_as_one_kernel():
    """Its 3 blocks of 56 x 56 pass 256, 64, 64, 256 channels and a shortcut; only 64 come in and 256 go out."""
    pixels, batch = 56 * 56, 256
    first = 64 + 64 + 64 + 64 + 64 + 256 + (64 + 256) + 256  # what convolutions a, b, c and the projection move
    blocks = first + 2 * (256 + 64 + 64 + 64 + 64 + 256 + 256)
    apart, together = (model(stack).cost(gpu(), batch).dram_bytes for stack in ("trtexec-10.3", "mlperf-v3.0"))
    assert apart - together == pytest.approx(batch * pixels * (blocks - 64 - 256), rel=0.03)  # the L2 keeps some
    dlas = [model(stack).cost(dla(), 2).solo_ns for stack in ("trtexec-8.5", "mlperf-v3.0")]
    assert dlas[0] == dlas[1]


def test_larger_gpu_batches_of_resnet50_are_no_slower_per_image():
    """As in NVIDIA's submissions, whose Offline runs at 256 beat a batch of 8 (2.170 ms less the host: 4,000/s)."""
    rates = [batch / model().cost(gpu(batch), batch).solo_ns * 1e9 for batch in (1, 2, 4, 8, 16, 32)]
    assert rates == sorted(rates)
    assert 256 / model().cost(gpu(), 256).solo_ns * 1e9 > max(4000, 0.98 * rates[-1])


def test_precisions_of_trtexec():
    clocks = replace(SOC.max_clocks, gpu_mhz=1290.0)
    costs = model("trtexec-10.3", clocks=clocks)
    assert costs.cost(gpu(1, "fp16"), 1).solo_ns == pytest.approx(1.0293e6, rel=0.03)
    assert costs.cost(gpu(1, "fp32"), 1).solo_ns == pytest.approx(1.9375e6, rel=0.03)
    assert costs.cost(dla(1, "fp16", ("pool", "flatten")), 1).solo_ns == pytest.approx(17.734e6, rel=0.03)


def one_layer(**values):
    """A 3x3 convolution of 256 to 256 channels on a map of 56 x 56, unless told otherwise."""
    usual = {"op": "conv", "rows": 3136, "columns": 256, "depth": 2304, "groups": 1, "window": 9}
    layer = {
        **usual,
        "weight_bytes": 589_824,
        "input_bytes": 802_816,
        "output_bytes": 802_816,
        "curve_bytes": 0,
        **values,
    }
    macs = layer["rows"] * layer["columns"] * layer["depth"] * layer["groups"]
    work = LayerWork("only", macs=macs, **layer)
    return Workload(macs, work.weight_bytes, work.input_bytes + work.output_bytes, layers=(work,))


def test_arithmetic_draws_more_than_waiting_for_memory():
    def activity(**values):
        return model().cost(gpu(64, network="none", workload=one_layer(**values)), 64).segments[0].activity

    assert activity(op="pointwise", rows=0) == pytest.approx(1.0)
    assert activity() > 1.4


def dense_and_sparse(device, precision="int8", **layer):
    """One enqueue of 8 samples of one layer, its weights dense and 2:4 sparse."""
    shape = EngineShape("new", device, 8, precision, one_layer(**layer))
    return [model().layers(replace(shape, sparse=on), 8)[0] for on in (False, True)]


@pytest.mark.parametrize("device", ["gpu", "dla"])
def test_sparse_weights_shorten_arithmetic_by_less_than_two_and_no_traffic(device):
    dense, sparse = dense_and_sparse(device)
    assert 1 < dense.compute_ns / sparse.compute_ns < 2
    assert (sparse.memory_ns, sparse.overhead_ns) == (dense.memory_ns, dense.overhead_ns)
    assert sparse.dram_bytes == dense.dram_bytes


@pytest.mark.parametrize(
    "device,layer",
    [
        ("gpu", {"depth": 288}),  # 32 input channels
        ("gpu", {"groups": 2}),
        ("gpu", {"op": "matmul", "weight_bytes": 0}),  # two tensors, no weights
        ("dla", {"depth": 576}),  # 64 input channels: its guide wants more
        ("dla", {"precision": "fp16"}),
    ],
)
def test_sparsity_leaves_other_layers_alone(device, layer):
    dense, sparse = dense_and_sparse(device, **layer)
    assert sparse == dense


def test_a_sparse_engine_is_less_certain_and_says_so():
    sparse = replace(gpu(), sparse=True)
    assert model().speed_sd(sparse) > model().speed_sd(gpu())
    assert any("2:4 sparsity" in note for note in model().notes([sparse]))
    assert not any("2:4 sparsity" in note for note in model().notes([gpu()]))


@pytest.mark.parametrize("device", ["gpu", "dla"])
def test_no_layer_is_faster_than_arithmetic_or_memory(device):
    costs, clocks = model(), SOC.max_clocks
    peak = SOC.gpu_peak_ops(clocks) if device == "gpu" else SOC.dla_peak_ops(clocks)
    for changed in (
        {},
        {"columns": 32},
        {"groups": 32, "columns": 8, "depth": 72},
        {"rows": 49},
        {"weight_bytes": 10**8},
    ):
        work = one_layer(**changed)
        shape = EngineShape("new", device, 4, "int8", work)
        assert costs.cost(shape, 4).solo_ns > 4 * 2e9 * work.macs / peak
        assert costs.cost(shape, 4).solo_ns > 1e9 * work.weight_bytes / SOC.dram_peak_bytes_per_s(clocks)


def test_depthwise_and_padded_channels_waste_multipliers():
    costs = model()

    def per_mac(device, **changed):
        work = one_layer(**changed)
        return costs.cost(EngineShape("new", device, 8, "int8", work), 8).segments[0].compute_ns / work.macs

    depthwise = {"op": "depthwise", "groups": 256, "columns": 1, "depth": 9}
    for device in ("gpu", "dla"):
        assert per_mac(device, **depthwise) > 5 * per_mac(device)
        assert per_mac(device, columns=33) > 1.3 * per_mac(device, columns=64)


@pytest.mark.parametrize("device", ["gpu", "dla"])
def test_weights_are_read_once_a_batch(device):
    costs, work = model(), one_layer(rows=1, weight_bytes=50_000_000)
    one, eight = (costs.cost(EngineShape("new", device, n, "int8", work), n).solo_ns for n in (1, 8))
    assert eight < 2 * one


def test_a_tensor_that_fits_the_dla_s_sram_stays_there():
    costs = model()
    small, large = (one_layer(input_bytes=size, output_bytes=size) for size in (200_000, 800_000))
    moved = [costs.cost(dla(2, network="new", workload=work), 2).dram_bytes for work in (small, large)]
    assert moved == [589_824, 589_824 + 2 * 2 * 800_000]


def test_slower_clocks_slow_what_they_should():
    fast, slow = model(), model(clocks=replace(SOC.max_clocks, dla_mhz=800.0))
    memory = model(clocks=replace(SOC.max_clocks, emc_mhz=2133.0))
    cost = [costs.cost(dla(), 2).segments[0] for costs in (fast, slow, memory)]
    assert cost[1].compute_ns > 1.7 * cost[0].compute_ns and cost[1].solo_ns < 2 * cost[0].solo_ns
    assert cost[2].memory_ns > 1.2 * cost[0].memory_ns and cost[2].solo_ns < 1.5 * cost[0].solo_ns


def test_a_smaller_module_of_the_same_clocks_is_slower():
    clocks = ORIN_NX_16GB_SOC.max_clocks
    wide = CostModel(SOC, replace(SOC.max_clocks, gpu_mhz=clocks.gpu_mhz, cpu_mhz=clocks.cpu_mhz), "mlperf-v3.0")
    narrow = CostModel(ORIN_NX_16GB_SOC, clocks, "mlperf-v3.0")
    assert 1.5 < narrow.cost(gpu(), 64).solo_ns / wide.cost(gpu(), 64).solo_ns < 2.5


def test_layers_add_up_to_their_engine():
    costs = model()
    for shape, samples in ((gpu(8), 8), (dla(2), 2)):
        layers = costs.layers(shape, samples)
        assert [layer.name for layer in layers] == [layer.name for layer in RESNET.layers]
        assert sum(layer.solo_ns for layer in layers) == pytest.approx(costs.cost(shape, samples).solo_ns)


def test_a_detector_s_suppression_is_the_stack_s_part():
    work = zoo_workload("ssd-resnet34")
    costs = {stack: model(stack).cost(dla(1, network="ssd-resnet34", workload=work), 1) for stack in STACKS}
    assert [segment.resource for segment in costs["mlperf-v3.0"].segments] == ["dla", "gpu"]
    assert [segment.resource for segment in costs["trtexec-10.3"].segments] == ["dla"]


def test_gpu_layers_cut_a_dla_engine_without_changing_its_dla_work():
    costs = model()
    whole, cut = costs.cost(dla(1), 1), costs.cost(dla(1, layers=("pool", "flatten")), 1)
    assert [s.resource for s in cut.segments] == ["dla", "gpu", "dla", "gpu"]
    assert sum(s.solo_ns for s in cut.segments if s.resource == "dla") == pytest.approx(whole.solo_ns)
    assert cut.dram_bytes == pytest.approx(whole.dram_bytes)
    assert cut.solo_ns == pytest.approx(1.2783e6, rel=0.02)  # published, two fallback layers


def test_dla_runs_its_static_batch_however_few_samples_are_real():
    costs = model()
    assert costs.cost(dla(8), 1) is costs.cost(dla(8), 8)


def test_dla_without_fp32_says_what_to_do():
    with pytest.raises(OrinError, match="expected int8 or fp16"):
        model().cost(dla(precision="fp32"), 2)


def test_dram_traffic_of_published_emc_readings():
    costs = model("trtexec-10.3")
    # The GPU's reading is that of all traffic on the board, 18 and 15 % of the peak as whole percents
    assert costs.cost(gpu(1), 1).dram_bytes == pytest.approx(0.18 * 204.736e9 / 984.7, rel=0.25)
    assert costs.cost(dla(1), 1).dram_bytes == pytest.approx(0.15 * 204.736e9 / 779.1, rel=0.25)


def test_a_network_that_was_never_measured_has_a_wider_interval():
    costs = model()
    assert costs.is_measured(gpu()) and not costs.is_measured(gpu(network="new"))
    for device in (gpu, dla):
        assert costs.speed_sd(device(network="new")) > 1.5 * costs.speed_sd(device())
    assert any("never measured on the GPU" in note for note in costs.notes([gpu(network="new")]))


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
    sections = [document["law"], document["shared"], document["power"]]
    sections += [network["fit"] for network in document["networks"].values()]
    sections += [stack["fit"] for stack in document["stacks"].values() if "fit" in stack]
    for section in sections:
        for name, entry in section.items():
            assert isinstance(entry["value"], (int, float)), name
            assert len(entry["source"]) > 10, name
            assert ("prior" in entry) == ("sd" in entry), name


def test_damaged_parameters_are_named(tmp_path):
    path = tmp_path / "parameters.yaml"
    path.write_text("shared: {}\n")
    with pytest.raises(OrinError, match="parameters.yaml cannot be used"):
        load_parameters(path)


def test_parameters_survive_being_written(tmp_path):
    shipped, path = load_parameters(), tmp_path / "mine.yaml"
    changed = shipped.with_values(["law.dla_efficiency", "networks.resnet50.dla_memory"], [0.5, 2.0])
    save_document(document_of(changed, "set by hand in a test"), path)
    read = load_parameters(path)
    assert (read.law["dla_efficiency"], read.factors("resnet50", "dla")[1]) == (0.5, 2.0)
    assert read.value("law.gpu_efficiency") == pytest.approx(shipped.value("law.gpu_efficiency"))
    assert read.belief.names == shipped.belief.names
