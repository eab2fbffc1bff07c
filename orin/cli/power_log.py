"""`orin power log`: power and energy from a log that tegrastats wrote, with how far it can be trusted."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orin.cli.output import Talk, add_output_arguments, print_json, print_table
from orin.cli.power_file import add_file, lines_of

if TYPE_CHECKING:
    from power.analysis import LogAnalysis
    from power.clock_drops import ClockDrop
    from power.external import WallEnergy
    from power.quantity import Quantity


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_file(parser)
    at = "seconds from the first record, or a timestamp as printed"
    parser.add_argument("--from", dest="begin", metavar="T", help=f"begin of the window: {at}")
    parser.add_argument("--to", dest="end", metavar="T", help="end of the window, likewise")
    parser.add_argument("--interval", type=float, metavar="MS", help="time between the lines (default: by timestamps)")
    parser.add_argument("--meter", type=Path, metavar="FILE", help="of a meter at the wall: CSV, or PTDaemon's spl.txt")
    parser.add_argument(
        "--meter-ahead", type=float, default=0.0, metavar="S", help="how far its clock is ahead of the log's (0)"
    )
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from orin.wall import log_provenance
    from power.analysis import Question, analyse
    from power.boards import board
    from power.log import read_log

    facts = None if options.board is None else board(options.board)
    question = Question(facts, options.begin, options.end, options.interval)
    with lines_of(options.file) as lines:
        log = read_log(options.file, lines)
    analysis = analyse(log, question)
    wall = _wall(options, analysis)
    provenance = log_provenance(Path(options.file))
    if options.json:
        print_json({"provenance": provenance, **analysis.as_json(), "wall": wall and wall.as_json()})
    else:
        print_table(_title(analysis, provenance), _rail_rows(analysis) + _wall_rows(wall), _HEADER)
        talk = Talk(options.quiet)
        for line in _notes(analysis) + _wall_notes(wall):
            talk.say(line)
    return 0


def _wall(options: argparse.Namespace, analysis: LogAnalysis) -> WallEnergy | None:
    from orin.wall import wall_energy

    if options.meter is None:
        return None
    return wall_energy(options.meter, Path(options.file), analysis, options.meter_ahead)


def _title(analysis: LogAnalysis, provenance: str | None) -> str:
    of = f", {analysis.modules}" if analysis.modules else ""
    span = "" if analysis.seconds is None else f", {analysis.seconds:g} s"
    simulated = "SIMULATED: " if provenance == "simulated" else ""
    return f"{simulated}{analysis.log}: {analysis.records} records{of}{span}"


_HEADER = ("", "mean", "min", "max", "values", "step", "energy")


def _rail_rows(analysis: LogAnalysis) -> list[tuple[str, ...]]:
    energy = analysis.energy
    powers: Mapping[str, Quantity] = energy.rails_w if energy else {}
    joules: Mapping[str, Quantity] = energy.rails_j if energy and analysis.times.reason is None else {}
    rows = [
        (
            name if rail.counted or analysis.no_total else f"{name} (a part)",
            _figure(powers.get(name), "W", f"{rail.mean_w:.2f} W"),
            f"{rail.min_w:.2f}",
            f"{rail.max_w:.2f}",
            f"{rail.distinct} of {rail.samples}",
            "–" if math.isnan(rail.step_w) else f"{rail.step_w:.3f} W",
            _figure(joules.get(name), "J"),
        )
        for name, rail in analysis.rails.items()
    ]
    module = (
        _figure(energy.module_w if energy else None, "W"),
        _figure(energy.module_j if energy and joules else None, "J"),
    )
    return [*rows, ("module", module[0], "", "", "", "", module[1])]


def _wall_rows(wall: WallEnergy | None) -> list[tuple[str, ...]]:
    if wall is None:
        return []
    return [("wall", _figure(wall.wall_w, "W"), "", "", f"{wall.samples} samples", "", _figure(wall.wall_j, "J"))]


def _wall_notes(wall: WallEnergy | None) -> list[str]:
    if wall is None:
        return []
    return [
        f"wall: {wall.source}, {wall.missed} samples missed, coverage {wall.coverage:.1%}; supply, carrier board and "
        "devices are in it, so it is no module's figure"
    ]


def _figure(quantity: Quantity | None, unit: str, missing: str = "–") -> str:
    """Return value and u95; the value alone where the sensor's step is not known."""
    if quantity is None:
        return missing
    u95 = "" if math.isnan(quantity.u95) else f" ± {quantity.u95:.2f}"
    return f"{quantity.value:.2f}{u95} {unit}"


def _notes(analysis: LogAnalysis) -> list[str]:
    from power.clock_drops import NOT_THE_SOC

    notes = [f"module: {analysis.no_total or 'sum of ' + ' + '.join(analysis.module_rails)}"]
    if analysis.no_energy:
        notes.append(f"no energy: {analysis.no_energy}")
    elif energy := analysis.energy:
        edge = f"with the sensor's edge term, tau {energy.tau_s:.2f} s" if energy.edge_term else "without edge term"
        notes.append(
            f"times by {analysis.times.source}; coverage {energy.coverage:.1%}, "
            f"largest gap {energy.largest_gap_s:.2g} s; energy {edge}"
        )
    notes += [f"line {line}: tegrastats was restarted" for line in analysis.restarts]
    notes += [f"line {line}: at least {lines} lines are missing before it" for line, lines in analysis.dropped.items()]
    notes += [f"line {line}: its averages do not follow from those before it" for line in analysis.unexplained]
    if analysis.skipped:
        notes.append(f"{analysis.skipped} lines are no readings")
    highest_c = {name: high for name, (_, _, high) in analysis.temperatures_c.items() if name not in NOT_THE_SOC}
    if highest_c:
        hottest = max(highest_c, key=lambda name: highest_c[name])
        notes.append(f"hottest zone: {hottest}, {highest_c[hottest]:g} C at most")
    return notes + [_drop_note(drop) for drop in analysis.clock_drops]


def _drop_note(drop: ClockDrop) -> str:
    records = f"{drop.records} of {drop.busy} busy records"
    seen = f"{drop.clock} clock down to {drop.lowest_mhz} from {drop.full_mhz} MHz in {records}"
    if drop.full_c is None or drop.dropped_c is None:
        return seen
    cause = "throttled by heat?" if drop.is_hotter else "no hotter then: a power cap, or the governor"
    return f"{seen}, at {drop.dropped_c:.1f} C against {drop.full_c:.1f} C ({cause})"
