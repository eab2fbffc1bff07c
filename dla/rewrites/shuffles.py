"""Moves between channels and pixels as (transposed) convolutions whose kernels hold one 1 for each value moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dla.edit import Edit, attribute, dtype_of, input_of, is_float, shape_of
from dla.rewrites.change import Made, RefusedError
from dla.rewrites.limits import MAX_CONV_STRIDE, MAX_DECONV_KERNEL, MAX_DIM

if TYPE_CHECKING:
    import onnx_ir as ir

DEPTH, SPACE = "DepthToSpace", "SpaceToDepth"


class _Shuffle(NamedTuple):
    """A block of pixels and the channels that hold it: depth, column, row ("DCR") or column, row, depth ("CRD")."""

    source: ir.Value
    op: str
    block: int
    order: str


# The same as Reshape, Transpose, Reshape: the permutation, then operator, order, and the axes that hold the block.
_BY_PERMUTATION: Mapping[tuple[int, ...], tuple[str, str, tuple[int, int]]] = {
    (0, 1, 4, 2, 5, 3): (DEPTH, "CRD", (2, 3)),
    (0, 3, 4, 1, 5, 2): (DEPTH, "DCR", (1, 2)),
    (0, 1, 3, 5, 2, 4): (SPACE, "CRD", (3, 5)),
    (0, 3, 5, 1, 2, 4): (SPACE, "DCR", (3, 5)),
}
_SWAP_GROUPS = (0, 2, 1, 3, 4)  # channels as [groups, channels of a group], the two axes swapped


def depth_to_space(edit: Edit, node: ir.Node) -> Made | None:
    """Write DepthToSpace as a ConvTranspose and SpaceToDepth as a Conv, both with kernel and stride of the block."""
    shuffle = _single(node) or _spelled_out(node)
    if shuffle is None or not is_float(node.outputs[0]):
        return None
    to_space = shuffle.op == DEPTH
    limit = MAX_DECONV_KERNEL if to_space else MAX_CONV_STRIDE
    if shuffle.block > limit:
        raise RefusedError(f"its blocks are {shuffle.block} wide, over the DLA's stride of {limit}")
    shape, block = shape_of(node.outputs[0]), (shuffle.block, shuffle.block)
    wide = shape_of(shuffle.source)[1] if to_space else shape[1]
    kernel = _block_kernel(_ones(wide, shuffle.source), shuffle)
    weight = edit.constant(f"{node.outputs[0].name}_moves", kernel)
    op = "ConvTranspose" if to_space else "Conv"
    made = edit.add(node, op, [shuffle.source, weight], shape, kernel_shape=block, strides=block)
    edit.replace(node.outputs[0], made)
    return Made(str(made.name), f"{shuffle.op} of {shuffle.block}x{shuffle.block} is now {op} with a kernel of 0 and 1")


def channel_shuffle(edit: Edit, node: ir.Node) -> Made | None:
    """Write a shuffle of channels between groups (Reshape, Transpose, Reshape) as a 1x1 convolution."""
    found = _reordered(node)
    if found is None or found[1] != _SWAP_GROUPS or not is_float(node.outputs[0]):
        return None
    source, _, split = found
    shape = shape_of(source)
    if shape_of(node.outputs[0]) != shape or split[1] * split[2] != shape[1]:
        return None
    order = np.arange(shape[1]).reshape(split[1:3]).T.reshape(-1)
    kernel = _ones(shape[1], source)[order].reshape(shape[1], shape[1], 1, 1)
    weight = edit.constant(f"{node.outputs[0].name}_moves", kernel)
    made = edit.add(node, "Conv", [source, weight], shape, kernel_shape=(1, 1))
    edit.replace(node.outputs[0], made)
    return Made(str(made.name), f"the shuffle of {shape[1]} channels in {split[1]} groups is now Conv 1x1")


def _single(node: ir.Node) -> _Shuffle | None:
    source = input_of(node, 0)
    if node.op_type not in (DEPTH, SPACE) or source is None or len(shape_of(source)) != 4:
        return None
    order = attribute(node, "mode", "DCR") if node.op_type == DEPTH else "DCR"
    return _Shuffle(source, node.op_type, int(attribute(node, "blocksize", 1)), order)


def _spelled_out(node: ir.Node) -> _Shuffle | None:
    """Read Reshape, Transpose, Reshape where they move square blocks and do nothing else."""
    found = _reordered(node)
    if found is None or found[1] not in _BY_PERMUTATION:
        return None
    source, permutation, split = found
    op, order, axes = _BY_PERMUTATION[permutation]
    batch, channels, height, width = shape_of(source)
    block = split[axes[0]]
    depth = channels // block**2 if op == DEPTH else channels
    small = (height, width) if op == DEPTH else (height // block, width // block)
    forms = {
        (DEPTH, "CRD"): (batch, depth, block, block, *small),
        (DEPTH, "DCR"): (batch, block, block, depth, *small),
    }
    expected = forms.get((op, order), (batch, depth, small[0], block, small[1], block))
    wide = (batch, depth, height * block, width * block) if op == DEPTH else (batch, depth * block**2, *small)
    return _Shuffle(source, op, block, order) if (split, shape_of(node.outputs[0])) == (expected, wide) else None


def _reordered(node: ir.Node) -> tuple[ir.Value, tuple[int, ...], tuple[int, ...]] | None:
    """Return source, permutation and shape in between of a Reshape, Transpose, Reshape from four axes to four."""
    transpose = _maker(node, "Reshape")
    split = None if transpose is None else _maker(transpose, "Transpose")
    if split is None or split.op_type != "Reshape" or transpose is None:
        return None
    source = input_of(split, 0)
    if source is None or len(shape_of(source)) != 4 or len(shape_of(node.outputs[0])) != 4:
        return None
    return source, attribute(transpose, "perm", ()), shape_of(split.outputs[0])


def _maker(node: ir.Node, op: str) -> ir.Node | None:
    """Return the node that makes the first input of an operator; None for another operator."""
    source = input_of(node, 0)
    return source.producer() if node.op_type == op and source is not None else None


def _ones(channels: int, source: ir.Value) -> Any:
    """Return a 1 for each channel on the diagonal of a square."""
    if channels > MAX_DIM:
        raise RefusedError(f"it moves {channels} channels, over {MAX_DIM}")
    return np.eye(channels, dtype=dtype_of(source))


def _block_kernel(ones: Any, shuffle: _Shuffle) -> Any:
    """Return [wide channels, narrow channels, block, block] with a 1 where a channel and a pixel of the block meet."""
    wide, block = len(ones), shuffle.block
    narrow = wide // block**2
    if shuffle.order == "CRD":
        return ones.reshape(wide, narrow, block, block)
    return ones.reshape(wide, block, block, narrow).transpose(0, 3, 1, 2)
