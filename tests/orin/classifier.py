"""A small classifier of photos as an ONNX file, and photos: quick to calibrate, build and run."""

import numpy as np
import onnx
from onnx import helper

from tests.engines.models import make, value

CLASSES = 10


def classifier():
    """A convolution that looks at 224x224, a global pool and a fully connected layer: the DLA takes it rewritten."""
    rng = np.random.default_rng(7)
    weights = {
        "w1": rng.standard_normal((8, 3, 8, 8), dtype=np.float32) * 0.05,
        "w2": rng.standard_normal((CLASSES, 8), dtype=np.float32),
        "b2": rng.standard_normal(CLASSES, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["c"], name="conv", strides=[8, 8]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["scores"], name="fc", transB=1),
    ]
    return make(nodes, [value("input", 1, 3, 224, 224)], [value("scores", 1, CLASSES)], weights)


def lay_out(folder, photos=5):
    """Write net.onnx and a folder of photos; returns both paths."""
    import cv2

    rng = np.random.default_rng(11)
    (folder / "photos").mkdir()
    for number in range(photos):
        photo = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"photos/{number}.png"), cv2.resize(photo, (320, 240)))
    onnx.save(classifier(), folder / "net.onnx")
    return folder / "net.onnx", folder / "photos"
