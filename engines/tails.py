"""What follows a detector's head convolutions: scores, box decoding and non-maximum suppression, on the CPU.

Sources: MLPerf Inference v2.0 (SSD-MobileNet, SSD-ResNet34) and v2.1 on (RetinaNet), reference implementations;
thresholds and candidates of SSD-MobileNet as in NVIDIA's `NMS_OPT_TRT` configuration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import priors
from engines.errors import EngineError

LARGEST_GROWTH = math.log(1000 / 16)  # torchvision's limit for RetinaNet; SSD's boxes are the whole image long before


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first: boxes [N, (x0, y0, x1, y1)] in 0..1 of the image, scores, classes."""

    boxes: NDArray[Any]
    scores: NDArray[Any]
    classes: NDArray[Any]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Detector:
    """One network's tail.

    `heads` names the outputs with scores and with boxes, `{}` is the level's `names`; channels are anchor-major or
    value-major. A box code times `variances` (centre, size) moves its prior; `y_first`: codes are y, x, h, w. Scores
    up to `score` are dropped, at most `candidates` kept (of a level where `by_level`, else of a class) for the
    suppression within a class at `iou`; the `best` are what remains. `background` classes come first and count for
    nothing. Boxes end at the image's edge: with `clip_first` before they are suppressed, else after it.
    """

    heads: tuple[str, str]
    names: tuple[str, ...]
    classes: int
    priors: Callable[[], list[NDArray[Any]]]
    score: float
    iou: float
    candidates: int
    best: int
    variances: tuple[float, float] = (0.1, 0.2)
    anchor_major: bool = True
    y_first: bool = False
    softmax: bool = False
    by_level: bool = False
    clip_first: bool = False
    background: int = 1

    def detect(self, outputs: Mapping[str, NDArray[Any]]) -> list[Detections]:
        """Return each image's detections; `outputs` holds every head by its name, samples first."""
        heads = [[self._head(outputs, head.format(name)) for head in self.heads] for name in self.names]
        boxes = self.priors()
        return [self._image([(s[n], b[n], p) for (s, b), p in zip(heads, boxes)]) for n in range(len(heads[0][0]))]

    def _head(self, outputs: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
        try:
            return outputs[name]
        except KeyError:
            raise EngineError(f"detection needs the output {name!r}, there are {', '.join(outputs)}") from None

    def _image(self, levels: Sequence[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]) -> Detections:
        found = []
        for logits, codes, boxes in levels:
            scores, where = self._found(self._values(logits, self.classes))
            if self.by_level and len(scores) > self.candidates:
                best = np.argsort(-scores, kind="stable")[: self.candidates]
                scores, where = scores[best], tuple(axis[best] for axis in where)
            label, place = where[0], where[1:]
            moved = self._decode(np.moveaxis(self._values(codes, 4), 0, -1)[place], boxes[place])
            found.append((moved, scores, label + self.background))
        return self._suppressed(*(np.concatenate(part) for part in zip(*found)))

    def _values(self, head: NDArray[Any], values: int) -> NDArray[Any]:
        """Return a view of a head [channels, rows, columns] as [values, anchors, rows, columns]."""
        grid = head.shape[1:]
        split = (-1, values) if self.anchor_major else (values, -1)
        parts: NDArray[Any] = head.reshape(*split, *grid)
        return parts.swapaxes(0, 1) if self.anchor_major else parts

    def _found(self, logits: NDArray[Any]) -> tuple[NDArray[Any], tuple[NDArray[Any], ...]]:
        """Return the scores above the limit and their indices: class (background left out), anchor, row, column."""
        if self.softmax:
            powers = np.exp(logits - logits.max(axis=0))
            scores = (powers / powers.sum(axis=0))[self.background :]
            where = np.nonzero(scores > self.score)
            return scores[where], where
        logits = logits[self.background :]
        where = np.nonzero(logits > math.log(self.score / (1 - self.score)))
        return 1 / (1 + np.exp(-logits[where])), where

    def _decode(self, codes: NDArray[Any], boxes: NDArray[Any]) -> NDArray[Any]:
        """Return corners of boxes that codes move from their priors."""
        if self.y_first:
            codes = codes[:, (1, 0, 3, 2)]
        centres = boxes[:, :2] + codes[:, :2] * self.variances[0] * boxes[:, 2:]
        halves = boxes[:, 2:] * np.exp(np.minimum(codes[:, 2:] * self.variances[1], LARGEST_GROWTH)) / 2
        corners: NDArray[Any] = np.concatenate([centres - halves, centres + halves], axis=1)
        return corners.clip(0.0, 1.0) if self.clip_first else corners

    def _suppressed(self, boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any]) -> Detections:
        kept = []
        for label in np.unique(labels):
            members = np.nonzero(labels == label)[0]
            members = members[np.argsort(-scores[members], kind="stable")]
            members = members if self.by_level else members[: self.candidates]
            kept.append(members[suppress(boxes[members], self.iou)])
        rows = np.concatenate(kept) if kept else np.empty(0, int)
        rows = rows[np.argsort(-scores[rows], kind="stable")][: self.best]
        return Detections(boxes[rows].clip(0.0, 1.0).astype(np.float32), scores[rows].astype(np.float32), labels[rows])


def suppress(boxes: NDArray[Any], iou: float) -> NDArray[Any]:
    """Return the rows of boxes [N, 4], best first, that overlap no kept one before them by more than `iou`."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive = np.ones(len(boxes), bool)
    for row in range(len(boxes)):
        if not alive[row]:
            continue
        others = boxes[row + 1 :]
        low, high = np.maximum(others[:, :2], boxes[row, :2]), np.minimum(others[:, 2:], boxes[row, 2:])
        shared = (high - low).clip(0.0).prod(axis=1)
        alive[row + 1 :] &= shared <= iou * (area[row] + area[row + 1 :] - shared)
    return np.nonzero(alive)[0]


_RETINANET_NAMES = tuple(f"{grid}x{grid}" for grid in priors.RETINANET_GRIDS)
_SIX = tuple(map(str, range(6)))
DETECTORS: Mapping[str, Detector] = {
    "ssd-mobilenet": Detector(
        ("classes_{}", "boxes_{}"), _SIX, 91, priors.ssd_mobilenet, 0.3, 0.6, candidates=100, best=100, y_first=True
    ),
    "ssd-resnet34": Detector(
        ("conf_{}", "loc_{}"),
        _SIX,
        81,
        priors.ssd_resnet34,
        0.05,
        0.5,
        candidates=200,
        best=200,
        anchor_major=False,
        softmax=True,
    ),
    "retinanet": Detector(
        ("classification_head_{}", "regression_head_{}"),
        _RETINANET_NAMES,
        264,
        priors.retinanet,
        0.05,
        0.5,
        candidates=1000,
        best=300,
        variances=(1.0, 1.0),
        by_level=True,
        clip_first=True,
        background=0,
    ),
}
