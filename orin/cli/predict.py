"""`orin predict`: what the virtual Orin expects of a plan, without running it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from orin.cli.output import add_output_arguments, print_json, print_table, quantity
from orin.cli.plan_options import add_plan_arguments, plan_from
from orin.mlperf import SCENARIOS

if TYPE_CHECKING:
    from orin.virtual.predict import Prediction

CLOCKS = ("gpu", "dla", "emc", "cpu")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_plan_arguments(parser, "resnet50")
    parser.add_argument("--mode", help="nvpmodel mode: MAXN, 50W, 30W, 15W; without: MAXN")
    for name in CLOCKS:
        parser.add_argument(
            f"--{name}-mhz", type=float, metavar="MHZ", help=f"{name.upper()} clock, in place of --mode"
        )
    parser.add_argument("--board", default="agx-orin-64gb", metavar="BOARD", help="SoC, with or without virtual:")
    parser.add_argument("--scenario", choices=SCENARIOS, default="offline")
    parser.add_argument("--qps", type=float, metavar="N", help="Server: queries per second; without: 80 %% of Offline")
    parser.add_argument(
        "--processes", choices=("one", "separate"), default="one", help="engines in one process or three"
    )
    parser.add_argument("--no-rewrite", action="store_true", help="DLA engine from the network as it is")
    parser.add_argument("--full", action="store_true", help="run every event, no steady state extrapolated")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    import dataclasses

    from orin.errors import OrinError
    from orin.predict import predict_plan
    from orin.virtual.predict import Options

    plan = plan_from(options)
    clocks = {name: value for name in CLOCKS if (value := getattr(options, f"{name}_mhz")) is not None}
    if clocks and options.mode:
        raise OrinError("--mode and --*-mhz both set clocks: give one of them")
    if clocks:
        plan = dataclasses.replace(plan, mode=None, clocks_mhz=clocks)
    if options.no_rewrite:
        plan = dataclasses.replace(plan, rewrites=())
    asked = Options(server_qps=options.qps, processes=options.processes, full=options.full)
    prediction = predict_plan(plan, options.board.removeprefix("virtual:"), options.scenario, asked)
    if options.json:
        print_json(prediction.as_json())
    else:
        print_prediction(prediction)
    return 0


def print_prediction(prediction: Prediction) -> None:
    """Print a prediction as a table."""
    latency = prediction.latency_ms
    rows = [
        ("samples/s", f"{prediction.samples_per_s:,.1f} ± {prediction.samples_per_s_u95:,.1f}"),
        ("ceiling (roofline)", f"{prediction.ceiling.samples_per_s or 0:,.0f} samples/s ({prediction.ceiling.bound})"),
        ("query latency", ", ".join(f"{name} {latency[name]:,.3f} ms" for name in ("mean", "p50", "p90", "p99"))),
        ("module power", quantity(prediction.module_w.as_json(), "W")),
        ("samples per joule", quantity(prediction.samples_per_joule.as_json(), "samples/J", 1)),
        ("share", ", ".join(f"{name} {part:.1%}" for name, part in prediction.share.items())),
        ("busy", ", ".join(f"{name} {part:.1%}" for name, part in prediction.utilisation.items())),
        ("DRAM", f"{prediction.dram_gb_per_s:.0f} GB/s"),
        *(("note", note) for note in prediction.notes),
    ]
    title = f"SIMULATED: {prediction.network} on {prediction.board}, {prediction.scenario}, stack {prediction.stack}"
    print_table(title, rows)
