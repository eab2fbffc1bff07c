"""`orin qdq`: a Q/DQ network as a float network, a calibration cache and the layers that stay in FP16."""

from __future__ import annotations

import argparse
from pathlib import Path

from orin.cli.output import Talk, add_output_arguments, print_json, print_table


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="network with QuantizeLinear/DequantizeLinear")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="CLEAN.onnx", help="float network to write")
    parser.add_argument("--cache", type=Path, metavar="FILE", help="write the scales as a TensorRT calibration cache")
    add_shape_argument(parser)
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def add_shape_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that gives inputs a static shape."""
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=1x3x224x224",
        help="static shape of an input; may be given again for another",
    )


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from calibration.cache import CalibrationCache
    from calibration.dequantise import read_qdq
    from calibration.names import with_parser_names
    from engines.files import write_model
    from engines.onnx_model import load_model
    from orin.place import parse_shape
    from orin.record import write_atomically

    talk = Talk(options.quiet)
    found = read_qdq(load_model(options.model), dict(map(parse_shape, options.shape)))
    precisions = found.layer_precisions
    cache = CalibrationCache.from_ranges(with_parser_names(found.graph, found.ranges))
    write_model(found.model, options.output)
    if options.cache:
        write_atomically(options.cache, cache.dumps())
    for note in found.notes:
        talk.say(note)
    summary: dict[str, object] = {
        "model": str(options.model),
        "output": str(options.output),
        "cache": str(options.cache) if options.cache else None,
        "tensors": len(cache.scales),
        "fp16_layers": list(found.fp16_layers),
        "layer_precisions": precisions,
        "notes": list(found.notes),
    }
    if options.json:
        print_json(summary)
    else:
        _print(summary, found.fp16_layers)
    return 0


def _print(summary: dict[str, object], fp16_layers: tuple[str, ...]) -> None:
    rows = [(key, str(summary[key])) for key in ("cache", "tensors") if summary[key] is not None]
    rows.append(("FP16 layers", "\n".join(fp16_layers) or "none"))
    print_table(f"{summary['model']} without Q/DQ -> {summary['output']}", rows)
    if fp16_layers:
        print(f"--layerPrecisions={summary['layer_precisions']}")  # one line, to be copied into trtexec's
