"""Pads of zeros as the padding of the convolutions and pools that read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dla.edit import Edit, attribute, input_of, label, numbers, shape_of
from dla.rewrites.change import Made, RefusedError
from dla.rewrites.limits import MAX_CONV_PAD, MAX_POOL_PAD

if TYPE_CHECKING:
    import onnx_ir as ir

CONSUMERS = ("Conv", "MaxPool", "AveragePool")
NON_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Abs", "Exp")
PASSING_ON = ("MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout")
APPROXIMATE = "ask for approximate-pad by name to take zeros all the same"


def fold_pad(edit: Edit, node: ir.Node) -> Made | None:
    """Fold a Pad into each convolution and pool that reads it, where zeros there mean the same."""
    return _fold(edit, node, exact=True)


def approximate_pad(edit: Edit, node: ir.Node) -> Made | None:
    """Fold a Pad whatever it fills with: the border of the result differs from the original's."""
    return _fold(edit, node, exact=False)


def _fold(edit: Edit, node: ir.Node, exact: bool) -> Made | None:
    """Fold where possible; the Pad goes when no reader is left, and is refused when every reader stays."""
    source, padded = input_of(node, 0), node.outputs[0]
    if node.op_type != "Pad" or source is None or len(shape_of(source)) != 4:
        return None
    pads, fill = _pads(node), _fill(node) if exact else 0.0
    folded, reasons = [], []
    for reader, index in tuple(padded.uses()):
        try:
            total = _total(reader, index, pads)
            _check_fill(reader, source, fill, exact)
        except RefusedError as reason:
            reasons.append(f"{label(reader)}: {reason}")
            continue
        _widen(reader, source, total)
        folded.append(reader)
    if not folded:
        raise RefusedError("; ".join(reasons) or "it is an output of the network")
    edit.sweep(node)
    names = ", ".join(map(label, folded))
    left = f"; it stays for {'; '.join(reasons)}" if reasons else ""
    return Made(str(folded[0].outputs[0].name), f"Pad is now the padding {list(pads)} of {names}{left}")


def _pads(node: ir.Node) -> tuple[int, int, int, int]:
    """Return top, left, bottom, right; refused where they are unknown, negative, or of another axis."""
    given, axes = numbers(input_of(node, 1)), numbers(input_of(node, 3))
    if given is None or (axes is None and input_of(node, 3) is not None):
        raise RefusedError("its pads are not constant")
    places = range(4) if axes is None else [int(axis) % 4 for axis in axes]
    begin, end = np.zeros(4, int), np.zeros(4, int)
    half = len(given) // 2
    begin[list(places)], end[list(places)] = given[:half], given[half:]
    if begin[:2].any() or end[:2].any() or min(begin.min(), end.min()) < 0:
        raise RefusedError(f"its pads {given.tolist()} are negative or not of height and width alone")
    return int(begin[2]), int(begin[3]), int(end[2]), int(end[3])


def _fill(node: ir.Node) -> float:
    mode, given = attribute(node, "mode", "constant"), input_of(node, 2)
    if mode != "constant":
        raise RefusedError(f"its mode is {mode!r}, which no padding of zeros equals; {APPROXIMATE}")
    value = np.zeros(1) if given is None else numbers(given)
    if value is None:
        raise RefusedError("the value it fills with is not constant")
    return float(value.reshape(-1)[0])


def _total(reader: ir.Node, index: int, pads: tuple[int, ...]) -> list[int]:
    """Return the reader's own padding and the Pad's together; refused where the reader cannot take them."""
    op = reader.op_type
    if op not in CONSUMERS or index != 0:
        raise RefusedError(f"{op} has no padding")
    if attribute(reader, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise RefusedError("it pads by itself with auto_pad; export it with explicit pads")
    if attribute(reader, "ceil_mode", 0):
        raise RefusedError("it rounds its size up, which the padding would change")
    total = [own + more for own, more in zip(_own_pads(reader), pads)]
    kernel = shape_of(reader.inputs[1])[2:] if op == "Conv" else attribute(reader, "kernel_shape", ())
    limit = MAX_CONV_PAD if op == "Conv" else MAX_POOL_PAD
    if not kernel or any(pad >= size or pad > limit for pad, size in zip(total, (*kernel, *kernel))):
        raise RefusedError(f"a padding {total} would be as large as its kernel {list(kernel)} or over {limit}")
    return total


def _own_pads(reader: ir.Node) -> tuple[int, ...]:
    valid = attribute(reader, "auto_pad", "NOTSET") == "VALID"
    pads: tuple[int, ...] = (0, 0, 0, 0) if valid else attribute(reader, "pads", (0, 0, 0, 0))
    return pads


def _check_fill(reader: ir.Node, source: ir.Value, fill: float, exact: bool) -> None:
    """Refuse where what the Pad fills with is not what the reader's own padding would be."""
    op = reader.op_type
    if op == "AveragePool" and any(_own_pads(reader)) and not attribute(reader, "count_include_pad", 0):
        raise RefusedError("its own padding is left out of the mean, and the Pad's is not")
    if op == "MaxPool" and exact:
        lowest = float(np.finfo(np.float32).min)
        if fill > lowest and not (fill == 0 and _is_non_negative(source)):
            raise RefusedError(f"a maximum with {fill:g} is not one without where values are negative; {APPROXIMATE}")
    elif fill != 0:
        raise RefusedError(f"it fills with {fill:g}, which no padding of zeros equals; {APPROXIMATE}")


def _is_non_negative(value: ir.Value) -> bool:
    """Tell whether the operators in front of a tensor keep it at zero or above."""
    while (maker := value.producer()) is not None:
        if maker.op_type in NON_NEGATIVE:
            return True
        low = numbers(input_of(maker, 1)) if maker.op_type == "Clip" else None
        if low is not None and float(low.reshape(-1)[0]) >= 0:
            return True
        source = input_of(maker, 0)
        if maker.op_type not in PASSING_ON or source is None:
            return False
        value = source
    return False


def _widen(reader: ir.Node, source: ir.Value, pads: list[int]) -> None:
    """Let a reader pad by itself; a mean goes on counting the zeros."""
    import onnx_ir

    reader.replace_input_with(0, source)
    reader.attributes.pop("auto_pad", None)
    reader.attributes["pads"] = onnx_ir.AttrInt64s("pads", pads)
    if reader.op_type == "AveragePool":
        reader.attributes["count_include_pad"] = onnx_ir.AttrInt64("count_include_pad", 1)
