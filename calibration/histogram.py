"""Histograms of magnitudes that grow while a network's activations stream by, and the ranges read off them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 2048  # a power of two, so that doubling the range merges bins two by two
LEVELS = 128  # magnitudes that INT8 tells apart
LEAST_EXPONENT = -100  # a narrower range would overflow float32 when a value is counted in bins
CHUNK = 1 << 16  # values binned at a time: they stay in the processor's cache


class Histogram:
    """How often |x| fell into each of 2048 equal bins (k, k + 1] * `width`; exact zeros are counted apart.

    The range is the least power of two that holds every value so far. Scaling by a power of two is exact, so the
    counts do not depend on how the values were divided into batches, or on their order.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.zeros = 0
        self.largest = 0.0
        self._exponent = LEAST_EXPONENT

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self._exponent) / BINS

    def add(self, values: NDArray[Any]) -> None:
        """Count the magnitudes of float values; once one is NaN or infinite `largest` is that and counting ends."""
        flat = values.reshape(-1)
        largest = max(abs(float(np.max(flat, initial=0.0))), abs(float(np.min(flat, initial=0.0))))
        self.largest = float(np.maximum(self.largest, largest))
        if not math.isfinite(self.largest):
            return
        self._grow()
        for begin in range(0, flat.size, CHUNK):
            self._count(flat[begin : begin + CHUNK])

    def _grow(self) -> None:
        mantissa, exponent = math.frexp(self.largest)
        exponent -= mantissa == 0.5  # a power of two is its own upper end
        doublings = exponent - self._exponent
        if doublings <= 0:
            return
        merged = self.counts.reshape(-1, min(2**doublings, BINS)).sum(axis=1)
        self.counts = np.zeros(BINS, np.int64)
        self.counts[: merged.size] = merged
        self._exponent = exponent

    def _count(self, values: NDArray[Any]) -> None:
        scaled = np.abs(values) * values.dtype.type(1.0 / self.width)
        counts = np.bincount(np.ceil(scaled, out=scaled).astype(np.intp), minlength=BINS + 1)
        self.zeros += int(counts[0])
        self.counts += counts[1:]


def percentile_range(histogram: Histogram, percent: float) -> float:
    """Return the upper end of the bin in which `percent` of all values, zeros included, are reached."""
    reached = histogram.zeros + np.cumsum(histogram.counts)
    index = int(np.searchsorted(reached, percent / 100 * reached[-1]))
    if percent / 100 * reached[-1] <= histogram.zeros:
        return 0.0
    return min((index + 1) * histogram.width, histogram.largest)


def entropy_range(histogram: Histogram) -> float:
    """Return (i + 0.5) * width for the number of bins i, from 128 on, that loses least information in INT8.

    P is the first i bins with all counts beyond them added to the last; Q is the same bins without those, each of
    128 levels spread evenly over its bins that are not empty; least is the Kullback-Leibler divergence of Q from P.
    Exact zeros are left out: every scale holds them. Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017.
    """
    used = np.flatnonzero(histogram.counts)
    if not used.size:
        return 0.0
    last = int(used[-1]) + 1
    candidates = np.arange(min(LEVELS, last), last + 1)
    best = candidates[np.argmin(_divergences(histogram.counts, candidates))]
    return float(best + 0.5) * histogram.width


def _divergences(counts: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return KL(P || Q) for each number of bins.

    Q is constant inside a level, so sums over bins are differences of running sums at the edges of the levels:
    with N counts in all, S inside and m the mean of the bins of a level that are not empty, KL = sum P log P - sum
    P log(m / S).
    """
    edges = -(-candidates[:, None] * np.arange(LEVELS + 1) // LEVELS)  # bin k is in level floor(128 k / i)
    inside = np.diff(_running(counts)[edges], axis=1)
    filled = np.diff(_running(counts > 0)[edges], axis=1)
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


def _running(values: NDArray[Any]) -> NDArray[Any]:
    """Return the sums of the first 0, 1, 2, ... values."""
    return np.concatenate([[0], np.cumsum(values)])


def _x_log_x(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(values > 0, values * np.log(np.where(values > 0, values, 1.0)), 0.0)
