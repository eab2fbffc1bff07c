"""What the running averages of a log give away: where tegrastats was restarted, and which lines are missing.

The second number of a rail is the mean of all that tegrastats showed since it started, so N avg_N - (N-1) avg_(N-1)
is the Nth value. Where that does not hold, lines between two records are missing, or the count began anew. Averages
are whole milliwatts, so after N lines a loss must move the sum by more than N mW to be seen: what is found is a lower
bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from power.reading import Reading

_MOST_LINES = 100_000  # that a run of averages is taken to hold
_SLACK_MW = 1  # an average that is cut off or rounded is less than this from the mean

Kind = Literal["restart", "dropped", "unexplained"]
Span = tuple[int, int]  # lowest and highest value of a rail, in mW
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Break:
    """A record, by its index, before which the averages do not run on; `lines` are missing at least.

    `unexplained` is a line that no number of missing ones explains: cut short, or of another log.
    """

    record: int
    kind: Kind
    lines: int = 0


def breaks(readings: Sequence[Reading]) -> list[Break]:
    """Return where the averages of successive readings do not run on; readings without averages are passed over."""
    run = _Run(_spans(readings))
    for index, reading in enumerate(readings):
        if any(rail.average_mw is not None for rail in reading.rails.values()):
            run.take(index, reading)
    return run.found


class _Run:
    """How many lines may be in the averages of the last reading: each further one leaves fewer possible counts."""

    def __init__(self, spans: Mapping[str, Span]) -> None:
        self.found: list[Break] = []
        self._spans = spans
        self._last: Reading | None = None
        self._counts: Counts = np.arange(1, _MOST_LINES + 1)
        self._expected = 0  # the last count, had no line been missing since the log began or was broken

    def take(self, index: int, reading: Reading) -> None:
        """Go on to the next reading."""
        last, self._last = self._last, reading
        if last is None:
            self._counts = self._counts[:1] if _is_first(reading) and not self.found else self._counts
            return
        following = self._counts[_runs_on(last, reading, self._counts)] + 1
        if len(following):
            self._go_on(following)
        elif _is_first(reading):
            self._break(Break(index, "restart"), np.ones(1, np.int64))
        else:
            self._drop(index, last, reading)

    def _go_on(self, counts: Counts) -> None:
        self._counts = counts
        self._expected += 1
        if self.found and self.found[-1].kind == "dropped":
            self.found[-1] = replace(self.found[-1], lines=int(counts[0]) - self._expected)

    def _drop(self, index: int, last: Reading, reading: Reading) -> None:
        count = int(self._counts[0])
        lines = _dropped(last, reading, count, self._spans)
        if len(lines):
            self._break(Break(index, "dropped", int(lines[0])), count + 1 + lines)
            self._expected = count + 1
        else:
            self._break(Break(index, "unexplained"), np.arange(1, _MOST_LINES + 1))
            self._last = None  # it may be this line that is wrong

    def _break(self, found: Break, counts: Counts) -> None:
        self.found.append(found)
        self._counts = counts


def _averages(reading: Reading) -> dict[str, int]:
    return {name: rail.average_mw for name, rail in reading.rails.items() if rail.average_mw is not None}


def _spans(readings: Sequence[Reading]) -> dict[str, Span]:
    spans: dict[str, Span] = {}
    for reading in readings:
        for name, rail in reading.rails.items():
            low, high = spans.get(name, (rail.now_mw, rail.now_mw))
            spans[name] = min(low, rail.now_mw), max(high, rail.now_mw)
    return spans


def _is_first(reading: Reading) -> bool:
    """Whether this may be the first line of tegrastats: each average is its own value."""
    return all(average == reading.rails[name].now_mw for name, average in _averages(reading).items())


def _runs_on(last: Reading, reading: Reading, counts: Counts) -> npt.NDArray[np.bool_]:
    """Return for each count whether this reading may be the one after it."""
    before, after = _averages(last), _averages(reading)
    fits = np.full(len(counts), before.keys() == after.keys())
    for name in before.keys() & after.keys():
        value = (counts + 1) * after[name] - counts * before[name]
        fits &= np.abs(value - reading.rails[name].now_mw) <= (counts + 1) * _SLACK_MW
    return fits


def _dropped(last: Reading, reading: Reading, count: int, spans: Mapping[str, Span]) -> Counts:
    """Return how many lines may be missing: their mean lies, on every rail, among the values that the log shows."""
    before, after = _averages(last), _averages(reading)
    lines = np.arange(1, _MOST_LINES + 1)
    fits = np.full(len(lines), before.keys() == after.keys())
    for name in before.keys() & after.keys():
        total = count + 1 + lines
        means = (total * after[name] - count * before[name] - reading.rails[name].now_mw) / lines
        slack = total * _SLACK_MW / lines
        low, high = spans[name]
        fits &= (means >= low - slack) & (means <= high + slack)
    possible: Counts = lines[fits]
    return possible
