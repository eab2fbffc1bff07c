"""`orin segment`: volumes to label maps, window by window, with DICE, overlays, and what they cost on an Orin."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orin.cli.output import Talk, add_output_arguments, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from engines.volumes.split import Split
    from orin.board import Board
    from orin.plan import Plan
    from orin.record import RunRecord
    from orin.report.overlays import Overlay
    from orin.volumes.cases import Case, Source
    from orin.volumes.cost import VolumeCost
    from orin.volumes.run import VolumeRun
    from orin.volumes.segment import Segmented, WindowNetwork

REPORT, RESULT = "report.html", "result.json"
HEADER = ("case", "voxels", "windows", "DICE kidney", "tumour", "mean", "on the virtual Orin", "in network")
BOARD_HEADER = (*HEADER[:-2], "on this board", "expected")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from orin.boards import DEFAULT_VIRTUAL
    from orin.plan import DEFAULT_STACK, STACKS

    parser.add_argument(
        "volumes", nargs="+", metavar="VOLUME", help=".nii, .nii.gz, .npy, a folder of KiTS19, phantom:SEED[:DxHxW]"
    )
    parser.add_argument(
        "--labels", type=Path, action="append", default=[], metavar="FILE", help="the truth; once a volume, in order"
    )
    parser.add_argument("--network", default="unet3d-small", metavar="MODEL", help="unet3d-small, unet3d or FILE.onnx")
    parser.add_argument("--weights", choices=("mlperf", "monai"), default="mlperf", help="of a window's voxels")
    parser.add_argument("--overlap", type=float, default=0.5, metavar="SHARE", help="of neighbouring windows (0.5)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="windows in one call of the network (1)")
    parser.add_argument("--calibration", type=Path, metavar="CACHE", help="INT8 with these ranges; without: FP32")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="label maps and report")
    parser.add_argument("--scenario", choices=("singlestream", "offline"), help="also run the cases under LoadGen")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="length of that run (MLPerf: 600)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where its record goes (runs)")
    parser.add_argument("--board", default=DEFAULT_VIRTUAL, metavar="BOARD", help=f"{DEFAULT_VIRTUAL}; or jetson")
    parser.add_argument("--mode", help="power mode: MAXN, 50W, 30W, 15W")
    parser.add_argument("--stack", choices=STACKS, default=DEFAULT_STACK, help="software whose speed it has")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


@dataclass(frozen=True)
class _Outcome:
    """All that the command has to tell."""

    network: WindowNetwork
    cases: Sequence[Segmented]
    costs: Mapping[str, VolumeCost]
    board: Board
    record: RunRecord | None

    @property
    def measured(self) -> bool:
        """Whether the board itself labelled the cases."""
        return self.board.provenance == "measured"

    @property
    def header(self) -> tuple[str, ...]:
        """Names of the table's columns."""
        return BOARD_HEADER if self.measured else HEADER

    @property
    def times(self) -> str:
        """What the table's times are."""
        if self.measured:
            return f"times on this board are measured, those expected are SIMULATED ({self.board.soc.name})"
        return f"times on the virtual Orin are SIMULATED ({self.board.name})"


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from orin.bench import check_seconds
    from orin.boards import open_board
    from orin.errors import OrinError
    from orin.volumes.cases import find_sources

    if options.batch < 1:
        raise OrinError(f"--batch is {options.batch}, expected 1 window or more")
    check_seconds(options.seconds)
    sources = find_sources(options.volumes, options.labels)
    board = open_board(options.board, "speed")
    options.output.mkdir(parents=True, exist_ok=True)
    overlays: list[Overlay] = []
    outcome = _outcome(options, sources, board, overlays)
    _write(options.output, outcome, overlays)
    _tell(options, outcome)
    return 0


def _outcome(options: argparse.Namespace, sources: Sequence[Source], board: Board, overlays: list[Overlay]) -> _Outcome:
    """Label the cases, drawing each while it is in memory, and run them under LoadGen if that is asked for."""
    from orin.report.overlays import overlay
    from orin.volumes.run import expected_costs, run_volumes, volume_plan
    from orin.volumes.segment import Asked, open_network, segment_source

    talk = Talk(options.quiet)
    plan = volume_plan(options.network, options.batch, options.mode, options.stack)
    asked = Asked(options.weights, options.overlap, options.batch, options.calibration)
    jetson: Any = board if board.computes_outputs else None
    with board.hold(plan) as clocks:
        network = open_network(options.network, asked, jetson)

        def drawn(case: Case, labels: NDArray[Any]) -> None:
            overlays.append(overlay(case, labels))

        cases = [segment_source(source, network, options.output, talk.progress, drawn) for source in sources]
        network.labeller.close()
        precision = network.precision if jetson else plan.precision
        run = _run(options, replace(plan, network=network.name, precision=precision), network, cases)
        record = run_volumes(run, board) if options.scenario else None
        return _Outcome(network, cases, expected_costs(run, board, clocks), board, record)


def _run(options: argparse.Namespace, plan: Plan, network: WindowNetwork, cases: Sequence[Segmented]) -> VolumeRun:
    from orin.volumes.cases import read_case
    from orin.volumes.run import VolumeRun

    sources = {case.name: case.source for case in cases}

    def read(name: str) -> Split:
        return network.split(read_case(sources[name], network.grid, network.amax))

    engine = network.labeller.engine
    return VolumeRun(
        plan=plan,
        cases={case.name: network.sliding.plan(case.shape) for case in cases},
        workload=network.workload,
        amax=network.amax,
        network_weights=network.weights,
        window_weights=options.weights,
        scenario=options.scenario or "singlestream",
        seconds=options.seconds,
        runs=options.runs,
        engine=engine,
        read=read if engine else None,
    )


def _heading(outcome: _Outcome) -> str:
    network = outcome.network
    return (
        f"{network.name}, {network.weights}, {network.precision.upper()}, windows of "
        f"{' x '.join(map(str, network.sliding.window))}, weights {network.sliding.weights}"
    )


def _rows(outcome: _Outcome) -> list[tuple[str, ...]]:
    from orin.report.text import milliseconds, percent

    rows: list[tuple[str, ...]] = []
    for case in outcome.cases:
        cost = outcome.costs[case.name]
        expected = milliseconds(cost.latency_ms)
        times = (expected, percent(cost.network_ms / cost.latency_ms))
        if outcome.measured:
            times = (milliseconds(case.seconds * 1e3), expected)
        shape = "x".join(map(str, case.shape))
        rows.append((case.name, shape, str(case.windows), *_scores(case), *times))
    return rows


def _scores(case: Segmented) -> tuple[str, str, str]:
    score = case.dice
    if score is None:
        return "–", "–", "–"
    return f"{score.kidney:.4f}", f"{score.tumour:.4f}", f"{score.mean:.4f}"


def _json(outcome: _Outcome, folder: Path) -> dict[str, Any]:
    from engines.volumes.dice import mean_dice
    from orin.results import result

    network = outcome.network
    scores = [case.dice for case in outcome.cases if case.dice]
    mean = mean_dice(scores) if scores else None
    return {
        "network": network.name,
        "network_weights": network.weights,
        "precision": network.precision,
        "window": list(network.sliding.window),
        "window_weights": network.sliding.weights,
        "board": outcome.board.name,
        "computed_on": "gpu" if outcome.measured else "cpu",
        "cases": [{**case.as_json(), "expected": outcome.costs[case.name].as_json()} for case in outcome.cases],
        "dice": mean and {"kidney": mean.kidney, "tumour": mean.tumour, "mean": mean.mean, "cases": len(scores)},
        "run": None if outcome.record is None else result(outcome.record),
        "report": str(folder / REPORT),
    }


def _write(folder: Path, outcome: _Outcome, overlays: Sequence[Any]) -> None:
    import json

    from orin.record import write_atomically
    from orin.report import write_report
    from orin.report.overlays import write_overlays

    if outcome.record is not None:
        write_report(outcome.record)
    heading = f"{_heading(outcome)}; {outcome.times}"
    write_overlays(folder / REPORT, heading, overlays, outcome.header, _rows(outcome))
    write_atomically(folder / RESULT, json.dumps(_json(outcome, folder), indent=1))


def _tell(options: argparse.Namespace, outcome: _Outcome) -> None:
    from orin.cli.show import print_result

    values = _json(outcome, options.output)
    if options.json:
        print_json(values)
        return
    print_table(_heading(outcome), _rows(outcome), outcome.header)
    if values["dice"] and values["dice"]["cases"] > 1:
        print(f"DICE of {values['dice']['cases']} cases: mean {values['dice']['mean']:.4f}")
    print(f"{outcome.times}, {options.stack}")
    print(f"report: {values['report']}")
    if outcome.record is not None:
        print_result(outcome.record)
