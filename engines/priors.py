"""Default boxes of the detectors: where each cell of a head expects its objects.

Sources: MLPerf Inference v2.0 (SSD, both) and v2.1 on (RetinaNet); the pixel sizes are those of the trained networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Size = tuple[float, float]

SSD_MOBILENET_GRIDS = (19, 10, 5, 3, 2, 1)
SSD_MOBILENET_SCALES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)
SSD_RESNET34_GRIDS = (50, 25, 13, 7, 3, 3)
SSD_RESNET34_PIXELS = (84.0, 180.0, 396.0, 612.0, 828.0, 1044.0, 1260.0)
SSD_RESNET34_RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
SSD_RESNET34_SIDE = 1200
RETINANET_GRIDS = (100, 50, 25, 13, 7)
RETINANET_PIXELS = ((32, 40, 50), (64, 80, 101), (128, 161, 203), (256, 322, 406), (512, 645, 812))
RETINANET_SIDE = 800


def ssd_mobilenet() -> list[NDArray[Any]]:
    """Return the boxes of each level: float64 [anchors, rows, columns, (cx, cy, w, h)] in 0..1 of the image."""
    levels = []
    for level, grid in enumerate(SSD_MOBILENET_GRIDS):
        scale, larger = SSD_MOBILENET_SCALES[level : level + 2]
        if level == 0:
            shapes = [_shape(0.1, 1.0), _shape(scale, 2.0), _shape(scale, 0.5)]
        else:
            shapes = [_shape(scale, ratio) for ratio in (1.0, 2.0, 1 / 2, 3.0, 1 / 3)]
            shapes.append(_shape(math.sqrt(scale * larger), 1.0))
        levels.append(_per_cell(grid, shapes))
    return levels


def ssd_resnet34() -> list[NDArray[Any]]:
    """Return the boxes of each level as `ssd_mobilenet` does, each number within 0..1."""
    levels = []
    for level, (grid, ratios) in enumerate(zip(SSD_RESNET34_GRIDS, SSD_RESNET34_RATIOS)):
        size, larger = (pixels / SSD_RESNET34_SIDE for pixels in SSD_RESNET34_PIXELS[level : level + 2])
        shapes = [_shape(size, 1.0), _shape(math.sqrt(size * larger), 1.0)]
        for ratio in ratios:
            shapes += [_shape(size, ratio), _shape(size, 1 / ratio)]
        levels.append(_per_cell(grid, shapes).clip(0.0, 1.0))
    return levels


def retinanet() -> list[NDArray[Any]]:
    """Return the boxes of each level as `ssd_mobilenet` does; corners lie on whole pixels of 800."""
    levels = []
    for grid, pixels in zip(RETINANET_GRIDS, RETINANET_PIXELS):
        halves = [
            (size / math.sqrt(ratio) / 2, size * math.sqrt(ratio) / 2) for ratio in (0.5, 1, 2) for size in pixels
        ]
        corners = np.arange(grid) * (RETINANET_SIDE // grid)
        levels.append(_boxes(corners, np.rint(halves) * 2) / RETINANET_SIDE)
    return levels


def _shape(scale: float, ratio: float) -> Size:
    """Width and height of a box of an area and a ratio of width to height."""
    return scale * math.sqrt(ratio), scale / math.sqrt(ratio)


def _per_cell(grid: int, shapes: Sequence[Size]) -> NDArray[Any]:
    return _boxes((np.arange(grid) + 0.5) / grid, np.array(shapes))


def _boxes(centres: NDArray[Any], shapes: NDArray[Any]) -> NDArray[Any]:
    """Return boxes [anchors, rows, columns, 4] of each shape around each pair of centres."""
    boxes = np.empty((len(shapes), len(centres), len(centres), 4))
    boxes[..., 0], boxes[..., 1] = centres, centres[:, None]
    boxes[..., 2:] = shapes[:, None, None]
    return boxes
