"""Rewrites of single layers: identical in float64, in the form that the DLA has, refused where they are not."""

import numpy as np
import onnx
import onnxruntime
import pytest

from dla.rewrite import IDENTICAL, REWRITES, rewrite, rewrite_all
from engines.graph import read_graph
from tests.dla.networks import DOUBLE, FLOAT, conv, model, node
from tests.dla.test_rewrite import attributes, check_identical, ops, run


def check(nodes, shape, name, weights=None, opset=18):
    """Check one rewrite on a network in float64; return the attributes of its nodes by output, and its operators."""
    outputs = {nodes[-1].output[0]: None}
    network = model(nodes, {"x": shape}, outputs, weights or {}, opset, DOUBLE)
    changed, changes = check_identical(network, [name], shape)
    assert changes and {change.rewrite for change in changes} == {name}
    return {entry.output[0]: attributes(entry) for entry in changed.graph.node}, ops(changed)


def refusals(nodes, shape, name, weights=None, opset=18):
    """Check that a rewrite changes nothing; return its reasons."""
    network = model(nodes, {"x": shape}, {nodes[-1].output[0]: None}, weights or {}, opset, DOUBLE)
    done = rewrite_all(network, [name])
    assert done.changes == () and done.model == network
    return [refusal.reason for refusal in done.refusals]


def by_onnx_runtime(before, after, values):
    """Run two networks on the same input in ONNX Runtime; return the first output of each."""
    sessions = (onnxruntime.InferenceSession(entry.SerializeToString()) for entry in (before, after))
    return [session.run(None, {"x": values})[0] for session in sessions]


def ints(*values):
    return np.array(values, np.int64)


# HardSwish, HardSigmoid, arithmetic with constants


def test_hard_swish():
    # Against the operator's formula: onnx.reference computes it with 1/6 in float32.
    network = model([node("HardSwish", "x", "y")], {"x": (2, 3, 5, 5)}, {"y": None}, {}, 18, DOUBLE)
    changed, _ = rewrite(network, ["hard-swish"])
    values = 4 * np.random.default_rng(1).standard_normal((2, 3, 5, 5))
    wanted = values * np.clip(values / 6 + 0.5, 0, 1)
    assert ops(changed) == ["Add", "Clip", "Mul", "Mul"]
    assert np.abs(run(changed, {"x": values})[0] - wanted).max() <= 1e-10 * np.abs(wanted).max()
    assert np.abs(run(network, {"x": values})[0] - wanted).max() <= 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("parameters", [{}, {"alpha": 1 / 6, "beta": 0.5}])
def test_hard_sigmoid(parameters):
    nodes = [node("HardSigmoid", "x", "h", **parameters), node("Mul", "x h", "y")]
    _, made = check(nodes, (2, 3, 5, 5), "hard-swish")
    assert made == ["Mul", "Add", "Clip", "Mul"]


@pytest.mark.parametrize(
    ("nodes", "made"),
    [
        ([node("Neg", "x", "y")], ["Mul"]),
        ([node("Div", "x c", "y")], ["Mul"]),
        ([node("Sub", "x c", "y")], ["Add"]),
        ([node("Sub", "c x", "y")], ["Mul", "Add"]),
        ([node("Div", "x s", "d"), node("Sub", "d s", "y")], ["Mul", "Add"]),
    ],
)
def test_arithmetic_with_constants(nodes, made):
    weights = {"c": np.array([0.3, -7.0, 1e3]).reshape(3, 1, 1), "s": np.array(6.0)}
    assert check(nodes, (2, 3, 4, 4), "constant-arithmetic", weights)[1] == made


def test_a_division_by_zero_is_refused_and_others_are_left():
    weights = {"c": np.array([1.0, 0.0, 2.0]).reshape(3, 1, 1)}
    (reason,) = refusals([node("Div", "x c", "y")], (1, 3, 2, 2), "constant-arithmetic", weights)
    assert "'c'" in reason
    assert refusals([node("Div", "c x", "y")], (1, 3, 2, 2), "constant-arithmetic", weights) == []
    assert refusals([node("Sub", "x x", "y")], (1, 3, 2, 2), "constant-arithmetic") == []


# Pad


PADS = {"p": ints(0, 0, 1, 2, 0, 0, 0, 1)}


def test_a_pad_in_front_of_convolutions():
    nodes = [
        node("Pad", "x p", "q"),
        conv("q", "a", "w", pads=[0, 0, 1, 0]),
        conv("q", "b", "w", auto_pad="VALID"),
        node("Concat", "a b", "y", axis=2),
    ]
    found, made = check(nodes, (2, 3, 7, 7), "fold-pad", {**PADS, "w": (4, 3, 3, 3)})
    assert made == ["Conv", "Conv", "Concat"]
    assert (found["a"]["pads"], found["b"]["pads"]) == ([1, 2, 1, 1], [1, 2, 0, 1])


def test_a_pad_of_named_axes_in_front_of_an_average_and_of_a_maximum_over_a_relu():
    weights = {"p": ints(1, 1), "axes": ints(-2)}
    for pool, more in (("AveragePool", {"count_include_pad": 1}), ("MaxPool", {})):
        nodes = [node("Relu", "x", "r"), node("Pad", "r p  axes".replace("  ", " none "), "q")]
        nodes[1].input[2] = ""
        nodes.append(node(pool, "q", "y", kernel_shape=[3, 3], strides=[2, 2]))
        found, made = check(nodes, (1, 2, 8, 8), "fold-pad", weights)
        assert made == ["Relu", pool]
        assert found["y"]["pads"] == [1, 0, 1, 0]
        assert {key: found["y"][key] for key in more} == more


def test_a_pad_with_the_lowest_number_is_a_maximum_without():
    nodes = [node("Pad", "x p low", "q"), node("MaxPool", "q", "y", kernel_shape=[3, 3])]
    network = model(nodes, {"x": (1, 2, 6, 6)}, {"y": None}, {**PADS, "low": np.array(-np.inf)}, 18, DOUBLE)
    changed, _ = rewrite(network, ["fold-pad"])
    assert ops(changed) == ["MaxPool"]
    values = np.random.default_rng(1).standard_normal((1, 2, 6, 6))
    old, new = by_onnx_runtime(network, changed, values)  # onnx.reference mixes up pads that all differ
    assert old.shape == (1, 2, 5, 7)
    assert np.array_equal(old, new)


@pytest.mark.parametrize(
    ("pad", "reader", "reason"),
    [
        (node("Pad", "x p", "q"), node("MaxPool", "q", "y", kernel_shape=[3, 3]), "a maximum with 0"),
        (node("Pad", "x p", "q", mode="reflect"), conv("q", "y", "w"), "'reflect', which no padding of zeros equals"),
        (node("Pad", "x p one", "q"), conv("q", "y", "w"), "it fills with 1"),
        (node("Pad", "x wide", "q"), conv("q", "y", "w"), "as large as its kernel"),
        (node("Pad", "x channels", "q"), conv("q", "y", "w4"), "not of height and width alone"),
        (node("Pad", "x p", "q"), conv("q", "y", "w", auto_pad="SAME_UPPER"), "auto_pad"),
        (node("Pad", "x p", "q"), node("MaxPool", "q", "y", kernel_shape=[3, 3], ceil_mode=1), "rounds its size up"),
        (node("Pad", "x p", "q"), node("Sigmoid", "q", "y"), "Sigmoid has no padding"),
        (
            node("Pad", "x p", "q"),
            node("AveragePool", "q", "y", kernel_shape=[5, 5], pads=[1, 1, 1, 1]),
            "left out of the mean",
        ),
    ],
)
def test_pads_that_are_not_padding_are_refused(pad, reader, reason):
    weights = {
        **PADS,
        "one": np.array(1.0),
        "wide": ints(0, 0, 3, 0, 0, 0, 0, 0),
        "channels": ints(0, 1, 0, 0, 0, 0, 0, 0),
        "w": (4, 3, 3, 3),
        "w4": (4, 4, 3, 3),
    }
    (seen,) = refusals([pad, reader], (1, 3, 7, 7), "fold-pad", weights)
    assert reason in seen


def test_a_pad_stays_for_the_readers_that_cannot_take_it():
    nodes = [
        node("Pad", "x p", "q"),
        conv("q", "a", "w"),
        node("MaxPool", "q", "b", kernel_shape=[3, 3]),
        node("Concat", "a b", "y", axis=1),
    ]
    _, made = check(nodes, (1, 3, 7, 7), "fold-pad", {**PADS, "w": (4, 3, 3, 3)})
    assert sorted(made) == ["Concat", "Conv", "MaxPool", "Pad"]


def test_an_approximate_pad_is_made_only_when_asked_for_by_name():
    nodes = [node("Pad", "x p", "q", mode="edge"), conv("q", "y", "w")]
    network = model(nodes, {"x": (1, 3, 7, 7)}, {"y": None}, {**PADS, "w": (4, 3, 3, 3)}, 18, DOUBLE)
    assert rewrite_all(network).changes == ()
    changed, (change,) = rewrite(network, ["approximate-pad"])
    assert ops(changed) == ["Conv"]
    assert change.rewrite == "approximate-pad"
    values = np.random.default_rng(1).standard_normal((1, 3, 7, 7))
    (old,), (new,) = run(network, {"x": values}), run(changed, {"x": values})
    assert np.abs(old - new)[:, :, 1:, 2:-1].max() <= 1e-10  # the inside is the same, the border is not
    assert np.abs(old - new).max() > 1e-3


# ConvTranspose


@pytest.mark.parametrize(
    ("parameters", "kernel", "made"),
    [
        ({"strides": [2, 2], "pads": [1, 1, 1, 1]}, [4, 4], ["ConvTranspose", "Slice"]),
        ({"strides": [2, 2], "pads": [1, 0, 1, 2]}, [3, 4], ["ConvTranspose", "Slice"]),
        ({"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, [3, 3], ["ConvTranspose", "Slice"]),
        ({"strides": [2, 3], "output_padding": [1, 2]}, [3, 3], ["ConvTranspose"]),
    ],
)
def test_padded_transposed_convolutions(parameters, kernel, made):
    nodes = [node("Relu", "x", "r"), node("ConvTranspose", "r w b", "y", **parameters)]
    found, seen = check(nodes, (2, 3, 5, 6), "valid-deconv", {"w": (3, 4, *kernel), "b": (4,)})
    assert seen == ["Relu", *made]
    assert all("pads" not in entry and "output_padding" not in entry for entry in found.values())


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (3, 2), (3, 1), (5, 2)])
def test_same_transposed_convolutions_as_onnx_runtime_computes_them(mode, kernel, stride):
    deconv = node("ConvTranspose", "x w", "y", auto_pad=mode, strides=[stride, stride])
    network = model([deconv], {"x": (1, 3, 5, 6)}, {"y": None}, {"w": (3, 4, kernel, kernel)}, 13, FLOAT)
    changed, _ = rewrite(network, ["valid-deconv"])
    values = np.random.default_rng(1).standard_normal((1, 3, 5, 6)).astype(np.float32)
    old, new = by_onnx_runtime(network, changed, values)
    assert old.shape == (1, 4, 5 * stride, 6 * stride)
    assert np.abs(old - new).max() <= 1e-5


@pytest.mark.parametrize(
    ("parameters", "weight", "reason"),
    [
        ({"pads": [1, 1, 1, 1], "group": 4}, (4, 1, 3, 3), "groups"),
        ({"pads": [1, 1, 1, 1], "dilations": [2, 2]}, (4, 2, 3, 3), "dilated"),
        ({"pads": [1, 1, 1, 1], "strides": [2, 2]}, (4, 2, 24, 24), "over 22"),
    ],
)
def test_transposed_convolutions_that_the_dla_never_takes(parameters, weight, reason):
    (seen,) = refusals([node("ConvTranspose", "x w", "y", **parameters)], (1, 4, 6, 6), "valid-deconv", {"w": weight})
    assert reason in seen


# Resize

SIZES = {"sizes": ints(1, 2, 8, 12)}


def resize(inputs, **parameters):
    made = node("Resize", inputs, "y", **parameters)
    made.input[:] = ["" if name == "-" else name for name in made.input]
    return made


@pytest.mark.parametrize(
    ("transform", "rounding"),
    [
        ("asymmetric", "floor"),
        ("half_pixel", "round_prefer_floor"),
        ("pytorch_half_pixel", "round_prefer_ceil"),
        ("asymmetric", "round_prefer_floor"),
    ],
)
def test_a_nearest_resize_by_sizes(transform, rounding):
    parameters = {"coordinate_transformation_mode": transform, "nearest_mode": rounding}
    weights = {"sizes": ints(1, 2, 8, 6)}
    found, _ = check([resize("x - - sizes", **parameters)], (1, 2, 4, 6), "resize-scales", weights)
    made = found["y"]["coordinate_transformation_mode"], found["y"]["nearest_mode"]
    assert made in ((b"asymmetric", b"floor"), (b"half_pixel", b"round_prefer_floor"))


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_a_linear_resize_by_sizes(opset):
    nodes = [resize("x roi none sizes", mode="linear", coordinate_transformation_mode="pytorch_half_pixel")]
    weights = {"sizes": ints(1, 2, 8, 12), "roi": np.zeros(0, np.float32), "none": np.zeros(0, np.float32)}
    found, _ = check(nodes, (1, 2, 4, 6), "resize-scales", weights, opset)
    assert found["y"]["coordinate_transformation_mode"] == b"half_pixel"


def test_scales_come_out_as_whole_numbers_of_four_axes():
    nodes = [resize("x - scales", axes=[2, 3], nearest_mode="floor", coordinate_transformation_mode="align_corners")]
    (reason,) = refusals(nodes, (1, 2, 4, 6), "resize-scales", {"scales": np.array([2, 2], np.float32)})
    assert "other pixels than asymmetric floor" in reason
    nodes = [resize("x - scales", axes=[2, 3], nearest_mode="floor", coordinate_transformation_mode="asymmetric")]
    network = model(nodes, {"x": (1, 2, 4, 6)}, {"y": None}, {"scales": np.array([2, 3], np.float32)}, 18, DOUBLE)
    changed, _ = check_identical(network, ["resize-scales"], (1, 2, 4, 6))
    (scales,) = [onnx.numpy_helper.to_array(entry) for entry in changed.graph.initializer]
    assert scales.tolist() == [1, 1, 2, 3]


@pytest.mark.parametrize(
    ("parameters", "sizes", "reason"),
    [
        ({"mode": "linear", "coordinate_transformation_mode": "align_corners"}, (8, 12), "align_corners interpolates"),
        ({"mode": "linear"}, (20, 30), "up to 4"),
        ({}, (6, 9), "1x1x1.5x1.5"),
        ({}, (2, 3), "1x1x0.5x0.5"),
        ({"mode": "cubic"}, (8, 12), "'cubic'"),
        ({"coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil"}, (8, 12), "other pixels"),
    ],
)
def test_resizes_that_the_dla_samples_otherwise_are_refused(parameters, sizes, reason):
    weights = {"sizes": ints(1, 2, *sizes)}
    (seen,) = refusals([resize("x - - sizes", **parameters)], (1, 2, 4, 6), "resize-scales", weights)
    assert reason in seen


def test_an_approximate_resize_is_made_only_when_asked_for_by_name():
    nodes = [resize("x - - sizes", mode="linear", coordinate_transformation_mode="align_corners")]
    network = model(nodes, {"x": (1, 2, 4, 6)}, {"y": None}, SIZES, 18, DOUBLE)
    assert rewrite_all(network).changes == ()
    changed, _ = rewrite(network, ["approximate-resize"])
    assert attributes(changed.graph.node[0])["coordinate_transformation_mode"] == b"half_pixel"
    assert read_graph(changed).tensors["y"].shape == (1, 2, 8, 12)


# Moves between channels and pixels


@pytest.mark.parametrize(
    ("layer", "shape", "made"),
    [
        (node("DepthToSpace", "x", "y", blocksize=2, mode="DCR"), (2, 12, 3, 4), ["ConvTranspose"]),
        (node("DepthToSpace", "x", "y", blocksize=3, mode="CRD"), (2, 18, 3, 4), ["ConvTranspose"]),
        (node("SpaceToDepth", "x", "y", blocksize=2), (2, 3, 4, 6), ["Conv"]),
    ],
)
def test_moves_become_convolutions(layer, shape, made):
    assert check([layer], shape, "depth-to-space")[1] == made


@pytest.mark.parametrize(
    ("shape", "split", "order", "back", "name"),
    [
        ((2, 12, 3, 5), (2, 3, 2, 2, 3, 5), (0, 1, 4, 2, 5, 3), (2, 3, 6, 10), "depth-to-space"),
        ((2, 12, 3, 5), (2, 2, 2, 3, 3, 5), (0, 3, 4, 1, 5, 2), (2, 3, 6, 10), "depth-to-space"),
        ((2, 3, 6, 10), (2, 3, 3, 2, 5, 2), (0, 1, 3, 5, 2, 4), (2, 12, 3, 5), "depth-to-space"),
        ((2, 3, 6, 10), (2, 3, 3, 2, 5, 2), (0, 3, 5, 1, 2, 4), (2, 12, 3, 5), "depth-to-space"),
        ((2, 12, 3, 5), (2, 3, 4, 3, 5), (0, 2, 1, 3, 4), (2, 12, 3, 5), "channel-shuffle"),
    ],
)
def test_moves_that_exporters_spell_out(shape, split, order, back, name):
    nodes = [node("Reshape", "x s", "a"), node("Transpose", "a", "t", perm=order), node("Reshape", "t b", "y")]
    weights = {"s": ints(*split), "b": ints(*back)}
    _, made = check(nodes, shape, name, weights)
    assert len(made) == 1


def test_other_reorderings_are_left():
    nodes = [node("Reshape", "x s", "a"), node("Transpose", "a", "t", perm=(0, 1, 4, 2, 5, 3))]
    nodes.append(node("Reshape", "t b", "y"))
    weights = {"s": ints(2, 3, 4, 1, 3, 5), "b": ints(2, 3, 12, 5)}  # a block of 4 x 1
    assert refusals(nodes, (2, 12, 3, 5), "depth-to-space", weights) == []


def test_a_block_over_the_stride_is_refused():
    (reason,) = refusals([node("SpaceToDepth", "x", "y", blocksize=9)], (1, 1, 9, 9), "depth-to-space")
    assert "9 wide" in reason


# Concat


def test_a_concat_behind_like_transposes_moves_in_front_of_them():
    nodes = [
        node("Relu", "x", "r"),
        node("Transpose", "x", "a", perm=[0, 2, 3, 1]),
        node("Transpose", "r", "b", perm=[0, 2, 3, 1]),
        node("Concat", "a b", "y", axis=-1),
    ]
    found, made = check(nodes, (2, 3, 4, 5), "channel-concat")
    assert made == ["Relu", "Concat", "Transpose"]
    assert found["y"]["perm"] == [0, 2, 3, 1]


@pytest.mark.parametrize("axis", [2, 3, -1])
def test_a_concat_on_height_or_width(axis):
    nodes = [node("Relu", "x", "r"), node("Concat", "x r x", "y", axis=axis)]
    found, made = check(nodes, (2, 3, 4, 5), "channel-concat")
    assert made == ["Relu", "Transpose", "Transpose", "Transpose", "Concat", "Transpose"]
    assert [entry["axis"] for entry in found.values() if "axis" in entry] == [1]


def test_a_concat_of_batches_is_refused_and_one_of_channels_is_left():
    (reason,) = refusals([node("Concat", "x x", "y", axis=0)], (2, 3, 4, 5), "channel-concat")
    assert "joins batches" in reason
    assert refusals([node("Concat", "x x", "y", axis=1)], (2, 3, 4, 5), "channel-concat") == []


# All of them


def test_every_rewrite_says_what_it_does_and_two_are_not_identical():
    assert all(entry.summary for entry in REWRITES.values())
    assert set(REWRITES) - set(IDENTICAL) == {"approximate-pad", "approximate-resize"}
