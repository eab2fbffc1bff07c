"""Weighing and adding up what the network says of overlapping windows, cell by cell.

The edges of all windows cut the volume into cells. A cell gets its accumulators when the first window reaches it and
gives them back, reduced to labels while they are still in the cache, when the last one has: only as much of the volume
is held as unfinished windows overlap, and nothing is cleared, counted or divided for the whole of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.volumes.adding import Add, add
from engines.volumes.plan import PLANES, Box, Share, Triple, WindowPlan, offset

FLOAT_BYTES = 4
Write = Callable[[Box, NDArray[Any]], None]  # a box of the volume and its finished sums [d,C,h,w], not to be kept


@dataclass(slots=True)
class _Cell:
    """Sums float32 [d,C,h,w] of a box of the volume, how many windows hold it, and how many have yet to be added."""

    box: Box
    sums: NDArray[Any]
    windows: int
    left: int


@dataclass(frozen=True, slots=True)
class _Part:
    """Some planes of a cell under one window: `first` windows write, others add, the `last` hands on."""

    box: Box
    sums: NDArray[Any]
    first: bool
    last: bool


class Merge:
    """Sums of weighed logits; `write` gets each box of the volume once, when it is complete, from any thread."""

    def __init__(self, plan: WindowPlan, weights: NDArray[Any], classes: int, write: Write, add: Add = add) -> None:
        self._plan = plan
        self._weights = weights
        self._classes = classes
        self._write, self._add = write, add
        self._open: dict[tuple[int, ...], _Cell] = {}
        self._free: dict[Triple, list[NDArray[Any]]] = {}

    def add(self, start: Triple, logits: NDArray[Any], share: Share = map) -> None:
        """Add the weighed logits [C,d,h,w] of the window that starts there, each window of the plan once."""
        cells = [self._cell(box) for box in self._plan.cells(start)]
        parts = [part for cell in cells for part in _parts(cell)]
        for _ in share(lambda part: self._merge(part, start, logits), parts):
            pass
        for cell in cells:
            cell.left -= 1
            if not cell.left:
                del self._open[_corner(cell.box)]
                self._free.setdefault(_sides(cell.box), []).append(cell.sums)

    def _cell(self, box: Box) -> _Cell:
        """Return a cell that is open, or open it."""
        cell = self._open.get(_corner(box))
        if cell is None:
            free, windows = self._free.get(_sides(box)), len(self._plan.windows_over(box))
            sums = free.pop() if free else _empty(box, self._classes)
            cell = self._open[_corner(box)] = _Cell(box, sums, windows, left=windows)
        return cell

    def _merge(self, part: _Part, start: Triple, logits: NDArray[Any]) -> None:
        z, y, x = offset(part.box, start)
        self._add(part.sums, logits, self._weights, (z.start, y.start, x.start), part.first)
        if part.last:
            self._write(part.box, part.sums)


def _parts(cell: _Cell) -> Iterator[_Part]:
    z, y, x = cell.box
    first, last = cell.left == cell.windows, cell.left == 1
    for begin in range(z.start, z.stop, PLANES):
        end = min(begin + PLANES, z.stop)
        yield _Part((slice(begin, end), y, x), cell.sums[begin - z.start : end - z.start], first, last)


def _empty(box: Box, classes: int) -> NDArray[Any]:
    depth, height, width = _sides(box)
    return np.empty((depth, classes, height, width), np.float32)


def _corner(box: Box) -> tuple[int, ...]:
    return tuple(part.start for part in box)


def _sides(box: Box) -> Triple:
    first, second, third = (part.stop - part.start for part in box)
    return first, second, third


def accumulator_bytes(plan: WindowPlan, classes: int) -> int:
    """Return the most that a `Merge` of all windows in the plan's order holds."""
    left: dict[tuple[int, ...], int] = {}
    live: dict[Triple, int] = {}
    most: dict[Triple, int] = {}
    for start in plan:
        for box in plan.cells(start):
            sides = _sides(box)
            if _corner(box) not in left:
                left[_corner(box)] = len(plan.windows_over(box))
                live[sides] = live.get(sides, 0) + 1
                most[sides] = max(most.get(sides, 0), live[sides])
        for box in plan.cells(start):
            left[_corner(box)] -= 1
            live[_sides(box)] -= not left[_corner(box)]
    return FLOAT_BYTES * classes * sum(count * math.prod(sides) for sides, count in most.items())


def into_labels(labels: NDArray[Any]) -> Write:
    """Return what writes the arg-max of each finished box into int8 [D,H,W]; the first of equals wins.

    The sum of weights is common to all classes and changes no arg-max, so nothing is divided by it.
    EngineError where the network gave something that is no number.
    """

    def write(box: Box, sums: NDArray[Any]) -> None:
        best, *others = sums.swapaxes(0, 1)
        chosen = np.zeros(best.shape, np.int8)
        for number, value in enumerate(others, 1):
            above = (value > best).view(np.int8)
            above *= number
            np.maximum(chosen, above, out=chosen)
            best = np.maximum(best, value)
        if np.isnan(best.min()):
            at = tuple(part.start for part in box)
            raise EngineError(f"the network gave NaN near voxel {at}; check its weights and the volume's values")
        labels[box] = chosen

    return write


def into_logits(logits: NDArray[Any], plan: WindowPlan, weights: NDArray[Any]) -> Write:
    """Return what writes each finished box, divided by the sum of weights, into float32 [C,D,H,W]."""

    def write(box: Box, sums: NDArray[Any]) -> None:
        total = sum(weights[offset(box, start)] for start in plan.windows_over(box))
        z, y, x = box
        np.divide(sums.swapaxes(0, 1), total, out=logits[:, z, y, x])

    return write
