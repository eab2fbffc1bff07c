"""`orin power sweep`: samples per second and per joule over power modes and plans."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orin.cli.output import Talk, add_output_arguments, print_json, print_table
from orin.mlperf import SCENARIOS, check_qps

if TYPE_CHECKING:
    from orin.board import Board
    from orin.outcome import Outcome
    from orin.plan import Plan
    from power.nvpmodel import ModeFile


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("network", nargs="?", help="zoo network (orin networks); without: that of the plans")
    parser.add_argument("--modes", default="", metavar="A,B", help="power modes to hold; without: as the plans say")
    parser.add_argument("--plans", type=Path, nargs="+", default=[], metavar="FILE", help="plan files (YAML)")
    parser.add_argument("--gpu-batch", default="", metavar="A,B", help="GPU batches, each with every plan")
    parser.add_argument("--stack", help="software whose speed the virtual board has")
    parser.add_argument("--board", metavar="BOARD", help="jetson, or virtual:agx-orin-64gb")
    parser.add_argument("--scenario", choices=SCENARIOS, default="offline")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="length of each run (10)")
    parser.add_argument("--qps", type=float, metavar="N", help="Server: queries per second to offer")
    parser.add_argument("--data", type=Path, metavar="DIR", help="photos; without: those in scikit-image's wheel")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the sweep's folder; an earlier one is resumed")
    parser.add_argument("--write-mode", type=Path, metavar="FILE", help="nvpmodel mode file of the chosen run")
    parser.add_argument("--choose", type=int, metavar="N", help="run to choose; without: the most samples per joule")
    parser.add_argument("--conf", type=Path, metavar="FILE", help="the board's own nvpmodel.conf, for --write-mode")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from orin.bench import Bench, check_seconds, photos_in
    from orin.boards import board_name, open_board
    from orin.build import Desk
    from orin.errors import OrinError
    from orin.outcome import best, chosen
    from orin.report.pareto import write_sweep_report
    from orin.sweep import Site, candidates, sweep

    talk = Talk(options.quiet)
    seconds, modes = check_seconds(options.seconds), _words(options.modes)
    qps = check_qps(options.qps, options.scenario)
    wanted = candidates(plans_of(options), modes)
    _check(options, len(wanted))
    name = board_name(options.board, talk.say)
    board = open_board(name, "speed")
    file = _mode_file(board, options.conf)
    for mode in modes:
        file.mode(mode)  # an unknown one is said before anything runs
    folder = options.out or Path("sweeps") / Path(wanted[0].plan.network).stem
    desk = Desk(photos=photos_in(options.data), say=talk.say, progress=talk.progress)
    site = Site(lambda: open_board(name, "speed"), desk)
    asked = Bench(options.scenario, seconds, folder, server_qps=qps)
    outcomes = list(sweep(wanted, site, asked))
    if not any(one.record for one in outcomes):
        raise OrinError(f"none of {len(outcomes)} runs could be measured; the first: {outcomes[0].failure}")
    needed = options.choose is not None or options.write_mode is not None
    choice = chosen(outcomes, options.choose) if needed else best(outcomes)
    report = write_sweep_report(folder, outcomes, choice)
    if options.write_mode is not None and choice is not None:
        _write_mode(options.write_mode, choice, file, board)
    _print(options, outcomes, choice, report)
    return 0


def _check(options: argparse.Namespace, runs: int) -> None:
    """Say before anything runs what could not be done after it."""
    from orin.errors import OrinError

    if options.choose is not None and not 1 <= options.choose <= runs:
        raise OrinError(f"--choose is {options.choose}, expected a run from 1 to {runs}")
    if options.write_mode is not None and not options.write_mode.absolute().parent.is_dir():
        raise OrinError(f"--write-mode {options.write_mode}: there is no folder {options.write_mode.parent}, make it")


def plans_of(options: argparse.Namespace) -> list[tuple[str, Plan]]:
    """Return the plans of the command line and what to call them; OrinError names what is not understood."""
    from orin.errors import OrinError
    from orin.plan import Plan

    files = [(path.stem, Plan.load(path)) for path in options.plans]
    fields = {name: value for name in ("network", "stack") if (value := getattr(options, name))}
    plans = [(name, replace(plan, **fields)) for name, plan in files or [("", Plan())]]
    try:
        batches = [int(word) for word in _words(options.gpu_batch)]
    except ValueError:
        raise OrinError(f"--gpu-batch is {options.gpu_batch!r}, expected whole numbers such as 64,256") from None
    if batches:
        plans = [(f"{name} gpu {n}".strip(), replace(plan, gpu_batch=n)) for name, plan in plans for n in batches]
    return [(name or "default plan", plan) for name, plan in plans]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _mode_file(board: Board, conf: Path | None) -> ModeFile:
    """The board's own mode file; the tables' where the board is a virtual one."""
    from power.modes import board_modes
    from power.nvpmodel import CONF, read_mode_file

    if conf is None and board.provenance == "simulated":
        return board_modes(board.soc.board)
    return read_mode_file(conf or Path("/") / CONF)


def _write_mode(path: Path, choice: Outcome, file: ModeFile, board: Board) -> None:
    from orin.outcome import mode_file_of
    from orin.record import write_atomically

    speed, efficiency = choice.samples_per_s, choice.samples_per_joule
    figures = f"{speed:.0f} samples/s" if speed else "no throughput"
    if efficiency:
        figures += f", {efficiency.value:.1f} samples/J"
    head = f"# {choice.candidate.name} on {board.name}: {figures} ({board.provenance})"
    write_atomically(path, f"{head}\n# sudo nvpmodel -f {path.name} -m 0\n{mode_file_of(choice, file).dumps()}")


def _print(options: argparse.Namespace, outcomes: Sequence[Outcome], choice: Outcome | None, report: Path) -> None:
    from orin.outcome import front
    from orin.report.pareto import HEADER, remarks, sweep_rows, sweep_title

    if options.json:
        record = next(one.record for one in outcomes if one.record)
        print_json(
            {
                "provenance": record["provenance"],
                "board": record["board"],
                "runs": [one.as_json() for one in outcomes],
                "front": list(front(outcomes)),
                "chosen": choice.number if choice else None,
                "mode_file": str(options.write_mode) if options.write_mode else None,
                "report": str(report),
            }
        )
        return
    print_table(
        sweep_title(outcomes, f"{len(outcomes)} runs, {options.seconds:g} s each"), sweep_rows(outcomes), HEADER
    )
    for one in outcomes:
        for line in remarks(one):
            print(f"run {one.number}: {line}")
    print(f"chosen: {choice.number}, {choice.candidate.name}" if choice else "chosen: none, no run can be trusted")
    print(f"report: {report}")
