"""`orin run`: answer a folder of photos with the pipeline."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from orin.cli.output import Talk, add_output_arguments, print_json
from orin.cli.plan_options import add_plan_arguments, plan_from


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_plan_arguments(parser, "resnet50")
    parser.add_argument("--board", metavar="BOARD", help="jetson, or virtual:agx-orin-64gb")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of JPEG and PNG photos")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.jsonl", help="one JSON line a photo")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from orin.bench import photos_in, run_folder
    from orin.boards import board_name, open_board
    from orin.build import Desk
    from orin.record import write_atomically

    talk = Talk(options.quiet)
    board = open_board(board_name(options.board, talk.say), "results")
    desk = Desk(photos=photos_in(options.data), say=talk.say, progress=talk.progress)
    results, built = run_folder(plan_from(options), board, desk)
    write_atomically(options.output, "".join(json.dumps(line) + "\n" for line in results))
    skipped = sum("skipped" in line for line in results)
    summary = {
        "output": str(options.output),
        "answered": len(results) - skipped,
        "skipped": skipped,
        "weights": built.weights,
        "board": board.name,
        "provenance": board.provenance,
    }
    if options.json:
        print_json(summary)
    else:
        print(
            f"{summary['answered']} photos answered, {skipped} skipped -> {options.output} "
            f"(weights: {built.weights}; no speed is reported)"
        )
    return 0
