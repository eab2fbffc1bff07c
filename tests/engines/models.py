"""Small networks for the tests of this package."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def value(name, *shape):
    return helper.make_tensor_value_info(name, FLOAT, shape)


def make(nodes, inputs, outputs, weights, opset=13):
    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "small", inputs, outputs, initializer=tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def small(batch=1, opset=13) -> onnx.ModelProto:
    """Conv, Relu, Conv, Add of both, GlobalAveragePool, Flatten, Gemm: 3x8x8 to 5."""
    rng = np.random.default_rng(1)
    weights = {
        "w1": rng.standard_normal((6, 3, 3, 3), dtype=np.float32) * 0.3,
        "b1": rng.standard_normal(6, dtype=np.float32),
        "w2": rng.standard_normal((6, 6, 1, 1), dtype=np.float32) * 0.3,
        "w3": rng.standard_normal((5, 6), dtype=np.float32),
        "b3": rng.standard_normal(5, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"]),
        helper.make_node("Add", ["c2", "r1"], ["a"], name="add"),
        helper.make_node("GlobalAveragePool", ["a"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="fc", transB=1),
    ]
    return make(nodes, [value("x", batch, 3, 8, 8)], [value("y", batch, 5)], weights, opset)


AMAX = {"x": 3.0, "c1": 6.0, "r1": 6.0, "c2": 5.0, "a": 8.0, "p": 4.0, "f": 4.0}


def images(count=3):
    return np.random.default_rng(2).standard_normal((count, 3, 8, 8)).astype(np.float32)


def fake(values, amax):
    """INT8 rounding in float64: the definition."""
    scale = amax / 127
    return np.clip(np.round(values / scale), -128, 127) * scale


def fake_weight(weight):
    return np.stack([fake(row, np.abs(row).max()) for row in weight.astype(np.float64)])


def int8_by_hand(x, amax):
    """The small network in float64 with each rounding written out: none between a sum or convolution and its ReLU."""
    w = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in small().graph.initializer}
    x = np.pad(fake(x.astype(np.float64), amax["x"]), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    c1 = np.einsum("nchwij,ocij->nohw", windows, fake_weight(w["w1"])) + w["b1"].reshape(1, -1, 1, 1)
    r1 = fake(np.maximum(c1, 0), amax["r1"])
    c2 = fake(np.einsum("nchw,oc->nohw", r1, fake_weight(w["w2"])[..., 0, 0]), amax["c2"])
    p = fake(fake(c2 + r1, amax["a"]).mean(axis=(2, 3)), amax["p"])
    return fake(p, amax["f"]) @ fake_weight(w["w3"]).T + w["b3"]
