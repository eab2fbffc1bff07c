"""`orin power watch`: rails, clocks and temperatures as they are, and the energy since the start."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from orin.cli.output import WIDTH, Talk, add_output_arguments, print_json

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from orin.watch import Watched
    from power.reading import Reading
    from power.running import RunningEnergy, Track

SOURCES = ("auto", "tegrastats", "hwmon", "jtop")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--source", choices=SOURCES, default="auto", help="what reads the rails (auto: first to answer)"
    )
    parser.add_argument("--board", metavar="BOARD", help="virtual:agx-orin-64gb, or whose rails these are")
    parser.add_argument("--interval", type=float, metavar="MS", help="between readings (500)")
    parser.add_argument("--seconds", type=float, metavar="S", help="how long; without: until Ctrl-C")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from rich.console import Console
    from rich.live import Live

    from orin.watch import Request, watch

    interval_ms, seconds = (_positive(options, name) for name in ("interval", "seconds"))
    request = Request(options.board, options.source, interval_ms, seconds)
    if options.json:
        print_json(watch(request, lambda board: None).as_json())
        return 0
    console = Console(width=WIDTH, highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        watch(request, lambda board: live.update(view(board), refresh=True))
    if not console.is_terminal:
        print()  # after the last picture, which ends without one
    Talk(options.quiet).say("stopped; --json prints these figures with their uncertainty")
    return 0


def _positive(options: argparse.Namespace, name: str) -> float | None:
    from orin.errors import OrinError

    value: float | None = getattr(options, name)
    if value is not None and not 0 < value < float("inf"):
        raise OrinError(f"--{name} is {value:g}, expected a positive number")
    return value


def view(board: Watched) -> Group:
    """Return the picture of this moment."""
    from rich.console import Group
    from rich.text import Text

    energy = board.energy
    simulated = "SIMULATED: " if board.provenance == "simulated" else ""
    title = f"{simulated}{board.board}, {energy.seconds:.1f} s, {energy.readings} readings"
    below = [_clocks(energy.last), _zones(energy.last)] if energy.last else []
    return Group(Text(title), _rails(energy), *(Text(line) for line in below if line))


def _rails(energy: RunningEnergy) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("rail", "now, W", "mean, W", "since start, J"):
        table.add_column(column, justify="left" if column == "rail" else "right")
    for name, track in energy.rails.items():
        table.add_row(name, *_figures(track))
    # no figure where not all of the module's rails are shown, or they are no known board's
    table.add_row("module", *(_figures(energy.module) if energy.module else ("–", "–", "–")), style="bold")
    return table


def _figures(track: Track) -> tuple[str, str, str]:
    return f"{track.now_mw / 1e3:.2f}", f"{track.mean_w:.2f}", f"{track.joules:.1f}"


def _clocks(reading: Reading) -> str:
    """Return clocks and loads that were printed, in one line."""
    cores = [core for core in reading.cpus or () if core is not None]
    words = []
    if cores:
        loads = [core.percent or 0 for core in cores]
        words.append(f"CPU {len(cores)} on, {sum(loads) / len(loads):.0f} %{_mhz(cores[0].mhz)}")
    if reading.gpu is not None:
        words.append(f"GPU{_percent(reading.gpu.percent)}{_mhz(next(iter(reading.gpu.mhz or ()), None))}")
    if reading.emc is not None:
        words.append(f"EMC{_percent(reading.emc.percent)}{_mhz(reading.emc.mhz)}")
    words += [f"{name}{_percent(load.percent)}{_mhz(load.mhz)}" for name, load in reading.engines.items() if load]
    return "   ".join(words)


def _percent(percent: int | None) -> str:
    return "" if percent is None else f" {percent} %"


def _mhz(mhz: int | None) -> str:
    return "" if mhz is None else f" {mhz} MHz"


def _zones(reading: Reading) -> str:
    return "   ".join(f"{name} {zone.now_c:g} °C" for name, zone in reading.temperatures_c.items() if zone is not None)
