"""`orin place`: which layers the DLA takes, why the others fall back, and what to do about it."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from orin.cli.output import Talk, add_output_arguments, print_json, print_table
from orin.cli.qdq import add_shape_argument

if TYPE_CHECKING:
    from dla.log_placement import Confusion
    from orin.place import Answer, Question, Reason

NAMES_SHOWN = 6


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="ONNX file, or a network of the zoo (orin networks)")
    parser.add_argument("--tensorrt", metavar="VERSION", help="TensorRT that builds it (10.3, or that of the log)")
    parser.add_argument("--precision", default="int8", choices=("int8", "fp16"), help="precision of the DLA (int8)")
    add_shape_argument(parser)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page with the coloured graph")
    parser.add_argument("--log", type=Path, metavar="FILE", help="log of a real build: show that, and how we predicted")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from orin.place import answer, as_json

    found = answer(_question(options))
    if options.html:
        from orin.record import write_atomically
        from orin.report.placement import placement_page

        write_atomically(options.html, placement_page(found))
        Talk(options.quiet).say(f"page: {options.html}")
    if options.json:
        print_json(as_json(found))
    else:
        _print(found)
    return 0


def _question(options: argparse.Namespace) -> Question:
    from orin.place import Question, parse_shape

    shapes = dict(map(parse_shape, options.shape))
    return Question(options.model, options.tensorrt, options.precision, shapes, options.log)


def _print(found: Answer) -> None:
    from orin.place import reasons, trtexec
    from orin.report.placement import BUILD_IT, heading, summary

    print_table(heading(found), summary(found))
    for reason in reasons(found):
        print()
        _print_reason(reason, found.question)
    if found.confusion is not None:
        print()
        _print_confusion(found.confusion)
    print(f"\n{BUILD_IT}:\n{trtexec(found)}")


def _print_reason(reason: Reason, question: Question) -> None:
    count = len(reason.layers)
    rows = [("TensorRT", reason.message)]
    if reason.fix:
        rows.append(("fix", reason.fix))
    if reason.rewrites:
        rows.append(("", _rewrite_line(reason, question)))
    more = [f"... and {count - NAMES_SHOWN} more"] if count > NAMES_SHOWN else []
    rows.append(("layers", "\n".join([*reason.layers[:NAMES_SHOWN], *more])))
    sure = f" ({reason.confidence})" if reason.confidence else ""
    print_table(f"{reason.rule}: {count} layer{'s' * (count != 1)} on the GPU{sure}", rows)


def _rewrite_line(reason: Reason, question: Question) -> str:
    shapes = [f"--shape={name}={'x'.join(map(str, shape))}" for name, shape in question.shapes.items()]
    return shlex.join(
        ["orin", "rewrite", question.model, "-o", "OUT.onnx", "--only", ",".join(reason.rewrites), *shapes]
    )


def _print_confusion(found: Confusion) -> None:
    from orin.report.placement import confusion_rows

    header, rows = confusion_rows(found)
    print_table("predicted against real, in nodes", rows, header)
    for miss in found.misses[:NAMES_SHOWN]:
        print(f"  {miss.node} ({miss.op}): predicted {miss.predicted}, really {miss.real}")
    if len(found.misses) > NAMES_SHOWN:
        print(f"  ... and {len(found.misses) - NAMES_SHOWN} more (--json has them all)")
