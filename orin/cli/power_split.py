"""`orin power split`: watts of GPU and DLAs by difference of four windows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from orin.cli.output import Talk, add_output_arguments, print_json, print_table
from orin.cli.plan_options import add_plan_arguments, plan_from

if TYPE_CHECKING:
    from orin.attribution import Split
    from power.quantity import Quantity

_LABELS = {
    "gpu_alone": "GPU alone",
    "dlas_alone": "DLAs alone",
    "dla_core_alone": "- one DLA core",
    "gpu_on_top": "GPU on top of DLAs",
    "dlas_on_top": "DLAs on top of GPU",
    "dla_core_on_top": "- one DLA core",
    "interaction": "all beyond the sum",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_plan_arguments(parser, "resnet50")
    parser.add_argument("--mode", help="nvpmodel mode to hold: MAXN, 50W, 30W, 15W; without: nothing is changed")
    parser.add_argument("--board", metavar="BOARD", help="jetson, or virtual:agx-orin-64gb")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="length of each of four windows (10)")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="how often the four are measured (1)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="photos; without: those in scikit-image's wheel")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from orin.attribution import measure, orders, prepare
    from orin.bench import check_seconds, photos_in
    from orin.boards import board_name, open_board
    from orin.build import Desk

    talk = Talk(options.quiet)
    seconds = check_seconds(options.seconds)
    orders(options.rounds)  # refused before engines are built
    plan = plan_from(options)
    board = open_board(board_name(options.board, talk.say), "speed")
    desk = Desk(photos=photos_in(options.data), say=talk.say, progress=talk.progress)
    split = measure(plan, board, prepare(plan, desk, seconds, options.rounds))
    if options.json:
        print_json(split.as_json())
    else:
        print_split(split)
    return 0


def print_split(split: Split) -> None:
    """Print what each accelerator adds, to the module and to each of its rails, and the rates of each window."""
    found = split.attribution
    rails = split.rounds[0].windows["idle"].module_rails
    simulated = "SIMULATED: " if split.provenance == "simulated" else ""
    rows = [
        (_LABELS[name], difference(draw.module_w), *(difference(draw.rails_w[rail]) for rail in rails))
        for name, draw in found.draws().items()
    ]
    of = f"{found.rounds} rounds" if found.rounds > 1 else "one round"
    title = f"{simulated}{split.plan.network} on {split.board}: watts by difference, ± 95 %, {of}"
    print_table(title, rows, ("", "module", *rails))
    print(
        f"\nidle {_plain(found.idle_w)} W, all {_plain(found.all_w)} W; alone: over idle; beyond the sum: of each alone"
    )
    print("not resolved: no larger than its own uncertainty")
    costs = split.mj_per_sample().items()
    print("over idle: " + ", ".join(f"{name} {_plain(cost) if cost else '–'} mJ/sample" for name, cost in costs))
    for name, rates in split.samples_per_s.items():
        if rates:
            shown = ", ".join(f"{accelerator} {rates[accelerator]:,.0f} samples/s" for accelerator in sorted(rates))
            print(f"window {name!r}: {shown}")
    if split.pace:
        print(f"not to be trusted: {split.pace}")


def difference(watts: Quantity) -> str:
    """Format a difference; one that lies within its uncertainty has no value."""
    return _plain(watts) if watts.is_resolved else "not resolved"


def _plain(watts: Quantity) -> str:
    return f"{watts.value:.2f} ± {watts.u95:.2f}"
