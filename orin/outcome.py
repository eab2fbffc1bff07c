"""What came of the runs of a sweep: figures, reasons not to trust them, the Pareto front and the choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from orin.errors import OrinError
from orin.plan import Plan
from orin.record import RunRecord
from orin.results import Result, result
from orin.soc import Soc
from power.clock_drops import BUSY_PERCENT, clock_drops
from power.errors import PowerError
from power.nvpmodel import Caps, Mode, ModeFile, capped_mode
from power.quantity import ModuleQuantity, compare
from power.reading import Reading, parse_line

MODE_NAME = "ORIN_SWEEP"
DROPPED_SHARE = 0.02  # of the busy readings; fewer with a low clock are the run's first moments
CLOCK_SHARE = 0.97  # of the clock asked for; drivers round to the next one of their table


@dataclass(frozen=True)
class Candidate:
    """One plan to measure, and what to call it."""

    name: str
    plan: Plan


@dataclass(frozen=True)
class Start:
    """How warm the hottest zone was when a run began (None: not printed), and how long it was waited for."""

    hottest_c: float | None
    waited_s: float


@dataclass(frozen=True)
class Outcome:
    """What came of a candidate: its record's figures, or why there are none; `flags` say why not to trust them."""

    number: int
    candidate: Candidate
    record: RunRecord | None
    start: Start | None
    flags: tuple[str, ...] = ()
    failure: str | None = None

    @cached_property
    def figures(self) -> Result | None:
        """The record's figures."""
        return result(self.record) if self.record else None

    @property
    def samples_per_s(self) -> float | None:
        """Throughput."""
        return self.figures["samples_per_s"] if self.figures else None

    @property
    def module_w(self) -> ModuleQuantity | None:
        """Mean power of the module."""
        power = self.figures["power_w"] if self.figures else None
        return ModuleQuantity(**power["module"]) if power and power["module"] else None

    @property
    def samples_per_joule(self) -> ModuleQuantity | None:
        """Efficiency."""
        return self.module_w.ratio(self.samples_per_s) if self.module_w and self.samples_per_s else None

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        plan, figures = self.candidate.plan, self.figures or {}
        return {
            "number": self.number,
            "name": self.candidate.name,
            "mode": plan.mode,
            "plan": plan.as_json(),
            **{key: figures.get(key) for key in ("samples_per_s", "power_w", "samples_per_joule", "valid", "run_dir")},
            "start": asdict(self.start) if self.start else None,
            "flags": list(self.flags),
            "failure": self.failure,
        }


def flags_of(record: RunRecord, soc: Soc) -> tuple[str, ...]:
    """Return why a run's figures are not to be trusted, or compared with others."""
    return (*_not_held(record, soc), *_throttled(record), *_other(record))


def _not_held(record: RunRecord, soc: Soc) -> Iterator[str]:
    """Yield a flag where the clocks in force were not those of the plan's mode."""
    mode, clocks = record["plan"].get("mode"), record.values.get("clocks")
    if mode is None or clocks is None:
        return
    try:
        asked = asdict(soc.clocks(mode))
    except (PowerError, OrinError):  # a mode of the board's own file, which no table holds
        return
    for name, value in asked.items():
        if not CLOCK_SHARE <= clocks[name] / value <= 1 / CLOCK_SHARE:
            yield f"{mode} not held: {name} is {clocks[name]:g}, expected {value:g}"


def _throttled(record: RunRecord) -> Iterator[str]:
    """Yield a flag for each clock that fell in the measuring window while it was busy, or never reached its limit."""
    readings = list(_window_readings(record))
    for drop in clock_drops(readings):
        if drop.clock != "cpu" and drop.records > DROPPED_SHARE * drop.busy:
            heat = {True: ", and it was hotter then", False: "", None: ""}[drop.is_hotter]
            share = drop.records / drop.busy
            yield f"throttled: {drop.clock} down to {drop.lowest_mhz} of {drop.full_mhz} MHz in {share:.0%}{heat}"
    limit_mhz = (record.values.get("clocks") or {}).get("gpu_mhz")
    highest_mhz = max((mhz for reading in readings for mhz in _busy_gpu_mhz(reading)), default=None)
    if limit_mhz and highest_mhz and highest_mhz < CLOCK_SHARE * limit_mhz:
        yield f"throttled: gpu at {highest_mhz} MHz at most, its limit is {limit_mhz:g}"


def _busy_gpu_mhz(reading: Reading) -> list[int]:
    gpu = reading.gpu
    busy = gpu is not None and (gpu.percent or 0) >= BUSY_PERCENT
    return [mhz for mhz in (gpu.mhz or ()) if mhz] if gpu and busy else []


def _window_readings(record: RunRecord) -> Iterator[Reading]:
    """The readings inside the measuring window, from the run's raw lines."""
    begin_ns, end_ns = record.values.get("window_ns") or (0, 0)
    log = record.folder / "tegrastats.log"
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else ():
        stamp, _, text = line.partition(" ")
        if stamp.isdecimal() and begin_ns <= int(stamp) <= end_ns and (reading := parse_line(text)):
            yield reading


def _other(record: RunRecord) -> Iterator[str]:
    """Yield what else makes a run's figures doubtful."""
    if record.values.get("pace"):
        yield f"timing: {record.values['pace']}"
    if not record.values.get("power"):
        yield f"no power: {record.values.get('power_missing', 'not measured')}"


def best(outcomes: Sequence[Outcome]) -> Outcome | None:
    """Return the outcome with the most samples per joule, of those without a flag; None where none has a figure."""
    found = [(one.samples_per_joule.value, one) for one in outcomes if one.samples_per_joule and not one.flags]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def front(outcomes: Sequence[Outcome]) -> tuple[int, ...]:
    """Return the numbers on the Pareto front: no other is as fast with less power, or faster with as much.

    Flagged outcomes are neither on it nor held against others.
    """
    points = list(_points([one for one in outcomes if not one.flags]))
    return tuple(
        number
        for number, speed, watts in points
        if not any(s >= speed and w <= watts and (s, w) != (speed, watts) for _, s, w in points)
    )


def _points(outcomes: Sequence[Outcome]) -> Iterator[tuple[int, float, float]]:
    for one in outcomes:
        if one.samples_per_s is not None and one.module_w is not None:
            yield one.number, one.samples_per_s, one.module_w.value


def versus(one: Outcome, other: Outcome) -> str:
    """Return the ratio of two efficiencies as text, or that their intervals overlap."""
    ours, theirs = one.samples_per_joule, other.samples_per_joule
    if ours is None or theirs is None:
        return "–"
    return "1" if one is other else str(compare(theirs, ours))


def chosen(outcomes: Sequence[Outcome], number: int | None) -> Outcome:
    """Return the outcome with a number, else the most efficient; OrinError where there is none."""
    if number is None:
        found = best(outcomes)
        if found is None:
            raise OrinError("no run has a trustworthy power figure to choose by: name one with --choose N")
        return found
    for one in outcomes:
        if one.number == number and one.record is not None:
            return one
    known = ", ".join(str(one.number) for one in outcomes if one.record)
    raise OrinError(f"--choose is {number}, expected one of the runs that were measured: {known}")


def mode_file_of(outcome: Outcome, file: ModeFile) -> ModeFile:
    """Return a mode file with the one mode that a run was measured in, number 0, for `nvpmodel -f FILE -m 0`."""
    plan = outcome.candidate.plan
    if plan.mode is not None:
        values = file.mode(plan.mode).values
    elif plan.clocks_mhz is not None:
        values = capped_mode(file, Caps.of(plan.clocks_mhz), MODE_NAME).values
    else:
        raise OrinError(f"run {outcome.number} changed no power mode, so there is no mode file to write: give --modes")
    return ModeFile(file.parameters, (Mode(0, MODE_NAME, values),), 0)
