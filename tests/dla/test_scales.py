from dla.placement import place
from dla.rewrite import rewrite
from dla.scales import constrain
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
    assert fp16 == ()


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
    nodes = [node("Relu", "x", "a"), node("MaxPool", "a", "p", kernel_shape=[1, 1]), node("Relu", "p", "y")]
    amax, fp16 = constrained(nodes, {"x": 2.0, "a": 2.0, "y": 1.0})
    assert amax == {"x": 2.0, "a": 2.0, "y": 1.0}
    assert fp16 == ("p_node", "y_node")


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
