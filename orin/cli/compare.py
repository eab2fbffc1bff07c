"""`orin compare`: set two like runs side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orin.cli.output import add_output_arguments, print_json, print_table

if TYPE_CHECKING:
    from orin.compare import Comparison, Ratio
    from orin.record import RunRecord


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("a", metavar="A", help="folder of a run, its record.json, or: last")
    parser.add_argument("b", metavar="B", help="the run to set against it; ratios are B / A")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where `last` looks (runs)")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from orin.cli.show import find_run
    from orin.compare import compare
    from orin.record import load_record

    a, b = (load_record(find_run(name, options.runs)) for name in (options.a, options.b))
    found = compare(a, b)
    if options.json:
        print_json(found.as_json())
    else:
        _print(a, b, found)
    return 0


def _print(a: RunRecord, b: RunRecord, found: Comparison) -> None:
    from orin.report.figures import run_title
    from orin.report.text import title

    rows = [
        (_label(line.name, line.unit), _figure(line.a), _figure(line.b), _ratio(line.ratio)) for line in found.lines
    ]
    rows += [("share " + name, *_shares(found, name), "") for name in {**found.a["share"], **found.b["share"]}]
    rows.append(("LoadGen", _verdict(found.a["valid"]), _verdict(found.b["valid"]), ""))
    print_table(title(a, run_title(a)), rows, ("", "A", "B", "B / A"))
    print(f"\nA: {a.folder}\nB: {b.folder}\n")
    if not found.plan:
        print("the plans are the same")
        return
    differences = [(name, str(ours), str(theirs)) for name, (ours, theirs) in found.plan.items()]
    print_table(title(a, "plan fields that differ"), differences, ("", "A", "B"))


def _label(name: str, unit: str) -> str:
    plain = {"samples_per_s": "throughput", "samples_per_joule": "efficiency", "bytes_copied_per_sample": "copied"}
    return f"{plain.get(name, name)}, {unit}"


def _figure(value: Any) -> str:
    from orin.report.text import number, quantity

    return quantity(value) if isinstance(value, dict) else number(value)


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "–"
    if not ratio.resolved:
        return "not resolved"
    return f"{ratio.value:.3f}" + (f" ± {ratio.u95:.3f}" if ratio.u95 is not None else "")


def _shares(found: Comparison, name: str) -> tuple[str, str]:
    from orin.report.text import percent

    return percent(found.a["share"].get(name, 0.0)), percent(found.b["share"].get(name, 0.0))


def _verdict(valid: bool | None) -> str:
    return "–" if valid is None else "VALID" if valid else "INVALID"
