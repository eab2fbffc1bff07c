"""`orin build`: a network's engines for GPU and DLA, with manifests and logs, in a folder."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orin.cli.output import Talk, add_output_arguments, print_json, print_table
from orin.cli.plan_options import add_plan_arguments, plan_from

if TYPE_CHECKING:
    from engines.engine import Engine
    from orin.build import Built, Desk
    from orin.plan import Plan

Checked = dict[str, dict[str, float]]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_plan_arguments(parser, "resnet50")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--board", metavar="BOARD", help="jetson (TensorRT), or virtual:agx-orin-64gb (ONNX Runtime)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="photos for INT8 ranges and the check of numbers")
    parser.add_argument("--allow-gpu-layers", action="store_true", help="let layers of the DLA engine run on the GPU")
    parser.add_argument("--sparse", action="store_true", help="use weights that are zero in 2 of 4 (GPU and DLA)")
    parser.add_argument("--verbose-log", action="store_true", help="keep TensorRT's verbose messages in the log")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from orin.boards import board_name, open_board
    from orin.build import build_engines
    from orin.check import check_engines, doubts

    talk = Talk(options.quiet)
    board = open_board(board_name(options.board, talk.say), "results")
    plan = plan_from(options)
    # The virtual board runs ONNX Runtime's engines: there is nothing to check them against.
    desk = _desk(options, plan, talk, checks=board.provenance == "measured")
    built = build_engines(plan, desk, board.name)
    checked = check_engines(built, board, desk.photos) if desk.references else {}
    _write(options.output, plan, built)
    for warning in doubts(checked):
        talk.say(warning)
    if options.json:
        print_json({"output": str(options.output), **_summary(built, board.name, checked)})
    else:
        _print(options, built, checked)
    return 0


def _desk(options: argparse.Namespace, plan: Plan, talk: Talk, checks: bool) -> Desk:
    from orin.bench import photos_in
    from orin.build import Desk

    needed = plan.precision == "int8" and plan.calibration is None
    return Desk(
        photos=photos_in(options.data) if options.data or needed else (),
        say=talk.say,
        progress=talk.progress,
        allow_gpu_layers=options.allow_gpu_layers,
        verbose_log=options.verbose_log,
        sparse=options.sparse,
        references=checks,
    )


def _summary(built: Built, board: str, checked: Checked) -> dict[str, Any]:
    engines = {}
    for name, engine in built.engines.items():
        manifest = engine.manifest
        engines[name] = {
            "file": f"{name}.engine",
            "sha256": manifest.engine_sha256,
            "builder": manifest.builder,
            "batch": manifest.spec.batch,
            "precision": manifest.spec.precision,
            "inputs": {binding.name: f"{binding.dtype} {binding.format}" for binding in manifest.inputs},
            "outputs": {binding.name: f"{binding.dtype} {binding.format}" for binding in manifest.outputs},
            "gpu_layers": list(manifest.gpu_layers),
            "sqnr_db": {output: _figure(value) for output, value in checked[name].items()} if name in checked else None,
        }
    return {"board": board, "weights": built.weights, "engines": engines}


def _write(folder: Path, plan: Plan, built: Built) -> None:
    """Write plan, engines, manifests and logs, each whole or not at all."""
    from engines.cache import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "plan.yaml", plan.dumps().encode())
    for name, engine in built.engines.items():
        write_atomically(folder / f"{name}.engine", engine.path.read_bytes())
        write_atomically(folder / f"{name}.json", engine.manifest.dumps().encode())
        log = engine.path.with_suffix(".log")
        if log.is_file():
            write_atomically(folder / f"{name}.log", log.read_bytes())


def _print(options: argparse.Namespace, built: Built, checked: Checked) -> None:
    rows = [_row(name, engine, checked.get(name)) for name, engine in built.engines.items()]
    header = ("engine", "batch", "input", "output", "layers on GPU", "SQNR")
    print_table(f"{options.network or 'engines'} -> {options.output} (weights: {built.weights})", rows, header)


def _row(name: str, engine: Engine, sqnr_db: dict[str, float] | None) -> tuple[str, ...]:
    manifest = engine.manifest
    ends = (
        ", ".join(dict.fromkeys(f"{binding.dtype} {binding.format}" for binding in bindings))
        for bindings in (manifest.inputs, manifest.outputs)
    )
    shown = [_figure(value) for value in sqnr_db.values()] if sqnr_db else []
    quality = " ".join(f"{value:.1f} dB" if isinstance(value, float) else value for value in shown) or "–"
    left = str(len(manifest.gpu_layers)) if name == "dla" else "–"
    return (f"{name} {manifest.spec.precision}", str(manifest.spec.batch), *ends, left, quality)


def _figure(value_db: float) -> float | str:
    """JSON has no infinity: outputs that equal their reference are called that."""
    return "equal" if value_db == math.inf else value_db
