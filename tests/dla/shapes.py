"""Shapes of network that people bring: small, seeded, in the forms that exporters write."""

import numpy as np

from tests.dla.networks import conv, model, node


def yolo_head():
    """SiLU, Split, Concat, Resize by sizes: two scales of a YOLO neck and one head."""
    nodes = [
        conv("p4", "a", "wa"), node("Sigmoid", "a", "as"), node("Mul", "a as", "silu"),
        node("Split", "silu parts", "left right", axis=1),
        conv("right", "b", "wb", pads=[1, 1, 1, 1]), node("Sigmoid", "b", "bs"), node("Mul", "b bs", "bsilu"),
        node("Concat", "left right bsilu", "c2f", axis=1),
        node("Resize", "p5", "up", mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"),
        node("Concat", "c2f up", "neck", axis=1),
        conv("neck", "head", "wh"),
    ]  # fmt: skip
    nodes[8].input[:] = ["p5", "", "", "sizes"]
    weights = {"wa": (32, 16, 1, 1), "wb": (16, 16, 3, 3), "wh": (85, 64, 1, 1)}
    weights |= {"parts": np.array([16, 16]), "sizes": np.array([1, 16, 20, 20])}
    return model(nodes, {"p4": [1, 16, 20, 20], "p5": [1, 16, 10, 10]}, {"head": None}, weights)


def unet():
    """Two levels with SAME transposed convolution, Concat and a Pad in front of a convolution."""
    nodes = [
        node("Pad", "x pads", "xp"), conv("xp", "e1", "w1"), node("Relu", "e1", "r1"),
        node("MaxPool", "r1", "d", kernel_shape=[2, 2], strides=[2, 2]),
        conv("d", "e2", "w2", pads=[1, 1, 1, 1]), node("Relu", "e2", "r2"),
        node("ConvTranspose", "r2 wt", "u", strides=[2, 2], kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
        node("Concat", "u r1", "cat", axis=1), conv("cat", "y", "wy"),
    ]  # fmt: skip
    weights = {"w1": (16, 3, 3, 3), "w2": (32, 16, 3, 3), "wt": (32, 16, 3, 3), "wy": (2, 32, 1, 1)}
    weights |= {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    return model(nodes, {"x": [1, 3, 32, 32]}, {"y": None}, weights)


def mobilenet_v3():
    """HardSwish, a squeeze-and-excite block with HardSigmoid, and a classifier of two layers."""
    nodes = [
        conv("x", "a", "wa", strides=[2, 2], pads=[1, 1, 1, 1]), node("HardSwish", "a", "h"),
        conv("h", "dw", "wd", pads=[1, 1, 1, 1], group=16),
        node("GlobalAveragePool", "dw", "g"), conv("g", "s1", "ws1"), node("Relu", "s1", "s2"),
        conv("s2", "s3", "ws2"), node("HardSigmoid", "s3", "s", alpha=1 / 6), node("Mul", "dw s", "se"),
        node("GlobalAveragePool", "se", "pool"), node("Flatten", "pool", "flat"),
        node("Gemm", "flat wf", "f1", transB=1), node("HardSwish", "f1", "f2"), node("Gemm", "f2 wg", "y", transB=1),
    ]  # fmt: skip
    weights = {"wa": (16, 3, 3, 3), "wd": (16, 1, 3, 3), "ws1": (8, 16, 1, 1), "ws2": (16, 8, 1, 1)}
    weights |= {"wf": (64, 16), "wg": (10, 64)}
    return model(nodes, {"x": [1, 3, 28, 28]}, {"y": None}, weights, opset=14)


def attention():
    """A convolution stem and one DETR-like attention over its map."""
    nodes = [
        conv("x", "c", "wc", strides=[2, 2], pads=[1, 1, 1, 1]), node("Relu", "c", "r"),
        node("Reshape", "r tokens", "t"), node("Transpose", "t", "seq", perm=[0, 2, 1]),
        node("MatMul", "seq wq", "q"), node("MatMul", "seq wk", "k"), node("MatMul", "seq wv", "v"),
        node("Transpose", "k", "kt", perm=[0, 2, 1]), node("MatMul", "q kt", "scores"),
        node("Softmax", "scores", "p", axis=2), node("MatMul", "p v", "o"), node("MatMul", "o wo", "y"),
    ]  # fmt: skip
    weights = {"wc": (32, 3, 3, 3), "tokens": np.array([1, 32, -1])}
    weights |= {name: (32, 32) for name in ("wq", "wk", "wv", "wo")}
    return model(nodes, {"x": [1, 3, 16, 16]}, {"y": None}, weights)


SHAPES = {"yolo head": yolo_head, "u-net": unet, "mobilenet v3": mobilenet_v3, "attention": attention}
