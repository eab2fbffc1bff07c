"""Formats that the DLA reads and writes without a reformat on the GPU, and the memory pools that it asks for.

Sources: TensorRT documentation, "DLA I/O formats" (10.x) and NvInfer.h release/10.3 (formats and pools).
"""

from __future__ import annotations

from collections.abc import Mapping

from dla.errors import DlaError
from engines.graph import Graph
from engines.spec import TensorFormat

MAX_HWC4_GROUPS = 4
HWC4_CHANNELS = (1, 3, 4)

# Formats by direction and precision that need no reformat.
NATIVE: Mapping[tuple[str, str], tuple[TensorFormat, ...]] = {
    ("input", "int8"): (TensorFormat.DLA_LINEAR, TensorFormat.DLA_HWC4, TensorFormat.CHW32),
    ("input", "fp16"): (TensorFormat.DLA_LINEAR, TensorFormat.DLA_HWC4, TensorFormat.CHW16),
    ("output", "int8"): (TensorFormat.DLA_LINEAR, TensorFormat.CHW32),
    ("output", "fp16"): (TensorFormat.DLA_LINEAR, TensorFormat.CHW16),
}


def pools_bytes() -> dict[str, int]:
    """Return the memory pools of a loadable under TensorRT's names: all the SRAM of a core (TensorRT's own default is
    half of it), and the default DRAM pools."""
    return {"DLA_MANAGED_SRAM": 1 << 20, "DLA_LOCAL_DRAM": 1 << 30, "DLA_GLOBAL_DRAM": 512 << 20}


def io_formats(graph: Graph, input_format: str, output_format: str, precision: str = "int8") -> dict[str, str]:
    """Return the format of each input and output; DlaError where the DLA does not take it as it is."""
    formats = {}
    for direction, format_, names in (
        ("input", input_format, graph.inputs),
        ("output", output_format, graph.outputs),
    ):
        _check_native(direction, format_, precision)
        formats.update({name: TensorFormat(format_).value for name in names})
    if input_format == TensorFormat.DLA_HWC4:
        for name in graph.inputs:
            _check_hwc4(graph, name)
    return formats


def _check_native(direction: str, format_: str, precision: str) -> None:
    native = NATIVE.get((direction, precision))
    if native is None:
        raise DlaError(f"precision {precision!r} is not one of the DLA's: int8, fp16")
    if format_ not in [entry.value for entry in native]:
        known = ", ".join(entry.value for entry in native)
        raise DlaError(f"{direction} format {format_!r} is not one that the DLA takes in {precision}: {known}")


def _check_hwc4(graph: Graph, name: str) -> None:
    """DLA_HWC4 holds up to four channels, and only a convolution reads it."""
    shape = graph.tensors[name].shape
    if len(shape) != 4 or shape[1] not in HWC4_CHANNELS:
        raise DlaError(f"input {name!r} has the shape {list(shape)}, DLA_HWC4 takes [N,1|3|4,H,W]; use DLA_LINEAR")
    for layer in graph.layers:
        if name in layer.inputs and (layer.op != "Conv" or layer.attributes.get("group", 1) > MAX_HWC4_GROUPS):
            raise DlaError(
                f"input {name!r} feeds {layer.name!r} ({layer.op}), DLA_HWC4 only feeds convolutions of at most"
                f" {MAX_HWC4_GROUPS} groups; use DLA_LINEAR"
            )
