"""Data sets whose samples differ in length, and what a time for each length comes to over them: simulated.

No table of the lengths is published: their quantiles are solved from what is, and say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orin.virtual.predict import Varied, latency_ms


@dataclass(frozen=True)
class DataSet:
    """How long the samples of a data set are, in a unit: quantiles (share of the samples below, length) and how many
    samples stand for it."""

    name: str
    unit: str
    samples: int
    quantiles: tuple[tuple[float, float], ...]

    @property
    def lengths(self) -> NDArray[Any]:
        """Whole lengths int64 [samples], ascending, at the middles of equal shares."""
        middles = (np.arange(self.samples) + 0.5) / self.samples
        shares, lengths = np.array(self.quantiles).T
        found: NDArray[Any] = np.rint(np.interp(middles, shares, lengths)).astype(np.int64)
        return found


# SQuAD v1.1 as MLPerf runs it: 10,833 samples of 10,570 questions. A question's next sample begins where 384 tokens
# were full, so that 263 samples, the last 2.4 %, are full. Median and p90 follow from NVIDIA's SingleStream percentiles
# on AGX Orin (MaxP, v2.0 and v3.0), their mean at 178 tokens and p99 at 384: 147 and 154, 301 and 305. v2.0's MaxQ row,
# left out, gives 146 and 301. The shortest is what the mean of 178 leaves.
SQUAD = DataSet("SQuAD v1.1", "tokens", 50, ((0.0, 59), (0.5, 150), (0.9, 303), (0.976, 384), (1.0, 384)))


# LibriSpeech's dev-clean up to 15 s, in steps of RNN-T: 30 ms. Median, p90 and p99 follow from NVIDIA's SingleStream
# percentiles on AGX Orin (MaxP, v3.0) as shares of its mean, which is of 210 steps; v2.0's MaxQ row, left out, gives
# 192, 360 and 483. The shortest is what that mean leaves.
LIBRISPEECH = DataSet("LibriSpeech", "steps of 30 ms", 50, ((0.0, 42), (0.5, 187), (0.9, 363), (0.99, 479), (1.0, 500)))


def _rank(rank: int) -> float:
    return (rank - 0.5) / 43


# KiTS19 from v2.1 on: 43 cases. Rank by rank from `orin.volumes.cost`: the median has 50 windows, the largest 144; p90
# went from 108 to 125 with one case more, which are the 38th and the 39th. The smallest is what 2,760 in all leave.
KITS19 = DataSet(
    "KiTS19", "windows", 43, ((_rank(1), 22), (_rank(22), 50), (_rank(38), 108), (_rank(39), 125), (_rank(43), 144))
)


def over(data: DataSet, service_ms: Callable[[int], float], scenario: str) -> Varied:
    """Return what comes of a data set whose samples run one after another, each as long as its length takes."""
    times_ms = [service_ms(length) for length in data.lengths.tolist()]
    latency = latency_ms([1e6 * one_ms for one_ms in times_ms]) if scenario == "singlestream" else None
    per_s = 1e3 * len(times_ms) / sum(times_ms)
    return Varied(data.name, data.unit, float(data.lengths.mean()), per_s, latency)
