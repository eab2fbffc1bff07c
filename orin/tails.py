"""The step after the engines, by the plan's `tail`: top-1 of a classifier, detections of a detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.tails import DETECTORS, Detections, Detector
from orin.errors import OrinError
from orin.plan import Plan

Outputs = Sequence[NDArray[Any]]
Answer = dict[str, Any]
Answers = Callable[[Outputs], list[Answer]]
Responses = Callable[[Outputs, Sequence[int]], tuple[NDArray[Any], list[int]]]


def answers_of(plan: Plan, names: Sequence[str]) -> Answers:
    """Return what makes answers, one a sample, of a network's outputs; `names` are the outputs' in their order.

    A classifier's answer is its best class and that score; a detector's the boxes x0, y0, x1, y1 in 0..1 of the photo.
    """
    detector = _detector(plan)
    if detector is None:
        return top1_answers
    return lambda outputs: [_found(found) for found in detector.detect(dict(zip(names, outputs, strict=True)))]


def responses_of(plan: Plan, names: Sequence[str]) -> Responses:
    """Return what makes MLPerf's responses of a network's outputs and the samples' indices in the data set.

    They are one array, and how many bytes of it each sample's response has: int32, the best class; or float32, for
    each detection index, ymin, xmin, ymax, xmax, score and class (MLPerf Inference,
    vision/classification_and_detection/python/coco.py).
    """
    detector = _detector(plan)
    if detector is None:
        return _classes

    def boxes(outputs: Outputs, indices: Sequence[int]) -> tuple[NDArray[Any], list[int]]:
        found = detector.detect(dict(zip(names, outputs, strict=True)))
        rows = [_rows(*pair) for pair in zip(found, indices, strict=True)]
        return np.concatenate(rows), [part.nbytes for part in rows]

    return boxes


def top1(outputs: Outputs) -> NDArray[Any]:
    """Return the index of the largest output of each sample."""
    scores = outputs[0]
    return np.asarray(scores.reshape(len(scores), -1).argmax(axis=1))


def top1_answers(outputs: Outputs) -> list[Answer]:
    """Return class and score of each sample's largest output."""
    scores = outputs[0].reshape(len(outputs[0]), -1)
    return [{"class": int(row.argmax()), "score": float(row.max())} for row in scores]


def _classes(outputs: Outputs, indices: Sequence[int]) -> tuple[NDArray[Any], list[int]]:
    classes = top1(outputs).astype(np.int32)
    return classes, [classes.itemsize] * len(classes)


def _detector(plan: Plan) -> Detector | None:
    detector = DETECTORS.get(plan.network)
    if detector is not None and plan.tail != "cpu":
        raise OrinError(
            f"{plan.network} finds its boxes after the engine and tail is {plan.tail!r}: set tail to cpu (NMS as an "
            "engine of its own on the GPU is not built by this version)"
        )
    return detector


def _found(found: Detections) -> Answer:
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)
    return {"detections": [{"class": label, "score": score, "box": box} for box, score, label in rows]}


def _rows(found: Detections, index: int) -> NDArray[Any]:
    rows = np.empty((len(found), 7), np.float32)
    rows[:, 0], rows[:, 1:5] = index, found.boxes[:, (1, 0, 3, 2)]
    rows[:, 5], rows[:, 6] = found.scores, found.classes
    return rows
