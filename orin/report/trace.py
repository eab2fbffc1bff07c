"""The power log of a run as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from power.reading import Reading, module_mw, parse_line

POINTS = 900  # more than a picture can show


@dataclass(frozen=True)
class Trace:
    """Power over time: `at_ns` on `time.monotonic_ns`, watts of each rail, and of the module (NaN where unknown)."""

    at_ns: NDArray[Any]
    rails_w: dict[str, NDArray[Any]]
    module_w: NDArray[Any]


def read_trace(log: Path) -> Trace | None:
    """Read `tegrastats.log` ("<monotonic_ns> <line>"); lines without rails, or cut short, are passed over."""
    readings = []
    for line in _lines(log):
        stamp, _, rest = line.partition(" ")
        reading = parse_line(rest) if stamp.isdecimal() else None
        if reading is not None and reading.rails:
            readings.append((int(stamp), reading))
    return _trace(readings) if readings else None


def _lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []


def _trace(readings: list[tuple[int, Reading]]) -> Trace:
    names = readings[0][1].rails

    def watts(name: str) -> NDArray[Any]:
        rails = [reading.rails.get(name) for _, reading in readings]
        return np.array([np.nan if rail is None else rail.now_mw / 1000 for rail in rails])

    modules = [module_mw(reading) for _, reading in readings]
    return Trace(
        np.array([at_ns for at_ns, _ in readings]),
        {name: watts(name) for name in names},
        np.array([np.nan if total is None else total / 1000 for total in modules]),
    )


def decimate(values: NDArray[Any], points: int = POINTS) -> NDArray[Any]:
    """Return means of equally long stretches where there are more values than points."""
    if len(values) <= points:
        return values
    edges = np.linspace(0, len(values), points + 1).astype(int)
    sums = np.add.reduceat(values.astype(np.float64), edges[:-1])
    return np.asarray(sums / np.diff(edges))
