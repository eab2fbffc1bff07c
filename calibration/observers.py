"""Observers: what a calibration pass keeps of each tensor that it sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.histogram import Histogram, entropy_range, percentile_range

PERCENT = 99.99


class Observer(Protocol):
    """Takes the values of named tensors, batch after batch, and ends with one range for each.

    `method` names it in `Ranges`. Where `extremes_only` is true, the largest magnitude of a batch is all that
    `update` needs, and the pass computes just that. `update` may run on several threads, each with tensors of its own.
    """

    method: str
    extremes_only: bool

    def update(self, name: str, values: NDArray[Any]) -> None:
        """Take the values of a tensor in one batch."""

    @property
    def amax(self) -> Mapping[str, float]:
        """Dynamic range of each tensor seen so far."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Return a copy of all that was observed, as plain arrays: `numpy.savez` writes them without pickle."""

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on where an observer of the same method was when `state` was taken; CalibrationError for another."""


class MinMax:
    """The largest magnitude ever seen, as float32 gave it."""

    method = "minmax"
    extremes_only = True

    def __init__(self) -> None:
        self._amax: dict[str, float] = {}

    def update(self, name: str, values: NDArray[Any]) -> None:
        """Take the values of a tensor in one batch; NaN stays NaN."""
        self._amax[name] = float(np.maximum(self._amax.get(name, 0.0), np.max(np.abs(values), initial=0.0)))

    @property
    def amax(self) -> Mapping[str, float]:
        """Dynamic range of each tensor seen so far."""
        return dict(self._amax)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return names and amax [tensors]."""
        return {"names": np.array(list(self._amax), np.str_), "amax": np.array(list(self._amax.values()), np.float64)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a state; CalibrationError where it is not a min-max observer's."""
        _check_state(state, {"names", "amax"}, self.method)
        self._amax = dict(zip(state["names"].tolist(), state["amax"].tolist(), strict=True))


class _Histograms:
    """A growing histogram of the magnitudes of each tensor."""

    method: str
    extremes_only = False

    def __init__(self, range_of: Callable[[Histogram], float]) -> None:
        self._range_of = range_of
        self._histograms: dict[str, Histogram] = {}

    def update(self, name: str, values: NDArray[Any]) -> None:
        """Take the values of a tensor in one batch."""
        self._histograms.setdefault(name, Histogram()).add(values)

    @property
    def amax(self) -> Mapping[str, float]:
        """Dynamic range of each tensor seen so far; NaN or infinity where it reached that."""
        return {
            name: self._range_of(histogram) if np.isfinite(histogram.largest) else histogram.largest
            for name, histogram in self._histograms.items()
        }

    def state(self) -> dict[str, NDArray[Any]]:
        """Return names [tensors], and `index.key` for each array of each histogram."""
        arrays = {
            f"{index}.{key}": array
            for index, histogram in enumerate(self._histograms.values())
            for key, array in histogram.state().items()
        }
        return {"names": np.array(list(self._histograms), np.str_), **arrays}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a state; CalibrationError where it is not a histogram observer's."""
        keys = Histogram().state().keys()
        names = state["names"].tolist() if "names" in state else []
        _check_state(state, {"names", *(f"{index}.{key}" for index in range(len(names)) for key in keys)}, self.method)
        self._histograms = {
            name: Histogram.from_state({key: state[f"{index}.{key}"] for key in keys})
            for index, name in enumerate(names)
        }


class Entropy(_Histograms):
    """The range that keeps most information (least KL divergence) in INT8.

    Compatible with TensorRT's entropy calibrator, not identical: the published algorithm, whose code is closed.
    """

    method = "entropy"

    def __init__(self) -> None:
        super().__init__(entropy_range)


class Percentile(_Histograms):
    """The range that holds `percent` of the magnitudes, to a bin; CalibrationError outside (0, 100]."""

    method = "percentile"

    def __init__(self, percent: float = PERCENT) -> None:
        if not 0 < percent <= 100:
            raise CalibrationError(f"percentile {percent} is outside (0, 100]; {PERCENT} is usual")
        super().__init__(lambda histogram: percentile_range(histogram, percent))
        self.percent = percent


def _check_state(state: Mapping[str, NDArray[Any]], keys: set[str], method: str) -> None:
    apart = sorted(keys.symmetric_difference(state))
    if apart:
        raise CalibrationError(
            f"the saved state and that of a {method} pass differ by the array {apart[0]!r}; start over"
        )


OBSERVERS: Mapping[str, Callable[[], Observer]] = MappingProxyType(
    {"minmax": MinMax, "entropy": Entropy, "percentile": Percentile}
)
