"""Series of an external meter, at the wall: a CSV file, or the `spl.txt` that SPEC's PTDaemon writes for MLPerf.

Wall watts hold supply, carrier board and fan: they are `WallQuantity`s, which nothing compares with a module's.
Source of `spl.txt`: the logs of published MLPerf Inference power submissions, v2.0 to v3.0 (one sample a second, -2 W
where the analyser gave none), and the submission checker, which reads its times as UTC.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from power.errors import PowerError
from power.quantity import WallQuantity
from power.window import K95, Floats, check_samples, coverage_of, trapezoid_j

Clock = Literal["utc", "monotonic"]
SPL_BEGIN = "Time"  # the first cell of each line that PTDaemon writes
SPL_MISSED_W = -2.0
MISSED_FACTOR = 1.5  # one missed sample makes a pause of two intervals, and has to be seen as a gap
CSV_HEADER = "one time column (utc, unix_s, unix_ms, unix_ns, monotonic_s or monotonic_ns) and one of power_w, power_mw"

_TIME = re.compile(r"(unix|monotonic)_(s|ms|us|ns)|utc")
_POWER = re.compile(r"(?:power_|wall_)?(w|mw|watts)")
_NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_W = {"w": 1.0, "watts": 1.0, "mw": 1e-3}
_LATEST_NS = 230 * 365 * 86400 * 10**9  # what fits in 64 bits, and more than any clock shows
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class WallEnergy:
    """Power and energy at the wall over one window.

    `mean_inside_w` is the arithmetic mean of the samples strictly inside, which MLPerf's rules ask for (None: there is
    none); `wall_w` is the trapezoids' mean. The u95 holds the samples' scatter, and the meter's accuracy where stated.
    """

    source: str
    clock: Clock
    duration_s: float
    wall_w: WallQuantity
    wall_j: WallQuantity
    mean_inside_w: float | None
    samples: int
    missed: int
    coverage: float
    gaps: int
    largest_gap_s: float
    accuracy_share: float | None

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: value.as_json() if hasattr(value, "as_json") else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class WallSeries:
    """Samples of an external meter: stamps in ns of a stated clock (`utc`: since 1970), watts, NaN where missed.

    `accuracy_share` is the meter's own u95 as a share of what it shows; None where nobody stated it.
    """

    name: str
    clock: Clock
    stamps_ns: npt.NDArray[np.int64]
    watts: Floats
    accuracy_share: float | None = None

    @property
    def missed(self) -> int:
        """How many samples the meter marked as missed."""
        return int(np.count_nonzero(np.isnan(self.watts)))

    def energy(self, begin_ns: int, end_ns: int) -> WallEnergy:
        """Return the energy of a window in stamps of the series' own clock; PowerError where it is not covered."""
        try:
            return self._energy(begin_ns, (end_ns - begin_ns) / 1e9)
        except PowerError as error:
            raise PowerError(f"{self.name}: {error}") from None

    def during(self, first_ns: int, span_ns: tuple[int, int]) -> WallEnergy:
        """Return the energy of a window in ns since `first_ns`; PowerError where the meter saw none of it."""
        begin_ns, end_ns = (first_ns + since_ns for since_ns in span_ns)
        late_s = (int(self.stamps_ns[0]) - begin_ns) / 1e9
        if self.stamps_ns[-1] < begin_ns or self.stamps_ns[0] > end_ns:
            raise PowerError(
                f"{self.name} begins {abs(late_s):.0f} s {'after' if late_s > 0 else 'before'} the window and shares "
                "no time with it: clocks of different zones? --meter-ahead says how far the meter's is ahead"
            )
        return self.energy(begin_ns, end_ns)

    def _energy(self, begin_ns: int, seconds: float) -> WallEnergy:
        seen = ~np.isnan(self.watts)
        all_s = (self.stamps_ns - begin_ns) / 1e9
        times_s, watts = all_s[seen], self.watts[seen]
        inside = check_samples(times_s, seconds)
        coverage = coverage_of(times_s, seconds, MISSED_FACTOR)
        coverage.check(seconds)
        strictly = watts[(times_s > 0) & (times_s < seconds)]
        mean_w = trapezoid_j(times_s, watts, 0.0, seconds) / seconds
        scatter_w = float(np.std(watts[inside], ddof=1)) / math.sqrt(np.count_nonzero(inside))
        wall_w = WallQuantity(mean_w, math.hypot(K95 * scatter_w, (self.accuracy_share or 0.0) * mean_w))
        return WallEnergy(
            source=self.name,
            clock=self.clock,
            duration_s=seconds,
            wall_w=wall_w,
            wall_j=wall_w.scaled(seconds),
            mean_inside_w=float(strictly.mean()) if len(strictly) else None,
            samples=int(np.count_nonzero(inside)),
            missed=int(np.count_nonzero(~seen & (all_s >= 0) & (all_s <= seconds))),
            coverage=coverage.share,
            gaps=coverage.gaps,
            largest_gap_s=coverage.largest_gap_s,
            accuracy_share=self.accuracy_share,
        )


def read_meter(path: Path) -> WallSeries:
    """Read a meter's file: PTDaemon's where its lines are such, else a CSV."""
    _, first = next(_rows(path), (1, [""]))
    return read_spl(path) if first[0] == SPL_BEGIN else read_csv(path)


def read_spl(path: Path, utc_offset_s: float = 0.0, accuracy_share: float | None = None) -> WallSeries:
    """Read PTDaemon's `spl.txt`; `utc_offset_s` is how far the clock of its host is ahead of UTC (a time zone, say)."""
    stamps_ns, watts = [], []
    shift_ns = round(utc_offset_s * 1e9)
    for number, cells in _rows(path):
        pairs = dict(zip(cells[::2], cells[1::2]))
        if "Time" not in pairs or "Watts" not in pairs:
            raise _bad(path, number, ",".join(cells), "Time,MM-DD-YYYY HH:MM:SS.fff,Watts,W,...")
        moment = _value(path, number, pairs["Time"], _spl_moment, "MM-DD-YYYY HH:MM:SS.fff")
        power_w = _value(path, number, pairs["Watts"], _watts, "watts")
        stamps_ns.append(_utc_ns(moment) - shift_ns)
        watts.append(math.nan if power_w == SPL_MISSED_W else power_w)
    return _series(path, "utc", stamps_ns, watts, accuracy_share)


def read_csv(path: Path, accuracy_share: float | None = None) -> WallSeries:
    """Read a CSV file whose header states units and clock, see `CSV_HEADER`; an empty power cell is a missed sample."""
    rows = _rows(path)
    _, header = next(rows, (1, []))
    names = [cell.lower() for cell in header]
    times = [(at, found) for at, name in enumerate(names) if (found := _TIME.fullmatch(name))]
    powers = [(at, _W[found[1]]) for at, name in enumerate(names) if (found := _POWER.fullmatch(name))]
    if len(times) != 1 or len(powers) != 1:
        raise _bad(path, 1, ",".join(header), f"a header with {CSV_HEADER}")
    (time_at, kind), (power_at, unit_w) = times[0], powers[0]
    stamps_ns, watts = [], []
    for number, cells in rows:
        if len(cells) <= max(time_at, power_at):
            raise _bad(path, number, ",".join(cells), f"{len(header)} cells, as in the header")
        stamps_ns.append(_value(path, number, cells[time_at], _stamper(kind), f"a time as {kind[0]}"))
        cell = cells[power_at]
        watts.append(_value(path, number, cell, _watts, "a power") * unit_w if cell else math.nan)
    clock: Clock = "monotonic" if kind[1] == "monotonic" else "utc"
    return _series(path, clock, stamps_ns, watts, accuracy_share)


def _stamper(kind: re.Match[str]) -> Callable[[str], int]:
    """Return what turns a cell of the time column into ns."""
    if kind[0] == "utc":
        return lambda text: _utc_ns(datetime.fromisoformat(text.replace("Z", "+00:00")))
    unit_ns = _NS[kind[2]]
    return lambda text: int(text) * unit_ns if text.isdecimal() else round(float(text) * unit_ns)


def _spl_moment(text: str) -> datetime:
    return datetime.strptime(text, "%m-%d-%Y %H:%M:%S.%f")


def _watts(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(text)
    return value


def _utc_ns(moment: datetime) -> int:
    """Return ns since 1970, exactly; a time without a zone is UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return (aware - _EPOCH) // timedelta(microseconds=1) * 1000


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield number and stripped cells of each line that is neither empty nor a `#` comment."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise PowerError(f"meter file {path} cannot be read: {error.strerror}") from None
    try:
        for number, cells in enumerate(csv.reader(text.splitlines()), 1):
            if cells and not cells[0].startswith("#"):
                yield number, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise PowerError(f"meter file {path} is no CSV: {error}") from None


def _value(path: Path, number: int, text: str, read: Callable[[str], Any], expected: str) -> Any:
    try:
        return read(text)
    except (ValueError, OverflowError):
        raise _bad(path, number, text, expected) from None


def _bad(path: Path, number: int, text: str, expected: str) -> PowerError:
    return PowerError(f"meter file {path}, line {number}: {text[:60]!r}, expected {expected}")


def _series(
    path: Path, clock: Clock, stamps_ns: list[int], watts: list[float], accuracy_share: float | None
) -> WallSeries:
    if not stamps_ns:
        raise PowerError(f"meter file {path} holds no sample")
    if not all(abs(stamp_ns) < _LATEST_NS for stamp_ns in stamps_ns):
        raise PowerError(f"meter file {path} has a time beyond the year 2200: is its unit the one in the header?")
    stamps = np.array(stamps_ns, np.int64)
    if len(late := np.flatnonzero(np.diff(stamps) <= 0)):
        raise PowerError(
            f"meter file {path}: sample {late[0] + 2} is not after the one before it: two runs in one file?"
        )
    return WallSeries(path.name, clock, stamps, np.array(watts, np.float64), accuracy_share)
