"""A sweep's report: throughput against power with the Pareto front, and the table of runs, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Any

from orin.outcome import Outcome, best, front, versus
from orin.record import write_atomically
from orin.report import REPORT
from orin.report.page import Table, Tile
from orin.report.pictures import INK, STYLE, Picture, new_figure, svg_element
from orin.report.text import DASH, number, quantity

HEADER = ("run", "samples/s", "module W", "samples/J", "vs best", "remarks")
FRONT_COLOUR, OTHER_COLOUR, FLAG_COLOUR = "#2c62a8", "#8b8f96", "#b4470e"
_HEIGHT_IN = 4.2


def write_sweep_report(folder: Path, outcomes: Sequence[Outcome], chosen: Outcome | None) -> Path:
    """Write `report.html` into the sweep's folder and return its path; OSError where the folder takes no file."""
    from jinja2 import Environment, StrictUndefined

    source = resources.files("orin.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    path = folder / REPORT
    write_atomically(path, template.from_string(source).render(_context(folder, outcomes, chosen)))
    return path


def sweep_title(outcomes: Sequence[Outcome], words: str) -> str:
    """Return a title that says SIMULATED where the runs were."""
    simulated = any(one.record and one.record["provenance"] == "simulated" for one in outcomes)
    return f"SIMULATED: {words}" if simulated else words


def sweep_rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """Return a row for each run, as `HEADER` names the columns."""
    top, on_front = best(outcomes), front(outcomes)
    return [_row(one, top, one.number in on_front) for one in outcomes]


def remarks(one: Outcome) -> list[str]:
    """Return in full why a run has no figures, or why they are not to be trusted."""
    return [one.failure] if one.failure else list(one.flags)


def _row(one: Outcome, top: Outcome | None, on_front: bool) -> tuple[str, ...]:
    power, efficiency = one.module_w, one.samples_per_joule
    words = ["Pareto front"] if on_front else ["failed"] if one.failure else [flag.split(":")[0] for flag in one.flags]
    return (
        f"{one.number}: {one.candidate.name}",
        number(one.samples_per_s),
        quantity(power.as_json()) if power else DASH,
        quantity(efficiency.as_json()) if efficiency else DASH,
        versus(one, top) if top and not one.flags else DASH,
        ", ".join(words),
    )


def pareto_picture(outcomes: Sequence[Outcome]) -> Picture | None:
    """Draw samples per second over watts, u95 as bars; None where no run has both."""
    import matplotlib

    shown = [one for one in outcomes if one.samples_per_s is not None and one.module_w is not None]
    if not shown:
        return None
    with matplotlib.rc_context(STYLE):
        figure = new_figure(_HEIGHT_IN)
        axes = figure.add_subplot()
        on_front = front(outcomes)
        for one in shown:
            _point(axes, one, one.number in on_front)
        _line(axes, [one for one in shown if one.number in on_front])
        axes.set(xlabel="module power, W", ylabel="samples per second")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.12, y=0.1)
        axes.set_title(sweep_title(outcomes, "throughput and power"))
        caption = (
            "Bars are 95 % intervals. Blue: on the Pareto front, no other run is as fast with less power. Orange: "
            "flagged, see the table. The number is the run's; efficiency is the slope of the line from the origin."
        )
        return Picture(svg_element(figure, "pareto"), caption)


def _point(axes: Any, one: Outcome, on_front: bool) -> None:
    power = one.module_w
    assert power is not None
    colour = FLAG_COLOUR if one.flags else FRONT_COLOUR if on_front else OTHER_COLOUR
    axes.errorbar([power.value], [one.samples_per_s], xerr=[power.u95], fmt="o", color=colour, ms=5, capsize=2, lw=1)
    axes.annotate(
        f"{one.number}: {one.candidate.name}",
        (power.value, one.samples_per_s),
        xytext=(5, 5),
        textcoords="offset points",
        fontsize=8,
        color=INK,
    )


def _line(axes: Any, on_front: Sequence[Outcome]) -> None:
    points = sorted((one.module_w.value, one.samples_per_s) for one in on_front if one.module_w)
    axes.plot(*zip(*points), color=FRONT_COLOUR, lw=1, alpha=0.5, zorder=0)


def _context(folder: Path, outcomes: Sequence[Outcome], chosen: Outcome | None) -> Mapping[str, Any]:
    measured = [one.record for one in outcomes if one.record]
    networks = dict.fromkeys(one.candidate.plan.network for one in outcomes)
    boards = dict.fromkeys(record["board"] for record in measured)
    words = f"{', '.join(networks)} on {', '.join(boards)}: power modes and plans"
    picture = pareto_picture(outcomes)
    failed = [one.candidate.name for one in outcomes if one.failure]
    return {
        "title": sweep_title(outcomes, words),
        "provenance": measured[0]["provenance"] if measured else "nothing measured",
        "state": f"{len(failed)} of {len(outcomes)} runs failed: {', '.join(failed)}" if failed else None,
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "run": folder.name,
        "tiles": _tiles(outcomes),
        "ceiling": None,
        "reached": None,
        "share": [],
        "pictures": [picture] if picture else [],
        "tables": [table for table in _tables(outcomes) if table.rows],
        "plan_title": f"plan of run {chosen.number}, the one chosen" if chosen else "plans",
        "plan": chosen.candidate.plan.dumps() if chosen else "none is chosen",
    }


def _tiles(outcomes: Sequence[Outcome]) -> list[Tile]:
    top = best(outcomes)
    if top is None or top.samples_per_joule is None or top.module_w is None:
        return []
    return [
        Tile("most samples per joule", quantity(top.samples_per_joule.as_json()), f"run {top.number}"),
        Tile("its samples per second", number(top.samples_per_s), top.candidate.name),
        Tile("its module watts", quantity(top.module_w.as_json()), "all rails that feed the module"),
    ]


def _tables(outcomes: Sequence[Outcome]) -> list[Table]:
    lines = [(str(one.number), line) for one in outcomes for line in remarks(one)]
    runs = Table(sweep_title(outcomes, "runs"), sweep_rows(outcomes), HEADER)
    return [runs, Table("remarks", [*lines], ("", "why")), _starts(outcomes)]


def _starts(outcomes: Sequence[Outcome]) -> Table:
    """How warm each run began, where the board tells; which record it is."""
    rows = [
        (
            str(one.number),
            DASH if one.start.hottest_c is None else f"{one.start.hottest_c:.1f} °C",
            f"{one.start.waited_s:g} s",
            one.record.folder.name,
        )
        for one in outcomes
        if one.start and one.record
    ]
    return Table("start of each run", [*rows], ("", "hottest zone", "waited", "record"))
