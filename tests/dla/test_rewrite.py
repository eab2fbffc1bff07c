import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from dla.errors import DlaError
from dla.rewrite import rewrite
from engines import zoo
from engines.graph import read_graph
from tests.dla.networks import DOUBLE, INT64, conv, model, node

ALL = ("global-pool", "gemm-to-conv", "cut-tail")


def run(network, feeds):
    return ReferenceEvaluator(network).run(None, feeds)


def check_identical(network, names, shape):
    """Rewrite a float64 network and compare both on random inputs; return the rewritten one and the changes."""
    onnx.checker.check_model(network)
    before = network.SerializeToString()
    changed, changes = rewrite(network, names)
    assert network.SerializeToString() == before
    onnx.checker.check_model(changed)
    values = np.random.default_rng(1).standard_normal(shape)
    for old, new in zip(run(network, {"x": values}), run(changed, {"x": values}), strict=True):
        assert np.abs(new.reshape(old.shape) - old).max() <= 1e-10 * np.abs(old).max()
    return changed, changes


def ops(network):
    return [entry.op_type for entry in network.graph.node]


def tail(pool, opset=13, **gemm):
    """A convolution, a mean over 7x7, flatten and Gemm, in float64."""
    nodes = [
        conv("x", "c", "w", pads=[1, 1, 1, 1]),
        pool,
        node("Flatten", "p", "f"),
        node("Gemm", "f v b", "y", **gemm),
    ]
    weights = {"w": (16, 3, 3, 3), "v": (10, 16) if gemm.get("transB") else (16, 10), "b": (10,)}
    return model(nodes, {"x": (2, 3, 7, 7)}, {"y": None}, weights, opset, DOUBLE)


@pytest.mark.parametrize("gemm", [{"transB": 1}, {}, {"alpha": 0.5, "beta": 2.0, "transB": 1}, {"alpha": 0.25}])
def test_the_classification_tail_becomes_pool_and_convolution(gemm):
    network = tail(node("GlobalAveragePool", "c", "p"), **gemm)
    changed, changes = check_identical(network, ALL, (2, 3, 7, 7))
    assert ops(changed) == ["Conv", "AveragePool", "Conv"]
    assert [change.rewrite for change in changes] == ["global-pool", "gemm-to-conv"]
    assert [change.node for change in changes] == ["p_node", "y_node"]
    assert [list(entry.output) for entry in changed.graph.node] == [["c"], ["p"], ["y"]]
    assert read_graph(changed).tensors["y"].shape == (2, 10, 1, 1)
    assert {entry.name for entry in changed.graph.initializer} == {"w", "v_conv", "b_conv"}


def test_the_tail_of_resnet50_itself():
    network = zoo.model("resnet50")
    weights = {entry.name: onnx.numpy_helper.to_array(entry).astype(np.float64) for entry in network.graph.initializer}
    nodes = [entry for entry in network.graph.node if entry.op_type in ("GlobalAveragePool", "Flatten", "Gemm")]
    nodes[0].input[0] = "x"
    used = {name: weights[name] for entry in nodes for name in entry.input if name in weights}
    changed, _ = check_identical(
        model(nodes, {"x": (1, 2048, 7, 7)}, {"logits": None}, used, 13, DOUBLE), ALL, (1, 2048, 7, 7)
    )
    assert ops(changed) == ["AveragePool", "Conv"]
    assert changed.graph.output[0].name == "logits"


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [13, 18])
def test_reduce_mean_in_both_spellings(keepdims, opset):
    if opset < 18:
        mean = node("ReduceMean", "c", "p", axes=[-1, 2], keepdims=keepdims)
    else:
        mean = node("ReduceMean", "c axes", "p", keepdims=keepdims)
    nodes = [node("Relu", "x", "c"), mean, node("Relu", "p", "y")]
    weights = {"axes": np.array([2, 3], np.int64)} if opset >= 18 else {}
    network = model(nodes, {"x": (2, 3, 5, 8)}, {"y": None}, weights, opset, DOUBLE)
    changed, changes = check_identical(network, ("global-pool",), (2, 3, 5, 8))
    assert ops(changed) == ["Relu", "AveragePool", *["Flatten"] * (1 - keepdims), "Relu"]
    assert len(changes) == 1


def test_the_tail_as_tensorflow_exports_it():
    # ReduceMean, Squeeze, MatMul, Add, then ArgMax and Softmax beside each other: MLPerf's own ResNet-50 file.
    nodes = [
        node("Relu", "x", "r"),
        node("ReduceMean", "r", "m", axes=[2, 3], keepdims=1),
        node("Squeeze", "m axes", "s"),
        node("MatMul", "s v", "mm"),
        node("Add", "mm b", "logits"),
        node("ArgMax", "logits", "top", axis=1, keepdims=0),
        node("Softmax", "logits", "soft", axis=1),
    ]
    weights = {"axes": np.array([2, 3], np.int64), "v": (8, 5), "b": (5,)}
    network = model(nodes, {"x": (3, 8, 7, 7)}, {"top": INT64, "soft": None}, weights, 13, DOUBLE)
    changed, changes = rewrite(network, ALL)
    onnx.checker.check_model(changed)
    assert ops(changed) == ["Relu", "AveragePool", "Conv"]
    assert [(change.rewrite, change.op, change.tensor) for change in changes] == [
        ("cut-tail", "ArgMax", "logits"),
        ("cut-tail", "Softmax", "logits"),
        ("global-pool", "ReduceMean", "m"),
        ("gemm-to-conv", "MatMul", "logits"),
    ]
    assert [value.name for value in changed.graph.output] == ["logits"]
    values = np.random.default_rng(1).standard_normal((3, 8, 7, 7))
    top, soft = run(network, {"x": values})
    (logits,) = run(changed, {"x": values})
    exponentials = np.exp(logits[:, :, 0, 0])
    assert np.array_equal(logits.reshape(3, 5).argmax(axis=1), top)
    assert np.abs(exponentials / exponentials.sum(axis=1, keepdims=True) - soft).max() <= 1e-10


def test_a_chain_of_tails_is_cut_to_what_feeds_it():
    nodes = [node("Relu", "x", "a"), node("Softmax", "a", "s", axis=1), node("TopK", "s k", "v i", axis=1)]
    network = model(nodes, {"x": (1, 5, 1, 1)}, {"v": None, "i": INT64}, {"k": np.array([1], np.int64)})
    changed, changes = rewrite(network, ["cut-tail"])
    assert ops(changed) == ["Relu"]
    assert [(change.op, change.tensor) for change in changes] == [("TopK", "s"), ("Softmax", "a")]
    assert "tail step" in changes[0].detail
    assert not changed.graph.initializer


def test_a_gemm_on_a_larger_map_becomes_a_convolution_of_its_size():
    nodes = [node("Relu", "x", "a"), node("Flatten", "a", "f"), node("Gemm", "f v b", "y", transB=1)]
    network = model(nodes, {"x": (2, 4, 3, 5)}, {"y": None}, {"v": (6, 60), "b": (6,)}, 13, DOUBLE)
    changed, _ = check_identical(network, ["gemm-to-conv"], (2, 4, 3, 5))
    assert ops(changed) == ["Relu", "Conv"]
    assert list(changed.graph.node[1].attribute[0].ints) == [3, 5]


def test_readers_of_a_gemm_still_get_two_axes():
    nodes = [node("Flatten", "x", "f"), node("Gemm", "f v", "g"), node("Softmax", "g", "y", axis=-1)]
    network = model(nodes, {"x": (2, 4, 1, 1)}, {"y": None}, {"v": (4, 6)}, 13, DOUBLE)
    changed, _ = check_identical(network, ["gemm-to-conv"], (2, 4, 1, 1))
    assert ops(changed) == ["Conv", "Flatten", "Softmax"]
    assert read_graph(changed).tensors["g"].shape == (2, 6)


def test_a_flattening_that_others_read_stays():
    nodes = [node("Flatten", "x", "f"), node("Gemm", "f v", "y"), node("Relu", "f", "z")]
    network = model(nodes, {"x": (2, 4, 1, 1)}, {"y": None, "z": None}, {"v": (4, 6)}, 13, DOUBLE)
    changed, _ = check_identical(network, ["gemm-to-conv"], (2, 4, 1, 1))
    assert sorted(ops(changed)) == ["Conv", "Flatten", "Relu"]


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ([node("Relu", "x", "y")], (1, 3, 7, 7)),
        ([node("GlobalAveragePool", "x", "y")], (1, 3, 9, 7)),
        ([node("ReduceMean", "x", "y", axes=[1])], (1, 3, 7, 7)),
        ([node("Softmax", "x", "y", axis=1)], (1, 3, 7, 7)),
        ([node("Softmax", "x", "s", axis=1), node("Relu", "s", "y")], (1, 3, 7, 7)),
        ([node("Gemm", "x v", "y")], (2, 4)),
        ([node("Flatten", "x", "f"), node("Gemm", "f v b", "y")], (2, 4, 1, 1)),
        ([node("Flatten", "x", "f"), node("Gemm", "v f", "y", transA=1, transB=1)], (6, 4, 1, 1)),
    ],
)
def test_what_does_not_apply_changes_nothing(nodes, shape):
    network = model(nodes, {"x": shape}, {"y": None}, {"v": (4, 6), "b": (2, 6)})
    network.graph.initializer.extend([])
    changed, changes = rewrite(network, ALL)
    assert changes == ()
    assert changed == network


def test_no_names_change_nothing():
    network = zoo.model("resnet50", with_weights=False)
    changed, changes = rewrite(network, ())
    assert changed == network
    assert changes == ()


def test_an_unknown_rewrite_names_the_known_ones():
    with pytest.raises(DlaError, match="'fuse-all' is not known; known: cut-tail, global-pool, gemm-to-conv"):
        rewrite(zoo.model("resnet50", with_weights=False), ["global-pool", "fuse-all"])


def test_weights_that_have_to_be_transposed_must_be_loaded():
    nodes = [node("Flatten", "x", "f"), node("Gemm", "f v", "y")]
    network = model(nodes, {"x": (2, 4, 1, 1)}, {"y": None}, {"v": (4, 6)})
    weight = network.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="elsewhere")
    with pytest.raises(DlaError, match="weight 'v' is not loaded"):
        rewrite(network, ["gemm-to-conv"])
