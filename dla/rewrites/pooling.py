"""Means over height and width as average pools with explicit windows, in steps where the map is large."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dla.edit import Edit, attribute, dtype_of, input_of, numbers, shape_of
from dla.rewrites.axes import settle_readers
from dla.rewrites.change import Made, RefusedError
from dla.rewrites.limits import MAX_CONV_KERNEL, MAX_POOL_WINDOW

if TYPE_CHECKING:
    import onnx_ir as ir

SPATIAL_AXES = (2, 3)


def global_pool(edit: Edit, node: ir.Node) -> Made | None:
    """Give a mean over height and width the form of average pools, with a depthwise convolution where none divides.

    What comes out keeps its name and has the shape [N,C,1,1], as an output of the network too.
    """
    source, output = node.inputs[0], node.outputs[0]
    axes = _mean_axes(node)
    if source is None or len(shape_of(source)) != 4 or not axes or not set(axes) <= set(SPATIAL_AXES):
        return None
    stages = _stages([shape_of(source)[axis] if axis in axes else 1 for axis in SPATIAL_AXES])
    pooled, steps = source, []
    for window in stages:
        pooled = _mean(edit, node, pooled, window)
        steps.append(f"{_kind(window)} with the window {window[0]}x{window[1]}")
    if len(shape_of(output)) == 3:
        pooled = _drop_axis(edit, node, pooled)
    edit.replace(output, pooled)
    if shape_of(output) != shape_of(pooled):
        settle_readers(edit, pooled)
    return Made(str(pooled.name), f"{node.op_type} is now {', then '.join(steps)}")


def _mean_axes(node: ir.Node) -> tuple[int, ...]:
    """Return the axes of a mean over a 4-D tensor: an attribute before opset 18, a constant input after."""
    if node.op_type == "GlobalAveragePool":
        return SPATIAL_AXES
    if node.op_type != "ReduceMean":
        return ()
    given = numbers(input_of(node, 1))
    axes = attribute(node, "axes", ()) if given is None else given.tolist()
    return tuple(sorted(int(axis) % 4 for axis in axes))


def _stages(size: list[int]) -> list[tuple[int, int]]:
    """Return the windows (height, width) of means that follow each other down to one value."""
    rows, columns = map(_factors, size)
    depth = max(len(rows), len(columns))
    aligned = [[1] * (depth - len(factors)) + factors for factors in (rows, columns)]
    return list(zip(*aligned))


def _factors(size: int) -> list[int]:
    """Split a length into windows that a pool takes; the last may need a convolution."""
    factors = []
    while size > MAX_POOL_WINDOW:
        window = next((width for width in range(MAX_POOL_WINDOW, 1, -1) if size % width == 0), None)
        if window is None:
            break
        factors.append(window)
        size //= window
    if size > MAX_CONV_KERNEL:
        raise RefusedError(
            f"{size} has no divisor up to {MAX_POOL_WINDOW} and is over {MAX_CONV_KERNEL}: no chain of windows covers"
            " it; change the input size so that this map divides"
        )
    return [*factors, size]


def _kind(window: tuple[int, int]) -> str:
    return "AveragePool" if max(window) <= MAX_POOL_WINDOW else "depthwise Conv"


def _mean(edit: Edit, node: ir.Node, source: ir.Value, window: tuple[int, int]) -> ir.Value:
    """Average non-overlapping windows; all hold as many values, so that the mean of the means is the mean."""
    batch, channels, height, width = shape_of(source)
    shape = (batch, channels, height // window[0], width // window[1])
    if _kind(window) == "AveragePool":
        return edit.add(node, "AveragePool", [source], shape, kernel_shape=window, strides=window)
    kernel = np.full((channels, 1, *window), 1 / (window[0] * window[1]), dtype_of(source))
    weight = edit.constant(f"{node.outputs[0].name}_mean", kernel)
    return edit.add(node, "Conv", [source, weight], shape, kernel_shape=window, group=channels)


def _drop_axis(edit: Edit, node: ir.Node, pooled: ir.Value) -> ir.Value:
    """Drop the axis that a mean over one of them without `keepdims` drops."""
    shape = shape_of(node.outputs[0])
    wanted = edit.constant(f"{node.outputs[0].name}_shape", np.array([0, 0, -1], np.int64))
    return edit.add(node, "Reshape", [pooled, wanted], shape)
