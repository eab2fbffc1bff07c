import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from dla.errors import DlaError
from dla.rewrite import rewrite, rewrite_all
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
    onnx.checker.check_model(changed, full_check=True)  # the shapes that the rewrite declares are inferred again
    values = np.random.default_rng(1).standard_normal(shape)
    for old, new in zip(run(network, {"x": values}), run(changed, {"x": values}), strict=True):
        assert np.abs(new.reshape(old.shape) - old).max() <= 1e-10 * np.abs(old).max()
    return changed, changes


def attributes(entry):
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in entry.attribute}


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


def test_an_old_file_that_lists_its_weights_among_the_inputs():
    network = tail(node("GlobalAveragePool", "c", "p"), transB=1)
    network.ir_version = 3
    for weight in network.graph.initializer:
        value = onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
        network.graph.input.append(value)
    changed, _ = check_identical(network, ALL, (2, 3, 7, 7))
    assert ops(changed) == ["Conv", "AveragePool", "Conv"]
    assert [value.name for value in changed.graph.input] == ["x"]


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
    assert ops(changed) == ["Relu", "AveragePool", "Relu"]
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
    assert [(change.op, change.tensor) for change in changes] == [("Softmax", "a")]
    assert "with what follows it: a tail step" in changes[0].detail
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
    assert [list(entry.output) for entry in changed.graph.node][0::2] == [["g"], ["y"]]  # g has its range still
    assert read_graph(changed).tensors["g"].shape == (2, 6, 1, 1)


def test_a_chain_of_fully_connected_layers_keeps_four_axes_in_between():
    nodes = [
        node("Flatten", "x", "f"),
        node("Gemm", "f v b", "g", transB=1),
        node("Relu", "g", "r"),
        node("Gemm", "r w", "h"),
        node("Sigmoid", "h", "y"),
    ]
    weights = {"v": (6, 36), "b": (6,), "w": (6, 5)}
    network = model(nodes, {"x": (2, 4, 3, 3)}, {"y": None}, weights, 13, DOUBLE)
    changed, changes = check_identical(network, ["gemm-to-conv"], (2, 4, 3, 3))
    assert ops(changed) == ["Conv", "Relu", "Conv", "Sigmoid"]
    assert [change.tensor for change in changes] == ["g", "h"]
    assert {name for entry in changed.graph.node for name in entry.output} == {"g", "r", "h", "y"}


def test_a_flattening_that_others_read_stays():
    nodes = [node("Flatten", "x", "f"), node("Gemm", "f v", "y"), node("Relu", "f", "z")]
    network = model(nodes, {"x": (2, 4, 1, 1)}, {"y": None, "z": None}, {"v": (4, 6)}, 13, DOUBLE)
    changed, _ = check_identical(network, ["gemm-to-conv"], (2, 4, 1, 1))
    assert sorted(ops(changed)) == ["Conv", "Flatten", "Relu"]


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ([node("Relu", "x", "y")], (1, 3, 7, 7)),
        ([node("GlobalAveragePool", "x", "y")], (1, 3, 37, 7)),
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
    changed, changes = rewrite(network, ALL)
    assert changes == ()
    assert changed == network


def test_no_names_change_nothing():
    network = zoo.model("resnet50", with_weights=False)
    changed, changes = rewrite(network, ())
    assert changed == network
    assert changes == ()


def test_an_unknown_rewrite_names_the_known_ones():
    with pytest.raises(DlaError, match="'fuse-all' is not known; known: cut-tail, global-pool, gemm-to-conv, "):
        rewrite(zoo.model("resnet50", with_weights=False), ["global-pool", "fuse-all"])


@pytest.mark.parametrize(("transposed", "location"), [(1, "elsewhere"), (0, "not-loaded")])
def test_weights_that_are_not_loaded_keep_their_place_or_are_declared_by_shape(transposed, location):
    nodes = [node("Flatten", "x", "f"), node("Gemm", "f v", "y", transB=transposed)]
    network = model(nodes, {"x": (2, 4, 1, 1)}, {"y": None}, {"v": (6, 4) if transposed else (4, 6)})
    weight = network.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="elsewhere")
    changed, _ = rewrite(network, ["gemm-to-conv"])
    assert ops(changed) == ["Conv"]
    assert list(changed.graph.initializer[0].dims) == [6, 4, 1, 1]
    assert changed.graph.initializer[0].data_location == onnx.TensorProto.EXTERNAL
    assert changed.graph.initializer[0].external_data[0].value == location


@pytest.mark.parametrize(
    ("size", "made", "windows"),
    [
        ((16, 100), ["AveragePool"] * 3, [[1, 5], [8, 5], [2, 4]]),
        ((13, 8), ["Conv"], [[13, 8]]),
        ((26, 3), ["AveragePool", "Conv"], [[2, 1], [13, 3]]),
        ((31, 64), ["AveragePool", "Conv"], [[1, 8], [31, 8]]),
    ],
)
def test_means_over_large_maps_go_in_steps(size, made, windows):
    network = model(
        [node("GlobalAveragePool", "x", "p"), node("Relu", "p", "y")], {"x": (2, 3, *size)}, {"y": None}, {}, 13, DOUBLE
    )
    changed, changes = check_identical(network, ["global-pool"], (2, 3, *size))
    assert ops(changed) == [*made, "Relu"]
    kernels = [attributes(entry)["kernel_shape"] for entry in changed.graph.node[:-1]]
    assert kernels == windows
    assert changed.graph.node[-2].output[0] == "p"
    assert len(changes) == 1


def test_a_mean_over_one_axis():
    nodes = [node("ReduceMean", "x", "m", axes=[3], keepdims=0), node("Relu", "m", "y")]
    network = model(nodes, {"x": (2, 3, 5, 24)}, {"y": None}, {}, 13, DOUBLE)
    changed, _ = check_identical(network, ["global-pool"], (2, 3, 5, 24))
    assert ops(changed) == ["AveragePool", "AveragePool", "Reshape", "Relu"]


def test_a_map_that_no_chain_covers_is_refused_with_the_reason():
    network = model([node("GlobalAveragePool", "x", "y")], {"x": (1, 3, 37, 7)}, {"y": None})
    done = rewrite_all(network, ["global-pool"])
    assert done.model == network
    assert [(refusal.rewrite, refusal.node) for refusal in done.refusals] == [("global-pool", "y_node")]
    assert "37 has no divisor up to 8 and is over 32" in done.refusals[0].reason


def yolo_head(outputs, expectation=False):
    """Two branches as detectors end: a head convolution each, then decoding down to one list of boxes."""
    nodes = [
        conv("x", "c", "w"),
        node("Relu", "c", "r"),
        conv("r", "head0", "h"),
        conv("r", "head1", "h", strides=[2, 2]),
    ]
    for index in (0, 1):
        nodes.append(node("Reshape", f"head{index} flat", f"rows{index}"))
        nodes.append(node("Transpose", f"rows{index}", f"t{index}", perm=[0, 2, 1]))
    nodes.append(node("Concat", "t0 t1", "all", axis=1))
    if expectation:
        nodes += [
            node("Reshape", "all four", "a4"),
            node("Softmax", "a4", "p4", axis=1),
            conv("p4", "e4", "steps"),
            node("Reshape", "e4 flat2", "boxes"),
        ]
    else:
        nodes += [node("Sigmoid", "all", "s"), node("Mul", "s s", "boxes")]
    weights = {
        "w": (4, 3, 1, 1),
        "h": (16, 4, 1, 1),
        "flat": np.array([1, 16, -1], np.int64),
        "four": np.array([1, 16, 4, -1], np.int64),
        "flat2": np.array([1, -1], np.int64),
        "steps": np.arange(16.0).reshape(1, 16, 1, 1),
    }
    return model(nodes, {"x": (1, 3, 8, 8)}, {name: None for name in outputs}, weights, 13, DOUBLE)


@pytest.mark.parametrize("expectation", [False, True])
def test_decoding_is_cut_at_the_heads(expectation):
    network = yolo_head(["boxes"], expectation)
    changed, changes = rewrite(network, ["cut-tail"])
    onnx.checker.check_model(changed, full_check=True)
    assert ops(changed) == ["Conv", "Relu", "Conv", "Conv"]
    assert [value.name for value in changed.graph.output] == ["head0", "head1"]
    assert not {"flat"} & {entry.name for entry in changed.graph.initializer}
    assert [(change.op, change.tensor) for change in changes] == [("Reshape", "head0"), ("Reshape", "head1")]
    values = np.random.default_rng(1).standard_normal((1, 3, 8, 8))
    network.graph.output.extend(changed.graph.output)
    assert all(np.array_equal(a, b) for a, b in zip(run(network, {"x": values})[1:], run(changed, {"x": values})))


def test_an_output_in_front_of_the_tail_stays():
    changed, _ = rewrite(yolo_head(["r", "boxes"]), ["cut-tail"])
    assert [value.name for value in changed.graph.output] == ["r", "head0", "head1"]


def test_shape_arithmetic_goes_with_the_tail_and_is_no_output():
    nodes = [
        conv("x", "c", "w"),
        node("Shape", "c", "dims"),
        node("Gather", "dims zero", "batch"),
        node("Unsqueeze", "batch zeros", "rows"),
        node("Concat", "rows minus", "wanted", axis=0),
        node("Reshape", "c wanted", "flat"),
        node("Sigmoid", "flat", "y"),
    ]
    weights = {
        "w": (4, 3, 1, 1),
        "zero": np.array(0, np.int64),
        "zeros": np.array([0], np.int64),
        "minus": np.array([-1], np.int64),
    }
    changed, _ = rewrite(model(nodes, {"x": (1, 3, 4, 4)}, {"y": None}, weights), ["cut-tail"])
    assert ops(changed) == ["Conv"]
    assert [value.name for value in changed.graph.output] == ["c"]


def test_layers_with_weights_behind_a_softmax_keep_it():
    nodes = [
        conv("x", "c", "w"),
        node("Softmax", "c", "s", axis=1),
        node("Mul", "c s", "m"),
        conv("m", "y", "w2"),
    ]
    network = model(nodes, {"x": (1, 3, 4, 4)}, {"y": None}, {"w": (4, 3, 1, 1), "w2": (4, 4, 1, 1)})
    assert rewrite(network, ["cut-tail"])[1] == ()
