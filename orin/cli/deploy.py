"""`orin deploy`: from a network and a folder of photos to engines and a run, in one resumable command."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from orin.cli.output import Talk, add_output_arguments, print_json, print_table
from orin.cli.plan_options import add_plan_arguments, plan_from
from orin.mlperf import SCENARIOS

if TYPE_CHECKING:
    from orin.deploy import Deployed
    from orin.plan import Plan
    from orin.steps import Summary


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_plan_arguments(parser, "resnet50")
    parser.add_argument("--mode", help="nvpmodel mode to hold: MAXN, 50W, 30W, 15W; without: nothing is changed")
    parser.add_argument("--board", metavar="BOARD", help="jetson, or virtual:agx-orin-64gb")
    parser.add_argument("--scenario", choices=SCENARIOS, default="offline")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="length of the run (10)")
    parser.add_argument("--tune", type=int, default=0, metavar="N", help="runs to find batches and depths in (0: none)")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of JPEG and PNG photos")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for all that is made")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from orin.bench import check_seconds, photos_in
    from orin.boards import board_name, open_board
    from orin.build import Desk
    from orin.deploy import Job, deploy
    from orin.errors import OrinError

    talk = Talk(options.quiet)
    plan, photos = _plan(options), photos_in(options.data)
    seconds = check_seconds(options.seconds)
    if not 0 <= options.tune <= 1000:
        raise OrinError(f"--tune is {options.tune}, expected 0 to 1000 runs")
    job = Job(plan, options.output, photos, seconds, options.scenario, tune_runs=options.tune)
    board = open_board(board_name(options.board, talk.say), "speed")
    deployed = deploy(job, board, Desk(say=talk.say, progress=talk.progress))
    _write_report(deployed.run)
    if options.json:
        print_json({"folder": str(options.output), "skipped": deployed.skipped, "steps": deployed.steps})
    else:
        _print(options.output, deployed)
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    """Return the plan to deploy: a file's, or the network's starting plan; options win over both."""
    from orin.deploy import starting_plan
    from orin.plan import Plan

    if options.plan:
        return plan_from(options)
    start = starting_plan(options.network or Plan().network)
    given = {field.name: getattr(options, field.name, None) for field in dataclasses.fields(Plan)}
    return dataclasses.replace(start, **{name: value for name, value in given.items() if value is not None})


def _write_report(run: Path) -> None:
    from orin.record import load_record
    from orin.report import REPORT, write_report

    if not (run / REPORT).is_file():
        write_report(load_record(run))


def _print(folder: Path, deployed: Deployed) -> None:
    from orin.cli.show import print_result
    from orin.deploy import PLAN, STATE
    from orin.record import load_record

    print_result(load_record(deployed.run))
    steps = deployed.steps
    rows = [("DLA layers", _placement(steps["place"]))]
    if "calibrate" in steps:
        rows.append(("calibrated on", f"{steps['calibrate']['images']} photos, {steps['calibrate']['method']}"))
    if "tune" in steps:
        rows.append(("tuned in", f"{steps['tune']['runs']} runs, see tuning/report.html"))
    rows += [(f"{device} engine", engine["file"]) for device, engine in steps["build"].items()]
    if "memory" in steps:
        rows.append(("memory", f"{steps['memory']['kind']}, the fastest here"))
    rows.append(("skipped", ", ".join(deployed.skipped) or "nothing: this was the first time"))
    print()
    print_table(f"deployed to {folder} ({PLAN}, {STATE})", rows)
    print(f"\nNext: orin bench --plan {folder / PLAN} --seconds 60")


def _placement(place: Summary) -> str:
    before, after = len(place["gpu_layers_before"]), len(place["gpu_layers"])
    return f"{before} fell back to the GPU, {after} do after the rewrites"
