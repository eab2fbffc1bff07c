"""The one loop that every number of every window goes through: weigh it and add it up. NumPy's, and Numba's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from numpy.typing import NDArray

from engines.errors import EngineError
from engines.volumes.plan import Triple

# Adds to sums [d,C,h,w] the weighed logits [C,...] of a window, from this voxel on; the first window writes instead.
Add = Callable[[NDArray[Any], NDArray[Any], NDArray[Any], Triple, bool], None]


def add(sums: NDArray[Any], logits: NDArray[Any], weights: NDArray[Any], at: Triple, first: bool) -> None:
    """Add with NumPy, which keeps products until they are added."""
    depth, _, height, width = sums.shape
    z, y, x = (slice(begin, begin + side) for begin, side in zip(at, (depth, height, width)))
    weighed = logits[:, z, y, x] * weights[z, y, x]
    into = sums.swapaxes(0, 1)
    if first:
        into[...] = weighed
    else:
        into += weighed


@cache
def compiled() -> Add:
    """Return the loop that goes through memory once, compiled by Numba when it first runs.

    EngineError where Numba is not installed.
    """
    try:
        numba = import_module("numba")
    except ImportError as error:
        raise EngineError(f"compiled sums need Numba ({error}); pip install 'orin-toolkit[volumes]'") from None
    made: Add = numba.njit(nogil=True)(_add_each)
    return made


def _add_each(sums: NDArray[Any], logits: NDArray[Any], weights: NDArray[Any], at: Triple, first: bool) -> None:
    depth, classes, height, width = sums.shape
    z, y, x = at
    for plane in range(depth):
        for row in range(height):
            weight = weights[z + plane, y + row, x : x + width]
            for kind in range(classes):
                total, said = sums[plane, kind, row], logits[kind, z + plane, y + row, x : x + width]
                if first:
                    for column in range(width):
                        total[column] = said[column] * weight[column]
                else:
                    for column in range(width):
                        total[column] += said[column] * weight[column]
