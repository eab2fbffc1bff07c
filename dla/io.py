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
SRAM_BYTES = 1 << 20  # of one core on Orin
LOCAL_DRAM_BYTES = 1 << 30  # TensorRT's default for tensors in between
GLOBAL_DRAM_BYTES = 512 << 20  # TensorRT's default for weights

# Formats by direction and precision that need no reformat.
NATIVE: Mapping[tuple[str, str], tuple[TensorFormat, ...]] = {
    ("input", "int8"): (TensorFormat.DLA_LINEAR, TensorFormat.DLA_HWC4, TensorFormat.CHW32),
    ("input", "fp16"): (TensorFormat.DLA_LINEAR, TensorFormat.DLA_HWC4, TensorFormat.CHW16),
    ("output", "int8"): (TensorFormat.DLA_LINEAR, TensorFormat.CHW32),
    ("output", "fp16"): (TensorFormat.DLA_LINEAR, TensorFormat.CHW16),
}


def pools_bytes(weight_bytes: int = 0, feature_bytes: int = 0) -> dict[str, int]:
    """Return the memory pools of a loadable under TensorRT's names, each a power of two.

    All the SRAM of a core (TensorRT's own default is half of it), and the default DRAM pools: more where the weights
    or the tensors in between do not fit in half of these.
    """
    return {
        "DLA_MANAGED_SRAM": SRAM_BYTES,
        "DLA_LOCAL_DRAM": max(LOCAL_DRAM_BYTES, _power_of_two(2 * feature_bytes)),
        "DLA_GLOBAL_DRAM": max(GLOBAL_DRAM_BYTES, _power_of_two(2 * weight_bytes)),
    }


def _power_of_two(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def native_format(direction: str, precision: str) -> TensorFormat:
    """Return the format that the DLA keeps its tensors in; DlaError where the precision is not one of its own."""
    _check_precision(precision)
    return NATIVE[direction, precision][-1]


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


def _check_precision(precision: str) -> None:
    if ("input", precision) not in NATIVE:
        raise DlaError(f"precision {precision!r} is not one of the DLA's: int8, fp16")


def _check_native(direction: str, format_: str, precision: str) -> None:
    _check_precision(precision)
    native = NATIVE[direction, precision]
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
