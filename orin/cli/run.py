"""`orin run`: answer a folder of photos with the pipeline."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from orin.cli.output import Talk, add_output_arguments, check_file, print_json
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
    from orin.answer import answers
    from orin.bench import photos_in
    from orin.boards import board_name, open_board
    from orin.build import Desk, build_engines

    talk = Talk(options.quiet)
    check_file(options.output)
    board = open_board(board_name(options.board, talk.say), "results")
    plan = plan_from(options)
    desk = Desk(photos=photos_in(options.data), say=talk.say, progress=talk.progress)
    built = build_engines(plan, desk, board.name)
    answered = skipped = 0
    # Lines are on disk as they come; the name is the final one only when all are.
    part = options.output.with_name(options.output.name + ".part")
    with part.open("w", encoding="utf-8", buffering=1) as file:
        for answer in answers(plan, board, desk, built):
            file.write(json.dumps(answer) + "\n")
            skipped += "skipped" in answer
            answered += "skipped" not in answer
            talk.progress("photos", answered + skipped, len(desk.photos))
    part.replace(options.output)
    summary = {
        "output": str(options.output),
        "answered": answered,
        "skipped": skipped,
        "weights": built.weights,
        "tail": plan.tail,
        "board": board.name,
        "provenance": board.provenance,
    }
    if options.json:
        print_json(summary)
    else:
        print(
            f"{answered} photos answered, {skipped} skipped -> {options.output} "
            f"(weights: {built.weights}; no speed is reported)"
        )
    return 0
