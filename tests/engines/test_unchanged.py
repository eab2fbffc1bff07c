import numpy as np
import onnx
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from engines.graph import read_graph
from engines.unchanged import spread
from tests.dla.networks import model, node

INPUT = (1, 4, 6, 6)


def filled(nodes, amax, outputs=("y",), weights=None):
    graph = read_graph(model(nodes, {"x": INPUT}, dict.fromkeys(outputs), weights))
    before = dict(amax)
    found = spread(graph, amax)
    assert {name: found[name] for name in before if before[name]} == {name: v for name, v in before.items() if v}
    return {name: value for name, value in found.items() if before.get(name) != value}


def test_values_that_move_keep_their_range_in_both_directions():
    shapes = {"s": np.array([1, 4, 36], np.int64)}
    nodes = [node("Transpose", "x", "a", perm=[0, 1, 3, 2]), node("Reshape", "a s", "b"), node("Abs", "b", "y")]
    assert filled(nodes, {"x": 3.0}, weights=shapes) == {"a": 3.0, "b": 3.0}
    assert filled(nodes, {"b": 2.0}, weights=shapes) == {"a": 2.0, "x": 2.0}


def test_a_range_goes_back_through_a_choice_only_where_nothing_else_reads_the_input():
    nodes = [node("Abs", "x", "a"), node("Relu", "a", "b"), node("Neg", "b", "y")]
    assert filled(nodes, {"b": 2.0}) == {"a": 2.0}
    nodes = [*nodes, node("Neg", "a", "z")]
    assert filled(nodes, {"b": 2.0}, outputs=("y", "z")) == {}


def test_a_mean_passes_its_range_forward_alone():
    nodes = [node("AveragePool", "x", "a", kernel_shape=[2, 2]), node("Neg", "a", "y")]
    assert filled(nodes, {"x": 5.0}) == {"a": 5.0}
    assert filled(nodes, {"a": 5.0}) == {}


def test_a_concatenation_needs_all_inputs_and_gives_back_to_each():
    nodes = [node("Abs", "x", "a"), node("Neg", "x", "b"), node("Concat", "a b", "c", axis=1), node("Neg", "c", "y")]
    assert filled(nodes, {"a": 1.0}) == {}
    assert filled(nodes, {"a": 1.0, "b": 4.0}) == {"c": 4.0}
    assert filled(nodes, {"c": 4.0}) == {"a": 4.0, "b": 4.0}


def test_an_output_of_the_network_without_a_range_never_gets_one():
    nodes = [node("Relu", "x", "y"), node("MaxPool", "y", "z", kernel_shape=[1, 1])]
    assert filled(nodes, {"x": 3.0}, outputs=("y", "z")) == {}
    assert filled(nodes, {"x": 3.0}, outputs=("z",)) == {"y": 3.0}


def test_padding_with_another_number_is_no_move():
    weights = {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "v": np.array(9.0, np.float32)}
    ends = node("Neg", "a", "y")
    assert filled([node("Pad", "x p v", "a"), ends], {"x": 3.0}, weights=weights) == {}
    assert filled([node("Pad", "x p", "a"), ends], {"x": 3.0}, weights=weights) == {"a": 3.0}


def test_a_clip_away_from_zero_passes_nothing():
    weights = {"lo": np.array(4.0, np.float32), "hi": np.array(9.0, np.float32), "zero": np.array(0.0, np.float32)}
    ends = node("Neg", "a", "y")
    assert filled([node("Clip", "x lo hi", "a"), ends], {"x": 3.0}, weights=weights) == {}
    assert filled([node("Clip", "x zero hi", "a"), ends], {"x": 3.0}, weights=weights) == {"a": 3.0}


def test_a_range_of_zero_counts_as_none():
    assert filled([node("Relu", "x", "a"), node("Neg", "a", "y")], {"x": 3.0, "a": 0.0}) == {"a": 3.0}


def test_the_indices_of_a_maximum_get_no_range():
    nodes = [node("MaxPool", "x", "a i", kernel_shape=[2, 2]), node("Neg", "a", "y")]
    assert filled(nodes, {"x": 3.0}) == {"a": 3.0}


STEPS = {
    "Relu": {},
    "MaxPool": {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "AveragePool": {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    "GlobalMaxPool": {},
    "GlobalAveragePool": {},
    "Transpose": {"perm": [0, 1, 3, 2]},
    "Flatten": {"axis": 2},
    "Identity": {},
    "Neg": {},
    "Sigmoid": {},
}


def chain(ops, forks):
    """A network of these operators one after the other, some tensors read twice; rank is kept by a Reshape."""
    nodes, last = [], "x"
    for index, op in enumerate(ops):
        made = f"t{index}"
        nodes.append(helper.make_node(op, [last], [made], name=f"n{index}", **STEPS[op]))
        last = made
        if op == "Flatten":
            nodes.append(helper.make_node("Reshape", [made, "four"], [f"r{index}"], name=f"m{index}"))
            last = f"r{index}"
        if index in forks:
            nodes.append(helper.make_node("Neg", [last], [f"f{index}"], name=f"fork{index}"))
    outputs = [last, *(f"f{index}" for index in sorted(forks))]
    return model(nodes, {"x": INPUT}, dict.fromkeys(outputs), {"four": np.array([1, 4, -1, 1], np.int64)})


def run(network, x, names):
    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(names, {"x": x})


def saturated(network, amax):
    """The network with each of these tensors clipped to its range for every reader."""
    clipped = onnx.ModelProto()
    clipped.CopyFrom(network)
    del clipped.graph.node[:]
    for each in network.graph.node:
        reading = onnx.NodeProto()
        reading.CopyFrom(each)
        reading.input[:] = [f"{name}_sat" if name in amax else name for name in each.input]
        clipped.graph.node.append(reading)
    clips = []
    for name, value in amax.items():
        for suffix, number in (("lo", -value), ("hi", value)):
            clipped.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(number), f"{name}_{suffix}"))
        clips.append((name, helper.make_node("Clip", [name, f"{name}_lo", f"{name}_hi"], [f"{name}_sat"])))
    order = [clip for name, clip in clips if name == "x"]
    for each in clipped.graph.node:
        order += [each, *(clip for name, clip in clips if name in each.output)]
    nodes = [onnx.NodeProto.FromString(each.SerializeToString()) for each in order]
    del clipped.graph.node[:]
    clipped.graph.node.extend(nodes)
    return clipped


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=6), st.data())
def test_saturation_at_a_range_that_follows_changes_no_output(ops, data):
    forks = data.draw(st.sets(st.integers(0, len(ops) - 1)))
    network = chain(ops, forks)
    graph = read_graph(network)
    made = [name for layer in graph.layers for name in layer.outputs]
    x = np.random.default_rng(len(ops)).standard_normal(INPUT).astype(np.float32) * 3
    named = onnx.ModelProto()
    named.CopyFrom(network)
    del named.graph.output[:]
    named.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    measured = {"x": x} | dict(zip(made, run(named, x, made), strict=True))
    kept = data.draw(st.sets(st.sampled_from(sorted(measured))))
    known = {name: float(np.abs(measured[name]).max()) for name in sorted(kept)}
    found = spread(graph, known)
    assert found.keys() - known.keys() <= measured.keys() - set(graph.outputs)
    follows = {name: amax for name, amax in found.items() if amax != known.get(name)}
    outputs = list(graph.outputs)
    for real, rounded in zip(run(network, x, outputs), run(saturated(network, follows), x, outputs), strict=True):
        np.testing.assert_array_equal(real, rounded)
