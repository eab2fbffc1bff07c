"""Published against predicted: tables, a picture of predicted over published, and the page that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Any

from orin.published.reproduce import Reproduced, Reproduction, Succession
from orin.record import write_atomically
from orin.report import REPORT
from orin.report.page import Table, Tile
from orin.report.pictures import INK, STYLE, Picture, new_figure, svg_element
from orin.report.text import number

SPEED_HEADER = ("", "published", "predicted", "unit", "error", "")
POWER_HEADERS = {
    "module": ("watts of the module", "published", "predicted", "error", ""),
    "wall": ("watts at the plug", "published", "predicted", "error", ""),
}
SUMMARY_HEADER = ("", "rows", "networks", "median", "worst", "", "in u95")
RATIO_HEADER = ("Orin over Xavier", "faster", "predicted", "per watt", "predicted")
CLAIM_HEADER = ("claims", "claimed", "published rows", "predicted")
ROLES = {"fit": "fitted", "aside": "aside"}
CHECK_COLOUR, FIT_COLOUR, BAND_COLOUR = "#2c62a8", "#9aa0a8", "#eef3f8"
BAND = 0.1  # shaded either side of 1
READING = (
    "Predicted figures are those of the virtual Orin: simulated. Rows marked 'fitted' are among the data that its\n"
    "parameters were fitted on and say nothing of its errors; 'aside' rows count in no summary. The median is that\n"
    "of each network's own median. Watts at the plug are the predicted module's and one constant a set-up."
)


def speed_rows(table: Reproduction) -> list[tuple[str, ...]]:
    """Return a row for each published figure, as `SPEED_HEADER` names the columns."""
    return [
        (one.row.id, number(one.row.published), number(one.predicted), one.row.unit, _percent(one.error), _remark(one))
        for one in table.rows
    ]


def power_rows(table: Reproduction) -> dict[str, list[tuple[str, ...]]]:
    """Return a row for each published wattage by its place, as `POWER_HEADERS` names places and columns."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for one in table.rows:
        for place, published_w, predicted_w, error in (
            ("module", one.row.module_w, one.module_w, one.module_error),
            ("wall", one.row.wall_w, one.wall_w, one.wall_error),
        ):
            if published_w is not None and predicted_w is not None and error is not None:
                figure = f"{predicted_w.value:.1f} ± {predicted_w.u95:.1f}"
                row = (one.row.id, number(published_w), figure, _percent(error), _remark(one))
                found.setdefault(place, []).append(row)
    return found


def summary_rows(table: Reproduction) -> list[tuple[str, ...]]:
    """Return a row for each quantity and role, as `SUMMARY_HEADER` names the columns."""
    return [
        (
            f"{one.quantity}, {ROLES.get(one.role, 'checked')}",
            str(one.rows),
            str(one.networks),
            f"{one.median:.1%}",
            _percent(one.worst),
            one.worst_id,
            f"{one.inside:.0%}",
        )
        for one in table.summaries
    ]


def remarks(table: Reproduction) -> list[str]:
    """Return in full why rows stand aside."""
    return [f"{one.row.id}: {one.row.remark}" for one in table.rows if one.row.remark]


def ratio_rows(found: Succession) -> list[tuple[str, ...]]:
    """Return a row for each network, as `RATIO_HEADER` names the columns."""
    return [
        (
            one.network,
            *(f"{ratio:.2f}x" for ratio in (one.published_faster, one.predicted_faster)),
            *(f"{ratio:.2f}x" for ratio in (one.published_per_watt, one.predicted_per_watt)),
        )
        for one in found.ratios
    ]


def claim_rows(found: Succession) -> list[tuple[str, ...]]:
    """Return a row for each claim, as `CLAIM_HEADER` names the columns."""
    return [
        (claim.name, *(f"{ratio:.2f}x" for ratio in (claim.claimed, claim.published, claim.predicted)))
        for claim in found.claims
    ]


def table_title(table: Reproduction) -> str:
    """Return a table's title: what was published, and with which stack it is predicted."""
    return f"{table.table.title}: stack {table.table.stack}"


def ratio_picture(tables: Sequence[Reproduction]) -> Picture:
    """Draw predicted over published, a line for each network, a dot for each row."""
    import matplotlib

    rows = [row for table in tables for row in table.rows if row.row.role != "aside"]
    networks = sorted({row.row.network for row in rows}, reverse=True)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(1.1 + 0.36 * len(networks))
        axes = figure.add_subplot()
        axes.axvspan(1 - BAND, 1 + BAND, color=BAND_COLOUR, lw=0)
        axes.axvline(1.0, color=INK, lw=0.8)
        for role in ("fit", "check"):
            _dots(axes, [row for row in rows if row.row.role == role], networks, role)
        axes.set_xscale("log")
        ticks = [0.33, 0.5, 0.7, 0.9, 1.0, 1.1, 1.5, 2.0, 3.0]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_yticks(range(len(networks)), networks)
        axes.set_ylim(-0.6, len(networks) - 0.4)
        axes.set_xlabel("predicted over published")
        axes.set_title("SIMULATED: the virtual Orin against published rows")
        caption = f"A dot is a published row. Grey: fitted. Blue: checked. Shaded: within {BAND:.0%}."
        return Picture(svg_element(figure, "reproduced"), caption)


def _dots(axes: Any, rows: Sequence[Reproduced], networks: Sequence[str], role: str) -> None:
    colour, lift = (FIT_COLOUR, 0.14) if role == "fit" else (CHECK_COLOUR, -0.14)
    ratios = [1 + row.error for row in rows]
    places = [networks.index(row.row.network) + lift for row in rows]
    axes.plot(ratios, places, "o", color=colour, ms=4.5, alpha=0.75, mew=0)


def write_reproduction(folder: Path, tables: Sequence[Reproduction], found: Succession | None) -> Path:
    """Write `report.html` into a folder and return its path; OSError where the folder takes no file."""
    from jinja2 import Environment, StrictUndefined

    source = resources.files("orin.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    path = folder / REPORT
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, template.from_string(source).render(_context(tables, found)))
    return path


def _context(tables: Sequence[Reproduction], found: Succession | None) -> dict[str, Any]:
    return {
        "title": "SIMULATED: the virtual Orin against published results",
        "provenance": "simulated",
        "state": None,
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "run": ", ".join(table.table.name for table in tables),
        "tiles": [tile for table in tables for tile in _tiles(table)],
        "ceiling": None,
        "reached": None,
        "share": [],
        "pictures": [ratio_picture(tables)] if tables else [],
        "tables": [part for part in (*_tables(tables), *_succession_tables(found)) if part.rows],
        "plan_title": "how to read this page",
        "plan": READING,
    }


def _tiles(table: Reproduction) -> list[Tile]:
    remark = "median error of the rows that were not fitted"
    return [
        Tile(f"{table.table.name}, {one.quantity}", f"{one.median:.1%}", remark)
        for one in table.summaries
        if one.role == "check"
    ]


def _tables(tables: Sequence[Reproduction]) -> list[Table]:
    found = []
    for table in tables:
        found += [
            Table(f"SIMULATED: {table_title(table)}", speed_rows(table), SPEED_HEADER),
            *(Table("", rows, POWER_HEADERS[place]) for place, rows in power_rows(table).items()),
            Table("", summary_rows(table), SUMMARY_HEADER),
            Table("aside", [(line, "") for line in remarks(table)]),
        ]
    return found


def _succession_tables(found: Succession | None) -> list[Table]:
    if found is None:
        return []
    return [
        Table(f"SIMULATED: {found.generations.title}", ratio_rows(found), RATIO_HEADER),
        Table("", claim_rows(found), CLAIM_HEADER),
    ]


def _percent(error: float) -> str:
    return f"{error:+.1%}"


def _remark(one: Reproduced) -> str:
    return ROLES.get(one.row.role, "")
