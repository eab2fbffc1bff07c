"""Every base dependency resolves for aarch64 under Python 3.10 and 3.12: a wheel, or an sdist that compiles there."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, arguments, emit

PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in range(17, 36)] + ["manylinux2014_aarch64", "linux_aarch64"]
SDIST_ONLY = ("mlcommons-loadgen",)  # no aarch64 wheel: compiles on the board


def base_dependencies() -> list[str]:
    """Read BASE from setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "BASE":
            return list(ast.literal_eval(node.value))
    raise SystemExit("setup.py has no BASE")


def resolve(requirements: list[str], python: str) -> dict[str, str]:
    """Resolve wheels for a board and return what would be installed."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["install", "--dry-run", "-q", "--report", "-", "--only-binary=:all:", "--target", folder]
        words += ["--python-version", python, "--implementation", "cp", "--ignore-installed"]
        words += [word for tag in PLATFORMS for word in ("--platform", tag)]
        done = subprocess.run([sys.executable, "-m", "pip", *words, *requirements], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"Python {python}: {done.stderr.strip().splitlines()[-1]}")
    installed = json.loads(done.stdout)["install"]
    return {item["metadata"]["name"]: item["metadata"]["version"] for item in installed}


def has_sdist(requirement: str) -> str:
    """Download a source distribution and return its file name."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["download", "-q", "--no-deps", "--no-binary=:all:", "-d", folder, requirement]
        done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
        files = sorted(path.name for path in Path(folder).iterdir())
    if done.returncode or not files:
        raise SystemExit(f"{requirement} has no usable sdist: {done.stderr.strip()[-300:]}")
    return files[0]


def main() -> None:
    """Resolve for both Pythons."""
    options = arguments(__doc__ or "")
    wheels = [name for name in base_dependencies() if not name.startswith(SDIST_ONLY)]
    sources = [has_sdist(name) for name in base_dependencies() if name.startswith(SDIST_ONLY)]
    found = {python: resolve(wheels, python) for python in ("3.10", "3.12")}
    rows = [(f"Python {python}, aarch64", f"{len(names)} wheels", "all resolve") for python, names in found.items()]
    rows += [("compiles on the board", name, "sdist") for name in sources]
    emit({"wheels": found, "sdists": sources}, rows, options)


if __name__ == "__main__":
    main()
