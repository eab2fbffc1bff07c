"""Weighing and adding up what the network says of overlapping windows, cell by cell.

The edges of all windows cut the volume into cells. A cell gets its accumulators when the first window reaches it and
gives them back, reduced to labels while they are still in the cache, when the last one has: only as much of the volume
is held as unfinished windows overlap, and nothing is cleared, counted or divided for the whole of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.volumes.plan import Box, Triple, WindowPlan, offset

PLANES = 8  # of a cell that a thread takes at a time; what it makes in between stays in its cache
WORTH_SHARING = 1 << 18  # numbers of a window; threads would cost more than they save on fewer
FLOAT_BYTES = 4
Write = Callable[[Box, NDArray[Any]], None]  # a box of the volume and its finished sums [C,d,h,w], not to be kept


@dataclass(slots=True)
class _Cell:
    """Sums float32 [C,d,h,w] of a box of the volume, and how many windows have yet to be added."""

    box: Box
    sums: NDArray[Any]
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

    def __init__(self, plan: WindowPlan, weights: NDArray[Any], classes: int, write: Write) -> None:
        self._plan = plan
        self._weights = weights
        self._classes = classes
        self._write = write
        self._open: dict[tuple[int, ...], _Cell] = {}
        self._free: dict[Triple, list[NDArray[Any]]] = {}

    def add(self, start: Triple, logits: NDArray[Any], pool: Executor) -> None:
        """Add the weighed logits [C,d,h,w] of the window that starts there, each window of the plan once."""
        cells = [(self._cell(box), box) for box in self._plan.cells(start)]
        parts = [part for (cell, is_first), _ in cells for part in _parts(cell, is_first)]
        share = map if logits.size < WORTH_SHARING else pool.map
        for _ in share(lambda part: self._add(part, start, logits), parts):
            pass
        for (cell, _), box in cells:
            cell.left -= 1
            if not cell.left:
                del self._open[_corner(box)]
                self._free.setdefault(_sides(box), []).append(cell.sums)

    def _cell(self, box: Box) -> tuple[_Cell, bool]:
        """Return a cell and whether this is the first that is seen of it."""
        cell = self._open.get(_corner(box))
        if cell is not None:
            return cell, False
        free = self._free.get(_sides(box))
        sums = free.pop() if free else np.empty((self._classes, *_sides(box)), np.float32)
        cell = self._open[_corner(box)] = _Cell(box, sums, len(self._plan.windows_over(box)))
        return cell, True

    def _add(self, part: _Part, start: Triple, logits: NDArray[Any]) -> None:
        z, y, x = offset(part.box, start)
        if part.first:
            np.multiply(logits[:, z, y, x], self._weights[z, y, x], out=part.sums)
        else:
            np.add(part.sums, logits[:, z, y, x] * self._weights[z, y, x], out=part.sums)
        if part.last:
            self._write(part.box, part.sums)


def _parts(cell: _Cell, is_first: bool) -> list[_Part]:
    z, y, x = cell.box
    cuts = range(z.start, z.stop, PLANES)
    return [
        _Part(
            (slice(a, min(a + PLANES, z.stop)), y, x),
            cell.sums[:, a - z.start : a - z.start + PLANES],
            is_first,
            cell.left == 1,
        )
        for a in cuts
    ]


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
        best, chosen = sums[0], np.zeros(sums.shape[1:], np.int8)
        for number, value in enumerate(sums[1:], 1):
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
        np.divide(sums, total, out=logits[:, z, y, x])

    return write
