import numpy as np
import pytest
from onnx import helper

from dla.errors import DlaError
from dla.placement import place
from dla.rules import cbuf_banks
from dla.rules_table import RULES, rules_for
from dla.rules_versions import RELEASES, rules_version
from engines.graph import read_graph
from tests.dla.networks import INT64, conv, model, node
from tests.dla.sweep import TABLE, expected, network, rows

FLOAT = 1


def verdict(nodes, shape=(1, 8, 40, 40), weights=None, **more):
    """Place a network whose node "y_node" is the one asked about; return its placement."""
    how = {name: more.pop(name) for name in ("tensorrt", "precision") if name in more}
    network = model(nodes, {"x": shape, **more.pop("inputs", {})}, {"y": more.pop("kind", None)}, weights, **more)
    return next(entry for entry in place(read_graph(network), **how).layers if entry.node == "y_node")


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
        ("GlobalAveragePool", {}, "reduce-max"),
        ("ReduceMean", {"axes": [2, 3]}, "reduce-max"),
        ("Relu", {}, None),
        ("LeakyRelu", {}, None),
        ("Sigmoid", {}, None),
        ("Elu", {}, "activation"),
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
        ("Pow", (1, 8, 40, 40), {}, "elementwise-constant"),
        ("Mod", (1, 8, 40, 40), {"fmod": 1}, "elementwise"),
    ],
)
def test_two_input_layers(op, shape, attributes, rule):
    placed = verdict([node(op, "x z", "y", **attributes)], inputs={"z": shape})
    assert placed.rule == rule


def test_integers_are_the_gpus():
    nodes = [node("Cast", "x", "i", to=INT64), node("Relu", "i", "y")]
    network = model(nodes, {"x": (1, 2, 4, 4)}, {"y": INT64}, opset=14)
    assert [entry.rule for entry in place(read_graph(network)).layers] == ["cast", "precision"]


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


def array(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("weight", "attributes", "rule"),
    [
        ((8, 4, 2, 2), {"strides": [2, 2]}, None),
        ((8, 4, 3, 3), {"strides": [2, 2]}, None),
        ((8, 4, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}, "deconv-padding"),
        ((8, 4, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, "deconv-padding"),
        ((8, 4, 2, 2), {"strides": [2, 2], "output_padding": [1, 1]}, "deconv-padding"),
        ((8, 1, 2, 2), {"group": 8}, "deconv-groups"),
        ((8, 4, 2, 2), {"dilations": [2, 2]}, "deconv-dilation"),
        ((8, 4, 23, 23), {}, "deconv-kernel"),
        ((8, 4, 22, 22), {}, None),
        ((8, 4, 1, 64), {}, None),
        ((8, 4, 1, 65), {}, "deconv-kernel"),
    ],
)
def test_transposed_convolution_limits(weight, attributes, rule):
    assert verdict([node("ConvTranspose", "x w", "y", **attributes)], weights={"w": weight}).rule == rule


@pytest.mark.parametrize(
    ("low", "high", "rule"),
    [(0.0, 6.0, None), (0.0, 127.0, None), (0.0, 128.0, "activation-clip"), (-1.0, 1.0, "activation-clip")],
)
def test_clip_bounds_are_read_from_constants(low, high, rule):
    weights = {"low": np.array(low, np.float32), "high": np.array(high, np.float32)}
    assert verdict([node("Clip", "x low high", "y")], weights=weights).rule == rule


@pytest.mark.parametrize(
    ("mode", "scales", "attributes", "rule"),
    [
        ("nearest", (1, 1, 2, 2), {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, None),
        ("nearest", (1, 1, 3, 32), {}, None),
        ("nearest", (1, 1, 2, 33), {}, "resize-factors"),
        ("nearest", (1, 1, 1.5, 1.5), {}, "resize-factors"),
        ("nearest", (1, 2, 2, 2), {}, "resize-factors"),
        ("linear", (1, 1, 4, 4), {}, None),
        ("linear", (1, 1, 5, 4), {}, "resize-factors"),
        ("linear", (1, 1, 2, 2), {"coordinate_transformation_mode": "align_corners"}, "resize-mode"),
        ("linear", (1, 1, 2, 2), {"coordinate_transformation_mode": "pytorch_half_pixel"}, "resize-mode"),
        ("cubic", (1, 1, 2, 2), {}, "resize-mode"),
        ("nearest", (1, 1, 2, 2), {"nearest_mode": "ceil"}, "resize-mode"),
    ],
)
def test_resize_limits(mode, scales, attributes, rule):
    resize = helper.make_node("Resize", ["x", "", "s"], ["y"], name="y_node", mode=mode, **attributes)
    assert verdict([resize], shape=(1, 4, 8, 8), weights={"s": array(*scales)}).rule == rule


def test_a_resize_to_sizes_is_the_gpus():
    resize = helper.make_node("Resize", ["x", "", "", "s"], ["y"], name="y_node")
    assert verdict([resize], shape=(1, 4, 8, 8), weights={"s": np.array([1, 4, 16, 16])}).rule == "resize-scales"


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps", "rule"),
    [([2], [6], [1], [1], None), ([0], [8], [3], [2], "slice-steps"), ([0], [1], [0], [1], "slice-steps")],
)
def test_slices_take_runs_of_channels_and_images(starts, ends, axes, steps, rule):
    weights = {name: np.array(value) for name, value in zip("stuv", (starts, ends, axes, steps))}
    assert verdict([node("Slice", "x s t u v", "y")], (2, 8, 8, 8), weights).rule == rule


@pytest.mark.parametrize(
    ("op", "operand", "rule", "words"),
    [
        ("Tile", [1, 2, 1, 1], "slice-bounds", "out-of-bounds slice"),
        ("Pad", [0, 0, 1, 1, 0, 0, 1, 1], "slice-bounds", "out-of-bounds slice"),
        ("Expand", [4, 8, 8, 8], "slice-steps", "Unsupported on DLA"),
        ("Expand", [3, 1, 8, 8, 8], "slice-axes", "slicing 4 dimensional tensors"),
    ],
)
def test_what_the_parser_makes_slices_of(op, operand, rule, words):
    placed = verdict([node(op, "x s", "y")], (1, 8, 8, 8), {"s": np.array(operand)})
    assert (placed.rule, placed.trt_layer) == (rule, "SLICE")
    assert words in placed.message


@pytest.mark.parametrize(("perm", "rule"), [([0, 2, 1, 3], None), ([0, 3, 1, 2], None), ([1, 0, 2, 3], "shuffle")])
def test_a_transpose_keeps_the_batch(perm, rule):
    assert verdict([node("Transpose", "x", "y", perm=perm)], (4, 4, 8, 8)).rule == rule


@pytest.mark.parametrize(
    ("shape", "constant", "rule"),
    [
        ((1, 8, 4, 4), (), None),
        ((1, 8, 4, 4), (8, 1, 1), None),
        ((2, 8, 4, 4), (8, 1, 1), "elementwise-shapes"),
        ((2, 8, 4, 4), (2, 8, 1, 1), None),
        ((1, 8, 4, 4), (4,), "elementwise-shapes"),
        ((1, 850, 256), (), None),
        ((1, 850, 256), (256,), "elementwise-shapes"),
    ],
)
def test_constants_spread_over_the_channels_only(shape, constant, rule):
    weights = {"c": np.ones(constant, np.float32)}
    assert verdict([node("Mul", "x c", "y")], shape, weights).rule == rule


@pytest.mark.parametrize(
    ("op", "tensorrt", "precision", "rule"),
    [
        ("Div", "8.6.2", "int8", "elementwise"),
        ("Div", "10.3", "int8", None),
        ("Div", "10.3", "fp16", "elementwise-constant"),
        ("Pow", "11.4.1", "int8", None),
    ],
)
def test_division_and_power_by_version(op, tensorrt, precision, rule):
    weights = {"c": np.array(2.0, np.float32)}
    placed = verdict([node(op, "x c", "y")], weights=weights, tensorrt=tensorrt, precision=precision)
    assert placed.rule == rule
    if rule:
        assert placed.message == f"y_node: DLA cores do not support {op.upper()} ElementWise operation."


@pytest.mark.parametrize(
    ("op", "attributes", "rules"),
    [
        ("Softmax", {"axis": 1}, {"8.4": "softmax-8.4", "8.6": None, "10.3": None, "11.4": None}),
        ("Transpose", {"perm": [0, 2, 1, 3]}, {"8.4": "shuffle-8.4", "8.5": None, "8.6": None, "10.3": None}),
        ("GlobalMaxPool", {}, {"8.4": "reduce", "8.6": "reduce", "10.3": None}),
        ("Sin", {}, {"8.6": "unary", "10.3": None}),
        ("Abs", {}, {"8.4": None, "8.6": None, "10.3": None}),
        ("Erf", {}, {"8.6": "unary", "10.3": "unary"}),
    ],
)
def test_what_changed_between_versions(op, attributes, rules):
    seen = {version: verdict([node(op, "x", "y", **attributes)], tensorrt=version).rule for version in rules}
    assert seen == rules


def test_a_slice_of_tensorrt_8_4_is_fp16_only():
    weights = {"s": np.array([2]), "t": np.array([6]), "u": np.array([1])}
    nodes = [node("Slice", "x s t u", "y")]
    seen = [verdict(nodes, weights=weights, tensorrt="8.4", precision=kind).rule for kind in ("int8", "fp16")]
    assert seen == ["slice-int8", None]


def test_tensorrt_8_5_refuses_a_reshape_beside_a_concat():
    nodes = [node("Reshape", "x s", "y"), node("Concat", "y y", "z", axis=1)]
    network_ = model(nodes, {"x": (1, 8, 4, 4)}, {"z": None}, {"s": np.array([1, 4, 8, 4])})
    rules = {version: place(read_graph(network_), version).layers[0].rule for version in ("8.5", "8.6", "10.3")}
    assert rules == {"8.5": "shuffle-slice", "8.6": None, "10.3": None}


def test_a_comparison_needs_its_cast():
    nodes = [node("Equal", "x z", "y"), node("Cast", "y", "c", to=FLOAT)]
    network_ = model(nodes, {"x": (1, 8, 4, 4), "z": (1, 8, 4, 4)}, {"c": FLOAT})
    assert [entry.final for entry in place(read_graph(network_)).layers] == ["dla", "dla"]
    assert [entry.rule for entry in place(read_graph(network_), precision="fp16").layers] == ["comparison-cast", "cast"]


def test_explicit_quantisation_is_the_gpus_until_tensorrt_11():
    weights = {"s": np.array(0.5, np.float32), "w": (8, 8, 1, 1)}
    nodes = [node("QuantizeLinear", "x s", "q"), node("DequantizeLinear", "q s", "d"), conv("d", "y", "w")]
    graph = read_graph(model(nodes, {"x": (1, 8, 4, 4)}, {"y": None}, weights))
    old, new = place(graph, "10.3"), place(graph, "11.4.1")
    assert [entry.rule for entry in old.layers] == ["explicit-quantisation", "explicit-dequantisation", None]
    assert [entry.final for entry in new.layers] == ["folded", "folded", "dla"]


def test_a_fully_connected_layer_of_too_many_channels_or_rows_is_the_gpus():
    assert verdict([node("Gemm", "x w", "y")], (8, 8193), {"w": (8193, 4)}).rule == "dims"
    assert verdict([node("Gemm", "x w", "y")], (4097, 8), {"w": (8, 4)}).rule == "linear-batch"
    assert verdict([node("MatMul", "w x", "y")], (8, 8), {"w": (8, 8)}).rule == "linear-shapes"


def test_every_rule_says_everything_and_is_the_only_one_of_its_id_in_a_version():
    versions = [release.last for release in RELEASES if not release.reason]
    for version in versions:
        ids = [rule.id for rule in RULES if rule.since <= version <= rule.until]
        assert len(set(ids)) == len(ids)
    for rule in RULES:
        assert rule.fix
        assert rule.source
        assert rule.confidence in ("documented", "seen in a log", "likely")
        assert any(rule.since <= version <= rule.until for version in versions)


@pytest.mark.parametrize(
    ("tensorrt", "words"),
    [
        ("7.1", "JetPack 4 and older.*made before Orin"),
        ("10.13", r"JetPack 7.0 and 7.1.*Thor has none.*use 8.6 \(JetPack 6.0\)"),
        ("10.16.1", "JetPack 7.2.*10.7 was the last"),
        ("11.2", "came back with TensorRT 11.4"),
        ("12.0", "'12.0' has no rules"),
        ("ten", "'ten' has no rules"),
    ],
)
def test_a_platform_without_dla_is_refused_with_the_reason(tensorrt, words):
    with pytest.raises(DlaError, match=words) as caught:
        rules_version(tensorrt)
    assert "\n" not in str(caught.value)


def test_full_version_numbers_name_their_rules():
    assert [rules_version(text) for text in ("8.5.2.2", "8.6", "10.3.0", "11.4.1")] == [
        (8, 5), (8, 6), (10, 3), (11, 4)
    ]  # fmt: skip


def test_a_type_without_rules_has_no_dla_layer():
    assert [rule.id for rule in rules_for("TOPK", "TopK", (10, 3))][:3] == ["unknown-shape", "precision", "sort"]
    assert [rule.id for rule in rules_for("GATHER", "Gather", (10, 3))] == ["no-dla-layer"]


# Where these rules and NVIDIA's table of operators part: the header lists kMIN, the table does not; TensorRT drops an
# Identity; the documentation of 10.x says ATAN where the table says Atanh.
PARTINGS = {"8.6": {"Identity", "Min"}, "10.3": {"Identity", "Min", "Atan", "Atanh"}}


@pytest.mark.skipif(not TABLE.is_file(), reason="the table of operators is not here")
@pytest.mark.parametrize("tensorrt", ["8.6", "10.3"])
def test_single_layers_are_placed_as_in_nvidias_table_of_operators(tensorrt):
    wrong = set()
    for op, says in rows():
        made = network(op)
        if made is not None:
            placed = next(entry for entry in place(read_graph(made), tensorrt).layers if entry.node == "op")
            wrong |= {op} if placed.candidate != expected(op, says, tensorrt == "10.3") else set()
    assert wrong == PARTINGS[tensorrt]


def test_weights_that_constants_make_are_constants():
    nodes = [node("Identity", "w", "v"), conv("x", "y", "v")]
    placed = verdict(nodes, weights={"w": np.ones((4, 8, 3, 3), np.float32)})
    assert placed.rule is None
