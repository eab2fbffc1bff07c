"""The step after the engines, by the plan's `tail`: top-1 of a classifier, detections of a detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.engine import Binding, Engine
from engines.tails import DETECTORS, Detections
from orin.errors import OrinError
from orin.plan import Plan

if TYPE_CHECKING:
    import onnx

    from engines.spec import EngineSpec

Outputs = Sequence[NDArray[Any]]
Answer = dict[str, Any]
Answers = Callable[[Outputs], list[Answer]]
Detect = Callable[[Outputs], list[Detections]]
Best = tuple[NDArray[Any], NDArray[Any]]
Responses = Callable[[Outputs, Sequence[int]], tuple[NDArray[Any], list[int]]]


def tail_name(engine: str) -> str:
    """Return what the tail of the engine "gpu" or "dla" is called among a plan's engines."""
    return f"{engine}_tail"


def tail_of(plan: Plan, engine: Engine) -> tuple[onnx.ModelProto, EngineSpec] | None:
    """Return network and spec of the engine that follows another one on the GPU; see `tail_network_of`."""
    from engines.tail_network import tail_spec

    manifest = engine.manifest
    network = tail_network_of(plan, manifest.outputs)
    if network is None:
        return None
    return network, tail_spec(Path(plan.network).stem, manifest.outputs, manifest.spec.batch)


def tail_network_of(plan: Plan, outputs: Sequence[Binding]) -> onnx.ModelProto | None:
    """Return the network that follows an engine with these outputs on the GPU; None where the plan wants none.

    OrinError where the plan's network is neither a known detector nor a classifier.
    """
    from engines.tail_network import tail_network, top1_network

    if plan.tail != "gpu":
        return None
    detector = DETECTORS.get(plan.network)
    if detector is not None:
        return tail_network(detector, outputs)
    if len(outputs) == 1 and outputs[0].shape[:1] == (outputs[0].elements,):
        return top1_network(outputs[0])
    raise OrinError(
        f"{plan.network} has no tail for the GPU: it is none of {', '.join(DETECTORS)} and no classifier with one "
        f"output of scores; set tail to cpu or none"
    )


def answers_of(plan: Plan, names: Sequence[str]) -> Answers:
    """Return what makes answers, one a sample, of a network's outputs; `names` are the engine's outputs in their order.

    A classifier's answer is its best class and that score; a detector's the boxes x0, y0, x1, y1 in 0..1 of the photo.
    """
    detect, best = _detect(plan, names), _best(plan)
    if detect is not None:
        return lambda outputs: list(map(_found, detect(outputs)))
    return lambda outputs: [{"class": int(label), "score": float(score)} for score, label in zip(*best(outputs))]


def responses_of(plan: Plan, names: Sequence[str]) -> Responses:
    """Return what makes MLPerf's responses of a network's outputs and the samples' indices in the data set.

    They are one array, and how many bytes of it each sample's response has: int32, the best class; or float32, for
    each detection index, ymin, xmin, ymax, xmax, score and class (MLPerf Inference,
    vision/classification_and_detection/python/coco.py).
    """
    detect, best = _detect(plan, names), _best(plan)

    def classes(outputs: Outputs, indices: Sequence[int]) -> tuple[NDArray[Any], list[int]]:
        labels = best(outputs)[1].astype(np.int32)
        return labels, [labels.itemsize] * len(labels)

    if detect is None:
        return classes

    def boxes(outputs: Outputs, indices: Sequence[int]) -> tuple[NDArray[Any], list[int]]:
        rows = [_rows(*pair) for pair in zip(detect(outputs), indices, strict=True)]
        return np.concatenate(rows), [part.nbytes for part in rows]

    return boxes


def _top1(outputs: Outputs) -> Best:
    scores = outputs[0].reshape(len(outputs[0]), -1)
    return scores.max(axis=1), scores.argmax(axis=1)


def _best(plan: Plan) -> Callable[[Outputs], Best]:
    """Return what finds each sample's best score and class; a tail engine has found them already."""
    return (lambda outputs: (outputs[0][:, 0], outputs[1][:, 0])) if plan.tail == "gpu" else _top1


def _detect(plan: Plan, names: Sequence[str]) -> Detect | None:
    """Return what finds each image's detections in what comes out of the board; None for a classifier."""
    from engines.tail_network import detections

    detector = DETECTORS.get(plan.network)
    if detector is None:
        return None
    if plan.tail == "none":
        raise OrinError(f"{plan.network} finds its boxes after the engine and tail is 'none': set tail to cpu or gpu")
    if plan.tail == "gpu":
        return detections
    return lambda outputs: detector.detect(dict(zip(names, outputs, strict=True)))


def _found(found: Detections) -> Answer:
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)
    return {"detections": [{"class": label, "score": score, "box": box} for box, score, label in rows]}


def _rows(found: Detections, index: int) -> NDArray[Any]:
    rows = np.empty((len(found), 7), np.float32)
    rows[:, 0], rows[:, 1:5] = index, found.boxes[:, (1, 0, 3, 2)]
    rows[:, 5], rows[:, 6] = found.scores, found.classes
    return rows
