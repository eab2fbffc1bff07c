"""Layers that make maps larger: transposed convolutions without padding, and Resize in the DLA's forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from dla.edit import Edit, attribute, input_of, is_constant, numbers, shape_of
from dla.rewrites.change import Made, RefusedError
from dla.rewrites.limits import MAX_DECONV_KERNEL, MAX_DIM, MAX_RESIZE, NEAREST_FORMS

if TYPE_CHECKING:
    import onnx_ir as ir

APPROXIMATE = "ask for approximate-resize by name to sample there all the same"


def valid_deconv(edit: Edit, node: ir.Node) -> Made | None:
    """Write a padded ConvTranspose as one without padding, and a crop; `output_padding` as zeros in its kernel."""
    source, weight = input_of(node, 0), input_of(node, 1)
    if node.op_type != "ConvTranspose" or weight is None or len(shape_of(source)) != 4 or len(shape_of(weight)) != 4:
        return None
    start, missing = _crop(node)
    if not any(start) and not any(missing) and _valid_size(node) == list(shape_of(node.outputs[0])[2:]):
        return None
    _check_deconv(node, weight, missing)
    if any(missing):
        weight = _grown(edit, weight, missing)
    size = [valid + more for valid, more in zip(_valid_size(node), missing)]
    batch, channels, *wanted = shape_of(node.outputs[0])
    made = edit.add(
        node,
        "ConvTranspose",
        [source, weight, *node.inputs[2:3]],
        (batch, channels, *size),
        kernel_shape=shape_of(weight)[2:],
        strides=attribute(node, "strides", (1, 1)),
    )
    detail = "ConvTranspose has no padding now"
    if size != wanted:
        made = _cropped(edit, node, made, start)
        detail += f"; its {size[0]}x{size[1]} is cropped to {wanted[0]}x{wanted[1]} from {start[0]},{start[1]}"
    edit.replace(node.outputs[0], made)
    return Made(str(made.name), detail)


def _valid_size(node: ir.Node) -> list[int]:
    """Return height and width of a ConvTranspose without padding."""
    kernel, dilations = shape_of(node.inputs[1])[2:], attribute(node, "dilations", (1, 1))
    steps = zip(shape_of(node.inputs[0])[2:], attribute(node, "strides", (1, 1)), kernel, dilations)
    return [(length - 1) * stride + (width - 1) * dilation + 1 for length, stride, width, dilation in steps]


def _crop(node: ir.Node) -> tuple[list[int], list[int]]:
    """Return where the result starts in the unpadded one, and how much the unpadded one is short of its end."""
    valid, wanted = _valid_size(node), shape_of(node.outputs[0])[2:]
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER") or "output_shape" in node.attributes:
        more = attribute(node, "output_padding", (0, 0))
        totals = [size + extra - length for size, extra, length in zip(valid, more, wanted)]
        if min(totals) < 0:
            raise RefusedError(f"its output {list(wanted)} is larger than what its kernel reaches, {valid}")
        start = [total // 2 if mode == "SAME_UPPER" else total - total // 2 for total in totals]
    else:
        start = [0, 0] if mode == "VALID" else list(attribute(node, "pads", (0, 0, 0, 0)))[:2]
    return start, [max(0, begin + length - size) for begin, length, size in zip(start, wanted, valid)]


def _check_deconv(node: ir.Node, weight: ir.Value, missing: Sequence[int]) -> None:
    if attribute(node, "group", 1) != 1:
        raise RefusedError("it has groups, which the DLA does not deconvolve; split it into one for each group")
    if any(dilation != 1 for dilation in attribute(node, "dilations", (1, 1))):
        raise RefusedError("its kernel is dilated, which the DLA does not deconvolve; fill it with zeros")
    if not is_constant(weight):
        raise RefusedError("its weights are not constant")
    kernel = [size + more for size, more in zip(shape_of(weight)[2:], missing)]
    if max(kernel) > MAX_DECONV_KERNEL:
        raise RefusedError(f"its kernel would be {kernel}, over {MAX_DECONV_KERNEL}")


def _grown(edit: Edit, weight: ir.Value, missing: Sequence[int]) -> ir.Value:
    """Add a kernel with zeros below and to the right: it reaches further, and sums the same."""
    inputs, outputs, height, width = shape_of(weight)
    shape = (inputs, outputs, height + missing[0], width + missing[1])
    ends = [(0, 0), (0, 0), (0, missing[0]), (0, missing[1])]
    return edit.derived(weight, shape, lambda values: np.pad(values, ends))


def _cropped(edit: Edit, node: ir.Node, source: ir.Value, start: Sequence[int]) -> ir.Value:
    shape = shape_of(node.outputs[0])
    ends = [begin + length for begin, length in zip(start, shape[2:])]
    name = str(node.outputs[0].name)
    bounds = [edit.constant(f"{name}_crop", np.array(values, np.int64)) for values in (start, ends, [2, 3])]
    return edit.add(node, "Slice", [source, *bounds], shape)


def resize_scales(edit: Edit, node: ir.Node) -> Made | None:
    """Write a Resize with whole scales as a constant, in a coordinate form that the DLA has and that samples alike."""
    return _resize(edit, node, exact=True)


def approximate_resize(edit: Edit, node: ir.Node) -> Made | None:
    """As `resize_scales`, wherever the original samples: edges and shifts of less than a pixel differ."""
    return _resize(edit, node, exact=False)


def _resize(edit: Edit, node: ir.Node, exact: bool) -> Made | None:
    source = input_of(node, 0)
    if node.op_type != "Resize" or source is None or len(shape_of(source)) != 4 or not shape_of(node.outputs[0]):
        return None
    if attribute(node, "mode", "nearest") not in MAX_RESIZE:
        raise RefusedError(f"its mode is {attribute(node, 'mode', '')!r}, and the DLA has nearest and linear")
    scales = _scales(node)
    form = _dla_form(node, scales, exact)
    given = numbers(input_of(node, 2))
    if input_of(node, 3) is None and given is not None and given.size == 4 and form == _form(node):
        return None
    name = str(node.outputs[0].name)
    roi = edit.constant(f"{name}_roi", np.zeros(0, np.float32)) if edit.opset < 13 else None
    factors = edit.constant(f"{name}_scales", np.array([1, 1, *scales], np.float32))
    mode = attribute(node, "mode", "nearest")
    made = edit.add(
        node,
        "Resize",
        [source, roi, factors],
        shape_of(node.outputs[0]),
        mode=mode,
        coordinate_transformation_mode=form[0],
        **({"nearest_mode": form[1]} if mode == "nearest" else {}),
    )
    edit.replace(node.outputs[0], made)
    return Made(str(made.name), f"Resize has the scales {scales[0]}x{scales[1]} now, {mode}, {' '.join(form).strip()}")


def _scales(node: ir.Node) -> list[int]:
    """Return the whole factors of height and width; refused where they are none, or over the DLA's."""
    factors = _factors(node)
    mode = attribute(node, "mode", "nearest")
    if factors[:2] != [1, 1] or any(scale.denominator != 1 or scale > MAX_RESIZE[mode] for scale in factors[2:]):
        seen = "x".join(f"{float(scale):g}" for scale in factors)
        raise RefusedError(f"its scales are {seen}; the DLA takes 1x1 and whole numbers up to {MAX_RESIZE[mode]}")
    if max(shape_of(node.outputs[0])) > MAX_DIM:
        raise RefusedError(f"its output {list(shape_of(node.outputs[0]))} is over {MAX_DIM}")
    return [int(scale) for scale in factors[2:]]


def _factors(node: ir.Node) -> list[Fraction]:
    """Return the scales of the axes: those given, or with sizes their ratios."""
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if input_of(node, 3) is not None:
        return [Fraction(new, old) for new, old in zip(after, before)]
    given, axes = numbers(input_of(node, 2)), attribute(node, "axes", (0, 1, 2, 3))
    if given is None:
        raise RefusedError("its scales are not constant; export the network with fixed ones")
    by_axis = {axis % 4: Fraction(float(scale)) for axis, scale in zip(axes, given)}
    return [by_axis.get(axis, Fraction(1)) for axis in range(4)]


def _form(node: ir.Node) -> tuple[str, str]:
    """Return coordinate transformation and rounding; no rounding for linear."""
    nearest = attribute(node, "mode", "nearest") == "nearest"
    transform = attribute(node, "coordinate_transformation_mode", "half_pixel")
    return transform, attribute(node, "nearest_mode", "round_prefer_floor") if nearest else ""


def _dla_form(node: ir.Node, scales: Sequence[int], exact: bool) -> tuple[str, str]:
    """Return the DLA's form that samples where a Resize does; refused where none does, unless it need not be exact."""
    form = _form(node)
    if not form[1]:
        if exact and form[0] not in _LINEAR_AS_HALF_PIXEL and max(scales) > 1:
            raise RefusedError(f"{form[0]} interpolates elsewhere than half_pixel; {APPROXIMATE}")
        return "half_pixel", ""
    if form in NEAREST_FORMS:
        return form
    sizes = shape_of(node.inputs[0])[2:]
    if exact and not all(_repeats(form, scale, size) for scale, size in zip(scales, sizes)):
        raise RefusedError(f"{' '.join(form)} takes other pixels than asymmetric floor does; {APPROXIMATE}")
    return "asymmetric", "floor"


_LINEAR_AS_HALF_PIXEL = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")  # the same at whole scales

# Source coordinate of output pixel x at scale s, from `size` pixels: the ONNX operator Resize.
_COORDINATES: Mapping[str, Callable[[int, int, int], Fraction]] = {
    "asymmetric": lambda x, s, size: Fraction(x, s),
    "half_pixel": lambda x, s, size: Fraction(2 * x + 1, 2 * s) - Fraction(1, 2),
    "pytorch_half_pixel": lambda x, s, size: (
        Fraction(2 * x + 1, 2 * s) - Fraction(1, 2) if size * s > 1 else Fraction()
    ),
    "half_pixel_symmetric": lambda x, s, size: Fraction(2 * x + 1, 2 * s) - Fraction(1, 2),
    "tf_half_pixel_for_nn": lambda x, s, size: Fraction(2 * x + 1, 2 * s),
    "align_corners": lambda x, s, size: Fraction(x * (size - 1), size * s - 1) if size * s > 1 else Fraction(),
}
_ROUNDINGS: Mapping[str, Callable[[Fraction], int]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "round_prefer_floor": lambda place: math.ceil(place - Fraction(1, 2)),
    "round_prefer_ceil": lambda place: math.floor(place + Fraction(1, 2)),
}


def _repeats(form: tuple[str, str], scale: int, size: int) -> bool:
    """Tell whether a nearest Resize repeats each pixel `scale` times, as asymmetric floor does."""
    transform, rounding = _COORDINATES.get(form[0]), _ROUNDINGS.get(form[1])
    if transform is None or rounding is None:
        return False
    places = (rounding(transform(x, scale, size)) for x in range(size * scale))
    return all(min(max(place, 0), size - 1) == x // scale for x, place in enumerate(places))
