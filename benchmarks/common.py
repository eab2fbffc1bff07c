"""What every benchmark shares: options, machine line, one JSON object last."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
sys.path.insert(0, str(ROOT))


def arguments(text: str) -> argparse.Namespace:
    """Parse `[--quick] [--json]`."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--quick", action="store_true", help="under 40 s on 2 cores")
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    return parser.parse_args()


def machine() -> dict[str, object]:
    """What the numbers were taken on."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version()}


def median(values: list[float]) -> float:
    """Median of a few runs."""
    return statistics.median(values)


def emit(results: dict[str, object], rows: list[tuple[str, str, str]], options: argparse.Namespace) -> None:
    """Print the rows (what, seen, wanted) unless `--json`, then one JSON object."""
    if not options.json:
        for what, seen, wanted in rows:
            print(f"{what:<58} {seen:>22}   {wanted}")
    print(json.dumps({**results, "machine": machine()}))
