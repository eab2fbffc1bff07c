"""`orin predict`: what the virtual Orin expects of a plan, without running it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orin.cli.output import add_output_arguments, print_json, print_table, quantity
from orin.cli.plan_options import add_plan_arguments, plan_from
from orin.mlperf import SCENARIOS, check_qps

if TYPE_CHECKING:
    from orin.explain import Explanation
    from orin.virtual.predict import Prediction

CLOCKS = ("gpu", "dla", "emc", "cpu")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_plan_arguments(parser, "resnet50")
    parser.add_argument("--mode", help="nvpmodel mode of the board (orin boards); without: its fullest, MAXN")
    for name in CLOCKS:
        parser.add_argument(
            f"--{name}-mhz", type=float, metavar="MHZ", help=f"{name.upper()} clock, in place of --mode"
        )
    parser.add_argument(
        "--dvfs", type=float, metavar="SHARE", help="clocks are caps: the GPU's governor aims at this busy share (0.7)"
    )
    parser.add_argument("--board", default="agx-orin-64gb", metavar="BOARD", help="SoC, with or without virtual:")
    parser.add_argument("--scenario", choices=SCENARIOS, default="offline")
    parser.add_argument("--qps", type=float, metavar="N", help="Server: queries per second; without: 80 %% of Offline")
    parser.add_argument(
        "--processes", choices=("one", "separate"), default="one", help="engines in one process or three"
    )
    parser.add_argument("--no-rewrite", action="store_true", help="DLA engine from the network as it is")
    parser.add_argument(
        "--sparsity",
        action="store_true",
        default=None,
        help="2 of 4 weights are zero (pruned so): a prior, GPU and DLA",
    )
    parser.add_argument("--full", action="store_true", help="run every event, no steady state extrapolated")
    parser.add_argument(
        "--parameters", type=Path, metavar="FILE", help="a board's own parameters (benchmarks/fit_virtual.py --records)"
    )
    parser.add_argument("--explain", action="store_true", help="say where time and joules go, beside the roofline")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    import dataclasses

    from orin.errors import OrinError
    from orin.predict import predict_plan
    from orin.virtual.parameters import load_parameters
    from orin.virtual.predict import Options

    plan = plan_from(options)
    clocks = {name: value for name in CLOCKS if (value := getattr(options, f"{name}_mhz")) is not None}
    if clocks and options.mode:
        raise OrinError("--mode and --*-mhz both set clocks: give one of them")
    if clocks or options.mode:
        plan = dataclasses.replace(plan, mode=options.mode, clocks_mhz=clocks or None)
    if options.no_rewrite:
        plan = dataclasses.replace(plan, rewrites=())
    own = load_parameters(options.parameters) if options.parameters else None
    asked = Options(
        server_qps=check_qps(options.qps, options.scenario),
        processes=options.processes,
        full=options.full,
        parameters=own,
        dvfs=options.dvfs,
    )
    board = options.board.removeprefix("virtual:")
    if options.explain:
        from orin.explain import explain

        explanation = explain(plan, board, options.scenario, asked)
        return _answer(explanation.prediction, explanation, options.json)
    return _answer(predict_plan(plan, board, options.scenario, asked), None, options.json)


def _answer(prediction: Prediction, explanation: Explanation | None, as_json: bool) -> int:
    if as_json:
        print_json(answer_json(prediction, explanation))
        return 0
    print_prediction(prediction)
    if explanation:
        print_explanation(explanation)
    return 0


def answer_json(prediction: Prediction, explanation: Explanation | None) -> dict[str, Any]:
    """Return the prediction with watts at the plug and, where asked for, its explanation."""
    from power.wall import supply

    found = prediction.as_json()
    adding = supply(prediction.stack)
    wall = {**adding.wall(prediction.module_w).as_json(), "supply": adding.name}
    found["power_w"] = {**found["power_w"], "wall": wall}
    return {**found, "explanation": explanation.as_json()} if explanation else found


def print_prediction(prediction: Prediction) -> None:
    """Print a prediction as a table."""
    from power.wall import supply

    adding = supply(prediction.stack)
    wall = adding.wall(prediction.module_w).as_json()
    rows = [
        ("samples/s", f"{prediction.samples_per_s:,.1f} ± {prediction.samples_per_s_u95:,.1f}"),
        ("ceiling (roofline)", f"{prediction.ceiling.samples_per_s or 0:,.0f} samples/s ({prediction.ceiling.bound})"),
        ("query latency", _latency(prediction)),
        ("module power", quantity(prediction.module_w.as_json(), "W")),
        ("wall power", f"{quantity(wall, 'W')} ({adding.name})"),
        ("samples per joule", quantity(prediction.samples_per_joule.as_json(), "samples/J of the module", 1)),
        ("share", ", ".join(f"{name} {part:.1%}" for name, part in prediction.share.items())),
        ("busy", ", ".join(f"{name} {part:.1%}" for name, part in prediction.utilisation.items())),
        ("DRAM", f"{prediction.dram_gb_per_s:.0f} GB/s"),
        *(("note", note) for note in prediction.notes),
    ]
    title = f"SIMULATED: {prediction.network} on {prediction.board}, {prediction.scenario}, stack {prediction.stack}"
    print_table(title, rows)


def _latency(prediction: Prediction) -> str:
    latency = prediction.latency_ms
    if prediction.scenario == "offline":
        return f"{latency['mean'] / 1e3:,.0f} s: Offline is one query"
    return ", ".join(f"{name} {latency[name]:,.3f} ms" for name in ("mean", "p50", "p90", "p99"))


LAYERS_SHOWN = 8
LAYERS_HEADER = ("", "layer", "kind", "compute", "DRAM", "overhead", "MB", "of batch")
HEADER = ("", "batch", "compute", "DRAM", "waiting", "overhead", "total", "roofline", "reached")


def print_explanation(explanation: Explanation) -> None:
    """Print where time and joules go as two tables."""
    rows: list[tuple[str, ...]] = []
    for account in explanation.accounts:
        times_ms = (
            account.compute_ms,
            account.dram_ms,
            account.waiting_ms,
            account.overhead_ms,
            account.total_ms,
            account.floor_ms,
        )
        reached = f"{account.floor_ms / account.total_ms:.0%}"
        rows.append((account.accelerator, str(account.batch), *map(_ms, times_ms), reached))
        if len(account.segments) > 1:
            rows += [
                (f"  on {part.resource} ({part.count}x)", "", _ms(part.compute_ms), _ms(part.dram_ms))
                for part in account.segments
            ]
    print_table("\nSIMULATED: ms of one sample on each accelerator; roofline: its least time", rows, HEADER)
    print_layers(explanation)
    spent = explanation.millijoules
    total = sum(spent.values())
    parts = [(name, f"{part:.3f}", f"{part / total:.1%}") for name, part in spent.items()]
    print_table("\nSIMULATED: module energy of one sample", [*parts, ("total", f"{total:.3f}", "")], ("", "mJ", ""))


def print_layers(explanation: Explanation) -> None:
    """Print the fused layers that take longest, those of both DLA cores once; `--json` has them all."""
    rows: list[tuple[str, ...]] = []
    for account in explanation.accounts:
        if account.accelerator == "dla1" and len(explanation.accounts) > 1:
            continue
        whole_ns = sum(layer.solo_ns for layer in account.layers)
        for layer in sorted(account.layers, key=lambda one: -one.solo_ns)[:LAYERS_SHOWN]:
            times_ms = (ns / account.batch * 1e-6 for ns in (layer.compute_ns, layer.memory_ns, layer.overhead_ns))
            megabytes = f"{layer.dram_bytes / account.batch * 1e-6:.2f}"
            share = f"{layer.solo_ns / whole_ns:.1%}"
            rows.append((account.accelerator, layer.name[-28:], layer.op, *map(_ms, times_ms), megabytes, share))
    print_table("\nSIMULATED: ms and MB of one sample in the layers that take longest", rows, LAYERS_HEADER)


def _ms(value: float) -> str:
    return f"{abs(value):.4f}" if abs(value) < 5e-5 else f"{value:.4f}"  # no minus before zero
