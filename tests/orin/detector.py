"""A small detector of photos as an ONNX file, and what the toolkit has to know of it."""

import numpy as np
from onnx import helper

from engines.engine import Binding
from engines.formats import sample_bytes
from engines.tails import Detector
from tests.engines.models import make, value

CLASSES, ANCHORS, GRIDS = 5, 2, (14, 7)
SIDES = (0.2, 0.4)
TOLERANCE = 1e-4  # of a side of the image, and of a score


def network():
    """Two feature maps with heads on each, four axes throughout: the DLA takes it whole, in rows that need padding."""
    rng = np.random.default_rng(8)
    weights = {
        "w1": rng.standard_normal((8, 3, 8, 8), dtype=np.float32) * 0.05,
        "w2": rng.standard_normal((16, 8, 2, 2), dtype=np.float32) * 0.2,
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["c1"], name="conv1", strides=[8, 8]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["f0"], name="relu2"),
        helper.make_node("MaxPool", ["f0"], ["f1"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
    ]
    outputs = []
    for level, grid in enumerate(GRIDS):
        for head, values in (("scores", CLASSES), ("boxes", 4)):
            name, channels = f"{head}_{level}", ANCHORS * values
            weights[f"{name}_w"] = rng.standard_normal((channels, 16, 1, 1), dtype=np.float32) * 0.3
            nodes.append(helper.make_node("Conv", [f"f{level}", f"{name}_w"], [name], name=f"head_{name}"))
            outputs.append(value(name, 1, channels, grid, grid))
    return make(nodes, [value("input", 1, 3, 224, 224)], outputs, weights)


def priors():
    """Two squares around the middle of each cell."""
    levels = []
    for grid in GRIDS:
        boxes = np.empty((ANCHORS, grid, grid, 4))
        middles = (np.arange(grid) + 0.5) / grid
        boxes[..., 0], boxes[..., 1] = middles, middles[:, None]
        boxes[..., 2:] = np.array(SIDES)[:, None, None, None]
        levels.append(boxes)
    return levels


DETECTOR = Detector(
    ("scores_{}", "boxes_{}"), ("0", "1"), CLASSES, priors, score=0.6, iou=0.5, candidates=1000, best=20
)


def bindings(dtype, layout):
    """The outputs of a backbone as an accelerator leaves them."""
    shapes = {output.name: output.type.tensor_type.shape.dim for output in network().graph.output}
    sizes = {name: tuple(dim.dim_value for dim in dims)[1:] for name, dims in shapes.items()}
    scale = 8 / 127 if dtype == "int8" else None
    itemsize = np.dtype(dtype).itemsize
    return [Binding(n, s, dtype, layout, scale, sample_bytes(layout, s, itemsize)) for n, s in sizes.items()]


def values(binding, rng):
    """Three images: few scores that count, no two of them alike."""
    real = np.linspace(-4, 4, 3 * binding.elements)
    return rng.permutation(real / (binding.scale or 1)).reshape(3, *binding.shape).astype(binding.dtype)


def same(mine, theirs):
    """Whether the same was found; of equal scores at the end of the list, some are left out by one and by the other."""
    if not np.allclose(*([found["score"] for found in each] for each in (mine, theirs)), atol=TOLERANCE):
        return False
    last = theirs[-1]["score"] + TOLERANCE if len(theirs) == DETECTOR.best else 0.0
    left = [found for found in theirs if found["score"] > last]
    for found in (found for found in mine if found["score"] > last):
        twin = next((each for each in left if is_twin(found, each)), None)
        if twin is None:
            return False
        left.remove(twin)
    return not left


def is_twin(one, other):
    near = np.allclose([one["score"], *one["box"]], [other["score"], *other["box"]], atol=TOLERANCE)
    return near and one["class"] == other["class"]


def plain(detections):
    """Detections as `orin run` answers with them."""
    rows = zip(detections.scores, detections.classes, detections.boxes)
    return [{"score": score, "class": label, "box": box} for score, label, box in rows]
