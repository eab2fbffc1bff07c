"""`orin tune`: the best batches, GPU/DLA split and clocks in a handful of runs."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orin.cli.output import Talk, add_output_arguments, print_json, print_table
from orin.cli.plan_options import add_plan_arguments, plan_from

if TYPE_CHECKING:
    from orin.plan import Plan
    from orin.tune.run import Runner
    from orin.tune.search import Run, Tuner
    from orin.tune.session import Job, Tuned


MOST_RUNS = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_search_arguments(parser)
    parser.add_argument("--board", metavar="BOARD", help="jetson, or virtual:agx-orin-64gb")
    parser.add_argument(
        "--bench", action="store_true", help="virtual board: build engines and run LoadGen in wall time"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="photos; without: those in scikit-image's wheel")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a tuning of one board or of many is asked: the plan to start from, the goal, how many runs."""
    add_plan_arguments(parser, "resnet50")
    parser.add_argument("--objective", choices=("throughput", "efficiency", "latency"), default="throughput")
    parser.add_argument("--slo-ms", type=float, metavar="N", help="p99 of a work item's latency, at most")
    parser.add_argument("--budget-w", type=float, metavar="N", help="module watts, at most; searches clocks")
    parser.add_argument("--min-samples-per-s", type=float, metavar="N", help="samples per second, at least")
    parser.add_argument("--runs", type=int, metavar="N", help="runs at most, probes included (10)")
    parser.add_argument(
        "--board-seconds", type=float, metavar="N", help="seconds of the board to spend: many short runs, no --runs"
    )
    parser.add_argument("--seconds-per-run", type=float, default=5.0, metavar="N", help="length of a run at most (5)")
    parser.add_argument("--mode", help="nvpmodel mode to hold where clocks are not searched; without: as it is")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="folder; an earlier tuning goes on (tunings/MODEL)"
    )


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    talk = Talk(options.quiet)
    job = tune_job(options)
    return run_tuning(options, job, _runner(options, job, talk), talk)


def run_tuning(options: argparse.Namespace, job: Job, runner: Runner, talk: Talk) -> int:
    """Tune with a runner, a line for each run; write plan and report and print what was found."""
    from orin.errors import OrinError
    from orin.report.tuning import live_line, write_tuning_report
    from orin.tune.session import make_space, tune

    space = make_space(job, runner)
    rules = job.rules
    length = f"{rules.runs} runs" if rules.board_s is None else f"{rules.board_s:g} board-seconds"
    talk.say(f"{len(space)} plans for {job.base.network} on {runner.name} ({runner.provenance}), {length}")

    def show(run: Run, tuner: Tuner) -> None:
        talk.say(live_line(run, tuner))

    tuned = tune(job, runner, space, show)
    if tuned.plan is None:
        failure = tuned.tuner.runs[-1].measurement.failure
        raise OrinError(f"none of {len(tuned.tuner.runs)} runs succeeded; the last: {failure}")
    report = write_tuning_report(tuned)
    _print(options, tuned, report)
    return 0


def tune_job(options: argparse.Namespace) -> Job:
    """Return what the command line asks for; OrinError for what cannot be."""
    from orin.bench import check_seconds
    from orin.deploy import starting_plan
    from orin.errors import OrinError
    from orin.tune.objective import Objective
    from orin.tune.search import Rules
    from orin.tune.session import Job as TuneJob

    board_s = options.board_seconds
    runs = options.runs if options.runs is not None else (10 if board_s is None else MOST_RUNS)
    if not 1 <= runs <= MOST_RUNS:
        raise OrinError(f"--runs is {runs}, expected 1 to {MOST_RUNS}")
    if board_s is not None and not 0 < board_s < math.inf:
        raise OrinError(f"--board-seconds is {board_s:g}, expected a positive number")
    run_s = check_seconds(options.seconds_per_run, "--seconds-per-run")
    given = plan_from(options)
    base: Plan = given if options.plan else replace(starting_plan(given.network), **_asked(options, given))
    objective = Objective(options.objective, options.slo_ms, options.budget_w, options.min_samples_per_s)
    folder = options.output or Path("tunings") / Path(base.network).stem
    return TuneJob(base, objective, Rules(runs=runs, board_s=board_s, item_ms=100 * run_s), run_s, folder)


def _asked(options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    names = ("weights", "calibration", "precision", "tail", "memory", "stack", "mode")
    return {name: getattr(plan, name) for name in names if getattr(options, name, None) is not None}


def _runner(options: argparse.Namespace, job: Job, talk: Talk) -> Runner:
    from orin.bench import Bench, photos_in
    from orin.boards import board_name, open_board
    from orin.build import Desk
    from orin.sweep import Site
    from orin.tune.run import BoardRunner, virtual_runner

    name, runs = board_name(options.board, talk.say), job.folder / "runs"
    if name != "jetson" and not options.bench:
        return virtual_runner(name, runs, job.seconds_per_run)
    desk = Desk(photos=photos_in(options.data), say=talk.say, progress=talk.progress)
    return BoardRunner(Site(lambda: open_board(name, "speed"), desk), Bench("offline", job.seconds_per_run, runs))


def _print(options: argparse.Namespace, tuned: Tuned, report: Path) -> None:
    from orin.report.tuning import RUN_HEADER, run_rows, summary_rows, tuning_json, tuning_title
    from orin.tune.session import PLAN

    folder = tuned.job.folder
    if options.json:
        print_json({**tuning_json(tuned), "plan_file": str(folder / PLAN), "report": str(report)})
        return
    print_table(
        tuning_title(tuned, f"{len(tuned.tuner.runs)} runs of {tuned.job.base.network}"), run_rows(tuned), RUN_HEADER
    )
    print()
    print_table(tuning_title(tuned, "the plan to use"), summary_rows(tuned))
    print(f"\nplan: {folder / PLAN}\nreport: {report}\nNext: orin bench --plan {folder / PLAN} --seconds 60")
