"""Histograms of magnitudes that grow while a network's activations stream by, and the ranges read off them.

The published algorithms count in 2048 bins over [0, largest], but the largest is known only at the end. So the 32768
largest magnitudes are kept as they are, and all are counted in bins 64 to 128 times finer than those, over a power of
two that grows with them. In the end the 2048 bins are exact where the kept magnitudes reach, and below that an edge
shares the counts of the fine bin it falls into as if they were spread evenly: no magnitude moves by more than that
fine bin. A tensor with no more values than are kept has exactly the published range.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 2048  # of the published algorithm, over [0, largest]
LEVELS = 128  # magnitudes that INT8 tells apart
FINE = 1 << 18  # bins counted in (2 MB a tensor); a power of two, so that doubling the range merges them two by two
KEPT = 1 << 15  # largest magnitudes known exactly
LEAST_EXPONENT = -149  # of float32's least number above zero
CHUNK = 1 << 17  # values counted at a time: they stay in the processor's cache


class Histogram:
    """The largest magnitudes of a tensor, and where those are not all, counts of all in fine bins (k, k + 1] * width.

    Exact zeros are counted apart. The bins cover the least power of two that holds every value so far; scaling by a
    power of two is exact, so nothing depends on how the values were divided into batches, or on their order.
    """

    def __init__(self) -> None:
        self.zeros = 0
        self.largest = 0.0
        self._top: list[NDArray[Any]] = [np.empty(0, np.float32)]  # all above `_floor`, and some that equal it
        self._held = 0
        self._floor = 0.0
        self._counts: NDArray[np.int64] = np.empty(0, np.int64)  # empty until there are more than are kept
        self._exponent = LEAST_EXPONENT

    def add(self, values: NDArray[Any]) -> None:
        """Take the magnitudes of values; once one is NaN or infinite `largest` is that and counting ends."""
        flat = values.reshape(-1)
        scratch = np.empty(min(CHUNK, flat.size), np.result_type(flat, np.float32))
        index = np.empty(scratch.size, np.intp)
        for begin in range(0, flat.size, CHUNK):
            chunk = flat[begin : begin + CHUNK]
            magnitudes = np.abs(chunk, out=scratch[: chunk.size])
            self.largest = float(np.maximum(self.largest, magnitudes.max()))
            if not math.isfinite(self.largest):
                return
            self._take(magnitudes, index[: chunk.size])

    def below(self, edges: NDArray[Any]) -> NDArray[np.int64]:
        """Return how many magnitudes, zeros left out, are at or below each edge."""
        top, filled = self._largest(), len(self) - self.zeros
        exact = filled - top.size + np.searchsorted(top, edges, side="right")
        if not self._counts.size:
            return exact
        even = np.rint(np.interp(self._places(edges), np.arange(FINE + 1), _running(self._counts)))
        return np.where(edges < top[0], np.minimum(even, filled - top.size), exact).astype(np.int64)

    def _places(self, edges: NDArray[Any]) -> NDArray[np.float64]:
        """Return edges in fine bins; whole where the bin is alone, as it holds one value many times, not a spread."""
        places = edges / self._width
        counts = np.pad(self._counts, 1)
        alone = (counts[:-2] == 0) & (counts[2:] == 0)
        return np.where(alone[np.minimum(places.astype(np.intp), FINE - 1)], np.rint(places), places)

    def at(self, rank: int) -> float:
        """Return the magnitude of a rank, from 0 on and zeros included: itself, or the upper end of its fine bin."""
        top, from_end = self._largest(), len(self) - rank
        if rank < self.zeros:
            return 0.0
        if from_end <= top.size:
            return float(top[-from_end])
        index = int(np.searchsorted(np.cumsum(self._counts), rank - self.zeros, side="right"))
        return min((index + 1) * self._width, float(top[0]))

    def __len__(self) -> int:
        return self.zeros + (int(self._counts.sum()) if self._counts.size else self._held)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return a copy of all there is to know, as plain arrays."""
        scalars = {"zeros": self.zeros, "largest": self.largest, "floor": self._floor, "exponent": self._exponent}
        arrays = {"top": np.concatenate(self._top), "counts": self._counts.copy()}
        return {**{key: np.array(value) for key, value in scalars.items()}, **arrays}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> Histogram:
        """Return the histogram that `state` was taken of."""
        made = cls()
        made.zeros, made._exponent = int(state["zeros"]), int(state["exponent"])
        made.largest, made._floor = float(state["largest"]), float(state["floor"])
        made._top, made._counts = [state["top"].copy()], state["counts"].copy()
        made._held = made._top[0].size
        return made

    @property
    def _width(self) -> float:
        return math.ldexp(1.0, self._exponent) / FINE

    def _largest(self) -> NDArray[Any]:
        """Return the largest magnitudes, ascending: 32768, or all where there are no more."""
        return np.sort(np.concatenate(self._top))[-KEPT:]

    def _take(self, magnitudes: NDArray[Any], index: NDArray[np.intp]) -> None:
        """Take magnitudes, which are overwritten; `index` is room for as many."""
        above = magnitudes[magnitudes > self._floor]
        if not self._counts.size and self._held + above.size > KEPT:
            self._counts = np.zeros(FINE, np.int64)
            for part in self._top:
                self._count(part.copy(), np.empty(part.size, np.intp))
        self._top.append(above)
        self._held += above.size
        if self._counts.size:
            self._count(magnitudes, index)
            self._trim()
        else:
            self.zeros += magnitudes.size - above.size

    def _trim(self) -> None:
        """Let the least of the kept go when they are twice too many."""
        if self._held > 2 * KEPT:
            self._top = [np.partition(np.concatenate(self._top), -KEPT)[-KEPT:].copy()]
            self._held, self._floor = KEPT, float(self._top[0].min())

    def _count(self, magnitudes: NDArray[Any], index: NDArray[np.intp]) -> None:
        self._grow()
        zeros = magnitudes.size - int(np.count_nonzero(magnitudes > 0))
        whole = FINE.bit_length() - 1 - self._exponent
        for exponent in (whole,) if whole < 128 else (127, whole - 127):  # float32 ends at 2 ** 128
            magnitudes *= magnitudes.dtype.type(math.ldexp(1.0, exponent))
        np.ceil(magnitudes, out=magnitudes)
        np.copyto(index, magnitudes.astype(np.int32))  # two fast casts for one slow
        counts = np.bincount(index, minlength=2)
        counts[1] += counts[0] - zeros  # what the bins' width makes too small to tell from zero
        self._counts[: counts.size - 1] += counts[1:]
        self.zeros += zeros

    def _grow(self) -> None:
        """Widen the bins until they cover the largest magnitude."""
        mantissa, exponent = math.frexp(self.largest)
        exponent -= mantissa == 0.5  # a power of two is its own upper end
        doublings = exponent - self._exponent
        if doublings <= 0:
            return
        merged = self._counts.reshape(-1, min(2**doublings, FINE)).sum(axis=1)
        self._counts = np.zeros(FINE, np.int64)
        self._counts[: merged.size] = merged
        self._exponent = exponent


def percentile_range(histogram: Histogram, percent: float) -> float:
    """Return the magnitude that `percent` of all values, zeros included, do not exceed; 0 where there is none.

    Between two magnitudes it is interpolated, as `numpy.percentile` does.
    """
    rank = percent / 100 * (len(histogram) - 1)
    if rank < 0:
        return 0.0
    low, high = histogram.at(math.floor(rank)), histogram.at(math.ceil(rank))
    return low + (high - low) * (rank - math.floor(rank))


def entropy_range(histogram: Histogram) -> float:
    """Return (i + 0.5) * width for the number of bins i, from 128 on, that loses least information in INT8.

    P is the first i of 2048 bins over [0, largest] with all counts beyond them added to the last; Q is the same bins
    without those, each of 128 levels spread evenly over its bins that are not empty; least is the Kullback-Leibler
    divergence of Q from P. Exact zeros are left out: every scale holds them. Source: S. Migacz, "8-bit Inference with
    TensorRT", GTC 2017.
    """
    if not histogram.largest:
        return 0.0
    width = histogram.largest / BINS
    counts = np.diff(histogram.below(np.arange(BINS + 1) * width))
    lost = np.round(_divergences(counts), 13)  # where two lose the same, the narrower is taken on every machine
    best = LEVELS + int(np.argmin(lost))
    return (best + 0.5) * width


def _divergences(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return KL(P || Q) for each number of bins from 128 on.

    Q is constant inside a level, so sums over bins are differences of running sums at the edges of the levels:
    with N counts in all, S inside and m the mean of the bins of a level that are not empty, KL = sum P log P - sum
    P log(m / S).
    """
    candidates = np.arange(LEVELS, BINS + 1)
    inside = np.diff(_running(counts)[_level_edges()], axis=1)
    filled = np.diff(_running(counts > 0)[_level_edges()], axis=1)
    kept = _running(counts)[candidates]
    total = counts.sum()
    end = counts[candidates - 1]
    with np.errstate(divide="ignore", invalid="ignore"):  # candidates without any count, or an empty last bin
        log_q = np.log(inside / np.maximum(filled, 1) / kept[:, None])
        last_p = (end + total - kept) / total
        log_p = _running(_x_log_x(counts / total))[candidates - 1] + _x_log_x(last_p)
        cross = np.where(inside > 0, inside * log_q, 0.0).sum(axis=1) / total
        outliers = np.where(total > kept, (total - kept) / total * log_q[:, -1], 0.0)
    impossible = (end == 0) & (total > kept)  # P is above zero where Q is zero
    return np.where(impossible, np.inf, log_p - cross - outliers)


@functools.cache
def _level_edges() -> NDArray[np.int64]:
    """Return the first bin of each level, and the end, for each number of bins: bin k is in level floor(128 k / i)."""
    candidates = np.arange(LEVELS, BINS + 1)
    return -(-candidates[:, None] * np.arange(LEVELS + 1) // LEVELS)


def _running(values: NDArray[Any]) -> NDArray[Any]:
    """Return the sums of the first 0, 1, 2, ... values."""
    return np.concatenate([[0], np.cumsum(values)])


def _x_log_x(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(values > 0, values * np.log(np.where(values > 0, values, 1.0)), 0.0)
