"""Observers: what a calibration pass keeps of each tensor that it sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Observer(Protocol):
    """Takes the values of named tensors, batch after batch, and ends with one range for each.

    `method` names it in `Ranges`. Where `extremes_only` is true, the largest magnitude of a batch is all that
    `update` needs, and the pass computes just that.
    """

    method: str
    extremes_only: bool

    def update(self, name: str, values: NDArray[Any]) -> None:
        """Take the values of a tensor in one batch."""

    @property
    def amax(self) -> Mapping[str, float]:
        """Dynamic range of each tensor seen so far."""


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
