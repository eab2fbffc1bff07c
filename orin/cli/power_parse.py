"""`orin power parse`: a log of tegrastats as JSON Lines."""

from __future__ import annotations

import argparse
import json

from orin.cli.output import Talk, add_output_arguments
from orin.cli.power_file import add_file, lines_of


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_file(parser)
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command: one object a line, `--json` or not, each as soon as its record is complete."""
    from power.boards import board
    from power.reading import parse_log

    facts = None if options.board is None else board(options.board)
    records = skipped = 0
    with lines_of(options.file) as lines:
        for line, reading in parse_log(lines):
            if reading is None:
                skipped += 1
                continue
            print(json.dumps({"line": line, **reading.as_json(facts)}), flush=True)
            records += 1
    Talk(options.quiet).say(f"{records} records, {skipped} lines that are none")
    return 0
