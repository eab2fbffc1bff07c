"""What an existing log says: power and energy as a run's meter gives them, and how far the log can be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from power.averages import breaks
from power.boards import UNKNOWN, BoardFacts, Rail, TotalRule, no_total_reason, total_rule
from power.clock_drops import ClockDrop, clock_drops
from power.energy import Energy
from power.errors import PowerError
from power.log import SECOND_NS, Log, LogSource, Record, Stamps, seconds_at, stamps
from power.meter import Meter
from power.reading import Reading
from power.step import step_mw

# A supply of 12 V makes the steps of a 20 V rail 0.6 times as large; beyond this, the values share a factor by chance.
_STEP_RANGE = (0.55, 1.1)
_MEAN_KEYS = ("rails_w", "module_w", "rails_resolution_w", "module_resolution_w", "rails_shown_w", "rails_distinct")


@dataclass(frozen=True)
class Question:
    """What is asked of a log: a named board, a window (seconds, or a timestamp as printed), the lines' interval."""

    board: BoardFacts | None = None
    begin: str | None = None
    end: str | None = None
    interval_ms: float | None = None


@dataclass(frozen=True)
class RailFacts:
    """What a rail, or the module, showed over a window; `step_w` as its values have it, else the board's, else NaN."""

    counted: bool
    samples: int
    distinct: int
    mean_w: float
    min_w: float
    max_w: float
    step_w: float
    step_from: str | None


@dataclass(frozen=True)
class LogAnalysis:
    """An analysed log; `energy` is None for the reason `no_energy`, and its joules are unknown without times.

    `span_ns` is the window in ns since the first record; `no_total` says why the rails have no known sum. Breaks are at
    lines of the file.
    """

    log: str
    board: str | None
    modules: str | None
    records: int
    skipped: int
    first_line: int
    last_line: int
    times: Stamps
    span_ns: tuple[int, int]
    seconds: float | None
    energy: Energy | None
    no_energy: str | None
    module_rails: tuple[str, ...]
    no_total: str | None
    rails: Mapping[str, RailFacts]
    module: RailFacts | None
    restarts: tuple[int, ...]
    dropped: Mapping[int, int]
    unexplained: tuple[int, ...]
    temperatures_c: Mapping[str, tuple[float, float, float]]
    clock_drops: tuple[ClockDrop, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; joules are null where the times are not known."""
        plain = {name: value for name, value in vars(self).items() if name not in ("times", "span_ns", "energy")}
        return {
            **plain,
            "times": self.times.source,
            "no_times": self.times.reason,
            "energy": self._energy_json(),
            "rails": {name: vars(rail) for name, rail in self.rails.items()},
            "module": self.module and vars(self.module),
            "dropped_lines": sum(self.dropped.values()),
            "temperatures_c": {
                name: dict(zip(("mean", "min", "max"), values, strict=True))
                for name, values in self.temperatures_c.items()
            },
            "clock_drops": [drop.as_json() for drop in self.clock_drops],
        }

    def _energy_json(self) -> dict[str, Any] | None:
        if self.energy is None:
            return None
        values = self.energy.as_json()
        return values if self.times.reason is None else {name: values[name] for name in _MEAN_KEYS}


def analyse(log: Log, question: Question) -> LogAnalysis:
    """Return what a log says over a window, or over all of it; PowerError for a window without two records."""
    times = stamps(log, question.interval_ms)
    begin_ns, end_ns = _window_ns(log, times, question)
    inside = [index for index, ns in enumerate(times.ns) if begin_ns <= ns <= end_ns]
    if not inside:
        raise PowerError(
            f"log {log.name} has no record from {begin_ns / SECOND_NS:g} s to {end_ns / SECOND_NS:g} s: "
            f"it lasts {times.ns[-1] / SECOND_NS:g} s"
        )
    records = log.records[inside[0] : inside[-1] + 1]
    rule = total_rule(_names(log.records)) if question.board is None else question.board.rule
    no_total = no_total_reason(_names(log.records), question.board) or _swapped(log.records, rule)
    rails = _rails(_names(records), rule, no_total is None)
    steps = {rail.name: _step(rail, log.records) for rail in rails}
    facts = _facts(rails, steps, UNKNOWN if rule is None else rule.filter_tau_s)
    energy, no_energy = _energy(facts, LogSource(log.name, _stamped(log, times)), (begin_ns, end_ns))
    return LogAnalysis(
        log=log.name,
        board=None if question.board is None else question.board.name,
        modules=None if rule is None else rule.modules,
        records=len(records),
        skipped=log.skipped,
        first_line=records[0].line,
        last_line=records[-1].line,
        times=times,
        span_ns=(begin_ns, end_ns),
        seconds=None if times.reason else (end_ns - begin_ns) / SECOND_NS,
        energy=energy,
        no_energy=no_energy or times.reason,
        module_rails=() if no_total or rule is None else rule.total,
        no_total=no_total,
        rails={rail.name: _rail_facts(rail, steps[rail.name], records) for rail in rails},
        module=None if no_total or rule is None else _module_facts(rule.total, records),
        **_breaks(records),
        temperatures_c=_temperatures(records),
        clock_drops=clock_drops([record.reading for record in records]),
    )


def _stamped(log: Log, times: Stamps) -> list[tuple[int, Reading]]:
    return [(ns, record.reading) for ns, record in zip(times.ns, log.records, strict=True)]


def _window_ns(log: Log, times: Stamps, question: Question) -> tuple[int, int]:
    begin_s = 0.0 if question.begin is None else seconds_at(question.begin, log, times)
    end_s = times.ns[-1] / SECOND_NS if question.end is None else seconds_at(question.end, log, times)
    return round(begin_s * SECOND_NS), round(end_s * SECOND_NS)


def _names(records: Sequence[Record]) -> list[str]:
    """Return the rails that any record shows: it is the whole set over the log that tells the module."""
    return list(dict.fromkeys(name for record in records for name in record.reading.rails))


def _swapped(records: Sequence[Record], rule: TotalRule | None) -> str | None:
    """Return why a sum of rails is none: a part lies above its whole."""
    if rule is None:
        return None
    for record in records:
        shown = {name: rail.now_mw for name, rail in record.reading.rails.items()}
        whole_mw = sum(shown.get(name, 0) for name in rule.total)
        for part in rule.parts & shown.keys():
            if shown[part] > whole_mw and all(name in shown for name in rule.total):
                whole = f"{' + '.join(rule.total)} of {whole_mw} mW, which it is a part of"
                return f"line {record.line}: {part} of {shown[part]} mW is above {whole}: swapped labels?"
    return None


def _rails(names: Sequence[str], rule: TotalRule | None, has_total: bool) -> list[Rail]:
    """Return the rails that a window shows, as their rule has them; without a known sum none counts."""
    known = {rail.name: rail for rail in rule.rails} if rule else {}
    rails = [known.get(name, Rail(name, "of no known module")) for name in names]
    return [rail if has_total else replace(rail, in_total=False) for rail in rails]


def _facts(rails: Sequence[Rail], steps: Mapping[str, Step], tau_s: float) -> BoardFacts:
    """Return the board that the meter is to assume."""
    stepped = tuple(replace(rail, step_w=steps[rail.name].watts) for rail in rails)
    return BoardFacts("log", "", "", stepped, tau_s)


@dataclass(frozen=True)
class Step:
    """A rail's step in watts, NaN where it is not known, and where it is from."""

    watts: float
    source: str | None


def _step(rail: Rail, records: Sequence[Record]) -> Step:
    seen_mw = step_mw(rails[rail.name].now_mw for record in records if rail.name in (rails := record.reading.rails))
    low, high = _STEP_RANGE
    if seen_mw is not None and (math.isnan(rail.step_w) or low * rail.step_w <= seen_mw / 1e3 <= high * rail.step_w):
        return Step(seen_mw / 1e3, "its values")
    return Step(rail.step_w, None if math.isnan(rail.step_w) else "the board")


def _rail_facts(rail: Rail, step: Step, records: Sequence[Record]) -> RailFacts:
    shown = [rails[rail.name].now_mw / 1e3 for record in records if rail.name in (rails := record.reading.rails)]
    return _shown_facts(rail.in_total, shown, step)


def _module_facts(total: Sequence[str], records: Sequence[Record]) -> RailFacts | None:
    """Return the sum over the records that carry all its rails; None where none does."""
    rails = [record.reading.rails for record in records]
    shown = [sum(r[name].now_mw for name in total) / 1e3 for r in rails if all(name in r for name in total)]
    return _shown_facts(True, shown, Step(UNKNOWN, None)) if shown else None


def _shown_facts(counted: bool, shown: Sequence[float], step: Step) -> RailFacts:
    return RailFacts(
        counted=counted,
        samples=len(shown),
        distinct=len(set(shown)),
        mean_w=fmean(shown),
        min_w=min(shown),
        max_w=max(shown),
        step_w=step.watts,
        step_from=step.source,
    )


def _energy(facts: BoardFacts, source: LogSource, span_ns: tuple[int, int]) -> tuple[Energy | None, str | None]:
    """Return what the meter says of the window, or why it says nothing; the edge term needs a known filter."""
    if span_ns[0] == span_ns[1]:
        return None, "one record is no window of time"
    edge_term = not math.isnan(facts.filter_tau_s)
    try:
        return Meter(facts, source).energy(*span_ns, edge_term=edge_term), None
    except PowerError as error:
        return None, str(error).removeprefix(f"{source.name}: ")


def _breaks(records: Sequence[Record]) -> dict[str, Any]:
    found = breaks([record.reading for record in records])
    at = {kind: [each for each in found if each.kind == kind] for kind in ("restart", "dropped", "unexplained")}
    return {
        "restarts": tuple(records[each.record].line for each in at["restart"]),
        "dropped": {records[each.record].line: each.lines for each in at["dropped"]},
        "unexplained": tuple(records[each.record].line for each in at["unexplained"]),
    }


def _temperatures(records: Sequence[Record]) -> dict[str, tuple[float, float, float]]:
    zones: dict[str, list[float]] = {}
    for record in records:
        for name, zone in record.reading.temperatures_c.items():
            if zone is not None:
                zones.setdefault(name, []).append(zone.now_c)
    return {name: (fmean(values), min(values), max(values)) for name, values in zones.items()}
