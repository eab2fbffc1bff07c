"""Where words go: results to stdout (a table, or one JSON object), everything else to stderr."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orin.errors import OrinError

WIDTH = 100


class Talk:
    """Messages and progress on stderr; silent with `--quiet`."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._drawn = ""
        self._next_s = 0.0

    def say(self, text: str) -> None:
        """Print one line."""
        if not self.quiet:
            self._clear()
            print(text, file=sys.stderr, flush=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """Draw a progress bar, at most ten times a second; a line at the end where stderr is no terminal."""
        if self.quiet or not total:
            return
        if not sys.stderr.isatty():
            if done == total:
                self.say(f"{what}: {total}")
            return
        now = time.monotonic()
        if done < total and now < self._next_s:
            return
        self._next_s = now + 0.1
        bar = "#" * (30 * done // total)
        self._drawn = f"{what:<12} [{bar:<30}] {done}/{total}"
        print(f"\r{self._drawn}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        if done == total:
            self._drawn = ""

    def _clear(self) -> None:
        if self._drawn:
            print("\r" + " " * len(self._drawn) + "\r", end="", file=sys.stderr)
            self._drawn = ""


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every command takes."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--quiet", action="store_true", help="no messages or progress on stderr")


def check_file(path: Path) -> None:
    """Refuse a file that cannot be written, before the work that fills it."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise OrinError(f"{path} cannot be written; name a file in a folder that can")


def print_json(values: Any) -> None:
    """Print one JSON object; figures that are not numbers become null."""
    print(json.dumps(_finite(values), indent=1))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value


def print_table(title: str, rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> None:
    """Print a table of at most 100 columns, its title above it; the last column wraps."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = len(header) or max(map(len, rows), default=1)
    table = Table(show_header=bool(header), box=None, pad_edge=False)
    for index in range(columns):
        table.add_column(header[index] if header else "", overflow="fold", no_wrap=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(width=WIDTH, highlight=False)
    with console.capture() as lines:
        console.print(table)
    print(title)  # a title of the table's own would wrap at the table's width
    print("\n".join(line.rstrip() for line in lines.get().rstrip().splitlines()))


def quantity(value: dict[str, float] | None, unit: str, digits: int = 2) -> str:
    """Format `{value, u95}`; an em dash for what was not measured."""
    if value is None:
        return "–"
    return f"{value['value']:,.{digits}f} ± {value['u95']:,.{digits}f} {unit}"
