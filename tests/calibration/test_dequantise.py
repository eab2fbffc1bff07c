import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from calibration.cache import CalibrationCache, read_cache
from calibration.dequantise import read_qdq
from calibration.errors import CalibrationError
from engines.qdq import Target, insert_qdq
from tests.engines.models import AMAX, images, make, small, value

EVERY = {**AMAX, "y": 9.0}
ZERO = {"zero": np.array(0, np.int8)}
S = {"s": np.array(0.5, np.float32)}


def run(model, feed, outputs=None):
    """Compute without ONNX Runtime's own rewriting of Q/DQ."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(outputs, feed)[0]


def ops(model):
    return [node.op_type for node in model.graph.node]


def stored(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def float32(amax):
    return {name: np.float32(each / 127) for name, each in amax.items()}


@pytest.mark.parametrize("target", list(Target))
@pytest.mark.parametrize("fp16_layers", [(), ("fc",), ("conv1", "Conv_2")])
def test_there_and_back_keeps_ranges_outputs_and_fp16_layers(target, fp16_layers):
    there = insert_qdq(small(3), EVERY, fp16_layers, target)
    found = read_qdq(there)
    onnx.checker.check_model(found.model, full_check=True)
    assert ops(found.model) == ops(small())
    assert found.fp16_layers == fp16_layers
    assert found.notes == ()
    assert float32(found.ranges.amax_by_tensor) == float32(EVERY)
    again = insert_qdq(found.model, found.ranges.amax_by_tensor, found.fp16_layers, target)
    np.testing.assert_array_equal(run(again, {"x": images()}), run(there, {"x": images()}))
    cache = CalibrationCache.from_ranges(found.ranges)
    assert read_cache(cache.dumps()).to_ranges().amax_by_tensor == found.ranges.amax_by_tensor


def test_float_weights_behind_pairs_come_back_bit_by_bit():
    found = read_qdq(insert_qdq(small(3), EVERY, target=Target.TENSORRT_DLA))
    for name, weight in stored(small()).items():
        np.testing.assert_array_equal(stored(found.model)[name], weight)
    np.testing.assert_array_equal(run(found.model, {"x": images()}), run(small(3), {"x": images()}))


def test_weights_stored_as_int8_come_back_within_half_a_step():
    found = read_qdq(insert_qdq(small(3), EVERY))
    weight, back = stored(small())["w1"], stored(found.model)["w1_dq0"]
    assert back.dtype == np.float32
    half = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127 / 2
    assert np.all(np.abs(back - weight) <= half * 1.0001)


SINGLE = ("Relu", "LeakyRelu", "Sigmoid", "MaxPool", "AveragePool", "Transpose", "Conv")


@st.composite
def networks(draw):
    """Up to seven layers, any of their tensors an output; a range for each tensor; some layers kept in FP16."""
    extra = {"MaxPool": {"kernel_shape": [1, 1]}, "AveragePool": {"kernel_shape": [1, 1]}}
    extra["Transpose"] = {"perm": [0, 1, 3, 2]}
    nodes, tensors = [], ["x"]
    for index in range(draw(st.integers(1, 7))):
        op = draw(st.sampled_from((*SINGLE, "Add", "Mul")))
        read = [draw(st.sampled_from(tensors)) for _ in range(2 if op in ("Add", "Mul") else 1)]
        weights = ["w"] if op == "Conv" else []
        name = "" if draw(st.booleans()) else f"n{index}"
        nodes.append(helper.make_node(op, read + weights, [f"t{index}"], name, **extra.get(op, {})))
        tensors.append(f"t{index}")
    unread = set(tensors[1:]) - {name for node in nodes for name in node.input}
    outputs = sorted(unread | draw(st.sets(st.sampled_from(tensors[1:]), max_size=2)))
    ends = [value(name, 1, 3, 4, 4) for name in outputs]
    amax = {name: 127 * float(np.float32(draw(st.floats(0.01, 1.0)))) for name in tensors}
    network = make(nodes, [value("x", 1, 3, 4, 4)], ends, {"w": convolution()[0][:, :, :1, :1].copy()})
    return network, amax, draw(st.sets(st.sampled_from([node.name for node in nodes if node.name] or ["none"])))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(networks(), st.sampled_from(list(Target)))
def test_any_network_there_and_back_computes_the_same(drawn, target):
    network, amax, fp16_layers = drawn
    there = insert_qdq(network, amax, fp16_layers, target)
    onnx.checker.check_model(there, full_check=True)
    found = read_qdq(there)
    onnx.checker.check_model(found.model, full_check=True)
    assert ops(found.model) == ops(network)
    assert [entry.name for entry in found.model.graph.output] == [entry.name for entry in network.graph.output]
    kept = {name for name in amax if any(f"{name}_" in node.output[0] for node in there.graph.node)}
    assert {name: found.ranges.amax_by_tensor[name] for name in kept} == {name: amax[name] for name in kept}
    again = insert_qdq(found.model, {name: amax[name] for name in kept}, found.fp16_layers, target)
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32) * 20
    for name in (entry.name for entry in network.graph.output):
        before, after = (run(each, {"x": x}, [name]) for each in (there, again))
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)


def quantised_by_onnxruntime(tmp_path, **extra):
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self._feeds = iter([{"x": images()}])

        def get_next(self):
            return next(self._feeds, None)

    source, target = tmp_path / "float.onnx", tmp_path / "qdq.onnx"
    onnx.save(small(3), source)
    options = {"ActivationSymmetric": True, "WeightSymmetric": True, **extra.pop("extra_options", {})}
    form = quantization.QuantFormat.QDQ
    kinds = {key: getattr(quantization.QuantType, kind) for key, kind in extra.pop("types").items()}
    quantization.quantize_static(source, target, Reader(), quant_format=form, extra_options=options, **kinds, **extra)
    return onnx.load(target)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", ["QInt8", "QUInt8"])
def test_what_onnxruntime_quantises_comes_back(tmp_path, kind, per_channel):
    types = {"activation_type": kind, "weight_type": kind}
    network = quantised_by_onnxruntime(tmp_path, types=types, per_channel=per_channel)
    found = read_qdq(network)
    onnx.checker.check_model(found.model, full_check=True)
    assert ops(found.model) == ops(small())
    assert found.fp16_layers == ()
    assert set(found.ranges.amax_by_tensor) == {"x", "c1", "r1", "c2", "a", "p", "f", "y"}
    assert set(stored(found.model)) == set(stored(small()))
    levels = 127 if kind == "QInt8" else 127.5  # ONNX Runtime spreads UINT8 over 255 steps
    measured = float(np.abs(images()).max())
    assert found.ranges.amax_by_tensor["x"] == pytest.approx(measured * 127 / levels, rel=1e-6)
    for name, weight in stored(small()).items():
        step = np.abs(weight).max() / 127
        assert np.abs(stored(found.model)[name] - weight).max() <= 0.51 * step
    plain = run(small(3), {"x": images()})
    assert np.abs(run(found.model, {"x": images()}) - plain).max() < 0.03 * np.abs(plain).max()


def test_onnxruntime_asymmetric_is_refused_with_the_tensor(tmp_path):
    network = quantised_by_onnxruntime(
        tmp_path,
        types={"activation_type": "QUInt8", "weight_type": "QInt8"},
        extra_options={"ActivationSymmetric": False},
    )
    with pytest.raises(CalibrationError, match=r"tensor 'x' has the zero point \d+ in uint8, expected 128"):
        read_qdq(network)


def pair(name, source, scale, axis=None, readers=1, zero="zero"):
    """QuantizeLinear and one DequantizeLinear a reader: `<name>`, `<name>_1`, ..."""
    extra = {} if axis is None else {"axis": axis}
    nodes = [helper.make_node("QuantizeLinear", [source, scale, zero], [f"{name}_i8"], f"{name}/Q", **extra)]
    for index in range(readers):
        made = f"{name}_{index}" if index else name
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_i8", scale, zero], [made], f"{made}/DQ", **extra))
    return nodes


def constant(name, values):
    return helper.make_node("Constant", [], [name], name=f"{name}/Constant", value=numpy_helper.from_array(values))


def convolution():
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((3, 3, 3, 3)).astype(np.float32)
    return weight, (np.abs(weight).max(axis=(1, 2, 3)) / np.float32(127)).astype(np.float32)


def model_optimizer():
    """Model Optimizer: `<layer>/input_quantizer` and `<layer>/weight_quantizer` pairs in front of each reader, one a
    reader, weights in float behind pairs with an axis, scales in Constant nodes, the residual and the output in float.
    """
    weight, scales = convolution()
    nodes = [
        *(constant("/a/_s", np.array(0.02, np.float32)), constant("/w/_s", scales)),
        constant("/w/_z", np.zeros(3, np.int8)),
        *pair("/conv1/input_quantizer", "x", "/a/_s"),
        *pair("/conv1/weight_quantizer", "w", "/w/_s", axis=0, zero="/w/_z"),
        helper.make_node(
            "Conv", ["/conv1/input_quantizer", "/conv1/weight_quantizer", "b"], ["c"], "/conv1/Conv", pads=[1] * 4
        ),
        helper.make_node("Relu", ["c"], ["r"], "/relu/Relu"),
        *pair("/conv2/input_quantizer", "r", "r_s"),
        *pair("/conv2/weight_quantizer", "w", "/w/_s", axis=0, zero="/w/_z"),
        helper.make_node(
            "Conv", ["/conv2/input_quantizer", "/conv2/weight_quantizer", "b"], ["d"], "/conv2/Conv", pads=[1] * 4
        ),
        helper.make_node("Add", ["d", "x"], ["y"], "/Add"),
    ]
    image = value("x", 1, 3, 4, 4)
    constants = {"w": weight, "b": np.ones(3, np.float32), "r_s": np.array([0.05], np.float32), **ZERO}
    return make(nodes, [image], [value("y", 1, 3, 4, 4)], constants)


def test_model_optimizers_form():
    network = model_optimizer()
    onnx.checker.check_model(network, full_check=True)
    found = read_qdq(network)
    onnx.checker.check_model(found.model, full_check=True)
    assert ops(found.model) == ["Conv", "Relu", "Conv", "Add"]
    assert [list(node.input) for node in found.model.graph.node if node.op_type == "Conv"] == [
        ["x", "w", "b"],
        ["r", "w", "b"],
    ]
    step = {"x": np.float32(0.02), "r": np.float32(0.05), "c": np.float32(0.05)}  # c follows: the ReLU alone reads it
    assert float32(found.ranges.amax_by_tensor) == step
    assert found.fp16_layers == ("/Add",)
    assert found.layer_precisions == "/Add:fp16"
    assert sorted(stored(found.model)) == ["b", "w"]
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32)
    explicit = {name: found.ranges.amax_by_tensor[name] for name in ("x", "r")}
    again = insert_qdq(found.model, explicit, found.fp16_layers, Target.TENSORRT_DLA)
    np.testing.assert_allclose(run(again, {"x": x}), run(network, {"x": x}), atol=1e-5)


def pytorch():
    """PyTorch (pt2e, exported): one quantize_per_tensor with a dequantize for each reader, weights stored as INT8 with
    a dequantize_per_channel, a Linear's moved by a Transpose, biases in float, a pair in front of the output.
    """
    rng = np.random.default_rng(4)
    kernel, matrix = rng.integers(-127, 128, (3, 3, 1, 1), np.int8), rng.integers(-127, 128, (5, 3), np.int8)
    nodes = [
        *pair("dequantize_per_tensor", "x", "s", readers=2),
        helper.make_node("DequantizeLinear", ["conv_q", "per_channel", "zeros"], ["conv_w"], "dequantize", axis=0),
        helper.make_node("Conv", ["dequantize_per_tensor", "conv_w", "conv_b"], ["conv2d"], "node_conv2d"),
        *pair("dequantize_conv", "conv2d", "s"),
        helper.make_node("Add", ["dequantize_conv", "dequantize_per_tensor_1"], ["add"], "node_add"),
        *pair("dequantize_add", "add", "s"),
        helper.make_node("GlobalAveragePool", ["dequantize_add"], ["mean"], "node_mean"),
        helper.make_node("Flatten", ["mean"], ["view"], "node_view"),
        *pair("dequantize_view", "view", "s"),
        helper.make_node("DequantizeLinear", ["linear_q", "s", "zero"], ["linear_w"], "dequantize_linear"),
        helper.make_node("Transpose", ["linear_w"], ["linear_t"], "node_t", perm=[1, 0]),
        helper.make_node("MatMul", ["dequantize_view", "linear_t"], ["linear"], "node_linear"),
        *pair("output", "linear", "s"),
    ]
    constants = {
        **{"s": np.array(0.03125, np.float32), "per_channel": np.array([0.5, 0.25, 1], np.float32) / 64, **ZERO},
        **{"zeros": np.zeros(3, np.int8), "conv_b": np.ones(3, np.float32), "conv_q": kernel, "linear_q": matrix},
    }
    return make(nodes, [value("x", 2, 3, 4, 4)], [value("output", 2, 5)], constants)


def test_pytorchs_form():
    network = pytorch()
    onnx.checker.check_model(network, full_check=True)
    found = read_qdq(network)
    onnx.checker.check_model(found.model, full_check=True)
    assert ops(found.model) == ["Conv", "Add", "GlobalAveragePool", "Flatten", "MatMul"]
    assert found.model.graph.node[-1].output[0] == "output"
    assert set(found.ranges.amax_by_tensor) == {"x", "conv2d", "add", "view", "mean", "output"}
    assert set(found.ranges.amax_by_tensor.values()) == {0.03125 * 127}
    assert found.fp16_layers == ()
    weights, given = stored(found.model), stored(network)
    scale = np.array([0.5, 0.25, 1], np.float32).reshape(3, 1, 1, 1) / 64
    np.testing.assert_array_equal(weights["conv_w"], given["conv_q"] * scale)
    np.testing.assert_array_equal(weights["linear_t"], given["linear_q"].T * np.float32(0.03125))
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    expected = x.astype(np.float64)
    expected += np.einsum("nchw,oc->nohw", expected, weights["conv_w"][..., 0, 0].astype(np.float64)) + 1
    expected = expected.mean(axis=(2, 3)) @ weights["linear_t"].astype(np.float64)
    np.testing.assert_allclose(run(found.model, {"x": x}), expected, atol=1e-4)


def test_an_output_without_a_pair_gets_no_range_although_its_maker_only_moves_values():
    nodes = [*pair("x_dq", "x", "s"), helper.make_node("MaxPool", ["x_dq"], ["y"], "pool", kernel_shape=[1, 1])]
    nodes.append(helper.make_node("Flatten", ["y"], ["z"], "flat"))
    outputs = [value("y", 1, 3, 4, 4), value("z", 1, 48)]
    found = read_qdq(make(nodes, [value("x", 1, 3, 4, 4)], outputs, {"s": np.array(0.5, np.float32), **ZERO}))
    assert dict(found.ranges.amax_by_tensor) == {"x": 63.5}
    assert found.fp16_layers == ("flat",)


def test_an_output_that_is_a_rounded_input_or_a_second_name_keeps_its_name():
    nodes = [*pair("y", "x", "s"), helper.make_node("Neg", ["x"], ["z"], "n"), *pair("w", "z", "s")]
    outputs = [value(name, 1, 2) for name in ("y", "z", "w")]
    found = read_qdq(make(nodes, [value("x", 1, 2)], outputs, {"s": np.array(0.5, np.float32), **ZERO}))
    onnx.checker.check_model(found.model, full_check=True)
    assert [entry.name for entry in found.model.graph.output] == ["y", "z", "w"]
    assert {"x", "y", "z", "w"} == set(found.ranges.amax_by_tensor)
    assert run(found.model, {"x": np.array([[0.3, 1.0]], np.float32)}).tolist() == [[np.float32(0.3), 1.0]]


def test_integers_that_a_layer_reads_do_not_make_it_fp16():
    nodes = [*pair("x_dq", "x", "s"), helper.make_node("Gather", ["x_dq", "i"], ["y"], "pick", axis=1)]
    network = make(nodes, [value("x", 1, 4)], [value("y", 1, 2)], {**S, **ZERO})
    network.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, [2]))
    assert read_qdq(network).fp16_layers == ()


def test_biases_stored_as_int32_come_back_as_floats():
    weights = {"q": np.array([[[[4]]]], np.int8), "s": np.array(0.5, np.float32), "bs": np.array([0.25], np.float32)}
    weights |= {"bq": np.array([-12], np.int32), **ZERO}
    nodes = [
        *pair("x_dq", "x", "s"),
        helper.make_node("DequantizeLinear", ["q", "s", "zero"], ["w"]),
        helper.make_node("DequantizeLinear", ["bq", "bs"], ["b"], axis=0),
        helper.make_node("Conv", ["x_dq", "w", "b"], ["y"]),
    ]
    found = read_qdq(make(nodes, [value("x", 1, 1, 2, 2)], [value("y", 1, 1, 2, 2)], weights))
    assert {name: each.tolist() for name, each in stored(found.model).items()} == {"w": [[[[2.0]]]], "b": [-3.0]}
    assert {each.dtype for each in stored(found.model).values()} == {np.dtype(np.float32)}
    assert found.model.graph.node[0].name == "Conv_0"


def test_a_weight_that_two_layers_share_comes_back_once():
    back = [helper.make_node("DequantizeLinear", ["q", "s", "zero"], [name]) for name in ("w", "v")]
    nodes = [*back, helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("MatMul", ["m", "v"], ["y"])]
    constants = {"q": np.array([[2, 0], [0, 2]], np.int8), **S, **ZERO}
    found = read_qdq(make(nodes, [value("x", 1, 2)], [value("y", 1, 2)], constants))
    assert {name: each.tolist() for name, each in stored(found.model).items()} == {"w": [[1.0, 0.0], [0.0, 1.0]]}


@pytest.mark.parametrize("moves", ["Reshape Transpose", "Transpose Reshape", "Unsqueeze Squeeze"])
def test_what_moves_a_weight_behind_its_pair_is_folded(moves):
    """A kernel kept as [k*k*in, out] that Reshape and Transpose bring to [out, in, k, k]: what Keras exports."""
    rng = np.random.default_rng(5)
    flat = rng.integers(-127, 128, (3 * 3 * 2, 4), np.int8)
    operands = {"four": np.array([3, 3, 2, 4]), "axes": np.array([0], np.int64), "turned": np.array([4, 3, 3, 2])}
    steps = {
        "Reshape Transpose": [("Reshape", ["four"], {}), ("Transpose", [], {"perm": [3, 2, 0, 1]})],
        "Transpose Reshape": [("Transpose", [], {"perm": [1, 0]}), ("Reshape", ["turned"], {})],
        "Unsqueeze Squeeze": [("Unsqueeze", ["axes"], {}), ("Squeeze", ["axes"], {}), ("Identity", [], {})],
    }[moves]
    last = "w"
    nodes = [*pair("x_dq", "x", "s"), helper.make_node("DequantizeLinear", ["wq", "s", "zero"], ["w"])]
    for index, (op, others, attributes) in enumerate(steps):
        nodes.append(helper.make_node(op, [last, *others], [f"m{index}"], **attributes))
        last = f"m{index}"
    reader = helper.make_node("MatMul", ["x_dq", last], ["y"])
    constants = {"wq": flat, "s": np.array(0.5, np.float32), **operands, **ZERO}
    if moves == "Unsqueeze Squeeze":
        network = make([*nodes, reader], [value("x", 1, 18)], [value("y", 1, 4)], constants)
    else:
        reader = helper.make_node("Conv", ["x_dq", last], ["y"])
        shape = (1, 2, 3, 3) if moves == "Reshape Transpose" else (1, 3, 3, 2)
        network = make([*nodes, reader], [value("x", *shape)], [value("y", 1, 4, 1, 1)], constants)
    found = read_qdq(network)
    assert len(found.model.graph.node) == 1
    whole = np.float32(0.5) * np.rint(rng.standard_normal(found.graph.tensors["x"].shape) * 20).astype(np.float32)
    np.testing.assert_array_equal(run(found.model, {"x": whole}), run(network, {"x": whole}))


def test_a_weight_with_another_scale_keeps_its_rounded_values_and_that_is_said():
    weights = {"w": np.array([[1.0, -3.0]], np.float32), "s": np.array(1 / 64, np.float32), **ZERO}
    nodes = [*pair("x_dq", "x", "s"), *pair("w_dq", "w", "s"), helper.make_node("Gemm", ["x_dq", "w_dq"], ["y"], "fc")]
    found = read_qdq(make(nodes, [value("x", 1, 1)], [value("y", 1, 2)], weights))
    assert stored(found.model)["w_dq"].tolist() == [[1.0, -2.0]]
    assert len(found.notes) == 1
    assert "'w'" in found.notes[0]


def test_two_roundings_of_one_tensor_keep_the_larger_and_say_so():
    weights = {"s": np.array(0.5, np.float32), "t": np.array(0.25, np.float32), **ZERO}
    nodes = [*pair("a", "x", "s"), *pair("b", "x", "t"), helper.make_node("Add", ["a", "b"], ["y"], "add")]
    found = read_qdq(make(nodes, [value("x", 1, 1)], [value("y", 1, 1)], weights))
    assert found.ranges.amax_by_tensor["x"] == 63.5
    assert ["'x'" in note for note in found.notes] == [True]


def one(nodes, constants, kind=TensorProto.FLOAT, made=TensorProto.FLOAT):
    network = make(nodes, [value("x", 1, 4, 2, 2)], [value("y", 1, 4, 2, 2)], {**constants, **ZERO})
    network.graph.input[0].type.tensor_type.elem_type = kind
    network.graph.output[0].type.tensor_type.elem_type = made
    return network


INT8 = TensorProto.INT8


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (one(pair("y", "x", "s", axis=1), {"s": np.ones(4, np.float32)}), "tensor 'x' has 4 scales"),
        (one(pair("y", "x", "s", zero="z"), {**S, "z": np.array(3, np.int8)}), "tensor 'x' has the zero point 3"),
        (one(pair("y", "x", "s", zero="z"), {**S, "z": np.array(0, np.uint8)}), "zero point 0 in uint8, expected 128"),
        (one(pair("y", "x", "s", zero="z"), {**S, "z": np.array(0, np.uint16)}), "'x' is quantised to uint16"),
        (one(pair("y", "x", "s"), {"s": np.array(0, np.float32)}), "tensor 'x' has the scale 0"),
        (
            one(
                [*pair("a", "x", "s")[:1], helper.make_node("DequantizeLinear", ["a_i8", "t", "zero"], ["y"])],
                {**S, "t": np.array(0.25, np.float32)},
            ),
            "tensor 'x' is quantised and dequantised with different scales",
        ),
        (one([helper.make_node("DequantizeLinear", ["x", "s", "zero"], ["y"])], S, INT8), "'x' is an integer already"),
        (one([helper.make_node("QuantizeLinear", ["x", "s", "zero"], ["y"])], S, made=INT8), "output 'y' is INT8"),
        (
            one(
                [
                    *pair("a", "x", "s")[:1],
                    helper.make_node("MaxPool", ["a_i8"], ["p"], "pool", kernel_shape=[1, 1]),
                    helper.make_node("DequantizeLinear", ["p", "s", "zero"], ["y"]),
                ],
                S,
            ),
            "tensor 'x' goes as INT8 into MaxPool 'pool'",
        ),
        (
            one([helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0), *pair("y", "x", "m")], {}),
            "tensor 'x' has a scale that is computed",
        ),
    ],
)
def test_what_a_dla_cannot_have_is_refused_with_the_tensor(network, words):
    with pytest.raises(CalibrationError) as caught:
        read_qdq(network)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_symmetric_uint8_is_int8_by_another_name():
    found = read_qdq(one(pair("y", "x", "s", zero="z"), {**S, "z": np.array(128, np.uint8)}))
    assert dict(found.ranges.amax_by_tensor) == {"x": 63.5, "y": 63.5}


def test_a_layer_name_that_trtexec_would_split_is_refused():
    nodes = [*pair("w", "x", "s"), helper.make_node("Neg", ["x"], ["y"], "a,b")]
    found = read_qdq(one(nodes, S))
    with pytest.raises(CalibrationError, match="'a,b' has a comma"):
        _ = found.layer_precisions


def test_a_network_without_pairs_is_refused():
    with pytest.raises(CalibrationError, match="'small' has no QuantizeLinear"):
        read_qdq(small())


def test_a_branch_that_reads_a_pair_is_refused():
    inner = helper.make_graph([helper.make_node("Neg", ["a"], ["n"])], "inner", [], [value("n", 1, 4, 2, 2)])
    choice = helper.make_node("If", ["yes"], ["y"], "choice", then_branch=inner, else_branch=inner)
    network = one([*pair("a", "x", "s"), choice], {**S, "yes": np.array(True)})
    with pytest.raises(CalibrationError, match="If 'choice' reads 'a' in a branch"):
        read_qdq(network)


def test_weights_that_are_not_loaded_are_refused(tmp_path):
    onnx.save(model_optimizer(), tmp_path / "m.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    network = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    with pytest.raises(CalibrationError, match="'w' is not loaded"):
        read_qdq(network)
    assert read_qdq(onnx.load(tmp_path / "m.onnx")).fp16_layers == ("/Add",)
