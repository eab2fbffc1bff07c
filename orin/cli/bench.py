"""`orin bench`: run a plan under LoadGen and keep a record."""

from __future__ import annotations

import argparse
from pathlib import Path

from orin.cli.output import Talk, add_output_arguments, print_json
from orin.cli.plan_options import add_plan_arguments, plan_from
from orin.mlperf import SCENARIOS, check_qps


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_plan_arguments(parser, "resnet50")
    parser.add_argument("--mode", help="nvpmodel mode to hold: MAXN, 50W, 30W, 15W; without: nothing is changed")
    parser.add_argument("--board", metavar="BOARD", help="jetson, or virtual:agx-orin-64gb")
    parser.add_argument("--scenario", choices=SCENARIOS, default="offline")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="length of the run (MLPerf: 600)")
    parser.add_argument("--qps", type=float, metavar="N", help="Server: queries per second to offer")
    parser.add_argument("--data", type=Path, metavar="DIR", help="photos; without: those in scikit-image's wheel")
    parser.add_argument("--accuracy", action="store_true", help="compute every answer, report no speed")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where records go (runs)")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from orin.bench import Bench, bench, check_seconds, photos_in
    from orin.boards import board_name, open_board
    from orin.build import Desk
    from orin.cli.show import print_result
    from orin.report import write_report
    from orin.results import result

    talk = Talk(options.quiet)
    seconds = check_seconds(options.seconds)
    qps = check_qps(options.qps, options.scenario)
    plan = plan_from(options)
    board = open_board(board_name(options.board, talk.say), "results" if options.accuracy else "speed")
    desk = Desk(photos=photos_in(options.data), say=talk.say, progress=talk.progress)
    asked = Bench(options.scenario, seconds, options.runs, options.accuracy, qps)
    record = bench(plan, board, desk, asked)
    write_report(record)
    if options.json:
        print_json(result(record))
    else:
        print_result(record)
    return 0
