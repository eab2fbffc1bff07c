"""`orin cache show` and `orin cache write`: TensorRT's calibration cache as JSON and back."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orin.cli.output import Talk, add_output_arguments, print_json, print_table
from orin.cli.qdq import add_shape_argument

if TYPE_CHECKING:
    from calibration.cache import CalibrationCache

KEYS = ("version", "algorithm", "scales")
FLOAT32_END = 2.0**128


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="print a cache's header, scales and warnings")
    show.add_argument("file", type=Path, metavar="FILE", help="TensorRT calibration cache")
    show.add_argument(
        "--network", metavar="MODEL", help="ONNX file or zoo network: say which of its tensors are missing"
    )
    add_shape_argument(show)
    add_output_arguments(show)
    write = actions.add_parser("write", help="write the cache that such JSON describes")
    write.add_argument("file", type=Path, metavar="JSON", help="what `orin cache show FILE --json` prints")
    write.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="calibration cache to write")
    add_output_arguments(write)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    if options.action == "show":
        _show(options)
    else:
        _write(options)
    return 0


def _show(options: argparse.Namespace) -> None:
    from calibration.cache import read_cache
    from calibration.names import is_numbered
    from engines.spec import INT8_MAX

    cache = read_cache(options.file)
    apart = _apart(options, cache) if options.network else {}
    if options.json:
        fields = {"version": cache.version, "algorithm": cache.algorithm, "scales": dict(cache.scales)}
        print_json({**fields, "warnings": list(cache.warnings), **apart})
        return
    for warning in cache.warnings:
        Talk(options.quiet).say(f"warning: {warning}")
    rows = [(f"{scale:.9g}", f"{INT8_MAX * scale:.9g}", name) for name, scale in cache.scales.items()]
    title = f"{options.file}: TensorRT {cache.version}, {cache.algorithm}, {len(rows)} tensors"
    print_table(title, rows, ("scale", "range ±", "tensor"))
    if any(map(is_numbered, apart.get("unknown", ()))):
        Talk(options.quiet).say("numbered names, (Unnamed Layer* N), belong to the parser that made the cache")
    for what, names in apart.items():
        title = f"{len(names)} tensors {_APART[what].format(options.network)}"
        if names:
            print_table(title, [(name,) for name in names])
        else:
            print(title)


_APART = {
    "missing": "that {} has and the cache lacks: layers beside them may run in FP16",
    "unknown": "that {} does not have",
}


def _apart(options: argparse.Namespace, cache: CalibrationCache) -> dict[str, list[str]]:
    """Return what a network has and the cache lacks, and the other way round."""
    from calibration.names import missing, unknown
    from engines.graph import read_graph
    from engines.onnx_model import with_batch
    from orin.place import parse_shape
    from orin.subject import light_network

    graph = read_graph(
        with_batch(light_network(options.network), 1), options.network, dict(map(parse_shape, options.shape))
    )
    return {"missing": list(missing(graph, cache.scales)), "unknown": list(unknown(graph, cache.scales))}


def _write(options: argparse.Namespace) -> None:
    from calibration.cache import read_cache
    from orin.record import write_atomically

    text = _cache(options.file, _object(options.file)).dumps()
    cache = read_cache(text)  # a header or scale that no cache can hold is refused before it is written
    write_atomically(options.output, text)
    if options.json:
        print_json({"output": str(options.output), "tensors": len(cache.scales)})
    else:
        print(f"{len(cache.scales)} tensors -> {options.output}")


def _object(path: Path) -> dict[str, Any]:
    from orin.errors import OrinError

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also text that is not UTF-8
        raise OrinError(f"{path} is no JSON: {error}; write it with `orin cache show FILE --json`") from None
    missing = [key for key in KEYS if not isinstance(values, dict) or key not in values]
    if missing:
        raise OrinError(f"{path} lacks {', '.join(missing)}, expected one object with {', '.join(KEYS)}")
    return dict(values)


def _cache(path: Path, values: dict[str, Any]) -> CalibrationCache:
    from calibration.cache import CalibrationCache
    from engines.spec import INT8_MAX, Ranges
    from orin.errors import OrinError

    version, algorithm, scales = (values[key] for key in KEYS)
    for key, value, kind in zip(KEYS, (version, algorithm, scales), (int, str, dict)):
        if not isinstance(value, kind) or isinstance(value, bool):
            raise OrinError(f"{path} has {key} {str(value)[:60]!r}, expected {_KINDS[kind]}")
    for name, scale in scales.items():
        if not isinstance(scale, (int, float)) or isinstance(scale, bool) or not 0 <= scale < FLOAT32_END:
            raise OrinError(f"{path} gives {name!r} the scale {str(scale)[:60]}, expected a float32 of 0 or more")
    amax = {name: float(scale) * INT8_MAX for name, scale in scales.items()}  # exact in float64
    return CalibrationCache.from_ranges(Ranges(amax, "json", images=0), version, algorithm)


_KINDS = {int: "a whole number such as 100300", str: "a name such as EntropyCalibration2", dict: "{tensor: scale}"}
