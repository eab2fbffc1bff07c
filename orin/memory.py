"""Which kind of memory suits a plan: mapped, managed and device memory measured on the board itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.engine import Engine
from orin.board import Board
from orin.errors import OrinError
from orin.pipeline import Pipeline
from orin.plan import AUTO_MEMORY, MEMORY_KINDS, Plan

ROUNDS = 3


def fastest_memory(plan: Plan, board: Board, engines: Mapping[str, Engine]) -> tuple[str, dict[str, float]]:
    """Time a batch of samples on its way into shared memory and through every accelerator, once per kind of memory.

    Returns the fastest kind and the seconds of each, the best of a few rounds after a warm-up. OrinError on a board
    that has one kind alone.
    """
    if board.provenance == "simulated":
        raise OrinError(f"--memory auto measures, and {board.name} is simulated: name mapped, managed or device")
    seconds = {kind: _seconds(replace(plan, memory=kind), board, engines) for kind in MEMORY_KINDS}
    return min(seconds, key=seconds.__getitem__), seconds


def with_memory(plan: Plan, board: Board, engines: Mapping[str, Engine]) -> tuple[Plan, dict[str, float] | None]:
    """Return the plan with a kind of memory: its own, or for "auto" the fastest, then with the seconds of each."""
    if plan.memory != AUTO_MEMORY:
        return plan, None
    chosen, seconds = fastest_memory(plan, board, engines)
    return replace(plan, memory=chosen), seconds


def _seconds(plan: Plan, board: Board, engines: Mapping[str, Engine]) -> float:
    samples = max(plan.item_samples(name) for name in plan.accelerators)
    with Pipeline(plan, board, engines, capacity=samples) as pipeline:
        inputs = [np.zeros(binding.shape, binding.dtype) for binding in pipeline.lanes[0].engine.manifest.inputs]
        return min([_round(pipeline, samples, inputs) for _ in range(ROUNDS + 1)][1:])


def _round(pipeline: Pipeline, samples: int, inputs: list[NDArray[Any]]) -> float:
    begin = time.monotonic()
    for position in range(samples):
        pipeline.samples.store(position, inputs)
    items = []
    for lane in pipeline.lanes:
        count = min(samples, lane.taker.batch * lane.taker.loop)
        items.append((lane, lane.item_at(0, range(count), pipeline.samples)))
        lane.start(items[-1][1])
    for lane, item in items:
        lane.finish(item)
    return time.monotonic() - begin
