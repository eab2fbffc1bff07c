"""`orin rewrite`: bring a network's layers into forms that the DLA takes."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orin.cli.output import Talk, add_output_arguments, print_json, print_table
from orin.cli.qdq import add_shape_argument

if TYPE_CHECKING:
    import onnx

    from dla.rewrite import Rewritten

LARGE_BYTES = 2**31 - 2**20  # one ONNX file holds less than 2 GiB; weights of a larger one lie beside it


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="ONNX file, or the name of a network of the zoo")
    add_shape_argument(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="where the rewritten ONNX file goes")
    parser.add_argument("--only", metavar="NAME,...", help="these rewrites alone; without: all that are identical")
    parser.add_argument("--dry-run", action="store_true", help="say what would change, write nothing")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from dla.rewrite import rewrite_all
    from dla.rewrites.advice import explain
    from engines.graph import read_graph, set_shapes
    from orin.errors import OrinError
    from orin.place import parse_shape

    if options.output is None and not options.dry_run:
        raise OrinError("no file to write: name one with -o OUT, or ask for --dry-run")
    talk = Talk(options.quiet)
    model = _load(options.model, with_weights=not options.dry_run)
    if options.shape:
        set_shapes(model, dict(map(parse_shape, options.shape)), options.model)
    done = rewrite_all(model, options.only.split(",") if options.only else None)
    if not options.dry_run:
        _save(done.model, options.output)
        talk.say(f"{options.model} {'rewritten' if done.changes else 'as it was'} -> {options.output}")
    advice = [asdict(entry) for entry in explain(read_graph(done.model))]
    if options.json:
        print_json({**_summary(options, model, done), "advice": advice})
    else:
        _print(done, advice)
    return 0


def _load(name: str, with_weights: bool) -> onnx.ModelProto:
    """Load an ONNX file, or make a network of the zoo; without weights where nothing is written."""
    from engines import zoo
    from engines.onnx_model import load_model
    from orin.subject import is_file

    if is_file(name):
        return load_model(Path(name), external_data=with_weights)
    return zoo.model(name, with_weights=with_weights)


def _save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model; a large one with its weights in one file beside it."""
    import onnx

    beside = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGE_BYTES
    weights = path.with_suffix(path.suffix + ".data").name
    if beside:
        path.with_name(weights).unlink(missing_ok=True)  # onnx appends to a file that is there
    onnx.save_model(model, str(path), save_as_external_data=beside, location=weights if beside else None)


def _summary(options: argparse.Namespace, before: onnx.ModelProto, done: Rewritten) -> dict[str, Any]:
    return {
        "model": options.model,
        "output": None if options.dry_run else str(options.output),
        "nodes_before": len(before.graph.node),
        "nodes_after": len(done.model.graph.node),
        "outputs": [value.name for value in done.model.graph.output],
        "changes": [asdict(change) for change in done.changes],
        "refused": [asdict(refusal) for refusal in done.refusals],
        "new_tensors": list(done.new_tensors),
    }


def _print(done: Rewritten, advice: list[dict[str, str]]) -> None:
    if not done.changes:
        print("nothing to rewrite")
    else:
        rows = [(change.rewrite, change.node, change.detail) for change in done.changes]
        print_table(f"{len(rows)} changes", rows, ("rewrite", "node", "what became of it"))
    if done.refusals:
        left = [(refusal.rewrite, refusal.node, refusal.reason) for refusal in done.refusals]
        print_table(f"{len(left)} left as they are", left, ("rewrite", "node", "why"))
    if advice:
        texts = {entry["text"]: entry["op"] for entry in advice}
        counts = [(op, str(sum(entry["text"] == text for entry in advice)), text) for text, op in texts.items()]
        print_table(f"{len(advice)} layers that no rewrite mends", counts, ("operator", "layers", "what it would take"))
