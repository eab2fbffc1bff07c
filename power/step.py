"""The step of a sensor, from the values that it showed: they are whole steps, rounded to milliwatts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

MIN_VALUES = 5  # fewer distinct multiples fit some step by chance
_SMALLEST_MW = 8.0  # below it, rounding to a milliwatt hides the step
_GRID = 5e-4  # relative distance of the steps that are tried
_LOWEST = 64  # values that are looked at, the lowest
_MOST_STEPS = 16.5  # higher values tell nothing: the supply's voltage is in the step, and sags with the load
_MISFIT = 0.06  # rms distance from whole steps, in steps; values without a step are 0.29 off

Floats = npt.NDArray[np.float64]


def step_mw(values_mw: Iterable[int]) -> float | None:
    """Return the step whose multiples the values are; None where they are too few, or fit none."""
    distinct = np.array(sorted({abs(value) for value in values_mw} - {0})[:_LOWEST], dtype=np.float64)
    if len(distinct) < MIN_VALUES:
        return None
    # Every value is at least one step, and they are that many different multiples.
    largest = min(distinct[0], (distinct[-1] - distinct[0]) / (MIN_VALUES - 1)) * 1.05
    if largest <= _SMALLEST_MW:
        return None
    steps = np.geomspace(_SMALLEST_MW, largest, int(np.log(largest / _SMALLEST_MW) / _GRID) + 2)
    misfits = _misfits(distinct, steps)
    fitting = steps[misfits <= _MISFIT]
    if not len(fitting):
        return None
    step = fitting[-1]  # the largest: halves and thirds of the true step fit, too
    low = distinct[distinct < _MOST_STEPS * step]
    counts = np.round(low / step)
    return float(low @ counts / (counts @ counts))


def _misfits(distinct: Floats, steps: Floats) -> Floats:
    """Return for each step how far the low values are from its multiples, rms, in steps."""
    counts = distinct / steps[:, None]
    whole = np.round(counts)
    low = counts < _MOST_STEPS
    multiples = 1 + np.count_nonzero((np.diff(whole, axis=1) > 0) & low[:, 1:], axis=1)
    off = np.where(low, counts - whole, 0.0)
    misfits: Floats = np.sqrt(np.sum(off**2, axis=1) / np.maximum(1, low.sum(axis=1)))
    return np.where(multiples < MIN_VALUES, np.inf, misfits)
