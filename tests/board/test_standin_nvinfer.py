"""NVIDIA's bindings on the stand-in: networks, builds, engines, numbers."""

from __future__ import annotations

import ctypes
import json
import threading

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from dla.logs import parse_log
from engines.qdq import insert_qdq
from tests.board.small import AMAX, NODES, SHAPE, Job, Loaded, images, model
from tests.dla.cases import CASES, load_case, recorded_model

trt = pytest.importorskip("tensorrt")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT:DeprecationWarning"),
    pytest.mark.usefixtures("nothing_left"),
]

THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


def floats(memory, shape):
    return memory[: 4 * int(np.prod(shape))].view(np.float32).reshape(shape)


def hwc4(values):
    """INT8 [N,3,H,W] as the DLA reads images on Orin: rows of 64 bytes, four values a pixel."""
    batch, channels, height, width = values.shape
    rows = np.zeros((batch, height, max(width, 16), 4), np.int8)
    rows[:, :, :width, :channels] = values.transpose(0, 2, 3, 1)
    return rows


def test_the_bindings_are_those_of_tensorrt_10_3():
    assert trt.__version__ == "10.3.0"
    builder = trt.Builder(trt.Logger())
    assert (builder.num_DLA_cores, builder.max_DLA_batch_size) == (2, 4096)
    assert builder.platform_has_fast_int8
    assert builder.platform_has_fast_fp16


def test_a_parsed_network_has_the_layers_that_tensorrt_makes():
    job = Job(model(batch=2))
    kinds = "CONVOLUTION ACTIVATION POOLING CONVOLUTION ELEMENTWISE ACTIVATION".split()
    assert [(layer.name, layer.type.name) for layer in job.layers()] == list(zip(NODES, kinds))
    conv2 = job.layers()[3]
    assert [conv2.get_input(0).name, conv2.get_output(0).name] == ["p1", "c2"]
    assert tuple(conv2.get_output(0).shape) == (2, 8, 4, 4)
    assert conv2.get_input(7) is None
    assert [job.network.get_input(0).name, job.network.get_output(0).name] == ["x", "y"]
    assert job.network.get_input(0).is_network_input
    assert job.network.get_output(0).is_network_output


def test_a_dynamic_batch_is_minus_one_until_the_input_gets_a_shape():
    job = Job(model(batch="N"))
    tensor = job.network.get_input(0)
    assert tuple(tensor.shape) == (-1, *SHAPE)
    assert tensor.get_dimension_name(0) == "N"
    tensor.shape = (5, *SHAPE)
    assert tuple(job.network.get_output(0).shape) == (5, 8, 4, 4)


def test_layers_and_tensors_keep_what_is_set():
    job = Job()
    layer, tensor = job.layers()[0], job.network.get_output(0)
    assert not layer.precision_is_set
    layer.precision = trt.float16
    layer.set_output_type(0, trt.float16)
    assert (layer.precision_is_set, layer.precision, layer.get_output_type(0)) == (True, trt.float16, trt.float16)
    layer.reset_precision()
    assert not layer.precision_is_set
    assert tensor.dynamic_range is None
    tensor.dynamic_range = (-2.5, 2.5)
    assert tensor.dynamic_range == (-2.5, 2.5)
    tensor.name = "renamed"
    job.config.set_device_type(layer, trt.DeviceType.DLA)
    assert (job.config.get_device_type(layer), job.config.is_device_type_set(layer)) == (trt.DeviceType.DLA, True)
    job.config.reset_device_type(layer)
    assert not job.config.is_device_type_set(layer)


def test_a_float_engine_computes_what_the_onnx_reference_does():
    loaded = Job(model(batch=2)).engine()
    x = images(2)
    (expected,) = ReferenceEvaluator(model(batch=2)).run(None, {"x": x})
    np.testing.assert_allclose(floats(loaded.run(x), expected.shape), expected, rtol=1e-5, atol=1e-5)


def test_an_int8_engine_computes_the_qdq_network():
    loaded = Job(model(), flags=("INT8",), ranges=True).engine()
    x = images()
    amax = dict.fromkeys(("x", "c1", "r1", "p1", "c2", "a", "y"), AMAX)
    (expected,) = ReferenceEvaluator(insert_qdq(model(), amax)).run(None, {"x": x})
    got = floats(loaded.run(x), expected.shape)
    step = AMAX / 127
    assert np.abs(got - expected).max() <= step + 1e-5
    assert np.mean(np.abs(got - expected) > 1e-4) < 0.01  # a tie that falls the other way, here and there
    assert not np.allclose(got, ReferenceEvaluator(model()).run(None, {"x": x})[0], atol=1e-4)


def test_a_layer_kept_in_float_is_not_rounded():
    job = Job(model(), flags=("INT8", "FP16", "OBEY_PRECISION_CONSTRAINTS"), ranges=True)
    for layer in job.layers():
        layer.precision = trt.float16
    x = images()
    (expected,) = ReferenceEvaluator(model()).run(None, {"x": x})
    np.testing.assert_allclose(floats(job.engine().run(x), expected.shape), expected, rtol=1e-4, atol=1e-4)


def test_a_dla_engine_reads_hwc4_and_writes_chw32_without_a_reformat():
    job = Job(flags=("INT8", "DIRECT_IO"), dla=True, ranges=True)
    job.bind(job.network.get_input(0), "DLA_HWC4")
    job.bind(job.network.get_output(0), "CHW32")
    loaded = Loaded(job.plan(), job.logger, core=1)
    layers = json.loads(loaded.engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    assert [(layer["Name"], layer["LayerType"]) for layer in layers["Layers"]] == [
        ("{ForeignNode[conv1...relu2]}", "DLA")
    ]
    engine = loaded.engine
    assert engine.get_tensor_format("x") == trt.TensorFormat.DLA_HWC4
    assert (engine.get_tensor_components_per_element("y"), engine.get_tensor_vectorized_dim("y")) == (32, 1)
    assert engine.get_tensor_bytes_per_component("y") == 1
    assert tuple(loaded.context.get_tensor_strides("x")) == (8 * 64, 1, 64, 4)
    assert tuple(loaded.context.get_tensor_strides("y")) == (4 * 4, 4 * 4, 4, 1)

    scale = AMAX / 127
    steps = np.rint(images() / scale).astype(np.int8)
    out = loaded.run(hwc4(steps))[: 2 * 4 * 4 * 32].view(np.int8).reshape(2, 4, 4, 32)
    (expected,) = ReferenceEvaluator(model()).run(None, {"x": steps.astype(np.float32) * np.float32(scale)})
    got = out[..., :8].transpose(0, 3, 1, 2) * scale
    assert np.abs(got - expected).max() < 8 * scale  # INT8 through two convolutions
    assert not out[..., 8:].any()


def test_a_dla_engine_in_fp16_reads_and_writes_chw16():
    job = Job(flags=("FP16", "DIRECT_IO"), dla=True)
    for tensor in (job.network.get_input(0), job.network.get_output(0)):
        job.bind(tensor, "CHW16", trt.float16)
    x = images().astype(np.float16)
    chw16 = np.zeros((2, 1, 8, 8, 16), np.float16)
    chw16[:, 0, :, :, :3] = x.transpose(0, 2, 3, 1)
    out = job.engine().run(chw16)[: 2 * 4 * 4 * 16 * 2].view(np.float16).reshape(2, 4, 4, 16)
    (expected,) = ReferenceEvaluator(model()).run(None, {"x": x.astype(np.float32)})
    np.testing.assert_allclose(out[..., :8].transpose(0, 3, 1, 2), expected, rtol=2e-3, atol=2e-3)


def test_three_engines_run_at_once_on_three_threads():
    job = Job(flags=("INT8", "FP16"), dla=True, ranges=True)
    plan, x = job.plan(), images()
    engines = [Loaded(plan, job.logger, core=core) for core in (0, 1, 0)]
    current, results = cuda_now(), {}

    def work(index):
        current.push()
        results[index] = [floats(engines[index].run(x * (index + 1) / 3), (2, 8, 4, 4)).copy() for _ in range(5)]
        current.pop()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, outputs in results.items():
        (expected,) = ReferenceEvaluator(model()).run(None, {"x": x * (index + 1) / 3})
        assert all(np.abs(output - expected).max() < 0.5 for output in outputs)
    assert sorted(results) == [0, 1, 2]


def cuda_now():
    import pycuda.driver as cuda

    return cuda.Context.get_current()


def test_the_gpu_takes_chw4_and_any_batch_of_its_profile():
    job = Job(model(batch="N"), flags=("INT8", "FP16"), ranges=True)
    job.bind(job.network.get_input(0), "CHW4")
    assert job.profile(1, 2, 4) == 0
    loaded = job.engine()
    assert loaded.engine.get_tensor_profile_shape("x", 0) == [(1, *SHAPE), (2, *SHAPE), (4, *SHAPE)]
    steps = np.rint(images(3) * 127 / AMAX).astype(np.int8)
    chw4 = np.zeros((3, 1, 8, 8, 4), np.int8)
    chw4[:, 0, :, :, :3] = steps.transpose(0, 2, 3, 1)
    three = floats(loaded.run(chw4, (3, *SHAPE)), (3, 8, 4, 4)).copy()
    assert tuple(loaded.context.get_tensor_shape("y")) == (3, 8, 4, 4)
    one = floats(loaded.run(chw4[2:], (1, *SHAPE)), (1, 8, 4, 4))
    np.testing.assert_array_equal(one[0], three[2])


def test_one_plan_runs_on_both_dla_cores():
    job = Job(flags=("INT8", "FP16"), dla=True, ranges=True)
    plan, x = job.plan(), images()
    both = [Loaded(plan, job.logger, core=core) for core in (0, 1)]
    assert [loaded.runtime.DLA_core for loaded in both] == [0, 1]
    results = [floats(loaded.run(x), (2, 8, 4, 4)).copy() for loaded in both]
    np.testing.assert_array_equal(*results)


def test_an_output_may_be_moved():
    job = Job()
    job.network.unmark_output(job.network.get_output(0))
    job.network.mark_output(job.layers()[2].get_output(0))
    loaded = job.engine()
    (expected,) = ReferenceEvaluator(model(outputs=("p1",))).run(None, {"x": images()})
    assert loaded.names == ["x", "p1"]
    np.testing.assert_allclose(floats(loaded.run(images()), expected.shape), expected, rtol=1e-5, atol=1e-5)


def test_a_network_by_hand():
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    x = network.add_input("x", trt.float32, (2, 3))
    two = network.add_constant((1, 3), np.full((1, 3), 2, np.float32)).get_output(0)
    product = network.add_elementwise(x, two, trt.ElementWiseOperation.PROD).get_output(0)
    network.mark_output(network.add_activation(product, trt.ActivationType.RELU).get_output(0))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    values = np.array([[1, -1, 2], [-3, 4, 0]], np.float32)
    got = floats(Loaded(bytes(plan)).run(values), (2, 3))
    np.testing.assert_array_equal(got, [[2, 0, 4], [0, 8, 0]])


def test_what_the_dla_does_not_take_falls_back_with_tensorrt_s_words():
    from tests.standins.nvinfer import control

    control.assign({"pool1": False})
    job = Job(flags=("INT8", "FP16", "GPU_FALLBACK"), dla=True, ranges=True)
    taken = {layer.name: job.config.can_run_on_DLA(layer) for layer in job.layers()}
    assert taken == {name: name != "pool1" for name in NODES}
    loaded = job.engine()
    inspected = json.loads(
        loaded.engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    )
    kinds = {layer["Name"]: layer["LayerType"] for layer in inspected["Layers"]}
    assert kinds["{ForeignNode[conv1...relu1]}"] == kinds["{ForeignNode[conv2...relu2]}"] == "DLA"
    assert kinds["pool1"] == "CaskPooling"
    read = parse_log(
        f"[{'W' if level == trt.ILogger.WARNING else 'I'}] [TRT] {text}" for level, text in job.logger.kept.lines
    )
    assert read.refused == {"pool1": "POOLING"}
    assert [layer.name for layer in read.gpu] == ["pool1"]
    (expected,) = ReferenceEvaluator(model()).run(None, {"x": images()})
    assert np.abs(floats(loaded.run(images()), expected.shape) - expected).max() < 0.2


def test_a_layer_may_be_given_to_the_gpu():
    job = Job(flags=("FP16",), dla=True)
    job.config.set_device_type(job.layers()[2], trt.DeviceType.GPU)
    inspector = job.engine().engine.create_engine_inspector()
    names = [
        line.split(": ", 1)
        for line in inspector.get_engine_information(trt.LayerInformationFormat.ONELINE).splitlines()
    ]
    assert [name for kind, name in names if kind == "DLA"] == [
        "{ForeignNode[conv1...relu1]}",
        "{ForeignNode[conv2...relu2]}",
    ]
    assert "pool1" in [name for _, name in names]


@pytest.mark.skipif(not CASES.is_dir(), reason="recorded TensorRT placements are not here")
def test_can_run_on_dla_answers_as_a_board_did():
    from tests.standins.nvinfer import control

    case = load_case("c01")
    recorded = control.recorded_assignments(case)
    network = recorded_model(case)
    by_rules = Job(network, flags=("INT8", "FP16"), dla=True)
    answers = {layer.name: by_rules.config.can_run_on_DLA(layer) for layer in by_rules.layers()}
    assert {name: answers[name] for name in recorded} == recorded
    turned = next(name for name, taken in recorded.items() if taken)
    control.assign({**recorded, turned: False})
    assert not by_rules.config.can_run_on_DLA(by_rules.layers()[0])


def test_a_timing_cache_goes_round():
    job = Job(flags=("FP16",))
    cache = job.config.create_timing_cache(b"")
    assert job.config.set_timing_cache(cache, False)
    job.plan()
    content = bytes(cache.serialize())
    assert b"conv1" in content
    again = Job(flags=("FP16",))
    assert bytes(again.config.create_timing_cache(content).serialize()) == content
    assert again.config.create_timing_cache(b"something else") is None


def test_a_cuda_graph_of_an_engine_is_launched_again():
    driver = ctypes.CDLL("libcuda.so.1")
    loaded = Job(flags=("FP16",)).engine().allocate()
    stream = ctypes.c_void_p(loaded.stream.handle)
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    assert driver.cuStreamBeginCapture_v2(stream, THREAD_LOCAL) == 0
    assert loaded.context.execute_async_v3(loaded.stream.handle)
    assert driver.cuStreamEndCapture(stream, ctypes.byref(graph)) == 0
    assert driver.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, ctypes.c_ulonglong(0)) == 0
    x, results = images(), []
    for values in (x, x[::-1]):
        loaded.memory["x"][: x.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        assert driver.cuGraphLaunch(executable, stream) == 0
        loaded.stream.synchronize()
        results.append(floats(loaded.memory["y"], (2, 8, 4, 4)).copy())
    assert driver.cuGraphExecDestroy(executable) == driver.cuGraphDestroy(graph) == 0
    np.testing.assert_array_equal(results[0], results[1][::-1])
    assert results[0].any()


def test_explicit_quantisation_needs_no_ranges():
    quantised = insert_qdq(model(), dict.fromkeys(("x", "r1", "p1", "y"), AMAX))
    job = Job(quantised, flags=("INT8",))
    kinds = {layer.type.name for layer in job.layers()}
    assert {"QUANTIZE", "DEQUANTIZE"} < kinds
    (expected,) = ReferenceEvaluator(quantised).run(None, {"x": images()})
    got = floats(job.engine().run(images()), expected.shape)
    assert np.abs(got - expected).max() <= AMAX / 127 + 1e-5
    assert not any(job.config.can_run_on_DLA(layer) for layer in job.layers() if "QUANTIZE" in layer.type.name)
