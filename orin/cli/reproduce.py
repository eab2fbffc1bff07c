"""`orin reproduce`: published results against what the virtual Orin predicts, errors in the open."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orin.cli.output import Talk, add_output_arguments, print_json, print_table

if TYPE_CHECKING:
    from orin.published.reproduce import Reproduction, Succession

EVERYTHING = "all"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    names = "mlperf-v2.0, mlperf-v3.0, mlperf-v3.1, dla-table, trtexec, xavier, or all (without: all)"
    parser.add_argument("table", nargs="?", default=EVERYTHING, metavar="TABLE", help=names)
    parser.add_argument("--out", type=Path, default=Path("reproduce"), metavar="DIR", help="folder of report.html")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from orin.published import TABLES, XAVIER
    from orin.published.reproduce import reproduce, succession
    from orin.report.reproduced import write_reproduction

    talk = Talk(options.quiet)
    names = {EVERYTHING: TABLES, XAVIER: ()}.get(options.table, (options.table,))
    tables = [reproduce(name, partial(talk.progress, name)) for name in names]
    found = succession() if options.table in (EVERYTHING, XAVIER) else None
    path = write_reproduction(options.out, tables, found)
    if options.json:
        parts = [table.as_json() for table in tables] + ([found.as_json()] if found else [])
        print_json({"provenance": "simulated", "tables": parts, "report": str(path)})
        return 0
    for table in tables:
        print_reproduction(table)
    if found:
        print_succession(found)
    talk.say(f"picture and tables: {path}")
    return 0


def print_reproduction(table: Reproduction) -> None:
    """Print one table: its rows, its watts, its summary."""
    from orin.report import reproduced as report

    print_table(f"SIMULATED: {report.table_title(table)}", report.speed_rows(table), report.SPEED_HEADER)
    for place, rows in report.power_rows(table).items():
        print_table("", rows, report.POWER_HEADERS[place])
    print_table("", report.summary_rows(table), report.SUMMARY_HEADER)
    for line in report.remarks(table):
        print(f"aside: {line}")
    print(f"source: {table.table.source}\n")


def print_succession(found: Succession) -> None:
    """Print the generation claims, ratio per network."""
    from orin.report import reproduced as report

    generations = found.generations
    print_table(f"SIMULATED: {generations.title}", report.ratio_rows(found), report.RATIO_HEADER)
    print_table("", report.claim_rows(found), report.CLAIM_HEADER)
    print(f"sources: {generations.source}\nclaims: {generations.claims_source}\n")
