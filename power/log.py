"""A log that tegrastats wrote earlier, of any board: its records, and when each was taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby
from statistics import median
from typing import Literal

from power.errors import PowerError
from power.reading import Reading, parse_log
from power.source import ChipFilter

SECOND_NS = 1_000_000_000
TIMESTAMP = "%m-%d-%Y %H:%M:%S"  # as tegrastats prints it
LONGEST_S = 1e9  # thirty years: no log is as long
_EXPECTED = "expected seconds from the start or MM-DD-YYYY HH:MM:SS"
_EPOCH = datetime(1970, 1, 1)
DEFAULT_INTERVAL_MS = 1000.0  # of tegrastats; only means are taken from stamps that rest on it


@dataclass(frozen=True)
class Record:
    """One record of a log, and the line that it begins in."""

    line: int
    reading: Reading


@dataclass(frozen=True)
class Log:
    """The records of a log, oldest first; `skipped` lines were none."""

    name: str
    records: tuple[Record, ...]
    skipped: int


def read_log(name: str, lines: Iterable[str]) -> Log:
    """Return the records of a log; PowerError where it has none."""
    found = [(line, reading) for line, reading in parse_log(lines)]
    records = tuple(Record(line, reading) for line, reading in found if reading is not None)
    if not records:
        raise PowerError(f"log {name} holds {len(found)} lines, none of them a reading of tegrastats")
    return Log(name, records, len(found) - len(records))


@dataclass(frozen=True)
class Stamps:
    """When each record was taken, in ns since the first, and where that is known from.

    `reason` says in one line why the times are not known; then the stamps are regular and only good for means.
    `first_ns` is the first record's time on a `clock`: `monotonic`, or `local`, the board's own wall clock in ns since
    1970 as if it were UTC (to a second); None where the times are those of no clock.
    """

    ns: tuple[int, ...]
    source: str
    reason: str | None = None
    clock: Literal["monotonic", "local"] | None = None
    first_ns: int = 0


def stamps(log: Log, interval_ms: float | None = None) -> Stamps:
    """Return the records' times: by the interval where that is given, by a run's own stamps, else by timestamps."""
    if interval_ms is not None:
        return Stamps(_regular_ns(len(log.records), interval_ms), f"an interval of {interval_ms:g} ms")
    if run := _run_ns(log):
        return Stamps(_since_first(run), "the run's own stamps", clock="monotonic", first_ns=run[0])
    reason = _unusable(log)
    if reason is None:
        spread = _spread_ns(log)
        return Stamps(_since_first(spread), "timestamps", clock="local", first_ns=spread[0])
    return Stamps(_regular_ns(len(log.records), DEFAULT_INTERVAL_MS), "none", reason)


def _since_first(ns: Sequence[int]) -> tuple[int, ...]:
    return tuple(stamp - ns[0] for stamp in ns)


def _regular_ns(count: int, interval_ms: float) -> tuple[int, ...]:
    if not 0 < interval_ms < float("inf"):
        raise PowerError(f"interval of {interval_ms:g} ms between the lines of a log, expected a positive number")
    return tuple(round(index * interval_ms * 1e6) for index in range(count))


def _run_ns(log: Log) -> tuple[int, ...]:
    """Stamps of a run record's tegrastats.log, whose lines begin with the monotonic clock in ns."""
    first = [record.reading.unknown[:1] for record in log.records]
    if not all(words and words[0].isdecimal() for words in first):
        return ()
    ns = [int(words[0]) for words in first]
    is_rising = all(now > before for before, now in zip(ns, ns[1:], strict=False))
    return tuple(ns) if is_rising else ()


def _unusable(log: Log) -> str | None:
    """Return why the log's timestamps do not say when its records were taken; None where they do."""
    before = ""
    for record in log.records:
        now = record.reading.timestamp
        if now is None:
            return f"line {record.line} has no timestamp: give the interval of the lines"
        if now < before:
            return f"line {record.line}: {now} is before the timestamp above it: give the interval of the lines"
        before = now
    if len(log.records) > 1 and log.records[0].reading.timestamp == before:
        return "all lines have the same timestamp: give their interval"
    return None


def _spread_ns(log: Log) -> list[int]:
    """Return ns since 1970; timestamps are in whole seconds, so the lines of one second are spread over it.

    The first second may have begun before the log, and the last may go on after it: their lines keep the usual pace.
    """
    moments = [datetime.fromisoformat(record.reading.timestamp or "") for record in log.records]
    groups = [(moment, len(list(same))) for moment, same in groupby(moments)]
    usual = median([count for _, count in groups[1:-1]] or [count for _, count in groups])
    ns: list[int] = []
    for index, (moment, count) in enumerate(groups):
        second_ns = (moment - _EPOCH) // timedelta(seconds=1) * SECOND_NS
        pace = max(usual, count) if index in (0, len(groups) - 1) else count
        head = 1 - count / pace if index == 0 else 0.0
        ns += [second_ns + round((head + place / pace) * SECOND_NS) for place in range(count)]
    return ns


@dataclass(frozen=True)
class LogSource:
    """Some records of a log as a meter's source."""

    name: str
    stamped: Sequence[tuple[int, Reading]]
    filters: Mapping[str, ChipFilter] = field(default_factory=dict)

    def readings(self) -> list[tuple[int, Reading]]:
        """Return all readings and their stamps in ns, oldest first."""
        return list(self.stamped)

    def check(self) -> None:
        """Do nothing: a log that could be read has nothing more to go wrong."""


def seconds_at(text: str, log: Log, times: Stamps) -> float:
    """Return a time in seconds since the first record: a number, or a timestamp as the log prints it."""
    if times.reason:
        raise PowerError(f"log {log.name}: {text!r} cannot be found in it: {times.reason}")
    try:
        seconds = float(text)
    except ValueError:
        wanted = _moment(text)
    else:
        if not abs(seconds) < LONGEST_S:
            raise PowerError(f"time {text!r}, {_EXPECTED}")
        return seconds
    printed = [(record.reading.timestamp, ns) for record, ns in zip(log.records, times.ns, strict=True)]
    later = [ns for timestamp, ns in printed if timestamp is not None and timestamp >= wanted]
    if not later:
        last = next((timestamp for timestamp, _ in reversed(printed) if timestamp), "no timestamp")
        raise PowerError(f"log {log.name} has no line at {text} or after: its last has {last}")
    return later[0] / SECOND_NS


def _moment(text: str) -> str:
    """Return a timestamp as ISO 8601, which sorts as time does."""
    try:
        return datetime.strptime(text, TIMESTAMP).isoformat()
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).isoformat()
    except ValueError:
        raise PowerError(f"time {text!r}, {_EXPECTED}") from None
