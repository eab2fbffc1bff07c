"""TensorRT's builder through NVIDIA's real bindings, on the stand-in for the native libraries."""

import ctypes
import json
import re
import types
from dataclasses import replace

import numpy as np
import onnx
import pycuda.driver as cuda
import pytest
import tensorrt as trt
from onnx import helper

from calibration.cache import CalibrationCache
from dla.io import pools_bytes
from dla.placement import place
from dla.rewrite import rewrite
from engines.build import OrtBuilder, build
from engines.cache import EngineCache
from engines.errors import EngineError
from engines.formats import pack, unpack
from engines.graph import read_graph
from engines.numerics import OrtRunner
from engines.preprocess import quantise
from engines.spec import EngineSpec, Ranges
from engines.tensorrt.builder import Options, TensorRtBuilder
from engines.tensorrt.calibrators import Feed
from engines.tensorrt.check import check_numbers
from tests.engines.models import AMAX, images, make, small, value
from tests.standins.nvinfer import control
from tests.standins.nvinfer.config import BuilderConfig
from tests.standins.nvinfer.network import Tensor

pytestmark = [
    pytest.mark.usefixtures("cuda_context"),
    pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT 10.1"),  # that is what implicit INT8 is
]
RANGES = {**AMAX, "y": 12.0}


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines", print)


def convolutions():
    """Two convolutions with a sum, four axes throughout: the DLA takes all of it."""
    model = small()
    nodes = [*model.graph.node[:4], helper.make_node("Conv", ["a", "w4"], ["y"], name="last")]
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name in ("w1", "b1", "w2")}
    weights["w4"] = np.random.default_rng(3).standard_normal((5, 6, 1, 1), dtype=np.float32)
    return make(nodes, [value("x", 1, 3, 8, 8)], [value("y", 1, 5, 8, 8)], weights)


def gpu_spec(**changes):
    values = {"network": "net", "device": "gpu", "batch": 4, "amax_by_tensor": RANGES, "io_formats": {"x": "CHW4"}}
    return EngineSpec(**{**values, **changes})


def dla_spec(**changes):
    values = {
        "network": "net",
        "device": "dla",
        "batch": 2,
        "amax_by_tensor": RANGES,
        "io_formats": {"x": "DLA_HWC4", "y": "DLA_LINEAR"},
        "pools_bytes": pools_bytes(),
    }
    return EngineSpec(**{**values, **changes})


ENDS_ONLY = dla_spec(amax_by_tensor={"x": 3.0, "y": 12.0})


def builder(**options):
    return TensorRtBuilder(trt, Options(**options))


def explicit(**options):
    """The builder as it meets a TensorRT 11: the INT8 flag is gone."""
    flags = types.SimpleNamespace(**{k: v for k, v in trt.BuilderFlag.__members__.items() if k not in ("INT8", "FP16")})
    return TensorRtBuilder(types.SimpleNamespace(**{**vars(trt), "BuilderFlag": flags}), Options(**options))


class Device:
    """An engine on the stand-in's runtime; host memory is the device's, as on a board."""

    def __init__(self, engine):
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine.path.read_bytes())
        self._context = self._engine.create_execution_context()
        self._manifest = engine.manifest

    def run(self, packed):
        batch = self._manifest.spec.batch
        parts = [
            self._batch([rows[start : start + batch] for rows in packed]) for start in range(0, len(packed[0]), batch)
        ]
        return [np.concatenate(column) for column in zip(*parts)]

    def _batch(self, packed):
        count, memory = len(packed[0]), {}
        for binding in (*self._manifest.inputs, *self._manifest.outputs):
            memory[binding.name] = mapped(count * binding.sample_bytes)
            assert self._context.set_tensor_address(binding.name, address_of(memory[binding.name]))
        for binding, rows in zip(self._manifest.inputs, packed):
            self._context.set_input_shape(binding.name, (count, *binding.shape))
            memory[binding.name][:] = rows.reshape(-1)
        stream = cuda.Stream()
        assert self._context.execute_async_v3(stream.handle), control.errors()
        stream.synchronize()
        return [real(binding, memory[binding.name].reshape(count, -1)) for binding in self._manifest.outputs]


def real(binding, packed):
    values = unpack(packed, binding.format, binding.shape, binding.dtype)
    return values * np.float32(binding.scale) if binding.scale else values.astype(np.float32)


def mapped(nbytes):
    return cuda.pagelocked_zeros(nbytes, np.uint8, mem_flags=cuda.host_alloc_flags.DEVICEMAP)


def address_of(array):
    return int(array.base.get_device_pointer())


def sqnr_db(engine, model, cache):
    reference = build(model, engine.manifest.spec, cache, "seeded", OrtBuilder())
    return check_numbers(engine, Device(engine).run, OrtRunner(reference, threads=1).run)


@pytest.mark.parametrize("make_builder", [builder, explicit])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_gpu_engine_computes_what_onnx_runtime_does(cache, make_builder, batch):
    engine = build(small(), gpu_spec(batch=batch), cache, "seeded", make_builder())
    (x,), (y,) = engine.manifest.inputs, engine.manifest.outputs
    assert (x.dtype, x.format, y.dtype, y.format) == ("int8", "CHW4", "float32", "LINEAR")
    assert engine.manifest.gpu_layers == ()
    (quality_db,) = sqnr_db(engine, small(), cache)
    assert quality_db > 30


def test_a_gpu_engine_takes_every_batch_up_to_the_largest(cache):
    engine = build(small(), gpu_spec(), cache, "seeded", builder())
    loaded = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(engine.path.read_bytes())
    shapes = [tuple(shape) for shape in loaded.get_tensor_profile_shape("x", 0)]
    assert shapes == [(1, 3, 8, 8), (4, 3, 8, 8), (4, 3, 8, 8)]


def test_a_dla_engine_reads_and_writes_int8_in_the_dlas_own_formats(cache):
    engine = build(convolutions(), dla_spec(), cache, "seeded", builder())
    (x,), (y,) = engine.manifest.inputs, engine.manifest.outputs
    assert (x.dtype, x.format, x.scale) == ("int8", "DLA_HWC4", pytest.approx(3 / 127))
    assert (y.dtype, y.format, y.scale) == ("int8", "DLA_LINEAR", pytest.approx(12 / 127))
    assert y.sample_bytes == 5 * 8 * 64
    (quality_db,) = sqnr_db(engine, convolutions(), cache)
    assert quality_db > 25  # the output itself is rounded to INT8


def test_layers_that_fall_back_are_pinned_named_and_only_then_allowed(cache):
    placement = place(read_graph(small(), "net"))
    spec = dla_spec(device_by_layer=placement.device_by_layer)
    assert placement.device_by_layer
    with pytest.raises(EngineError, match=r"placement leaves 'pool' to the GPU; .*--allow-gpu-layers.*log:"):
        build(small(), spec, cache, "seeded", builder())
    engine = build(small(), spec, cache, "seeded", builder(allow_gpu_layers=True))
    assert "pool" in engine.manifest.gpu_layers
    (y,) = engine.manifest.outputs
    assert (y.dtype, y.format) == ("float32", "LINEAR")
    (quality_db,) = sqnr_db(engine, small(), cache)
    assert quality_db > 30


def test_rewritten_nothing_falls_back(cache):
    changed, _ = rewrite(small(), ("global-pool", "gemm-to-conv"))
    graph = read_graph(changed, "net")
    placement = place(graph)
    assert placement.zero_gpu_layers
    engine = build(changed, dla_spec(device_by_layer=placement.device_by_layer), cache, "seeded", builder())
    assert engine.manifest.gpu_layers == ()


def test_shuffles_around_tensors_of_few_axes_have_to_be_allowed(cache):
    """A Gemm becomes a convolution; what makes two axes of its four runs on the GPU."""
    weights = {"w": np.ones((6, 3, 8, 8), np.float32), "v": np.ones((6, 5), np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("Flatten", ["a"], ["b"], name="flat"),
        helper.make_node("Gemm", ["b", "v"], ["y"], name="fc"),
    ]
    model = make(nodes, [value("x", 1, 3, 8, 8)], [value("y", 1, 5)], weights)
    placement = place(read_graph(model, "net"))
    assert placement.gpu_layers == ("reshape_after_fc",) and not placement.device_by_layer
    with pytest.raises(EngineError, match="the DLA's engine leaves 'reshape_after_fc' to the GPU"):
        build(model, dla_spec(), cache, "ones", builder())
    engine = build(model, dla_spec(), cache, "ones", builder(allow_gpu_layers=True))
    assert "reshape_after_fc" in engine.manifest.gpu_layers


def test_two_axes_all_the_way_are_refused_with_what_helps(cache):
    model = make([helper.make_node("Relu", ["x"], ["y"], name="relu")], [value("x", 1, 8)], [value("y", 1, 8)], {})
    spec = dla_spec(io_formats={})
    with pytest.raises(EngineError, match=r"less than 4 dimensions.*keep tensors as \[N,C,H,W\]"):
        build(model, spec, cache, "none", builder())
    engine = build(model, spec, cache, "none", builder(allow_gpu_layers=True))
    assert {"reshape_before_relu", "reshape_after_relu"} <= set(engine.manifest.gpu_layers)


def test_a_layer_that_tensorrt_takes_off_the_dla_is_an_error_that_names_it(cache):
    control.assign({"add": False})
    with pytest.raises(EngineError, match=r"TensorRT does not run 'add' on the DLA.*`orin place MODEL`") as caught:
        build(convolutions(), dla_spec(), cache, "seeded", builder())
    assert "\n" not in str(caught.value)
    engine = build(convolutions(), dla_spec(), cache, "seeded", builder(allow_gpu_layers=True))
    others = [name for name in engine.manifest.gpu_layers if name != "add"]
    assert "add" in engine.manifest.gpu_layers and all(name.startswith("Reformatting") for name in others)


def test_fp16_layers_keep_their_precision(cache):
    nodes = convolutions()
    plain = build(nodes, dla_spec(), cache, "seeded", builder())
    mixed = build(nodes, dla_spec(fp16_layers=("add",)), cache, "seeded", builder())
    x = pack(quantise(images(2), 3.0), "DLA_HWC4")
    assert not np.array_equal(Device(plain).run([x])[0], Device(mixed).run([x])[0])
    (quality_db,) = sqnr_db(mixed, nodes, cache)
    assert quality_db > 25


def test_one_engine_is_loaded_on_each_core(cache):
    engine = build(convolutions(), dla_spec(), cache, "seeded", builder())
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    for core in range(runtime.num_DLA_cores):
        runtime.DLA_core = core
        assert runtime.deserialize_cuda_engine(engine.path.read_bytes()) is not None


def test_the_log_is_kept_beside_the_engine_as_trtexec_prints_it(cache):
    engine = build(convolutions(), dla_spec(), cache, "seeded", builder(verbose_log=True))
    lines = engine.path.with_suffix(".log").read_text().splitlines()
    assert all(re.match(r"\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] \[[VIWEF]\] \[TRT\] ", line) for line in lines)
    assert any("{ForeignNode[conv1...last]}" in line for line in lines)


def test_progress_is_one_bar_and_ends_full(cache):
    seen = []
    build(small(), gpu_spec(), cache, "seeded", builder(progress=lambda *step: seen.append(step)))
    assert {what for what, _, _ in seen} == {"building gpu"}
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    assert seen[-1][1] == seen[-1][2]


def test_stopping_in_the_middle_raises_what_stopped_it(cache):
    def stop(*step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(small(), gpu_spec(), cache, "seeded", builder(progress=stop))


def test_timings_are_kept_and_used_again(cache, tmp_path):
    timings, said = tmp_path / "timing.cache", []
    options = {"timing_cache": timings, "say": said.append}
    build(small(), gpu_spec(), cache, "seeded", builder(**options))
    first = timings.read_bytes()
    assert b"conv1" in first
    build(small(), gpu_spec(batch=2), cache, "seeded", builder(**options))
    assert timings.read_bytes() == first and said == []
    timings.write_bytes(b"another TensorRT's")
    build(small(), gpu_spec(batch=3), cache, "seeded", builder(**options))
    assert timings.read_bytes() == first
    assert len(said) == 1 and "starting afresh" in said[0]


def test_a_parser_error_names_node_and_operator(cache):
    nodes = [helper.make_node("Frobnicate", ["x"], ["y"], name="odd", domain="custom")]
    model = make(nodes, [value("x", 1, 3, 8, 8)], [value("y", 1, 3, 8, 8)], {})
    model.opset_import.append(helper.make_opsetid("custom", 1))
    with pytest.raises(EngineError, match=r"parser refuses odd \(Frobnicate\): .*orin rewrite") as caught:
        build(model, gpu_spec(precision="fp32", batch=1, amax_by_tensor={}), cache, "none", builder())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("slot", "message", "expected"),
    [
        ("create.Builder", "CUDA initialization failure with error: 100", "no builder: CUDA.*orin doctor"),
        ("create.Parser", "", "no ONNX parser"),
        ("create.Runtime", "out of memory", "no runtime: out of memory"),
        ("Builder.createBuilderConfig", "", "no builder configuration"),
        ("Builder.createNetworkV2", "", "no network"),
        ("Builder.createOptimizationProfile", "", "no profile"),
        ("Tensor.setDynamicRange", "", "refuses the range .* of tensor '.*'; calibrate it again"),
        ("Builder.buildSerializedNetwork", "Requested amount of GPU memory (1 bytes): out of memory", "close other"),
        ("Builder.buildSerializedNetwork", "Could not find any implementation for node c1.", "no kernel fits a layer"),
        ("Builder.buildSerializedNetwork", "", "refuses the build: "),
        ("Runtime.deserializeCudaEngine", "Serialization assertion failed", "does not load the engine it built"),
        ("CudaEngine.createEngineInspector", "", "no inspector"),
    ],
)
def test_what_fails_natively_ends_in_reason_and_next_step(cache, slot, message, expected):
    control.fail(slot, message, 0)
    model, spec = (convolutions(), dla_spec()) if "Inspector" in slot else (small(), gpu_spec())
    with pytest.raises(EngineError, match=expected) as caught:
        build(model, spec, cache, "seeded", builder())
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000
    assert slot.startswith("Tensor.") or "Inspector" in slot or text.startswith("net (gpu): ")
    assert not message or message.rstrip(".") in text


def test_a_refused_profile_names_the_batches(cache):
    control.fail("BuilderConfig.addOptimizationProfile", "", -1)
    with pytest.raises(EngineError, match="refuses batches from 1 to 4; ask for another gpu_batch"):
        build(small(), gpu_spec(), cache, "seeded", builder())


def test_a_parser_that_sees_other_ends_is_refused(cache):
    control.fail("NetworkDefinition.getNbOutputs", "", 0)
    with pytest.raises(EngineError, match=r"parser sees inputs \['x'\] and outputs \[\], expected \['x'\] and \['y'\]"):
        build(small(), gpu_spec(), cache, "seeded", builder())


def test_timings_that_cannot_be_kept_cost_only_time(cache, tmp_path):
    said = []
    (tmp_path / "file").write_text("")
    options = {"timing_cache": tmp_path / "file" / "timing.cache", "say": said.append}
    build(small(), gpu_spec(), cache, "seeded", builder(**options))
    assert len(said) == 1 and "the next build takes as long" in said[0]
    control.fail("TimingCache.serialize", "", 0)
    build(small(), gpu_spec(batch=3), cache, "seeded", builder(timing_cache=tmp_path / "timing.cache"))
    assert not (tmp_path / "timing.cache").exists()


def test_a_tensorrt_without_calibrators_says_so(cache):
    hidden = {name: item for name, item in vars(trt).items() if not name.startswith("IInt8")}
    flags = types.SimpleNamespace(GPU_FALLBACK=trt.BuilderFlag.GPU_FALLBACK)
    new = types.SimpleNamespace(**{**hidden, "BuilderFlag": flags})
    with pytest.raises(EngineError, match="has no calibrators; give ranges"):
        calibration = "entropy", feed([])
        build(small(), gpu_spec(), cache, "s", TensorRtBuilder(new, Options(calibration=calibration)))


def test_a_refusal_leaves_its_log_and_no_engine(cache, tmp_path):
    control.fail("Builder.buildSerializedNetwork", "DLA validation failed for this layer", 0)
    with pytest.raises(EngineError) as caught:
        build(convolutions(), dla_spec(), cache, "seeded", builder())
    log = re.search(r"log: (\S+)$", str(caught.value))[1]
    assert "[E] [TRT] " in (tmp_path / "engines" / log).read_text()
    assert not list((tmp_path / "engines").glob("*.engine"))


def test_no_dla_core_is_told_before_minutes_of_building(cache):
    control.dla_cores(0)
    with pytest.raises(EngineError, match="sees no DLA core"):
        build(convolutions(), dla_spec(), cache, "seeded", builder())


def test_pools_that_are_no_powers_of_two_are_refused(cache):
    with pytest.raises(EngineError, match="3000 bytes for the pool DLA_MANAGED_SRAM; expected a power of two"):
        build(convolutions(), dla_spec(pools_bytes={"DLA_MANAGED_SRAM": 3000}), cache, "seeded", builder())
    with pytest.raises(EngineError, match="pool DLA_SWIMMING"):
        build(convolutions(), dla_spec(pools_bytes={"DLA_SWIMMING": 4096}), cache, "seeded", builder())


def test_a_reformat_in_a_dla_engine_is_an_error_unless_allowed(cache):
    spec = dla_spec(io_formats={"x": "LINEAR", "y": "DLA_LINEAR"})
    with pytest.raises(EngineError, match="engine leaves 'Reformatting CopyNode for Input"):
        build(convolutions(), spec, cache, "seeded", builder())
    engine = build(convolutions(), spec, cache, "seeded", builder(allow_gpu_layers=True))
    assert len(engine.manifest.gpu_layers) == 1


def test_a_batch_that_the_network_or_the_dla_cannot_have_is_refused(cache):
    nodes = [helper.make_node("Reshape", ["x", "s"], ["f"]), helper.make_node("Relu", ["f"], ["y"])]
    fixed = make(nodes, [value("x", 1, 2, 3)], [value("y", 1, 6)], {"s": np.array([1, 6])})
    with pytest.raises(EngineError, match="fixes its batch, so batch 4 cannot be built; set gpu_batch to 1"):
        build(fixed, gpu_spec(precision="fp32", amax_by_tensor={}, io_formats={}), cache, "none", builder())
    with pytest.raises(EngineError, match="batch 8192 is over the DLA's 4096"):
        build(convolutions(), dla_spec(batch=8192), cache, "seeded", builder())


def test_a_strongly_typed_dla_engine_computes_what_onnx_runtime_does(cache):
    control.release("11.4")
    engine = build(convolutions(), dla_spec(), cache, "seeded", explicit())
    (x,), (y,) = engine.manifest.inputs, engine.manifest.outputs
    assert (x.dtype, x.format, y.dtype, y.format) == ("int8", "DLA_HWC4", "int8", "DLA_LINEAR")
    assert "explicit" in engine.manifest.builder and engine.manifest.gpu_layers == ()
    (quality_db,) = sqnr_db(engine, convolutions(), cache)
    assert quality_db > 30


def test_a_strongly_typed_network_is_not_for_the_dla_of_an_older_tensorrt(cache):
    with pytest.raises(EngineError, match="only supports FP16 and Int8 precision type"):
        build(convolutions(), dla_spec(), cache, "seeded", explicit())


def test_the_dlas_largest_batch_is_built(cache):
    control.fail("Builder.getMaxDLABatchSize", answer=2)
    assert build(convolutions(), dla_spec(batch=2), cache, "seeded", builder()).manifest.spec.batch == 2


def test_fp16_on_the_dla_does_not_take_int8_samples(cache):
    with pytest.raises(EngineError, match="computes in fp16 and its input 'x' is int8"):
        build(convolutions(), dla_spec(precision="fp16", amax_by_tensor={"x": 3.0}), cache, "seeded", builder())


@pytest.mark.parametrize("make_builder", [builder, explicit])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_other_precisions_read_int8_samples_too(cache, make_builder, precision):
    spec = gpu_spec(precision=precision, amax_by_tensor={"x": 3.0})
    engine = build(small(), spec, cache, "seeded", make_builder())
    assert engine.manifest.inputs[0].dtype == "int8"
    (quality_db,) = sqnr_db(engine, small(), cache)
    assert quality_db > 35


@pytest.fixture
def asked(monkeypatch):
    """What the builder asks of TensorRT's configuration: flags, settings, pools, devices of layers."""
    seen = types.SimpleNamespace(flags=set(), settings={}, pools={}, devices={}, ranges={})
    original = {name: getattr(BuilderConfig, name) for name in ("setFlag", "setMemoryPoolLimit", "setDeviceType")}

    def flag(self, flag):
        seen.flags.add(flag.name)
        seen.settings = self.settings
        original["setFlag"](self, flag)

    def pool(self, pool, size):
        seen.pools[pool.name] = size
        original["setMemoryPoolLimit"](self, pool, size)

    def device(self, layer, device):
        seen.devices[layer.name] = device.name
        original["setDeviceType"](self, layer, device)

    def dynamic_range(self, low, high):
        seen.ranges[self.name] = (low, high)
        return set_range(self, low, high)

    set_range = Tensor.setDynamicRange
    monkeypatch.setattr(BuilderConfig, "setFlag", flag)
    monkeypatch.setattr(BuilderConfig, "setMemoryPoolLimit", pool)
    monkeypatch.setattr(BuilderConfig, "setDeviceType", device)
    monkeypatch.setattr(Tensor, "setDynamicRange", dynamic_range)
    return seen


@pytest.mark.parametrize(
    ("spec", "flags"),
    [
        (gpu_spec(), {"INT8", "FP16"}),
        (gpu_spec(sparse=True), {"INT8", "FP16", "SPARSE_WEIGHTS"}),
        (gpu_spec(precision="fp16", amax_by_tensor={"x": 3.0}), {"INT8", "FP16"}),
        (gpu_spec(precision="fp32", amax_by_tensor={"x": 3.0}), {"INT8"}),
        (gpu_spec(precision="fp32", amax_by_tensor={}, io_formats={}), set()),
        (dla_spec(), {"INT8", "FP16", "DIRECT_IO"}),
        (dla_spec(sparse=True), {"INT8", "FP16", "DIRECT_IO", "SPARSE_WEIGHTS"}),
        (dla_spec(fp16_layers=("add",)), {"INT8", "FP16", "DIRECT_IO", "PREFER_PRECISION_CONSTRAINTS"}),
        (dla_spec(device_by_layer={"add": "gpu"}), {"INT8", "FP16", "DIRECT_IO", "GPU_FALLBACK"}),
    ],
)
def test_no_flag_is_set_without_need(cache, asked, spec, flags):
    build(convolutions(), spec, cache, "seeded", builder(allow_gpu_layers=True))
    assert asked.flags == flags


def test_a_dla_engine_is_built_for_the_dla_its_pools_and_the_first_core(cache, asked):
    spec = dla_spec(device_by_layer={"add": "gpu", "conv1": "dla"})
    build(convolutions(), spec, cache, "seeded", builder(allow_gpu_layers=True))
    assert asked.settings["DefaultDeviceType"] == trt.DeviceType.DLA and asked.settings["DLACore"] == 0
    assert asked.settings["ProfilingVerbosity"] == trt.ProfilingVerbosity.DETAILED
    assert asked.pools == pools_bytes()
    assert asked.devices == {"add": "GPU"}


def test_tensors_that_the_parser_puts_in_get_ranges_too(cache, asked):
    weights = {"w": np.ones((4, 3, 1, 1), np.float32), "shift": np.array([[[-0.5]]], np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("Add", ["a", "shift"], ["b"], name="shifted"),
        helper.make_node("Flatten", ["b"], ["c"], name="flat"),
        helper.make_node("Relu", ["c"], ["d"], name="relu"),
        helper.make_node("Unsqueeze", ["d", "axis"], ["y"], name="wide"),
    ]
    model = make(nodes, [value("x", 1, 3, 2, 2)], [value("y", 1, 1, 16)], {**weights, "axis": np.array([1])})
    ranges = {"x": 1.0, "a": 3.0, "b": 5.0, "y": 4.0, "unused": 9.0, "empty": 0.0}
    build(model, gpu_spec(amax_by_tensor=ranges), cache, "seeded", builder())
    found = {name: high for name, (low, high) in asked.ranges.items() if low == -high}
    assert found == {"x": 1.0, "a": 3.0, "shift": 0.5, "b": 5.0, "c": 5.0, "d": 4.0, "y": 4.0}


def test_other_precisions_set_the_range_of_the_input_alone(cache, asked):
    build(convolutions(), gpu_spec(precision="fp16"), cache, "seeded", builder())
    assert asked.ranges == {"x": (-3.0, 3.0)}


class Memory:
    """Memory that the device reads."""

    def __init__(self):
        self.held = {}

    def allocate(self, nbytes):
        array = mapped(nbytes)
        self.held[address_of(array)] = array
        return address_of(array)

    def copy(self, address, array):
        ctypes.memmove(self.held[address].ctypes.data, array.ctypes.data, array.nbytes)


def feed(batches, name="three batches", batch_size=2, **changes):
    memory = Memory()
    return Feed(name, batch_size, batches, memory.allocate, memory.copy, **changes)


@pytest.mark.parametrize(("algorithm", "header"), [("minmax", "MinMaxCalibration"), ("entropy", "EntropyCalibration2")])
@pytest.mark.parametrize("spec", [dla_spec(), gpu_spec(batch=1)], ids=["dla", "gpu"])
def test_a_calibrator_feeds_batches_and_writes_tensorrts_cache(cache, algorithm, header, spec):
    written, spec = [], replace(spec, amax_by_tensor={"x": 3.0, "y": 12.0})
    batches = [{"x": images(spec.batch) * scale} for scale in (0.2, 0.5, 1.0)]
    calibration = algorithm, feed(batches, batch_size=spec.batch, write_cache=written.append)
    engine = build(convolutions(), spec, cache, "seeded", builder(calibration=calibration))
    assert engine.manifest.builder.endswith(f"{algorithm} of three batches")
    (text,) = [entry.decode() for entry in written]
    assert text.startswith(f"TRT-100300-{header}\n")
    scales = dict(line.rsplit(": ", 1) for line in text.splitlines()[1:])
    amax = {name: np.frombuffer(bytes.fromhex(digits.zfill(8)), ">f4")[0] * 127 for name, digits in scales.items()}
    largest = np.abs(images(spec.batch)).max()
    if algorithm == "minmax":
        assert amax["x"] == pytest.approx(largest, rel=1e-6)
    else:
        assert 0.05 * largest < amax["x"] <= largest * 1.01

    def no_batches():
        raise AssertionError("a cache makes batches needless")
        yield

    cached = feed(no_batches(), name="its cache", batch_size=spec.batch, read_cache=lambda: written[0])
    again = build(convolutions(), spec, cache, "seeded", builder(calibration=(algorithm, cached)))
    assert again.manifest.inputs == engine.manifest.inputs


def test_a_gpu_engine_of_many_batches_calibrates_with_a_profile_of_its_own(cache, asked):
    text = CalibrationCache.from_ranges(Ranges(RANGES, "minmax", 1)).dumps().encode()
    calibration = "entropy", feed([], read_cache=lambda: text)
    spec = gpu_spec(amax_by_tensor={"x": 3.0})
    build(convolutions(), spec, cache, "seeded", builder(calibration=calibration))
    shapes = asked.settings["CalibrationProfile"].shapes["x"]
    assert set(shapes.values()) == {(2, 3, 8, 8)}
    control.fail("BuilderConfig.setCalibrationProfile", "", 0)
    with pytest.raises(EngineError, match="refuses to calibrate with batches of 2"):
        build(convolutions(), replace(spec, batch=8), cache, "seeded", builder(calibration=calibration))


def test_batches_that_break_off_end_the_build_with_their_own_error(cache, tmp_path):
    def batches():
        yield {"x": images(2)}
        raise OSError("the disk is gone")

    calibration = "minmax", feed(batches())
    with pytest.raises(OSError, match="the disk is gone"):
        build(convolutions(), ENDS_ONLY, cache, "s", builder(calibration=calibration))
    assert not list((tmp_path / "engines").glob("*.engine"))


def test_a_batch_without_an_input_and_an_unknown_algorithm_are_one_line(cache):
    with pytest.raises(EngineError, match="a calibration batch lacks input 'x'; it has z"):
        build(convolutions(), ENDS_ONLY, cache, "s", builder(calibration=("minmax", feed([{"z": images(2)}]))))
    with pytest.raises(EngineError, match="calibration algorithm is 'guess', expected one of minmax, entropy"):
        build(convolutions(), ENDS_ONLY, cache, "s", builder(calibration=("guess", feed([]))))


def test_calibration_batches_of_another_size_are_refused(cache):
    calibration = "minmax", feed([], batch_size=3)
    with pytest.raises(EngineError, match="calibration batches hold 3 samples, expected 2"):
        build(convolutions(), dla_spec(), cache, "s", builder(calibration=calibration))


def test_nothing_is_left_alive(cache):
    before = control.live()
    for spec, model in ((gpu_spec(), small()), (dla_spec(), convolutions())):
        build(model, spec, cache, "seeded", builder())
    control.fail("Builder.buildSerializedNetwork", "refused", 0)
    with pytest.raises(EngineError):
        build(small(), gpu_spec(batch=2), cache, "seeded", builder())
    assert control.live() == before


def test_the_manifest_survives_the_cache(cache):
    first = build(convolutions(), dla_spec(), cache, "seeded", builder())
    again = build(convolutions(), dla_spec(), cache, "seeded", builder())
    assert again == first
    assert json.loads(first.path.with_suffix(".json").read_text())["builder"].startswith("tensorrt 10.3.0 implicit")
