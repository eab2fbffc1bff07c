import numpy as np
import pytest

from dla.errors import DlaError
from dla.placement import place
from dla.rules import RULES, cbuf_banks, rules_by_op
from engines.graph import read_graph
from tests.dla.networks import INT64, conv, model, node


def verdict(nodes, shape=(1, 8, 40, 40), weights=None, **more):
    """Place a network whose node "y_node" is the one asked about; return its placement."""
    network = model(nodes, {"x": shape, **more.pop("inputs", {})}, {"y": None}, weights, **more)
    return next(entry for entry in place(read_graph(network)).layers if entry.node == "y_node")


def convolution(weight, shape=(1, 8, 40, 40), **attributes):
    return verdict([conv("x", "y", "w", **attributes)], shape, {"w": weight})


@pytest.mark.parametrize(
    ("weight", "attributes", "rule"),
    [
        ((4, 8, 3, 3), {}, None),
        ((4, 8, 32, 32), {}, None),
        ((4, 8, 33, 1), {}, "conv-kernel"),
        ((4, 8, 3, 3), {"strides": [8, 8]}, None),
        ((4, 8, 3, 3), {"strides": [9, 1]}, "conv-stride"),
        ((4, 8, 2, 2), {"dilations": [32, 1]}, None),
        ((4, 8, 2, 2), {"dilations": [33, 1]}, "conv-dilation"),
        ((4, 8, 3, 3), {"pads": [0, 2, 1, 2]}, None),
        ((4, 8, 3, 3), {"pads": [0, 3, 0, 0]}, "conv-padding"),
        ((4, 8, 1, 3), {"pads": [1, 0, 0, 0]}, "conv-padding"),
        ((8, 1, 3, 3), {"group": 8}, None),
    ],
)
def test_convolution_limits(weight, attributes, rule):
    placed = convolution(weight, **attributes)
    assert placed.rule == rule
    assert placed.final == ("dla" if rule is None else "gpu")


def test_a_three_dimensional_convolution_is_the_gpus():
    placed = verdict([conv("x", "y", "w")], (1, 2, 4, 4, 4), {"w": (2, 2, 3, 3, 3)})
    assert (placed.final, placed.rule) == ("gpu", "conv-2d")


def test_a_convolution_with_made_weights_is_the_gpus():
    nodes = [node("Relu", "w", "v"), conv("x", "y", "v")]
    placed = verdict(nodes, inputs={"w": (4, 8, 3, 3)})
    assert placed.rule == "conv-constant"


def test_cbuf_by_hand():
    # 512 channels, 3x3, FP16: ceil(9216 / 32768) = 1 bank of weights; 32 entries a column x 160 / 4 = 1280 entries a
    # row, 3 rows in banks of 256 entries = 15. TensorRT 8.5.2 refused this layer (issue 3499).
    assert cbuf_banks(512, (3, 3), 1, 160) == 16
    # The same on 80 columns: 640 entries a row, 7.5 banks.
    assert cbuf_banks(512, (3, 3), 1, 80) == 9
    assert convolution((2, 512, 3, 3), (1, 512, 4, 160)).rule == "conv-cbuf"
    assert convolution((2, 512, 3, 3), (1, 512, 4, 80)).rule is None


@pytest.mark.parametrize(
    ("op", "attributes", "rule"),
    [
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, None),
        ("AveragePool", {"kernel_shape": [8, 8]}, None),
        ("AveragePool", {"kernel_shape": [9, 8]}, "pool-window"),
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [17, 1]}, "pool-stride"),
        ("GlobalAveragePool", {}, "reduce-avg"),
        ("ReduceMean", {"axes": [2, 3]}, "reduce-avg"),
        ("Relu", {}, None),
        ("LeakyRelu", {}, None),
        ("Sigmoid", {}, None),
        ("Elu", {}, "no-dla-layer"),
        ("Softmax", {"axis": 1}, None),
        ("Softmax", {"axis": 0}, "softmax-axis"),
        ("Flatten", {}, "shuffle"),
        ("ArgMax", {"axis": 1}, "sort"),
        ("Concat", {"axis": 1}, "concat-inputs"),
    ],
)
def test_one_input_layers(op, attributes, rule):
    network = model([node(op, "x", "y", **attributes)], {"x": (1, 8, 40, 40)}, {"y": INT64 if op == "ArgMax" else None})
    placed = place(read_graph(network)).layers[0]
    assert placed.rule == rule
    assert placed.final == ("dla" if rule is None else "gpu")


@pytest.mark.parametrize(
    ("op", "shape", "attributes", "rule"),
    [
        ("Add", (1, 8, 40, 40), {}, None),
        ("Mul", (1, 8, 1, 1), {}, None),
        ("Add", (1, 1, 40, 40), {}, "elementwise-shapes"),
        ("Concat", (1, 3, 40, 40), {"axis": 1}, None),
        ("Concat", (1, 8, 2, 40), {"axis": 2}, "concat-axis"),
        ("Concat", (1, 3, 40, 40), {"axis": -3}, None),
        ("Pow", (1, 8, 40, 40), {}, "no-dla-layer"),
    ],
)
def test_two_input_layers(op, shape, attributes, rule):
    placed = verdict([node(op, "x z", "y", **attributes)], inputs={"z": shape})
    assert placed.rule == rule


def test_integers_are_the_gpus():
    nodes = [node("Cast", "x", "i", to=INT64), node("Relu", "i", "y")]
    network = model(nodes, {"x": (1, 2, 4, 4)}, {"y": INT64}, opset=14)
    assert [entry.rule for entry in place(read_graph(network)).layers] == ["no-dla-layer", "precision"]


def test_batch_and_axis_limits():
    assert verdict([node("Relu", "x", "y")], (4096, 1, 1, 1)).rule is None
    assert verdict([node("Relu", "x", "y")], (4097, 1, 1, 1)).rule == "batch"
    assert verdict([node("Relu", "x", "y")], (1, 8193, 1, 1)).rule == "dims"


def test_a_message_is_tensorrts_own_with_the_layers_name():
    placed = verdict([node("GlobalAveragePool", "x", "y")])
    assert placed.message == "y_node: DLA cores do not support AVG Reduce operation."
    assert (placed.trt_layer, placed.confidence) == ("REDUCE", "seen in a log")
    assert "global-pool" in placed.fix
    placed = verdict([node("Elu", "x", "y")])
    assert placed.message == (
        "Layer 'y_node' (ACTIVATION): Unsupported on DLA. Switching this layer's device type to GPU."
    )


def test_matmul_of_two_activations_is_the_gpus():
    placed = verdict([node("MatMul", "x z", "y")], inputs={"z": (1, 8, 40, 5)})
    assert placed.message.startswith("y_node: MatMul is unsupported on DLA")


def test_every_rule_has_its_own_id_and_says_everything():
    assert len({rule.id for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.fix
        assert rule.source
        assert rule.confidence in ("documented", "seen in a log", "likely")


def test_an_unknown_version_names_the_known_ones():
    with pytest.raises(DlaError, match="'7.1' has no rules here; known: 10.3"):
        rules_by_op("7.1")


def test_weights_that_constants_make_are_constants():
    nodes = [node("Identity", "w", "v"), conv("x", "y", "v")]
    placed = verdict(nodes, weights={"w": np.ones((4, 8, 3, 3), np.float32)})
    assert placed.rule is None
