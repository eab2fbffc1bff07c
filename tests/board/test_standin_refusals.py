"""What TensorRT refuses, the stand-in refuses: with an error in the log, and null or false for an answer."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import pytest
from onnx import helper

from tests.board.small import SHAPE, Job, Loaded, images, make_logger, model

trt = pytest.importorskip("tensorrt")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT:DeprecationWarning"),
    pytest.mark.usefixtures("nothing_left"),
]


def control():
    from tests.standins.nvinfer import control

    return control


def no_output(job):
    job.network.unmark_output(job.network.get_output(0))


def hwc4_output(job):
    job.bind(job.network.get_output(0), "DLA_HWC4")


def int8_input_without_range(job):
    job.network.get_input(0).reset_dynamic_range()
    job.network.get_input(0).dtype = trt.int8


def half_layer(job):
    job.layers()[0].precision = trt.float16


def int8_in_fp16_format(job):
    job.bind(job.network.get_input(0), "CHW16")


def standalone_with_fallback(job):
    job.config.engine_capability = trt.EngineCapability.DLA_STANDALONE


def one_range_missing(job):
    job.layers()[2].get_output(0).reset_dynamic_range()


def nothing(job):
    pass


DLA = {"dla": True}
RANGES = {"ranges": True}
# What is asked for, how, and the words of the refusal.
REFUSED = {
    "no output": (no_output, {}, "at least one output"),
    "no ranges": (nothing, {"flags": ("INT8",)}, "no scaling factors detected"),
    "int8 input without range": (int8_input_without_range, {"flags": ("INT8",), **RANGES}, "no dynamic range"),
    "half without fp16": (half_layer, {}, "fp16 precision has been set for a layer or layer output"),
    "dla in float": (nothing, DLA, "DLA only supports FP16 and Int8"),
    "dla, dynamic": (nothing, {"network": model(batch="N"), "flags": ("FP16",), **DLA}, "dynamic shapes"),
    "dla, linear float with direct io": (nothing, {"flags": ("FP16", "DIRECT_IO"), **DLA}, "x needs a reformat"),
    "dla, range missing": (one_range_missing, {"flags": ("INT8",), **DLA, **RANGES}, "missing scale of p1"),
    "dla format on the gpu": (hwc4_output, {"flags": ("INT8",), **RANGES}, "for the DLA alone"),
    "int8 in chw16": (int8_in_fp16_format, {"flags": ("INT8",), **RANGES}, "bound to HALF, not INT8"),
    "standalone with fallback": (
        standalone_with_fallback,
        {"flags": ("FP16", "GPU_FALLBACK"), **DLA},
        "kDLA_STANDALONE",
    ),
    "no profile": (nothing, {"network": model(batch="N")}, "no optimization profile has been defined"),
}


@pytest.mark.parametrize("change,how,words", REFUSED.values(), ids=REFUSED)
def test_a_build_that_tensorrt_refuses(change, how, words):
    job = Job(**how)
    if "network" in how and how.get("dla"):
        assert job.profile(1, 2, 4) == 0
    change(job)
    assert job.build() is None
    assert len(job.errors()) == 1
    assert words in job.errors()[0]
    assert job.errors()[0].startswith("IBuilder::buildSerializedNetwork: Error Code ")


def test_a_layer_that_the_dla_does_not_take_needs_the_fallback():
    control().assign({"pool1": False})
    job = Job(flags=("FP16",), dla=True)
    assert job.build() is None
    assert "pool1 cannot run on DLA and GPU fallback is not enabled" in job.errors()[0]
    job.flags("GPU_FALLBACK")
    assert job.build() is not None


def test_strong_types_take_no_precision_flags():
    job = Job(flags=("FP16",))
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = job.builder.create_network(flag)
    parser = trt.OnnxParser(network, job.logger)
    assert parser.parse(model().SerializeToString())
    assert job.builder.build_serialized_network(network, job.config) is None
    assert "strongly typed" in job.errors()[0]


@pytest.mark.parametrize("size", [4095, 2048, 3 << 20])
def test_a_dla_pool_is_a_power_of_two_of_at_least_4_kib(size):
    job = Job()
    pool = trt.MemoryPoolType.DLA_MANAGED_SRAM
    job.config.set_memory_pool_limit(pool, 1 << 19)
    job.config.set_memory_pool_limit(pool, size)
    assert job.config.get_memory_pool_limit(pool) == 1 << 19
    assert "power of two" in job.errors()[0]


def test_a_core_that_is_not_there():
    job = Job(flags=("FP16",), dla=True)
    plan = job.plan()
    job.config.DLA_core = 2
    assert job.config.DLA_core == 0
    control().dla_cores(0)
    runtime = trt.Runtime(job.logger)
    assert runtime.num_DLA_cores == 0
    assert runtime.deserialize_cuda_engine(plan) is None
    runtime.DLA_core = 0
    assert len(job.errors()) == 3


def test_profiles_that_fall_or_do_not_fit():
    job = Job(model(batch="N"))
    profile = job.builder.create_optimization_profile()
    with pytest.raises(RuntimeError, match="max is inconsistent"):
        profile.set_shape("x", (4, *SHAPE), (4, *SHAPE), (2, *SHAPE))
    assert job.config.add_optimization_profile(profile) == -1
    other = job.builder.create_optimization_profile()
    other.set_shape("x", (1, 3, 9, 9), (2, 3, 9, 9), (4, 3, 9, 9))
    assert job.config.add_optimization_profile(other) == 0
    assert job.build() is None
    assert "profile of x" in job.errors()[-1]


@pytest.mark.parametrize(
    "damage,words",
    [
        (lambda plan: control().of_another_version(plan), "Version tag does not match. Note: Current Version: 239"),
        (lambda plan: b"not a plan at all" + bytes(100), "Magic tag does not match"),
        (lambda plan: plan[:40], "damaged or cut short"),
        (lambda plan: plan[:-1], "damaged or cut short"),
    ],
)
def test_plans_that_are_not_read_back(damage, words):
    job = Job()
    assert trt.Runtime(job.logger).deserialize_cuda_engine(damage(job.plan())) is None
    assert words in job.errors()[0]


def test_parser_errors_name_node_and_operator():
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="first"), helper.make_node("Fancy", ["r"], ["y"], name="odd")]
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert not parser.parse(model(nodes=nodes).SerializeToString())
    error = parser.get_error(0)
    assert (parser.num_errors, error.node(), error.node_name(), error.node_operator()) == (1, 1, "odd", "Fancy")
    assert error.code() == trt.ErrorCode.UNSUPPORTED_NODE
    assert "Plugin not found" in error.desc()
    assert not parser.parse(b"no network")
    assert parser.get_error(1).code() == trt.ErrorCode.MODEL_DESERIALIZE_FAILED
    parser.clear_errors()
    assert parser.num_errors == 0
    assert not parser.parse_from_file("/not/there.onnx")


def ready():
    """Return an engine that could run."""
    return Job(flags=("FP16",)).engine().allocate()


class TestContexts:
    def refused(self, loaded, words):
        assert words in loaded.logger.kept.lines[-1][1]

    def test_addresses_are_set_and_aligned(self):
        loaded = ready()
        address = loaded.context.get_tensor_address("x")
        assert not loaded.context.set_tensor_address("x", address + 16)
        self.refused(loaded, "aligned to 256 bytes")
        assert not loaded.context.set_tensor_address("z", address)
        self.refused(loaded, "invalid tensor name: z")
        assert loaded.context.get_tensor_address("x") == address
        assert loaded.context.set_tensor_address("x", 0)
        assert not loaded.context.execute_async_v3(loaded.stream.handle)
        self.refused(loaded, "address of input tensor 'x'")

    def test_a_shape_outside_the_engine(self):
        loaded = ready()
        assert not loaded.context.set_input_shape("x", (3, *SHAPE))
        self.refused(loaded, "[3, 3, 8, 8] is not in [[2, 3, 8, 8], [2, 3, 8, 8]]")
        assert not loaded.context.set_input_shape("y", (2, 8, 4, 4))

    def test_no_current_cuda_context(self):
        loaded, answers = ready(), []
        thread = threading.Thread(target=lambda: answers.append(loaded.context.execute_async_v3(loaded.stream.handle)))
        thread.start()
        thread.join()
        assert answers == [False]
        self.refused(loaded, "invalid device context")

    def test_memory_that_was_freed_or_is_too_small(self):
        loaded = ready()
        import pycuda.driver as cuda

        small = cuda.mem_alloc(1024)
        assert loaded.context.set_tensor_address("x", int(small))
        assert not loaded.context.execute_async_v3(loaded.stream.handle)
        self.refused(loaded, "illegal memory access: 1536 bytes of x")
        assert loaded.context.set_tensor_address("x", loaded.memory["x"].base.get_device_pointer())
        del loaded.memory["y"]
        assert not loaded.context.execute_async_v3(loaded.stream.handle)
        self.refused(loaded, "bytes of y")

    def test_memory_freed_while_the_work_waits(self):
        """As with CUDA: the enqueue is fine, what comes after it fails."""
        loaded = ready()
        import pycuda.driver as cuda

        gate = Gate(loaded.stream)
        assert loaded.context.execute_async_v3(loaded.stream.handle)
        held = loaded.memory.pop("x")
        del held
        gate.open()
        loaded.stream.synchronize()
        assert not loaded.context.execute_async_v3(loaded.stream.handle)
        self.refused(loaded, "illegal memory access: 1536 bytes of x")
        assert cuda.Context.get_current() is not None

    def test_two_enqueues_wait_for_each_other_on_one_stream(self):
        loaded = ready()
        gate, x = Gate(loaded.stream), images()
        loaded.memory["x"][: x.nbytes] = x.reshape(-1).view(np.uint8)
        loaded.memory["y"][:] = 0
        assert loaded.context.execute_async_v3(loaded.stream.handle)
        assert loaded.context.execute_async_v3(loaded.stream.handle)
        assert not loaded.memory["y"].any()  # nothing runs before its turn
        gate.open()
        loaded.stream.synchronize()
        assert loaded.memory["y"].any()

    def test_a_context_outlives_the_names_of_its_engine(self):
        context = Job().engine().engine.create_execution_context()
        assert context.engine.num_io_tensors == 2


class Gate:
    """Holds a stream up until it is opened."""

    def __init__(self, stream):
        self._event = threading.Event()
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        self._function = kind(lambda _: self._event.wait(60) and None)
        driver = ctypes.CDLL("libcuda.so.1")
        assert driver.cuLaunchHostFunc(ctypes.c_void_p(stream.handle), self._function, None) == 0

    def open(self):
        self._event.set()


FAILURES = ("create.Builder", "create.Runtime", "create.Parser")


@pytest.mark.parametrize("slot", FAILURES)
def test_a_null_object(slot):
    logger = make_logger(trt)
    builder, made = trt.Builder(logger), {"create.Builder": trt.Builder, "create.Runtime": trt.Runtime}
    control().fail(slot, "CUDA initialization failure with error: 100")
    with pytest.raises(TypeError, match="factory function returned nullptr"):
        made[slot](logger) if slot in made else trt.OnnxParser(builder.create_network(0), logger)
    assert logger.kept.lines == [(trt.ILogger.ERROR, "CUDA initialization failure with error: 100")]
    assert trt.Runtime(logger).num_DLA_cores == 2  # once only


def test_slots_fail_when_told_to():
    job = Job()
    control().fail("Builder.buildSerializedNetwork", "OutOfMemory: no 512 MiB", after=1)
    assert job.build() is not None
    assert job.build() is None
    assert job.errors() == ["OutOfMemory: no 512 MiB"]
    control().fail("Builder.createBuilderConfig")
    assert job.builder.create_builder_config() is None
    loaded = job.engine().allocate()
    control().fail("ExecutionContext.enqueueV3", "launch failed", times=2)
    answers = [loaded.context.execute_async_v3(loaded.stream.handle) for _ in range(3)]
    loaded.stream.synchronize()
    assert answers == [False, False, True]
    control().fail("Runtime.deserializeCudaEngine", "no memory")
    assert loaded.runtime.deserialize_cuda_engine(job.plan()) is None
    control().fail("CudaEngine.createExecutionContext", "no memory")
    assert loaded.engine.create_execution_context() is None


def test_a_slot_that_is_not_answered_says_so_loudly(capfd):
    job = Job()
    with pytest.raises((SystemError, RuntimeError)) as caught:
        job.network.add_loop()
    assert "NetworkDefinition.addLoop is not answered" in f"{caught.value} {caught.value.__cause__}"
    layer = job.layers()[0]
    layer.__class__ = trt.IConvolutionLayer  # as users of the bindings do
    with pytest.raises((SystemError, RuntimeError)):
        layer.num_groups  # noqa: B018
    assert "NetworkDefinition.addLoop" in capfd.readouterr().err
    assert len(control().errors()) == 2
    control().reset()


def test_two_contexts_of_one_engine_are_two():
    loaded = Job(flags=("FP16",)).engine().allocate()
    other = loaded.engine.create_execution_context()
    assert not other.execute_async_v3(loaded.stream.handle)
    assert other.get_tensor_address("x") == 0
    assert loaded.context.execute_async_v3(loaded.stream.handle)
    loaded.stream.synchronize()


def test_work_of_a_context_that_is_gone_is_reported():
    loaded = Job(flags=("FP16",)).engine().allocate()
    gate = Gate(loaded.stream)
    assert loaded.context.execute_async_v3(loaded.stream.handle)
    loaded.context = None
    gate.open()
    loaded.stream.synchronize()
    assert "context that was destroyed" in control().errors()[0]
    control().reset()


def test_objects_are_counted_where_c_can_read_them():
    library = ctypes.CDLL("libnvinfer.so.10")
    kinds = ("Builder", "Layer", "CudaEngine", "HostMemory", "ExecutionContext")
    before = {kind: library.standin_live(kind.encode()) for kind in kinds}
    job = Job()
    loaded = Loaded(job.plan(), job.logger)
    more = {kind: library.standin_live(kind.encode()) - before[kind] for kind in kinds}
    assert more == {"Builder": 1, "Layer": 6, "CudaEngine": 1, "HostMemory": 0, "ExecutionContext": 1}
    assert control().live()["Layer"] == before["Layer"] + 6
    del loaded


def test_more_than_4096_samples_are_not_the_dla_s():
    job = Job(model(batch=4097), flags=("FP16",), dla=True)
    assert not any(map(job.config.can_run_on_DLA, job.layers()))
    assert job.build() is None
    assert "exceeds max batch size allowed of 4096" in job.errors()[0]


def test_a_use_after_destruction_is_no_crash():
    logger = make_logger(trt)
    network = trt.Builder(logger).create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert not parser.parse(b"no network")
    error = parser.get_error(0)
    parser.clear_errors()
    with pytest.raises((SystemError, RuntimeError)):
        error.desc()
    assert "ParserError.desc was called on an object that was destroyed" in control().errors()[0]
    control().reset()
