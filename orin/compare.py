"""Setting two like runs side by side; unlike ones are refused by the field that differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orin.errors import OrinError
from orin.record import RunRecord
from orin.results import Result, result
from power.quantity import Quantity
from power.quantity import compare as quantities

LATENCIES = ("mean", "p50", "p90", "p99")


@dataclass(frozen=True)
class Ratio:
    """B over A; `u95` is None where neither has one; `resolved` is False where their 95 % intervals overlap."""

    value: float
    u95: float | None = None
    resolved: bool = True

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"value": self.value, "u95": self.u95, "resolved": self.resolved}


@dataclass(frozen=True)
class Line:
    """One figure of both runs: floats, or `{value, u95}`; `ratio` is None where one run lacks it."""

    name: str
    unit: str
    a: Any
    b: Any
    ratio: Ratio | None


@dataclass(frozen=True)
class Comparison:
    """Two like runs: their figures, and the plan fields in which they differ, as (A's value, B's value)."""

    a: Result
    b: Result
    lines: tuple[Line, ...]
    plan: dict[str, tuple[Any, Any]]

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        ratios = {line.name: line.ratio.as_json() if line.ratio else None for line in self.lines}
        return {"a": self.a, "b": self.b, "ratios": ratios, "plan_differences": self.plan}


def compare(a: RunRecord, b: RunRecord) -> Comparison:
    """Compare two runs; OrinError names the first field that makes them unlike, or the run that has no end."""
    for record in (a, b):
        if not record.finished:
            raise OrinError(f"run {record.folder} has status {record['status']!r}, expected 'finished': run it again")
    _refuse_unlike(a, b)
    found = result(a), result(b)
    plans = a["plan"], b["plan"]
    different = {key: (plans[0].get(key), plans[1].get(key)) for key in {**plans[0], **plans[1]}}
    return Comparison(*found, _lines(*found), {key: pair for key, pair in different.items() if pair[0] != pair[1]})


def _refuse_unlike(a: RunRecord, b: RunRecord) -> None:
    ours, theirs = _identity(a), _identity(b)
    if a.values.get("clocks") != b.values.get("clocks"):  # the same clocks under two modes' names are alike
        ours, theirs = ours | _held(a), theirs | _held(b)
    for name in {**ours, **theirs}:
        if ours.get(name) != theirs.get(name):
            raise OrinError(
                f"unlike runs: {name} is {ours.get(name)!r} in {a.folder.name}, {theirs.get(name)!r} in "
                f"{b.folder.name}; compare runs that differ in nothing but their plan"
            )


def _identity(record: RunRecord) -> dict[str, Any]:
    """What two runs must have in common."""
    network = {f"network {name}": record["network"][name] for name in ("name", "weights")}
    alike = {name: record[name] for name in ("scenario", "mode", "stack")}
    return {"provenance": record["provenance"], "board": record["board"], **network, **alike}


def _held(record: RunRecord) -> dict[str, Any]:
    clocks: Mapping[str, Any] = record.values.get("clocks") or {}
    return {"power mode": record["plan"].get("mode"), **{f"clocks {name}": value for name, value in clocks.items()}}


def _lines(a: Result, b: Result) -> tuple[Line, ...]:
    lines = [_line("samples_per_s", "samples/s", a["samples_per_s"], b["samples_per_s"])]
    latencies = a["latency_ms"] or {}, b["latency_ms"] or {}
    lines += [_line(f"latency {name}", "ms", latencies[0].get(name), latencies[1].get(name)) for name in LATENCIES]
    powers = [found["power_w"] or {"module": None, "rails": {}} for found in (a, b)]
    lines.append(_line("module", "W", powers[0]["module"], powers[1]["module"]))
    rails = [power["rails"] for power in powers]
    lines += [_line(name, "W", rails[0].get(name), rails[1].get(name)) for name in {**rails[0], **rails[1]}]
    lines.append(_line("samples_per_joule", "samples/J", a["samples_per_joule"], b["samples_per_joule"]))
    copied = "bytes_copied_per_sample"
    lines.append(_line(copied, "bytes", a[copied], b[copied]))
    return tuple(line for line in lines if line.a is not None or line.b is not None)


def _line(name: str, unit: str, a: Any, b: Any) -> Line:
    return Line(name, unit, a, b, ratio(a, b))


def ratio(a: Any, b: Any) -> Ratio | None:
    """Return b / a of two figures, plain or `{value, u95}`, errors independent; None without both or with a zero a."""
    if a is None or b is None:
        return None
    if not (isinstance(a, Mapping) and isinstance(b, Mapping)):
        low, high = (figure["value"] if isinstance(figure, Mapping) else figure for figure in (a, b))
        return Ratio(high / low) if low else None
    found = quantities(Quantity(**a), Quantity(**b))
    return Ratio(found.ratio.value, found.ratio.u95, found.resolved) if found.ratio else None
