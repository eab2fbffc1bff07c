"""Energy over a window of time, from a source of readings: per rail and for the module, each with its uncertainty.

The sensor is an exponential low-pass filter, tau dy/dt = x - y, so the energy that went in is the integral of what it
shows plus tau (y_end - y_begin): the edge term. The u95 of each joule holds the sensor's step, gain and offset
(`power.boards`), in quadrature, as rectangular distributions; gain is common to all rails of the chip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from power.boards import GAIN_ERROR, BoardFacts, Rail
from power.errors import PowerError
from power.quantity import Quantity
from power.reading import Reading

MIN_SAMPLES = 2
MIN_COVERAGE = 0.95
GAP_FACTOR = 3.0  # a pause longer than this many median intervals is a gap
_K95 = 1.96

Floats = npt.NDArray[np.float64]


class Source(Protocol):
    """Where a meter's readings come from."""

    name: str

    def readings(self) -> list[tuple[int, Reading]]:
        """Return all readings so far and their stamps in ns, oldest first."""

    def check(self) -> None:
        """Raise PowerError if the source has failed."""


@dataclass(frozen=True)
class PowerSample:
    """Power of the rails at one moment."""

    monotonic_ns: int
    rails_mw: Mapping[str, int]


@dataclass(frozen=True)
class Energy:
    """Power and energy of one window; None for the module where not all of its rails were printed.

    `net_j` is the module's energy above the idle baseline. `coverage` is the share of the window without gaps;
    `effective_samples` allows for neighbours that the filter makes alike, about duration / (2 tau).
    """

    duration_s: float
    rails_w: Mapping[str, Quantity]
    rails_j: Mapping[str, Quantity]
    module_w: Quantity | None
    module_j: Quantity | None
    idle_w: Quantity | None
    net_j: Quantity | None
    samples: int
    effective_samples: float
    coverage: float
    largest_gap_s: float
    edge_term: bool
    tau_s: float

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: _json(value) for name, value in vars(self).items()}


def _json(value: object) -> Any:
    if isinstance(value, Quantity):
        return value.as_json()
    if isinstance(value, Mapping):
        return {name: _json(item) for name, item in value.items()}
    return value


def trapezoid_j(times_s: Floats, power_w: Floats, begin_s: float, end_s: float) -> float:
    """Return the energy from begin to end: straight lines between samples, first and last value held outside."""
    inside = (times_s > begin_s) & (times_s < end_s)
    times = np.concatenate(([begin_s], times_s[inside], [end_s]))
    watts = np.interp(times, times_s, power_w)
    return float(np.sum((watts[1:] + watts[:-1]) / 2 * np.diff(times)))


class Meter:
    """Power and energy of a board, from a source of tegrastats readings."""

    def __init__(self, board: BoardFacts, source: Source) -> None:
        self.board = board
        self._source = source

    @property
    def source_name(self) -> str:
        """What the readings come from, e.g. the command."""
        return self._source.name

    @property
    def samples(self) -> list[PowerSample]:
        """All samples so far, oldest first."""
        return [
            PowerSample(stamp_ns, {name: rail.now_mw for name, rail in reading.rails.items()})
            for stamp_ns, reading in self._source.readings()
        ]

    def check(self) -> None:
        """Raise PowerError if the source has failed."""
        self._source.check()

    def energy(self, begin_ns: int, end_ns: int, idle: tuple[int, int] | None = None, edge_term: bool = True) -> Energy:
        """Return the energy of a window in the stamps of the samples, above `idle`'s mean power where that is given.

        Windows may overlap. PowerError where the source has failed, or the samples do not cover a window.
        """
        tau_s = self.board.filter_tau_s if edge_term else 0.0
        try:
            trace = _Trace.of(self.samples, self.board)
            window = trace.window(begin_ns, end_ns, tau_s)
            baseline = None if idle is None else trace.window(*idle, tau_s)
        except PowerError as error:
            self._source.check()  # if the source has failed, that is the reason
            raise PowerError(f"{self.source_name}: {error}") from None
        module_w = window.module_w()
        seconds = window.duration_s
        return Energy(
            duration_s=seconds,
            rails_w=window.rails_w(),
            rails_j={name: power.scaled(seconds) for name, power in window.rails_w().items()},
            module_w=module_w,
            module_j=None if module_w is None else module_w.scaled(seconds),
            idle_w=None if baseline is None else baseline.module_w(),
            net_j=None if baseline is None else window.net_j(baseline),
            samples=window.samples,
            effective_samples=min(window.samples, max(1.0, seconds / (2 * self.board.filter_tau_s))),
            coverage=window.coverage,
            largest_gap_s=window.largest_gap_s,
            edge_term=edge_term,
            tau_s=self.board.filter_tau_s,
        )


@dataclass(frozen=True)
class _Window:
    """Mean power of each printed rail over a window, and how well the samples cover it."""

    duration_s: float
    tau_s: float
    means_w: Mapping[Rail, float]
    total: tuple[Rail, ...]
    samples: int
    coverage: float
    largest_gap_s: float

    def rails_w(self) -> dict[str, Quantity]:
        return {
            rail.name: _quantity(mean_w, self._resolution_w([rail]), _gain_w(mean_w), _offset_w([rail]))
            for rail, mean_w in self.means_w.items()
        }

    def module_mean_w(self) -> float | None:
        if any(rail not in self.means_w for rail in self.total):
            return None
        return sum(self.means_w[rail] for rail in self.total)

    def module_w(self) -> Quantity | None:
        mean_w = self.module_mean_w()
        if mean_w is None:
            return None
        return _quantity(mean_w, self._resolution_w(self.total), _gain_w(mean_w), _offset_w(self.total))

    def net_j(self, idle: _Window) -> Quantity | None:
        """The sensor's constant offset is in both means, so it is not in their difference."""
        loaded_w, idle_w = self.module_mean_w(), idle.module_mean_w()
        if loaded_w is None or idle_w is None:
            return None
        net_w = loaded_w - idle_w
        resolutions = self._resolution_w(self.total), idle._resolution_w(self.total)
        return _quantity(net_w, *resolutions, _gain_w(net_w)).scaled(self.duration_s)

    def _resolution_w(self, rails: Sequence[Rail]) -> float:
        """One step of each rail in the mean (steady loads do not average it away), and in both ends' edge term."""
        step_w = math.hypot(*(rail.step_w for rail in rails)) / math.sqrt(12)
        return step_w * math.sqrt(1 + 2 * (self.tau_s / self.duration_s) ** 2)


def _gain_w(mean_w: float) -> float:
    return abs(mean_w) * GAIN_ERROR / math.sqrt(3)


def _offset_w(rails: Sequence[Rail]) -> float:
    return math.hypot(*(rail.offset_w for rail in rails)) / math.sqrt(3)


def _quantity(value: float, *standard: float) -> Quantity:
    return Quantity(value, _K95 * math.hypot(*standard))


@dataclass(frozen=True)
class _Trace:
    """All samples that carry every rail seen: stamps (n), and watts (n) of each rail."""

    stamps_ns: npt.NDArray[np.int64]
    watts: Mapping[Rail, Floats]
    total: tuple[Rail, ...]

    @classmethod
    def of(cls, samples: Sequence[PowerSample], board: BoardFacts) -> _Trace:
        rails = [rail for rail in board.rails if any(rail.name in sample.rails_mw for sample in samples)]
        if samples and not rails:
            raise PowerError("no reading carries a power rail: JetPack 5 prints them to root alone, so try sudo")
        whole = [sample for sample in samples if all(rail.name in sample.rails_mw for rail in rails)]
        return cls(
            np.array([sample.monotonic_ns for sample in whole], np.int64),
            {rail: np.array([sample.rails_mw[rail.name] for sample in whole]) / 1000 for rail in rails},
            board.total_rails(),
        )

    def window(self, begin_ns: int, end_ns: int, tau_s: float) -> _Window:
        seconds = (end_ns - begin_ns) / 1e9
        if seconds <= 0:
            raise PowerError(f"power window ends {-seconds:g} s before it begins, expected a positive duration")
        times_s = (self.stamps_ns - begin_ns) / 1e9
        samples = int(np.count_nonzero((times_s >= 0) & (times_s <= seconds)))
        if samples < MIN_SAMPLES:
            raise PowerError(
                f"power window of {seconds:.3g} s holds {samples} samples, expected at least {MIN_SAMPLES}: "
                "measure for longer, or sample more often"
            )
        coverage, largest_gap_s = _coverage(times_s, seconds)
        if coverage < MIN_COVERAGE:
            raise PowerError(
                f"samples cover {coverage:.1%} of the power window of {seconds:.3g} s (largest gap {largest_gap_s:.3g} "
                f"s), expected {MIN_COVERAGE:.0%}: the source lagged or began late, so measure again"
            )
        means_w = {rail: _mean_w(times_s, watts, seconds, tau_s) for rail, watts in self.watts.items()}
        return _Window(seconds, tau_s, means_w, self.total, samples, coverage, largest_gap_s)


def _mean_w(times_s: Floats, watts: Floats, seconds: float, tau_s: float) -> float:
    begin_w, end_w = np.interp([0.0, seconds], times_s, watts)
    return float((trapezoid_j(times_s, watts, 0.0, seconds) + tau_s * (end_w - begin_w)) / seconds)


def _coverage(times_s: Floats, seconds: float) -> tuple[float, float]:
    """Return the share of the window 0..seconds outside gaps, and the longest pause that touches it."""
    limit_s = GAP_FACTOR * float(np.median(np.diff(times_s)))
    before = [0.0] if times_s[0] > 0 else []
    after = [seconds] if times_s[-1] < seconds else []
    edges = np.concatenate((before, times_s, after))
    pauses_s = np.diff(edges)
    overlaps_s = np.clip(np.minimum(edges[1:], seconds) - np.maximum(edges[:-1], 0.0), 0.0, None)
    covered_s = float(overlaps_s[pauses_s <= limit_s].sum())
    return min(1.0, covered_s / seconds), float(pauses_s[overlaps_s > 0].max())
