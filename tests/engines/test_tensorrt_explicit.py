"""Strongly typed networks: each type and scale written in ONNX, numbers as in the float64 definition."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engines.bindings import input_bindings, native_outputs
from engines.graph import read_graph
from engines.preprocess import quantise
from engines.spec import EngineSpec
from engines.tensorrt.explicit import LEAST_SCALE, typed
from engines.tensorrt.job import Job
from engines.tensorrt.parse import batched

from .models import AMAX, images, int8_by_hand, make, small, value


def job(model, **changes):
    values = {"network": "net", "device": "gpu", "batch": 4, "amax_by_tensor": AMAX, "io_formats": {"x": "CHW4"}}
    spec, graph = EngineSpec(**{**values, **changes}), read_graph(model, "net")
    return Job(batched(model, spec), spec, graph, input_bindings(graph, spec), native_outputs(graph, spec))


def run(model, x):
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def sqnr_db(computed, expected):
    error = computed.astype(np.float64) - expected
    return 10 * np.log10(np.sum(expected**2) / np.sum(error**2))


def type_of(entry):
    return entry.type.tensor_type.elem_type


def conv_net():
    """One convolution with four axes out."""
    weights = {"w": np.random.default_rng(0).standard_normal((5, 3, 1, 1), dtype=np.float32)}
    return make(
        [helper.make_node("Conv", ["x", "w"], ["y"])], [value("x", 1, 3, 8, 8)], [value("y", 1, 5, 8, 8)], weights
    )


def test_int8_samples_go_in_and_int8_arithmetic_is_that_of_the_definition():
    made = typed(job(small()))
    (x,), (y,) = made.graph.input, made.graph.output
    assert (type_of(x), type_of(y)) == (TensorProto.INT8, TensorProto.FLOAT)
    assert not [node for node in made.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x"]
    samples = quantise(images(4), AMAX["x"])
    assert sqnr_db(run(made, samples), int8_by_hand(samples * (AMAX["x"] / 127), AMAX)) > 40


def test_everything_else_computes_in_fp16():
    made = typed(job(small()))
    inferred = onnx.shape_inference.infer_shapes(made, strict_mode=True).graph
    types = {value.name: type_of(value) for value in inferred.value_info}
    assert {types[name] for name in ("c1", "r1", "a", "p")} == {TensorProto.FLOAT16}
    assert TensorProto.FLOAT not in {tensor.data_type for tensor in made.graph.initializer}


def test_a_dla_output_is_int8_with_its_scale_or_fp16_without():
    x = quantise(images(2), 3.0)
    weight = numpy_helper.to_array(conv_net().graph.initializer[0])[..., 0, 0].astype(np.float64)
    expected = np.einsum("oc,nchw->nohw", weight, x * (3 / 127))
    made = typed(job(conv_net(), device="dla", batch=2, amax_by_tensor={"x": 3.0, "y": 16.0}))
    assert type_of(made.graph.output[0]) == TensorProto.INT8
    steps = run(made, x)
    assert steps.dtype == np.int8
    assert np.abs(steps * (16 / 127) - expected).max() < 1.1 * 16 / 127  # of rounding weights and output
    half = typed(job(conv_net(), device="dla", batch=2, amax_by_tensor={"x": 3.0, "w": 1.0}))
    assert type_of(half.graph.output[0]) == TensorProto.FLOAT16
    assert sqnr_db(run(half, x), expected) > 35


@pytest.mark.parametrize(("precision", "quality_db"), [("fp16", 60), ("fp32", 80)])
def test_other_precisions_take_int8_samples(precision, quality_db):
    samples = quantise(images(4), 3.0)
    made = typed(job(small(), precision=precision, amax_by_tensor={"x": 3.0}))
    (expected,) = ReferenceEvaluator(small(4)).run(None, {"x": (samples * np.float32(3 / 127)).astype(np.float32)})
    assert sqnr_db(run(made, samples), expected.astype(np.float64)) > quality_db


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_float_samples_stay_float32_at_the_door(precision):
    made = typed(job(small(), precision=precision, amax_by_tensor={}, io_formats={}))
    assert [type_of(entry) for entry in (*made.graph.input, *made.graph.output)] == [TensorProto.FLOAT] * 2
    (expected,) = ReferenceEvaluator(small(4)).run(None, {"x": images(4)})
    assert sqnr_db(run(made, images(4)), expected.astype(np.float64)) > 50


def test_a_weight_too_small_for_an_fp16_scale_keeps_its_value():
    weights = {"w": np.full((1, 3, 1, 1), 3e-3, np.float32)}  # its scale 2.4e-5 is below FP16's full precision
    model = make(
        [helper.make_node("Conv", ["x", "w"], ["y"])], [value("x", 1, 3, 2, 2)], [value("y", 1, 1, 2, 2)], weights
    )
    made = typed(job(model, batch=1, amax_by_tensor={"x": 127.0, "y": 1.2}))
    scales = [numpy_helper.to_array(t) for t in made.graph.initializer if t.name.endswith("scale")]
    assert min(scale.min() for scale in scales) == LEAST_SCALE
    y = run(made, np.full((1, 3, 2, 2), 100, np.int8))
    assert y == pytest.approx(0.9, rel=0.02)  # 3 x 100 x 0.003, the weight 49 steps of 2^-14


def test_constants_beyond_fp16_are_its_largest_numbers():
    weights = {"far": np.array([[[[-1e6]], [[1e6]], [[2.0]]]], np.float32)}
    model = make(
        [helper.make_node("Mul", ["x", "far"], ["y"])], [value("x", 1, 3, 1, 1)], [value("y", 1, 3, 1, 1)], weights
    )
    made = typed(job(model, precision="fp16", amax_by_tensor={}, io_formats={}, batch=1))
    y = run(made, np.ones((1, 3, 1, 1), np.float32))
    assert y.ravel().tolist() == [-65504.0, 65504.0, 2.0]


def test_operands_that_onnx_wants_in_float32_stay_so():
    weights = {"s": np.array([1, 1, 2, 2], np.float32), "roi": np.zeros(0, np.float32)}
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.array(1, np.float32))),
        helper.make_node("Add", ["f", "one"], ["g"]),
        helper.make_node("Resize", ["g", "roi", "s"], ["y"], mode="nearest"),
    ]
    model = make(nodes, [value("x", 1, 3, 2, 2)], [value("y", 1, 3, 4, 4)], weights)
    made = typed(job(model, precision="fp16", amax_by_tensor={}, io_formats={}, batch=1))
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    assert np.array_equal(run(made, x), (x + 1).repeat(2, axis=2).repeat(2, axis=3))


def test_outputs_that_are_no_floats_are_left_alone():
    nodes = [helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)]
    model = make(nodes, [value("x", 1, 4)], [helper.make_tensor_value_info("y", TensorProto.INT64, (1,))], {})
    made = typed(job(model, precision="fp16", amax_by_tensor={}, io_formats={}, batch=1))
    assert run(made, np.array([[1, 4, 2, 3]], np.float32)).tolist() == [1]


def test_a_network_with_quantisation_of_its_own_is_typed_too():
    nodes = [
        helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.array(0.5, np.float32))),
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    model = make(nodes, [value("x", 1, 4)], [value("y", 1, 4)], {"z": np.array(0, np.int8)})
    made = typed(job(model, precision="fp16", amax_by_tensor={}, io_formats={}, batch=1))
    assert run(made, np.array([[0.2, 0.3, -1.1, 80]], np.float32)).tolist() == [[0, 0.5, -1, 63.5]]


def test_an_output_that_is_read_inside_as_well_keeps_both_readers():
    weights = {"w": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"]), helper.make_node("Sigmoid", ["y"], ["z"])]
    model = make(nodes, [value("x", 1, 3, 2, 2)], [value("y", 1, 3, 2, 2), value("z", 1, 3, 2, 2)], weights)
    ranges = {"x": 2.0, "y": 2.0, "z": 1.0}
    made = typed(job(model, device="dla", batch=1, amax_by_tensor=ranges, fp16_layers=()))
    onnx.checker.check_model(made, full_check=True)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.arange(-6, 6, dtype=np.int8).reshape(1, 3, 2, 2) * 10
    y, z = session.run(None, {"x": x})
    assert np.array_equal(y, x)
    assert np.abs(z / 127 - 1 / (1 + np.exp(-x.astype(float) * 2 / 127))).max() < 1.1 / 127


def test_a_layer_kept_out_of_int8_reads_the_samples_dequantised():
    made = typed(job(small(), fp16_layers=("conv1",)))
    samples = quantise(images(4), 3.0)
    (expected,) = ReferenceEvaluator(small(4)).run(None, {"x": (samples * np.float32(3 / 127)).astype(np.float32)})
    assert sqnr_db(run(made, samples), expected.astype(np.float64)) > 25
    convolution = next(node for node in made.graph.node if node.name == "conv1")
    assert list(convolution.input) == ["x_dq", "w1", "b1"]
