"""The door: `orin COMMAND`. Parses, wires, prints; a command's module is imported when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

# name -> (module, one-line help); the table keeps `orin --help` free of every other import
COMMANDS = {
    "demo": ("demo", "the main job on this machine, from photos to a report"),
    "bench": ("bench", "run a plan under MLPerf LoadGen and keep a record"),
    "predict": ("predict", "what the virtual Orin expects of a plan, without running it"),
    "run": ("run", "answer a folder of photos, one JSON line each"),
    "place": ("place", "which layers the DLA takes, why the others fall back, and what to rewrite"),
    "rewrite": ("rewrite", "bring a network's layers into forms that the DLA takes"),
    "calibrate": ("calibrate", "INT8 ranges from photos or arrays, as a TensorRT calibration cache"),
    "cache": ("cache", "a TensorRT calibration cache as JSON, and back"),
    "qdq": ("qdq", "a Q/DQ network as a float network, a calibration cache and its FP16 layers"),
    "accuracy": ("accuracy", "what INT8 costs in answers, layer by layer, and what FP16 wins back"),
    "build": ("build", "engines for GPU and DLA, checked, with manifests and logs"),
    "deploy": ("deploy", "from a network and photos to engines and a run; goes on where it stopped"),
    "selftest": ("selftest", "build, run, measure and compare with the virtual board, in one file to send back"),
    "segment": (
        "segment",
        "volumes to label maps, window by window, with DICE, overlays and what they cost on an Orin",
    ),
    "power": ("power", "module watts and joules: logs, live view, modes held and restored, sweeps"),
    "flash": ("flash", "an AGX Orin developer kit from NVIDIA's files to its first boot; goes on where it stopped"),
    "provision": ("provision", "make a flashed board ready, over ssh or on it; listed first, undoable"),
    "export": ("export", "a plan's engines for trtexec or Triton, runs for MLPerf"),
    "fleet": ("fleet", "many boards as one: start, look, answer a folder, sweep, end"),
    "reproduce": ("reproduce", "published results against what the virtual Orin predicts, errors in the open"),
    "tune": ("tune", "the best batches, GPU/DLA split and clocks in a handful of runs"),
    "show": ("show", "print a run record and (re)write its report"),
    "compare": ("compare", "set two like runs side by side"),
    "doctor": ("doctor", "what this machine is, has and lacks, and how to mend it"),
    "networks": ("facts", "the networks of the zoo"),
    "boards": ("facts", "the boards, their accelerators and power modes"),
}

EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            return _run(words)
        finally:
            print(end="", flush=True)  # here, not at the interpreter's end: stdout may be full, or its reader gone
    except KeyboardInterrupt:
        print("orin: stopped; what was measured is kept", file=sys.stderr)
        return 130
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's end fails once more
        if isinstance(error, BrokenPipeError):
            return 0
        print(f"orin: stdout: {error.strerror or error}", file=sys.stderr)
        return EXIT_USAGE


def _run(words: Sequence[str]) -> int:
    parser = _parser(words)
    options = parser.parse_args(words)
    if not hasattr(options, "handler"):
        parser.print_help()
        return EXIT_USAGE
    try:
        code: int = options.handler(options)
        return code
    except BrokenPipeError:
        raise
    except Exception as error:
        from orin.cli.errors import one_line

        line = one_line(error)
        if line is None:
            raise
        print(f"orin {options.command}: {line}", file=sys.stderr)
        return EXIT_USAGE


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orin", description="Deploy networks on Jetson AGX Orin: GPU + 2 DLA at once, measured or simulated."
    )
    parser.add_argument("--version", action="version", version=_version(words))
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    asked = next((word for word in words if not word.startswith("-")), None)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == asked:
            importlib.import_module(f"orin.cli.{module}").configure(command)
    return parser


def _version(words: Sequence[str]) -> str:
    if "--version" not in words:
        return ""
    from importlib.metadata import version

    return f"orin-toolkit {version('orin-toolkit')}"


if __name__ == "__main__":
    sys.exit(main())
