"""Answering a folder of photos with the pipeline, a few at a time, so that any folder fits in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from orin.board import Board
from orin.build import Built, Desk
from orin.errors import OrinError
from orin.pipeline import Pipeline
from orin.plan import Plan
from orin.tails import Answer, Answers, answers_of

IN_FLIGHT = 256  # photos read ahead of the oldest answer

Scores = Future[list[NDArray[Any]]]


def answers(plan: Plan, board: Board, desk: Desk, built: Built) -> Iterator[Answer]:
    """Yield one result a photo, in the folder's order: class index and score, detections, or why it was skipped.

    OrinError, after the last one, where no photo could be used.
    """
    from calibration.dataset import Skipped, prepare_each

    waiting: deque[tuple[Path, Scores | str]] = deque()
    reasons = []
    outputs = next(iter(built.engines.values())).manifest.outputs
    answer = answers_of(plan, [binding.name for binding in outputs])  # a tail that cannot be is said before it runs
    with Pipeline(plan, board, built.engines) as pipeline:
        for photo, sample in zip(desk.photos, prepare_each(desk.photos, built.preprocess)):
            if isinstance(sample, Skipped):
                reasons.append(f"{photo}: {sample.reason}")
                waiting.append((photo, sample.reason))
            else:
                waiting.append((photo, pipeline.submit(sample)))
            if len(waiting) > IN_FLIGHT:
                yield _answer(answer, *waiting.popleft())
        while waiting:
            yield _answer(answer, *waiting.popleft())
    if len(reasons) == len(desk.photos):
        raise OrinError(f"none of {len(reasons)} photos could be used; the first: {reasons[0]}")


def _answer(answer: Answers, photo: Path, result: Scores | str) -> Answer:
    if isinstance(result, str):
        return {"file": str(photo), "skipped": result}
    return {"file": str(photo), **answer([output[None] for output in result.result()])[0]}
