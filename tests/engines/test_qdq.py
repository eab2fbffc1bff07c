import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from engines.errors import EngineError
from engines.onnx_model import with_batch
from engines.qdq import insert_qdq, quantise_weight

from .models import AMAX, images, int8_by_hand, make, small, value


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
