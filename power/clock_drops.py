"""Signs of throttling: a clock that is lower in some busy records than in others, and how hot it was then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from power.reading import Reading

BUSY_PERCENT = 90  # below it the governor lowers a clock without need
FULL_SHARE = 0.95  # of the highest clock seen; lower is a drop
MIN_RECORDS = 2  # a single one is a clock on its way up
NOT_THE_SOC = frozenset({"PMIC"})  # prints a constant on most boards


@dataclass(frozen=True)
class ClockDrop:
    """A clock that was below its own highest in `records` of the `busy` ones; temperatures of the hottest zone."""

    clock: str
    busy: int
    records: int
    full_mhz: int
    lowest_mhz: int
    full_c: float | None
    dropped_c: float | None

    @property
    def is_hotter(self) -> bool | None:
        """Whether it was hotter while the clock was low: heat is then the likely cause, else a power cap."""
        return None if self.full_c is None or self.dropped_c is None else self.dropped_c > self.full_c

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "hotter": self.is_hotter}


def clock_drops(readings: Sequence[Reading]) -> tuple[ClockDrop, ...]:
    """Return the clocks of GPU, CPU and memory that dropped while busy."""
    found = (_drop(clock, [(mhz, r) for r in readings if (mhz := busy_mhz(r))]) for clock, busy_mhz in _CLOCKS.items())
    return tuple(drop for drop in found if drop is not None)


def _drop(clock: str, busy: Sequence[tuple[int, Reading]]) -> ClockDrop | None:
    full_mhz = max((mhz for mhz, _ in busy), default=0)
    low = [(mhz, reading) for mhz, reading in busy if mhz < FULL_SHARE * full_mhz]
    if len(low) < MIN_RECORDS:
        return None
    full = [reading for mhz, reading in busy if mhz >= FULL_SHARE * full_mhz]
    return ClockDrop(
        clock,
        len(busy),
        len(low),
        full_mhz,
        min(mhz for mhz, _ in low),
        _hottest_c(full),
        _hottest_c([reading for _, reading in low]),
    )


def _hottest_c(readings: Sequence[Reading]) -> float | None:
    """Return the mean of the hottest zone."""
    hottest = [
        max(zones)
        for reading in readings
        if (zones := [zone.now_c for name, zone in reading.temperatures_c.items() if zone and name not in NOT_THE_SOC])
    ]
    return fmean(hottest) if hottest else None


def _gpu(reading: Reading) -> int:
    gpu = reading.gpu
    busy = gpu is not None and (gpu.percent or 0) >= BUSY_PERCENT
    return max((mhz or 0 for mhz in gpu.mhz or ()), default=0) if gpu and busy else 0


def _cpu(reading: Reading) -> int:
    return max(
        (core.mhz or 0 for core in reading.cpus or () if core and (core.percent or 0) >= BUSY_PERCENT), default=0
    )


def _emc(reading: Reading) -> int:
    emc = reading.emc
    return (emc.mhz or 0) if emc and (emc.percent or 0) >= BUSY_PERCENT else 0


_CLOCKS: Mapping[str, Callable[[Reading], int]] = {"gpu": _gpu, "cpu": _cpu, "emc": _emc}  # 0: not busy, or no clock
