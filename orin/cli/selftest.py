"""`orin selftest`: build, run, measure and compare with the virtual board, in one file that can be sent back."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orin.cli.output import Talk, add_output_arguments, check_file, print_json, print_table

if TYPE_CHECKING:
    from orin.board import Board
    from orin.selftest import Selftest

HEADER = ("run", "", "seen", "virtual board", "off")
FIGURES = {"samples_per_s": "samples/s", "latency_p50_ms": "p50, ms", "module_w": "module, W"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--board", metavar="BOARD", help="jetson, or virtual:agx-orin-64gb")
    parser.add_argument("--quick", action="store_true", help="a small network and a second a run, to see that it works")
    parser.add_argument("--data", type=Path, metavar="DIR", help="photos; without: those in scikit-image's wheel")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where records go (runs)")
    parser.add_argument("-o", "--output", type=Path, default=Path("orin-selftest.zip"), metavar="ZIP", help="the file")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command; exit code 1 where a part failed."""
    from orin.bench import photos_in
    from orin.boards import board_name, open_board
    from orin.build import Desk
    from orin.doctor import examine
    from orin.selftest import pack, selftest

    talk = Talk(options.quiet)
    check_file(options.output)
    desk = Desk(photos=photos_in(options.data), say=talk.say, progress=talk.progress)
    name = board_name(options.board, talk.say)
    board = open_board(name, "speed")  # what a board lacks is said first

    def opened() -> Board:
        return board if board.provenance == "measured" else open_board(name, "speed")

    talk.say("looking at this machine")
    tested = selftest(_asked(options), opened, desk, examine())
    pack(tested, options.output)
    if options.json:
        print_json({"passed": tested.passed, "file": str(options.output), **tested.values})
    else:
        _print(tested.values, options.output)
    return 0 if tested.passed else 1


def _asked(options: argparse.Namespace) -> Selftest:
    from orin.selftest import QUICK_NETWORK, QUICK_SECONDS, Selftest

    if options.quick:
        return Selftest(QUICK_NETWORK, QUICK_SECONDS, idle_s=0.0, runs=options.runs)
    return Selftest(runs=options.runs)


def _print(values: Mapping[str, Any], file: Path) -> None:
    what = "SIMULATED" if values["provenance"] == "simulated" else "measured"
    print_table(f"{what}: {values['network']} on {values['board']}", list(_rows(values)), HEADER)
    for name, check in values["checks"].items():
        print(f"{name}: {check.get('error') or '; '.join(check.get('doubts', ())) or _said(check)}")
    print(f"\n{file}: everything above, raw data and `orin doctor`; no photos, no names. Please send it back.")


def _rows(values: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for run in values["runs"]:
        if "error" in run:
            yield (run["name"], "failed", "", "", run["error"])
            continue
        figures = [(title, run[key]) for key, title in FIGURES.items() if run[key] is not None]
        for index, (title, figure) in enumerate(figures):
            off = "–" if figure["off"] is None else f"{figure['off']:+.1%}"
            yield (run["name"] if not index else "", title, _figure(figure["seen"]), _figure(figure["virtual"]), off)
        if run["pace"]:
            yield ("", "pace", "", "", run["pace"])


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def _said(check: Mapping[str, Any]) -> str:
    if "fastest" in check:
        return f"{check['fastest']} is the fastest"
    figures = ((name, found.values()) for name, found in check["sqnr_db"].items())
    return "; ".join(f"{name} {', '.join(map(str, values))} dB from ONNX Runtime's" for name, values in figures)
