"""Which windows cover a volume, and the cells that their edges cut it into."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from engines.errors import EngineError

Triple = tuple[int, int, int]
Box = tuple[slice, slice, slice]
WINDOW: Triple = (128, 128, 128)  # MLPerf's
OVERLAP = 0.5
PLANES = 16  # that a thread takes at a time; what it makes in between stays in its cache

# `map`, or that of an executor: by which planes are shared among threads.
Share = Callable[..., Iterable[Any]]


@dataclass(frozen=True)
class WindowPlan:
    """Windows of one size on a volume: where they start along each axis, evenly but for the last, which ends flush.

    An axis shorter than the window has one start, at or before 0: the window hangs over on both sides.
    """

    shape: Triple
    window: Triple
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    def __len__(self) -> int:
        return math.prod(map(len, self.starts))

    def __iter__(self) -> Iterator[Triple]:
        """Yield where each window starts; the volume's longest axis changes last, so that least is begun at a time."""
        order = sorted(range(3), key=lambda axis: -self.shape[axis])
        first, second, third = map(order.index, range(3))
        for start in product(*(self.starts[axis] for axis in order)):
            yield start[first], start[second], start[third]

    def inside(self, start: Triple) -> Box:
        """Return what of the volume a window covers."""
        first, second, third = (slice(max(0, s), min(n, s + w)) for s, w, n in zip(start, self.window, self.shape))
        return first, second, third

    def covered(self, start: Triple) -> Box:
        """Return what of a window lies on the volume."""
        return offset(self.inside(start), start)

    @cached_property
    def edges(self) -> tuple[tuple[int, ...], ...]:
        """Where windows begin or end along each axis; no window's edge lies inside a cell between two of them."""
        ends = (
            {0, size, *(min(size, max(0, at)) for start in starts for at in (start, start + side))}
            for size, side, starts in zip(self.shape, self.window, self.starts)
        )
        return tuple(tuple(sorted(axis)) for axis in ends)

    def cells(self, start: Triple) -> Iterator[Box]:
        """Yield the cells of the volume that a window covers."""
        parts = (
            [slice(a, b) for a, b in zip(edges, edges[1:]) if part.start <= a and b <= part.stop]
            for edges, part in zip(self.edges, self.inside(start))
        )
        yield from product(*parts)

    def windows_over(self, cell: Box) -> list[Triple]:
        """Return where the windows start that cover a cell."""
        over = (
            [start for start in starts if start <= part.start and part.stop <= start + side]
            for starts, side, part in zip(self.starts, self.window, cell)
        )
        return [(z, y, x) for z, y, x in product(*over)]


def offset(box: Box, origin: Triple) -> Box:
    """Return a box as seen from another origin."""
    first, second, third = (slice(part.start - at, part.stop - at) for part, at in zip(box, origin))
    return first, second, third


def plan_windows(shape: Sequence[int], window: Sequence[int] = WINDOW, overlap: float = OVERLAP) -> WindowPlan:
    """Plan windows [d,h,w] over a volume [D,H,W], each overlapping the one before by that part of its side.

    EngineError where a size is no size or the overlap is not in [0, 1).
    """
    if not 0 <= overlap < 1:
        raise EngineError(f"overlap {overlap} of windows: expected 0 or more and less than 1; MLPerf's is {OVERLAP}")
    if len(shape) != 3 or len(window) != 3 or min(*shape, *window) < 1:
        raise EngineError(f"volume {tuple(shape)}, window {tuple(window)}: expected three axes each, none empty")
    first, second, third = (_starts(size, side, overlap) for size, side in zip(shape, window))
    return WindowPlan(_triple(shape), _triple(window), (first, second, third))


def _starts(size: int, side: int, overlap: float) -> tuple[int, ...]:
    if size <= side:
        return (-((side - size) // 2),)
    step = max(1, int(side * (1 - overlap)))
    return (*range(0, size - side, step), size - side)


def _triple(values: Sequence[int]) -> Triple:
    first, second, third = map(int, values)
    return first, second, third
