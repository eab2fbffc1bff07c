import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from engines.errors import EngineError
from engines.onnx_model import with_batch
from engines.qdq import Target, insert_qdq, quantise_weight

from .models import AMAX, fake, fake_weight, images, int8_by_hand, make, small, value


def run(model, x):
    """Compute without ONNX Runtime's own rewriting of Q/DQ."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_int8_network_equals_the_definition_in_float64():
    x = images()
    model = insert_qdq(with_batch(small(), 3), AMAX)
    onnx.checker.check_model(model, full_check=True)
    computed = run(model, x)
    assert np.allclose(computed, int8_by_hand(x, AMAX), atol=1e-4)
    plain = run(with_batch(small(), 3), x)
    assert 1e-3 < np.abs(computed - plain).max() < 0.5


def counts(model):
    ops = [node.op_type for node in model.graph.node]
    return ops.count("QuantizeLinear"), ops.count("DequantizeLinear")


def test_each_range_makes_a_pair_and_each_weight_a_dequantisation():
    assert counts(insert_qdq(small(), AMAX)) == (6, 9)  # c1 is fused into its ReLU
    weights = {tensor.name for tensor in insert_qdq(small(), AMAX).graph.initializer}
    assert {"b1", "b3"} <= weights
    assert not {"w1", "w2", "w3"} & weights


def test_layers_kept_in_fp16_read_float_and_keep_their_weights():
    model = insert_qdq(small(), AMAX, fp16_layers=["fc"])
    fc = next(node for node in model.graph.node if node.name == "fc")
    assert list(fc.input) == ["f", "w3", "b3"]


def test_tensors_without_a_range_stay_float():
    assert counts(insert_qdq(small(), {"x": 3.0})) == (1, 2)
    assert counts(insert_qdq(small(), {"x": 0.0})) == (0, 0)


def test_an_old_opset_is_raised():
    model = insert_qdq(small(opset=11), AMAX)
    assert model.opset_import[0].version == 13
    assert run(model, images(1)).shape == (1, 5)


@pytest.mark.parametrize("amax", [float("nan"), float("inf"), -1.0])
def test_an_impossible_range_is_refused(amax):
    with pytest.raises(EngineError, match="dynamic range of 'c1' is"):
        insert_qdq(small(), {"x": 1.0, "c1": amax})


def test_weights_are_scaled_for_each_output_channel():
    weight = np.array([[1.0, -0.5], [0.0, 0.0], [-4.0, 2.0]], np.float32)
    steps, scale = quantise_weight(weight, 0)
    assert np.allclose(scale, [1 / 127, 1, 4 / 127])
    assert steps.tolist() == [[127, -64], [0, 0], [-127, 64]]
    steps, scale = quantise_weight(weight, 1)
    assert np.allclose(scale, [4 / 127, 2 / 127])


def test_a_gemm_without_transposition_has_its_channels_in_columns():
    weight = np.array([[1.0, 100.0], [0.5, 50.0]], np.float32)
    gemm = helper.make_node("Gemm", ["x", "w"], ["y"], name="fc")
    model = insert_qdq(make([gemm], [value("x", 1, 2)], [value("y", 1, 2)], {"w": weight}), {"x": 127.0})
    y = run(model, np.array([[1.0, 1.0]], np.float32))
    assert np.allclose(y, [[1.0 + 64 / 127, 100 + 6400 / 127]], atol=1e-4)


EVERY = {**AMAX, "y": 9.0}


def makers(model):
    return {name: node for node in model.graph.node for name in node.output}


def is_rounded(model, name):
    """Whether a tensor comes straight out of a QuantizeLinear, DequantizeLinear pair of one INT8 scale."""
    made = makers(model)
    back = made.get(name)
    if back is None or back.op_type != "DequantizeLinear" or made.get(back.input[0]) is None:
        return False
    there = made[back.input[0]]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    zeros = stored[there.input[2]]
    same = list(there.input[1:]) == list(back.input[1:])
    return there.op_type == "QuantizeLinear" and same and zeros.dtype == np.int8 and not zeros.any()


@pytest.mark.parametrize("fp16_layers", [(), ("fc", "Conv_2")])
def test_for_the_dla_every_activation_and_weight_that_a_layer_reads_is_rounded(fp16_layers):
    model = insert_qdq(small(), EVERY, fp16_layers, target=Target.TENSORRT_DLA)
    onnx.checker.check_model(model, full_check=True)
    layers = [node for node in model.graph.node if not node.op_type.endswith("Linear")]
    assert len(layers) == 7
    for index, node in enumerate(layers):
        weights = 1 if node.op_type in ("Conv", "Gemm") else 0
        read = [name for position, name in enumerate(node.input) if not (weights and position == 2)]
        in_fp16 = (node.name or f"{node.op_type}_{index}") in fp16_layers
        assert [is_rounded(model, name) for name in read] == [not in_fp16] * len(read), node.name
        assert any(node.output[0] in other.input and other.op_type == "QuantizeLinear" for other in model.graph.node)
    assert is_rounded(model, "y")


def test_for_the_dla_the_network_equals_the_definition_in_float64():
    x = images()
    computed = run(insert_qdq(with_batch(small(), 3), EVERY, target="tensorrt-dla"), x)
    w = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in small().graph.initializer}
    padded = np.pad(fake(x.astype(np.float64), 3.0), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    c1 = np.einsum("nchwij,ocij->nohw", windows, fake_weight(w["w1"])) + w["b1"].reshape(1, -1, 1, 1)
    r1 = fake(np.maximum(fake(c1, 6.0), 0), 6.0)
    c2 = fake(np.einsum("nchw,oc->nohw", r1, fake_weight(w["w2"])[..., 0, 0]), 5.0)
    p = fake(fake(c2 + r1, 8.0).mean(axis=(2, 3)), 4.0)
    y = fake(fake(p, 4.0) @ fake_weight(w["w3"]).T + w["b3"], 9.0)
    step = 9.0 / 127
    assert np.abs(computed - y).max() <= step + 1e-4  # a tie may fall either way
    assert np.mean(np.abs(computed - y) < 1e-4) > 0.8


def test_weights_for_the_dla_stay_float_with_a_scale_a_channel():
    model = insert_qdq(small(), EVERY, target="tensorrt-dla")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, weight in ((tensor.name, numpy_helper.to_array(tensor)) for tensor in small().graph.initializer):
        np.testing.assert_array_equal(stored[name], weight)
    rounding = next(node for node in model.graph.node if node.input[0] == "w1")
    assert next(entry.i for entry in rounding.attribute if entry.name == "axis") == 0
    np.testing.assert_allclose(stored[rounding.input[1]], np.abs(stored["w1"]).max(axis=(1, 2, 3)) / 127, rtol=1e-6)


def test_a_tensor_behind_an_output_reads_its_rounded_form():
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="r"), helper.make_node("Neg", ["y"], ["z"], name="n")]
    source = make(nodes, [value("x", 1, 2)], [value("y", 1, 2), value("z", 1, 2)], {})
    model = insert_qdq(source, {"x": 127.0, "y": 127.0}, target="tensorrt-dla")
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, z = session.run(None, {"x": np.array([[1.6, 90.4]], np.float32)})
    assert (y.tolist(), z.tolist()) == ([[2.0, 90.0]], [[-2.0, -90.0]])


@pytest.mark.parametrize("target", list(Target))
def test_transposed_convolutions_and_products_have_int8_weights(target):
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((2, 3, 2, 2)).astype(np.float32), "m": np.diag([1, 50]).astype(np.float32)}
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])]
    nodes.append(helper.make_node("MatMul", ["v", "m"], ["z"]))
    inputs, outputs = [value("x", 1, 2, 2, 2), value("v", 1, 2)], [value("y", 1, 3, 4, 4), value("z", 1, 2)]
    model = insert_qdq(make(nodes, inputs, outputs, weights), {"x": 127.0, "v": 127.0}, target=target)
    onnx.checker.check_model(model, full_check=True)
    x = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, z = session.run(None, {"x": x, "v": np.array([[1.0, 1.0]], np.float32)})
    channels = fake_weight(weights["w"].swapaxes(0, 1)).swapaxes(0, 1)
    expected = np.einsum("nchw,coij->nohiwj", x.astype(np.float64), channels).reshape(1, 3, 4, 4)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    np.testing.assert_allclose(z, [[1.0, 50.0]], rtol=1e-6)


@pytest.mark.parametrize("target", list(Target))
def test_names_that_the_network_has_already_are_left_to_it(target):
    names = ["a", "a_q", "a_dq", "a_scale", "int8_zero", "y"]
    nodes = [helper.make_node("Neg", [x], [y]) for x, y in zip(["x", *names], names)]
    model = insert_qdq(make(nodes, [value("x", 1, 2)], [value("y", 1, 2)], {}), dict.fromkeys(names, 127.0), (), target)
    onnx.checker.check_model(model, full_check=True)
    assert run(model, np.array([[1.2, -5.6]], np.float32)).tolist() == [[1.0, -6.0]]


def test_a_range_below_float32_is_none():
    assert counts(insert_qdq(small(), {"x": 1e-45})) == (0, 0)


def test_a_network_with_qdq_is_refused():
    with pytest.raises(EngineError, match="take its Q/DQ out"):
        insert_qdq(insert_qdq(small(), AMAX), AMAX)


def test_an_unknown_target_is_refused():
    with pytest.raises(EngineError, match="target 'gpu'"):
        insert_qdq(small(), AMAX, target="gpu")
