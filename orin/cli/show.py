"""`orin show`: print a run record and write its report again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from orin.cli.output import Talk, add_output_arguments, print_json, print_table

if TYPE_CHECKING:
    from orin.record import RunRecord

LAST = "last"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="folder of a run, its record.json, or: last")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where `last` looks (runs)")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from orin.record import load_record
    from orin.report import write_report
    from orin.report.figures import samples_measured, state
    from orin.results import result

    record = load_record(find_run(options.run, options.runs))
    try:
        write_report(record)
    except OSError as error:  # a run that may only be read is shown all the same
        Talk(options.quiet).say(f"the report was not written: {error.strerror or error}")
    if options.json:
        print_json({**result(record), "status": state(record), "samples_measured": samples_measured(record)})
    else:
        print_result(record)
    return 0


def find_run(name: str, runs: Path) -> Path:
    """Return the path of a run; `last` is the one below `runs` that was written last."""
    from orin.errors import OrinError

    if name != LAST:
        return Path(name)
    records = sorted(runs.glob("*/record.json"), key=lambda path: path.stat().st_mtime_ns)
    if not records:
        raise OrinError(f"there is no run below {runs}: make one with `orin bench`, or name its folder")
    return records[-1].parent


def print_result(record: RunRecord) -> None:
    """Print a run as a table, and where its report is."""
    from orin.report import REPORT
    from orin.report.figures import rows, run_title
    from orin.report.text import title
    from orin.results import result

    print_table(title(record, run_title(record)), rows(record, result(record)))
    report = record.folder / REPORT
    if report.is_file():
        print(f"report: {report}")
