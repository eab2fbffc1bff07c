"""The report: one self-contained page of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orin.plan import Plan
from orin.record import RunRecord
from orin.report.figures import ceiling, ceiling_line, rows, run_title, soc_of, state_line
from orin.report.pictures import COLOURS, pictures
from orin.report.text import DASH, milliseconds, number, percent, quantity, title
from orin.results import Result, batch_latencies_ms, result

_ELSEWHERE = ("state", "ceiling", "rails")  # rows that the page shows in another form


@dataclass(frozen=True)
class Table:
    """A titled table; without a header the first column holds the labels."""

    title: str
    rows: list[tuple[str, ...]]
    header: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tile:
    """One headline figure: its name, the figure, and a remark below it."""

    name: str
    text: str
    remark: str = ""


def page(record: RunRecord) -> str:
    """Return a run's report as HTML that needs no other file."""
    from jinja2 import Environment, StrictUndefined

    figures = result(record)
    source = resources.files("orin.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(source).render(
        title=title(record, run_title(record)),
        provenance=record["provenance"],
        state=state_line(record),
        utc=record["utc"],
        run=record["id"],
        tiles=_tiles(record, figures),
        ceiling=ceiling_line(record, figures),
        reached=_reached(record, figures),
        share=_share_bars(figures),
        pictures=pictures(record),
        tables=[table for table in _tables(record, figures) if table.rows],
        plan_title=title(record, "plan"),
        plan=Plan(**record["plan"]).dumps(),
    )


def _tiles(record: RunRecord, figures: Result) -> list[Tile]:
    if record["mode"] != "performance":
        return []
    power, reached = figures["power_w"], _reached(record, figures)
    missing = "" if power else "not measured"
    ceiling_remark = "" if reached is None else f"{percent(reached)} of the ceiling"
    return [
        Tile("samples per second", number(figures["samples_per_s"]), ceiling_remark),
        Tile("samples per joule", quantity(figures["samples_per_joule"]), missing or "samples per second per watt"),
        Tile("module watts", quantity(power["module"] if power else None), missing or "all rails that feed the module"),
    ]


def _reached(record: RunRecord, figures: Result) -> float | None:
    """Return the share of the ceiling that was reached; None where either is not known, or no speed is reported."""
    limit, speed = ceiling(record), figures["samples_per_s"]
    if limit is None or limit.samples_per_s is None or record["mode"] != "performance":
        return None
    return speed / limit.samples_per_s if speed else None


def _share_bars(figures: Result) -> list[tuple[str, str, float, str]]:
    """Name, colour, percent and text of each accelerator's part of the samples."""
    shares = figures["share"].items()
    return [(name, COLOURS[name], 100 * part, percent(part)) for name, part in shares if part]


def _tables(record: RunRecord, figures: Result) -> list[Table]:
    shown = [row for row in rows(record, figures) if row[0] not in _ELSEWHERE]
    return [
        Table(title(record, "figures"), [*shown]),
        _accelerators(record),
        _power(record),
        Table(title(record, "settings"), _settings(record)),
        Table(title(record, "LoadGen"), _flat(record.values.get("loadgen", {}))),
        Table(title(record, "environment"), _flat(record.values.get("environment", {}))),
    ]


def _accelerators(record: RunRecord) -> Table:
    header = ("", "work items", "samples", "p50", "p99", "busy")
    lines = [_accelerator(record, name) for name in Plan(**record["plan"]).accelerators]
    return Table(title(record, "accelerators"), [line for line in lines if line], header)


def _accelerator(record: RunRecord, name: str) -> tuple[str, ...] | None:
    batches = [batch for batch in record.batches if batch.accelerator == name]
    if not batches:
        return None
    p50, p99 = np.percentile(batch_latencies_ms(record, name), (50, 99))
    samples = sum(batch.samples for batch in batches)
    spans = np.array(sorted((batch.begin_ns, batch.end_ns) for batch in batches))
    whole_ns = max(b.end_ns for b in record.batches) - min(b.begin_ns for b in record.batches)
    busy = percent(busy_ns(spans) / whole_ns) if whole_ns else DASH
    return name, f"{len(batches):,}", f"{samples:,}", milliseconds(p50), milliseconds(p99), busy


def busy_ns(spans: NDArray[Any]) -> int:
    """Return the time that at least one of the spans [N,2], sorted by begin, covers."""
    ends = np.maximum.accumulate(spans[:, 1])
    before = np.concatenate((spans[:1, 0], ends[:-1]))
    return int(np.maximum(ends - np.maximum(spans[:, 0], before), 0).sum())


def _power(record: RunRecord) -> Table:
    power, soc = record.values.get("power"), soc_of(record)
    if not power:
        return Table("", [])
    meanings = {rail.name: rail.meaning for rail in soc.board.rails} if soc else {}
    rails = [(name, quantity(watts, "W"), meanings.get(name, "")) for name, watts in power["rails_w"].items()]
    extras = {
        "module": (power.get("module_w"), "W", "rails that feed the module, over the measuring window"),
        "module energy": (power.get("module_j"), "J", "over the measuring window"),
        "idle": (power.get("idle_w"), "W", "the module before the run, engines loaded"),
        "net energy": (power.get("net_j"), "J", "above idle"),
    }
    totals = [(name, quantity(found, unit), note) for name, (found, unit, note) in extras.items() if found]
    return Table(title(record, "power"), [*rails, *totals, *_quality(power)])


def _quality(power: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """How good the power figures are: readings, how much of the window they cover, the longest pause."""
    if power.get("samples") is None:
        return []
    coverage, gap_s = power.get("coverage"), power.get("largest_gap_s")
    notes = [f"{percent(coverage)} of the window" if coverage is not None else ""]
    notes.append(f"longest pause {milliseconds(1000 * gap_s)}" if gap_s is not None else "")
    return [("readings", f"{power['samples']:,}", ", ".join(filter(None, notes)))]


def _settings(record: RunRecord) -> list[tuple[str, ...]]:
    keys = ("scenario", "mode", "seconds", "settings", "clocks", "memory", "outputs", "tail")
    return _flat({key: record.values[key] for key in keys if key in record.values} | {"network": record["network"]})


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, ...]]:
    """Nested values as rows under dotted names; what a list holds is one row."""
    lines: list[tuple[str, ...]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{key}.")
        else:
            lines.append((f"{prefix}{key}", _words(value)))
    return lines


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_words, value)) or DASH
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_words(inner)}" for key, inner in value.items())
    return DASH if value is None else str(value)
