"""What the commands on logs share: the file or stdin, and whose rails it holds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

STDIN = "-"


def add_file(parser: argparse.ArgumentParser) -> None:
    """Add the log, and the board that it is of."""
    parser.add_argument("file", metavar="FILE", help="log of tegrastats, or - for stdin")
    parser.add_argument("--board", metavar="NAME", help="whose rails these are (default: told from the rails)")


@contextmanager
def lines_of(file: str) -> Iterator[Iterable[str]]:
    """Open a log's lines; what is no UTF-8 becomes noise."""
    if file == STDIN:
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        yield sys.stdin
        return
    with Path(file).open(encoding="utf-8", errors="replace") as lines:
        yield lines
