"""Mean power over a window of time: trapezoids between samples, gaps, and what the sensor's filter still holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from power.boards import GAIN_ERROR, BoardFacts, Rail
from power.errors import PowerError
from power.source import ChipFilter

MIN_SAMPLES = 2
MIN_COVERAGE = 0.95
GAP_FACTOR = 3.0  # a pause longer than this many median intervals is a gap
K95 = 1.96

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PowerSample:
    """Power of the rails at one moment."""

    monotonic_ns: int
    rails_mw: Mapping[str, int]


@dataclass(frozen=True)
class Coverage:
    """How well samples cover a window: share of it outside gaps, pauses that are gaps, the longest pause."""

    share: float
    gaps: int
    largest_gap_s: float

    def check(self, seconds: float) -> None:
        """Raise PowerError where too much of a window of so many seconds was not seen."""
        if self.share < MIN_COVERAGE:
            raise PowerError(
                f"samples cover {self.share:.1%} of the power window of {seconds:.3g} s (largest gap "
                f"{self.largest_gap_s:.3g} s), expected {MIN_COVERAGE:.0%}: the source lagged or began late, "
                "so measure again"
            )


@dataclass(frozen=True)
class RailWindow:
    """One rail over a window: mean with the edge term where that is on, and what was shown."""

    rail: Rail
    tau_s: float
    mean_w: float
    shown_w: tuple[float, float]  # smallest and largest
    distinct: int


@dataclass(frozen=True)
class Window:
    """All printed rails over a window."""

    duration_s: float
    edge_term: bool
    rails: Mapping[str, RailWindow]
    samples: int
    coverage: Coverage

    def resolution_u95_w(self, names: Sequence[str]) -> float:
        """One step of each rail in the mean (steady loads do not average it away), and in both ends' edge term."""
        return K95 * math.hypot(*(self._step_w(self.rails[name]) for name in names))

    def _step_w(self, seen: RailWindow) -> float:
        edges = 2 * (seen.tau_s / self.duration_s) ** 2 if self.edge_term else 0.0
        return seen.rail.step_w / math.sqrt(12) * math.sqrt(1 + edges)

    def offset_u95_w(self, names: Sequence[str]) -> float:
        """The sensor's offset: constant for a board, so that it is not in a difference of two windows."""
        return K95 * math.hypot(*(self.rails[name].rail.offset_w for name in names)) / math.sqrt(3)

    def longest_tau_s(self, names: Sequence[str]) -> float:
        """Return the time constant of the slowest of some rails; NaN where one is not known."""
        taus_s = [self.rails[name].tau_s for name in names]
        return math.nan if any(map(math.isnan, taus_s)) else max(taus_s)


def gain_u95_w(mean_w: float) -> float:
    """Return what the sensor's gain leaves open; it is common to all rails of a chip, and to all its windows."""
    return K95 * abs(mean_w) * GAIN_ERROR / math.sqrt(3)


@dataclass(frozen=True)
class Trace:
    """All samples that carry every rail seen: stamps (n), and watts (n) of each rail."""

    stamps_ns: npt.NDArray[np.int64]
    watts: Mapping[Rail, Floats]
    taus_s: Mapping[Rail, float]

    @classmethod
    def of(cls, samples: Sequence[PowerSample], board: BoardFacts, filters: Mapping[str, ChipFilter]) -> Trace:
        """Return the samples of a board's rails; a filter whose settings are not known is the board's."""
        rails = [rail for rail in board.rails if any(rail.name in sample.rails_mw for sample in samples)]
        if samples and not rails:
            raise PowerError("no reading carries a power rail: JetPack 5 prints them to root alone, so try sudo")
        whole = [sample for sample in samples if all(rail.name in sample.rails_mw for rail in rails)]
        return cls(
            np.array([sample.monotonic_ns for sample in whole], np.int64),
            {rail: np.array([sample.rails_mw[rail.name] for sample in whole]) / 1000 for rail in rails},
            {rail: filters[rail.name].tau_s if rail.name in filters else board.filter_tau_s for rail in rails},
        )

    def window(self, begin_ns: int, end_ns: int, edge_term: bool) -> Window:
        """Return the mean power of each rail; PowerError where the samples do not cover the window.

        There is no edge term where a filter is not known.
        """
        edge_term = edge_term and not any(map(math.isnan, self.taus_s.values()))
        seconds = (end_ns - begin_ns) / 1e9
        times_s = (self.stamps_ns - begin_ns) / 1e9
        inside = check_samples(times_s, seconds)
        coverage = coverage_of(times_s, seconds, GAP_FACTOR)
        coverage.check(seconds)
        rails = {
            rail.name: RailWindow(
                rail,
                self.taus_s[rail],
                _mean_w(times_s, watts, seconds, self.taus_s[rail] if edge_term else 0.0),
                (float(watts[inside].min()), float(watts[inside].max())),
                len(np.unique(watts[inside])),
            )
            for rail, watts in self.watts.items()
        }
        return Window(seconds, edge_term, rails, int(np.count_nonzero(inside)), coverage)


def check_samples(times_s: Floats, seconds: float) -> npt.NDArray[np.bool_]:
    """Return which samples lie in the window 0..seconds; PowerError where that is no window, or holds too few."""
    if seconds <= 0:
        raise PowerError(f"power window ends {0.0 - seconds:g} s before it begins, expected a positive duration")
    inside: npt.NDArray[np.bool_] = (times_s >= 0) & (times_s <= seconds)
    if np.count_nonzero(inside) < MIN_SAMPLES:
        raise PowerError(
            f"power window of {seconds:.3g} s holds {np.count_nonzero(inside)} samples, expected at least "
            f"{MIN_SAMPLES}: measure for longer, or sample more often"
        )
    return inside


def trapezoid_j(times_s: Floats, power_w: Floats, begin_s: float, end_s: float) -> float:
    """Return the energy from begin to end: straight lines between samples, first and last value held outside."""
    inside = (times_s > begin_s) & (times_s < end_s)
    times = np.concatenate(([begin_s], times_s[inside], [end_s]))
    watts = np.interp(times, times_s, power_w)
    return float(np.sum((watts[1:] + watts[:-1]) / 2 * np.diff(times)))


def coverage_of(times_s: Floats, seconds: float, gap_factor: float) -> Coverage:
    """Return how well the window 0..seconds is covered; a pause of `gap_factor` median intervals is a gap."""
    limit_s = gap_factor * float(np.median(np.diff(times_s)))
    before = [0.0] if times_s[0] > 0 else []
    after = [seconds] if times_s[-1] < seconds else []
    edges = np.concatenate((before, times_s, after))
    pauses_s = np.diff(edges)
    overlaps_s = np.clip(np.minimum(edges[1:], seconds) - np.maximum(edges[:-1], 0.0), 0.0, None)
    is_gap = (pauses_s > limit_s) & (overlaps_s > 0)
    covered_s = float(overlaps_s[~is_gap].sum())
    return Coverage(min(1.0, covered_s / seconds), int(is_gap.sum()), float(pauses_s[overlaps_s > 0].max()))


def _mean_w(times_s: Floats, watts: Floats, seconds: float, tau_s: float) -> float:
    begin_w, end_w = np.interp([0.0, seconds], times_s, watts)
    return float((trapezoid_j(times_s, watts, 0.0, seconds) + tau_s * (end_w - begin_w)) / seconds)
