import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dla.placement import place
from dla.rewrite import rewrite
from dla.scales import UNARY_AMAX, Changed, Fp16Layer, constrain, fit
from engines import zoo
from engines.graph import read_graph
from engines.spec import Ranges
from tests.dla.networks import conv, model, node


def constrained(nodes, amax, outputs=("y",), weights=None, inputs=None):
    graph = read_graph(model(nodes, inputs or {"x": (1, 4, 8, 8)}, dict.fromkeys(outputs), weights))
    ranges, fp16 = constrain(graph, place(graph), Ranges(amax, "minmax", 7))
    assert (ranges.method, ranges.images) == ("minmax", 7)
    return dict(ranges.amax_by_tensor), fp16


def test_pooling_keeps_its_scale():
    nodes = [node("AveragePool", "x", "p", kernel_shape=[2, 2]), node("Relu", "p", "y")]
    amax, fp16 = constrained(nodes, {"x": 4.0, "p": 3.0, "y": 2.0})
    assert amax == {"x": 4.0, "p": 4.0, "y": 2.0}
    assert fp16 == ()


def test_elementwise_inputs_get_the_larger_and_the_output_its_own():
    nodes = [node("Relu", "x", "a"), node("Sigmoid", "x", "b"), node("Add", "a b", "y")]
    amax, fp16 = constrained(nodes, {"x": 9.0, "a": 5.0, "b": 1.0, "y": 6.0})
    assert amax == {"x": 9.0, "a": 5.0, "b": 5.0, "y": 6.0}
    assert fp16 == ("b_node",)


def test_concatenation_inputs_and_output_are_one():
    nodes = [node("Relu", "x", "a"), node("Sigmoid", "x", "b"), node("Concat", "a b", "y", axis=1)]
    amax, _ = constrained(nodes, {"x": 9.0, "a": 1.0, "b": 2.0, "y": 1.5})
    assert amax == {"x": 9.0, "a": 2.0, "b": 2.0, "y": 2.0}


def test_constraints_reach_along_a_chain_in_both_directions():
    # The late concatenation raises the pool's output, hence its input, hence the other operand of the Add before.
    nodes = [
        node("Relu", "x", "a"),
        node("MaxPool", "a", "p", kernel_shape=[1, 1]),
        node("Sigmoid", "x", "b"),
        node("Add", "a b", "s"),
        node("Tanh", "s", "t"),
        node("Concat", "p t", "y", axis=1),
    ]
    amax, _ = constrained(nodes, {"x": 20.0, "a": 3.0, "p": 3.0, "b": 1.0, "s": 4.0, "t": 8.0, "y": 8.0})
    assert amax == {"x": 20.0, "a": 8.0, "p": 8.0, "b": 8.0, "s": 4.0, "t": 8.0, "y": 8.0}


def test_layers_without_a_range_run_in_fp16_and_none_is_invented():
    nodes = [node("LeakyRelu", "x", "a"), node("LeakyRelu", "a", "b"), node("LeakyRelu", "b", "y")]
    amax, fp16 = constrained(nodes, {"x": 2.0, "a": 2.0, "y": 1.0})
    assert amax == {"x": 2.0, "a": 2.0, "y": 1.0}
    assert fp16 == ("b_node", "y_node")


def test_a_missing_range_follows_where_values_only_move_but_not_onto_an_output():
    nodes = [node("Relu", "x", "a"), node("MaxPool", "a", "p", kernel_shape=[1, 1]), node("Relu", "p", "y")]
    amax, fp16 = constrained(nodes, {"x": 2.0, "a": 2.0, "y": 1.0})
    assert amax == {"x": 2.0, "a": 2.0, "p": 2.0, "y": 1.0}
    assert fp16 == ()
    amax, fp16 = constrained(nodes, {"x": 2.0, "a": 2.0})
    assert amax == {"x": 2.0, "a": 2.0, "p": 2.0}
    assert fp16 == ("y_node",)


def test_layers_of_the_gpu_are_left_alone():
    nodes = [node("Relu", "x", "a"), node("AveragePool", "a", "y", kernel_shape=[9, 1], pads=[1, 0, 1, 0])]
    amax, fp16 = constrained(nodes, {"x": 2.0, "a": 2.0})
    assert amax == {"x": 2.0, "a": 2.0}
    assert fp16 == ()


def test_an_elementwise_layer_with_a_constant_is_free():
    nodes = [conv("x", "c", "w"), node("Mul", "c k", "y")]
    amax, _ = constrained(nodes, {"x": 1.0, "c": 2.0, "y": 8.0}, weights={"w": (4, 4, 1, 1), "k": (1, 4, 1, 1)})
    assert amax == {"x": 1.0, "c": 2.0, "y": 8.0}


def test_resnet50_rewritten_is_int8_throughout():
    network, _ = rewrite(zoo.model("resnet50", with_weights=False), ("global-pool", "gemm-to-conv"))
    graph = read_graph(network)
    made = [name for layer in graph.layers for name in layer.outputs]
    amax = {name: 1.0 + index / 100 for index, name in enumerate(["input", *made])}
    ranges, fp16 = constrain(graph, place(graph), Ranges(amax, "minmax", 1))
    assert fp16 == ()
    for layer in graph.layers:
        new = ranges.amax_by_tensor
        if layer.op == "Add":
            assert new[layer.inputs[0]] == new[layer.inputs[1]] >= max(amax[name] for name in layer.inputs)
        if layer.op in ("MaxPool", "AveragePool"):
            assert new[layer.inputs[0]] == new[layer.outputs[0]]
    missing = {name: value for name, value in amax.items() if name != "logits"}
    assert constrain(graph, place(graph), Ranges(missing, "minmax", 1))[1] == ("fc",)


def fitted(nodes, amax, outputs=("y",), weights=None, tensorrt="10.3", measured=None):
    graph = read_graph(model(nodes, {"x": (1, 4, 8, 8)}, dict.fromkeys(outputs), weights))
    return fit(graph, place(graph, tensorrt), Ranges(amax, "minmax", 7), measured)


def test_what_was_changed_and_what_is_missing_is_said():
    nodes = [node("AveragePool", "x", "p", kernel_shape=[2, 2]), node("LeakyRelu", "p", "a"), node("Neg", "a", "y")]
    found = fitted(nodes, {"x": 4.0, "p": 3.0})
    assert found.changes == (Changed("p", 3.0, 4.0, "a pool reads and writes one scale"),)
    assert found.fp16 == (Fp16Layer("a_node", "tensor 'a' has no range", "a"),)
    assert "'a_node' lacks that of 'a'" in found.warning
    assert "14 times" in found.warning
    assert "\n" not in found.warning


def test_a_range_of_zero_is_none():
    found = fitted([node("LeakyRelu", "x", "y")], {"x": 4.0, "y": 0.0})
    assert found.fp16_layers == ("y_node",)


@pytest.mark.parametrize(
    ("op", "attributes"), [("Sigmoid", {}), ("Tanh", {}), ("LRN", {"size": 5})], ids=["sigmoid", "tanh", "lrn"]
)
def test_layers_that_tensorrt_upgrades_run_in_fp16_without_a_warning(op, attributes):
    for amax in ({"x": 4.0, "y": 1.0}, {"x": 4.0}):  # a range for its output would change nothing
        found = fitted([node(op, "x", "y", **attributes)], amax)
        assert found.fp16_layers == ("y_node",)
        assert found.warning is None


@pytest.mark.parametrize(("mode", "x", "y", "fp16"), [("linear", 4, 3, 1), ("linear", 4, 4, 0), ("nearest", 4, 3, 0)])
def test_an_interpolation_that_narrows_its_range_runs_in_fp16(mode, x, y, fp16):
    form = {"coordinate_transformation_mode": "half_pixel" if mode == "linear" else "asymmetric"}
    form |= {"nearest_mode": "floor"} if mode == "nearest" else {}
    weights = {"k": np.array([1, 1, 2, 2], np.float32), "w": (4, 4, 1, 1)}
    resize = node("Resize", "a roi k", "y", mode=mode, **form)
    resize.input[1] = ""
    found = fitted([conv("x", "a", "w"), resize], {"x": 1.0, "a": x, "y": y}, weights=weights)
    assert found.fp16_layers == ("y_node",) * fp16


@pytest.mark.parametrize(("tensorrt", "fp16"), [("8.4", ("s_node",)), ("8.6", ())])
def test_tensorrt_8_4_takes_the_softmax_in_fp16_alone(tensorrt, fp16):
    network = model([node("Softmax", "x", "s", axis=1), node("Relu", "s", "y")], {"x": (1, 4, 1, 1)}, {"y": None})
    graph = read_graph(network)
    found = fit(graph, place(graph, tensorrt), Ranges({"x": 1.0, "s": 1.0, "y": 1.0}, "minmax", 1))
    assert found.fp16_layers == fp16


BLOCK = [conv("x", "c", "w"), node("LeakyRelu", "x", "r"), node("Add", "c r", "a"), node("LeakyRelu", "a", "y")]
AMAX = {"x": 3.0, "r": 2.0, "a": 4.0, "y": 4.0}


def block(tensorrt="10.3", amax=AMAX, **measured):
    return fitted(BLOCK, amax, weights={"w": (4, 4, 1, 1)}, tensorrt=tensorrt, measured=measured)


def test_a_small_tensor_between_convolution_and_sum_gets_the_scale_one():
    found = block(c=127 / 128)
    assert found.unary == ("c",)
    assert found.ranges.amax_by_tensor["c"] == UNARY_AMAX
    assert found.ranges.scale("c") == 1.0
    assert found.ranges.amax_by_tensor["r"] == 2.0  # the other input of the sum keeps its own
    assert found.fp16 == ()


def test_it_does_not_where_it_would_saturate_is_not_measured_or_the_software_is_older():
    for found in (block(c=127 / 128 + 1e-6), block(), block("8.5", c=0.5), block(amax={**AMAX, "x": 0.0}, c=0.5)):
        assert found.unary == ()
        assert "c" not in found.ranges.amax_by_tensor
        assert {"c_node", "a_node"} <= set(found.fp16_layers)


def test_it_keeps_the_range_that_it_has():
    found = block(amax={**AMAX, "c": 0.5}, c=0.5)
    assert found.unary == ()
    assert found.ranges.amax_by_tensor["c"] == 2.0


def test_only_one_input_of_a_sum_has_the_scale_one():
    nodes = [conv("x", "c", "w"), conv("x", "d", "w"), node("Add", "c d", "a"), node("LeakyRelu", "a", "y")]
    nodes[1].name = "other"
    measured = {"c": 0.5, "d": 0.5}
    found = fitted(nodes, {"x": 3.0, "a": 1.0, "y": 1.0}, weights={"w": (4, 4, 1, 1)}, measured=measured)
    assert found.unary == ("c",)
    assert found.fp16_layers == ("other", "a_node")


def test_a_tensor_that_others_read_keeps_off_the_scale_one():
    nodes = [*BLOCK, node("LeakyRelu", "c", "z")]
    found = fitted(nodes, AMAX, outputs=("y", "z"), weights={"w": (4, 4, 1, 1)}, measured={"c": 0.5})
    assert found.unary == ()


def test_a_normalisation_that_is_folded_leaves_no_tensor_to_give_a_range():
    numbers = {name: np.ones(4, np.float32) for name in ("s", "b", "m", "v")}
    nodes = [conv("x", "c", "w"), node("BatchNormalization", "c s b m v", "n"), node("LeakyRelu", "n", "y")]
    found = fitted(nodes, {"x": 1.0, "n": 1.0, "y": 1.0}, weights={"w": (4, 4, 1, 1), **numbers})
    assert found.fp16 == ()


def test_one_tensor_under_two_names_has_one_range():
    nodes = [node("Abs", "x", "a"), node("Identity", "a", "i"), node("Sigmoid", "x", "b"), node("Add", "i b", "y")]
    amax, _ = constrained(nodes, {"x": 9.0, "a": 1.0, "i": 1.0, "b": 3.0, "y": 4.0})
    assert (amax["a"], amax["i"], amax["b"]) == (3.0, 3.0, 3.0)


UNARIES = ("Relu", "LeakyRelu", "Sigmoid", "Identity", "MaxPool", "AveragePool")
PAIRS = ("Add", "Mul", "Concat")


@st.composite
def networks(draw):
    """A network of up to eight layers on equal maps; each tensor has a range or none."""
    tensors, nodes, channels = ["x"], [], {"x": 4}
    for index in range(draw(st.integers(2, 8))):
        name, first = f"t{index}", draw(st.sampled_from(tensors))
        alike = [other for other in tensors if channels[other] == channels[first] and other != first]
        op = draw(st.sampled_from(UNARIES + PAIRS if alike else UNARIES))
        second = f" {draw(st.sampled_from(alike))}" if op in PAIRS else ""
        pool, join = {"kernel_shape": [1, 1]}, {"axis": 1}
        extra = pool if op.endswith("Pool") else join if op == "Concat" else {}
        nodes.append(node(op, first + second, name, **extra))
        channels[name] = channels[first] * (2 if op == "Concat" else 1)
        tensors.append(name)
    read = {name for each in nodes for name in each.input}
    outputs = [name for name in tensors if name not in read]
    amax = draw(st.dictionaries(st.sampled_from(tensors), st.floats(0.125, 64.0), min_size=1))
    return read_graph(model(nodes, {"x": (1, 4, 4, 4)}, dict.fromkeys(outputs))), amax


@settings(max_examples=60, deadline=None, derandomize=True)
@given(networks())
def test_constrained_ranges_are_equal_where_they_must_never_smaller_and_settled(drawn):
    graph, before = drawn
    placement = place(graph)
    found = fit(graph, placement, Ranges(before, "minmax", 1))
    after = found.ranges.amax_by_tensor
    assert all(after[name] >= amax for name, amax in before.items())
    assert not (set(after) - set(before)) & set(graph.outputs)
    on_dla = {entry.node for entry in placement.layers if entry.final == "dla"}
    for layer in graph.layers:
        together = {"Add": layer.inputs, "Mul": layer.inputs}.get(layer.op, (*layer.inputs, *layer.outputs))
        if layer.name in on_dla and layer.op in (*PAIRS, "MaxPool", "AveragePool"):
            assert len({after[name] for name in together if name in after}) <= 1
        if layer.name in on_dla and not after.keys() >= {*layer.inputs, *layer.outputs}:
            assert layer.name in found.fp16_layers
    again = fit(graph, placement, found.ranges)
    assert again.ranges == found.ranges
    assert again.changes == ()
    assert again.fp16 == found.fp16
