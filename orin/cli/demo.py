"""`orin demo`: the main job on this machine, from photos to a report."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from orin.cli.output import Talk, add_output_arguments, print_json

if TYPE_CHECKING:
    from orin.plan import Plan


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--board", metavar="BOARD", help="jetson, or virtual:agx-orin-64gb")
    parser.add_argument("--data", type=Path, metavar="DIR", help="photos; without: those in scikit-image's wheel")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="length of the run (10)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where records go (runs)")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from orin.bench import Bench, bench, check_seconds, photos_in
    from orin.boards import board_name, open_board
    from orin.build import Desk
    from orin.cli.show import print_result
    from orin.plan import Plan
    from orin.report import write_report
    from orin.results import result

    talk = Talk(options.quiet)
    begin = time.monotonic()
    seconds = check_seconds(options.seconds)
    board = open_board(board_name(options.board, talk.say), "speed")
    plan = Plan(stack="mlperf-v3.0", mode="MAXN")
    desk = Desk(photos=photos_in(options.data), say=talk.say, progress=talk.progress)
    _say_placement(plan, talk)
    record = bench(plan, board, desk, Bench("offline", seconds, options.runs))
    write_report(record)
    talk.say(f"demo took {time.monotonic() - begin:.1f} s, {seconds:g} s of them the run itself")
    if options.json:
        print_json(result(record))
    else:
        print_result(record)
        _say_next(record.folder, board.soc.name)
    return 0


def _say_placement(plan: Plan, talk: Talk) -> None:
    """Say what the DLA takes of the network before and after the plan's rewrites."""
    import dataclasses

    from engines.zoo import model
    from orin.build import dla_network

    untouched = model(plan.network, None, with_weights=False)
    _, _, before = dla_network(dataclasses.replace(plan, rewrites=()), untouched)
    _, _, after = dla_network(plan, untouched)
    talk.say(
        f"DLA placement of {plan.network}: {len(before.gpu_layers)} layers fall back to the GPU "
        f"({', '.join(before.gpu_layers)}); rewritten: {len(after.gpu_layers)}, {len(after.loadables)} loadable"
    )


def _say_next(folder: Path, soc: str) -> None:
    orin = "orin" if shutil.which("orin") else os.path.relpath(sys.argv[0])
    lines = {
        f"{orin} bench --plan {folder / 'plan.yaml'} --gpu-batch 0": "the two DLAs alone",
        f"{orin} predict resnet50 --board {soc} --mode 30W": "another power mode, in a second",
        f"{orin} doctor": "what this machine has and lacks",
    }
    print("\nTry next:")
    for command, why in lines.items():
        print(f"  # {why}\n  {command}")
