"""Rewrites on networks as exporters make them: what is left for the GPU, what INT8 makes of it, what is advised."""

import numpy as np
import onnx
import pytest

from dla.errors import DlaError
from dla.placement import place
from dla.rewrite import rewrite_all
from dla.rewrites.advice import explain
from dla.rewrites.int8 import int8_change
from engines import zoo
from engines.graph import read_graph
from engines.onnx_model import declared_tensor
from tests.dla.networks import DOUBLE, conv, model, node
from tests.dla.shapes import SHAPES
from tests.dla.test_rewrite import attributes, check_identical, ops


def classifier(dtype=DOUBLE):
    """A small network with a squeeze-excite block, HardSwish, explicit pads and two fully connected layers."""
    nodes = [
        node("Pad", "x p", "padded"),
        conv("padded", "c0", "w0", strides=[2, 2]),
        node("HardSwish", "c0", "h0"),
        node("GlobalAveragePool", "h0", "mean"),
        conv("mean", "c1", "w1"),
        node("HardSigmoid", "c1", "gate"),
        node("Mul", "h0 gate", "scaled"),
        conv("scaled", "c2", "w2"),
        node("Relu", "c2", "r2"),
        node("ReduceMean", "r2", "pooled", axes=[2, 3], keepdims=0),
        node("Gemm", "pooled v b", "hidden", transB=1),
        node("Relu", "hidden", "active"),
        node("Gemm", "active u", "logits"),
        node("Softmax", "logits", "y", axis=-1),
    ]
    rng = np.random.default_rng(2)
    numpy_dtype = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    shapes = {"w0": (8, 3, 3, 3), "w1": (8, 8, 1, 1), "w2": (16, 8, 3, 3), "v": (12, 16), "b": (12,), "u": (12, 10)}
    weights = {
        name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(numpy_dtype)
        for name, shape in shapes.items()
    }
    weights["p"] = np.array([0, 0, 0, 0, 0, 0, 1, 1], np.int64)
    return model(nodes, {"x": (1, 3, 32, 32)}, {"y": None}, weights, 14, dtype)


ALL_BUT_THE_TAIL = ("global-pool", "gemm-to-conv", "hard-swish", "fold-pad")


def test_a_network_with_everything_keeps_its_numbers_and_its_names():
    network = classifier()
    before = {name for entry in network.graph.node for name in entry.output}
    done = rewrite_all(network, ALL_BUT_THE_TAIL)
    values = {"x": np.random.default_rng(1).standard_normal((1, 3, 32, 32))}
    (old,), (new,) = (
        onnx.reference.ReferenceEvaluator(entry, new_ops=[HardSwish]).run(None, values)
        for entry in (network, done.model)
    )
    assert np.abs(old - new.reshape(old.shape)).max() <= 1e-10 * np.abs(old).max()
    assert set(ops(done.model)) <= set("Conv AveragePool Add Clip Mul Relu Flatten Softmax".split())
    after = {name for entry in done.model.graph.node for name in entry.output}
    assert before - after == {"padded"}
    assert set(done.new_tensors) == after - before
    assert done.refusals == ()


class HardSwish(onnx.reference.op_run.OpRun):
    """The operator's formula in float64: the reference's own has 1/6 in float32."""

    op_domain = ""

    def _run(self, x):
        return (x * np.clip(x / 6 + 0.5, 0, 1),)


def test_no_layer_is_left_to_the_gpu():
    network = classifier(onnx.TensorProto.FLOAT)
    before, done = place(read_graph(network)), rewrite_all(network)
    assert len(before.gpu_layers) >= 5
    assert [change.rewrite for change in done.changes].count("cut-tail") == 1
    assert set(ops(done.model)) <= set("Conv AveragePool Add Clip Mul Relu".split())
    assert place(read_graph(done.model)).gpu_layers == ()


def test_a_second_time_changes_nothing():
    once = rewrite_all(classifier()).model
    again = rewrite_all(once)
    assert again.changes == ()
    assert again.model == once


def test_weights_declared_by_shape_alone_rewrite_to_the_same_graph():
    network = classifier(onnx.TensorProto.FLOAT)
    bare = onnx.ModelProto()
    bare.CopyFrom(network)
    for tensor in bare.graph.initializer:
        if tensor.name != "p":
            tensor.CopyFrom(declared_tensor(tensor.name, list(tensor.dims), tensor.data_type))
    full, light = rewrite_all(network), rewrite_all(bare)
    assert light.changes == full.changes
    assert light.model.graph.node == full.model.graph.node
    sizes = [{entry.name: list(entry.dims) for entry in done.model.graph.initializer} for done in (full, light)]
    assert sizes[0] == sizes[1]


def test_a_subgraph_that_reads_a_rewritten_tensor_still_does():
    inner = onnx.helper.make_graph(
        [node("Relu", "p", "inner")], "then", [], [onnx.helper.make_tensor_value_info("inner", DOUBLE, (1, 3, 1, 1))]
    )
    nodes = [node("GlobalAveragePool", "x", "p"), node("If", "yes", "y", then_branch=inner, else_branch=inner)]
    network = model(nodes, {"x": (1, 3, 6, 6)}, {"y": None}, {"yes": np.array(True)}, 13, DOUBLE)
    changed, _ = check_identical(network, ["global-pool"], (1, 3, 6, 6))
    assert ops(changed) == ["AveragePool", "If"]


def test_an_operator_of_another_domain_is_left_alone():
    custom = onnx.helper.make_node("HardSwish", ["x"], ["y"], domain="my.domain")
    network = model([node("Relu", "x", "r")], {"x": (1, 3, 4, 4)}, {"r": None})
    network.graph.node.append(custom)
    assert rewrite_all(network).model == network


def test_a_weight_whose_data_do_not_fit_its_shape_is_named():
    network = model(
        [node("Flatten", "x", "f"), node("Gemm", "f v", "y")], {"x": (2, 90, 1, 1)}, {"y": None}, {"v": (90, 90)}
    )
    network.graph.initializer[0].dims[1] = 80
    network.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(DlaError, match="Gemm 'y_node' has attributes, inputs or weights that do not fit") as caught:
        rewrite_all(network)
    assert "\n" not in str(caught.value)


def test_resnet50_comes_out_as_before():
    done = rewrite_all(zoo.model("resnet50", with_weights=False))
    assert [(change.rewrite, change.op) for change in done.changes] == [
        ("global-pool", "GlobalAveragePool"),
        ("gemm-to-conv", "Gemm"),
    ]
    assert done.refusals == () and done.new_tensors == ()
    assert place(read_graph(done.model)).gpu_layers == ()
    assert attributes(done.model.graph.node[-2])["kernel_shape"] == [7, 7]


def test_the_change_in_int8_is_measured_apart():
    network = classifier(onnx.TensorProto.FLOAT)
    network.graph.node.pop()
    network.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, (1, 10)))
    feed = {"x": np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)}
    after = rewrite_all(network, ALL_BUT_THE_TAIL).model
    (change,) = int8_change(network, after, feed)
    assert change.output == "logits"
    assert 15 < change.before_db < 60 and 15 < change.after_db < 60
    assert change.before_db != change.after_db  # other tensors are rounded
    (same,) = int8_change(network, network, feed)
    assert same.before_db == same.after_db == change.before_db
    with pytest.raises(DlaError, match="share no output"):
        int8_change(network, rewrite_all(yolo_like(), ["cut-tail"]).model, feed)


def yolo_like():
    weights = {"w": (4, 3, 1, 1), "s": np.array([1, -1], np.int64)}
    return model([conv("x", "c", "w"), node("Reshape", "c s", "y")], {"x": (1, 3, 4, 4)}, {"y": None}, weights)


def test_what_no_rewrite_mends_is_explained():
    nodes = [
        node("InstanceNormalization", "x s b", "n"),
        node("LayerNormalization", "n g", "l", axis=-1),
        node("MatMul", "l n", "m"),
        node("MatMul", "m g2", "y"),
    ]
    weights = {"s": (3,), "b": (3,), "g": (4,), "g2": (4, 4)}
    graph = read_graph(model(nodes, {"x": (1, 3, 4, 4)}, {"y": None}, weights, 17))
    advice = {entry.node: entry for entry in explain(graph)}
    assert set(advice) == {"n_node", "l_node", "m_node"}
    assert "BatchNormalization" in advice["n_node"].text
    assert "both factors are activations" in advice["m_node"].text
    assert explain(zoo.graph("resnet50")) == ()


@pytest.mark.parametrize("name", ["yolo head", "u-net", "mobilenet v3"])
def test_common_shapes_end_as_one_loadable_without_gpu_layers(name):
    before = SHAPES[name]()
    after = rewrite_all(before).model
    assert place(read_graph(before)).gpu_layers
    placed = place(read_graph(after))
    assert (len(placed.loadables), placed.gpu_layers) == (1, ())


def test_attention_stays_on_the_gpu():
    rewritten = rewrite_all(SHAPES["attention"]())
    assert len(place(read_graph(rewritten.model)).gpu_layers) == 14
