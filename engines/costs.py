"""What each fused layer of a network asks of an accelerator: multiply-accumulates, matrix sizes, bytes; no time.

Fusion follows TensorRT's habits: a convolution, transposed convolution or matrix product takes the pointwise layers
behind it (activation, bias, residual addition, normalisation) into one kernel, chains of pointwise layers are one,
and shuffles and concatenations move nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.graph import Layer, Tensor

POOLS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize", "Upsample"}
FREE = {"Relu", "Clip", "Add", "BatchNormalization", "PRelu", "LeakyRelu"}  # part of the product's own pass
LOOKUPS = {"Gather"}  # read a few rows of what they hold
SHUFFLES = {
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Concat", "Split", "Slice", "Dropout"),
    *("Cast", "Expand", "QuantizeLinear", "DequantizeLinear"),
}


@dataclass(frozen=True)
class LayerWork:
    """One fused layer, for one sample, at one byte an element.

    `op` is conv, depthwise, deconv, matmul, pool or pointwise. The product that it computes is `groups` times
    `rows` x `depth` by `depth` x `columns` (0 where nothing is multiplied); rows are output positions, columns output
    channels. `window` is the number of kernel positions in `depth`. Bytes count tensors read from and written for other
    layers, each once; `curve_bytes` is what the curves inside (Sigmoid, Tanh, ... and the products around them) would
    move in passes of their own, as they run on a DLA.
    """

    name: str
    op: str
    macs: int
    rows: int
    columns: int
    depth: int
    groups: int
    window: int
    weight_bytes: int
    input_bytes: int
    output_bytes: int
    curve_bytes: int


@dataclass
class _Group:
    """Layers that run as one kernel; `core` is the product in it, if any."""

    first: Layer
    core: Layer | None = None
    curves: list[Layer] = field(default_factory=list)
    weights: dict[str, None] = field(default_factory=dict)
    reads: dict[str, None] = field(default_factory=dict)
    writes: dict[str, None] = field(default_factory=dict)

    def add(self, layer: Layer, read: Iterable[str]) -> None:
        if layer.op not in LOOKUPS:
            self.weights.update(dict.fromkeys(layer.weights))
        if layer.op not in FREE and not layer.macs and layer.op not in POOLS:
            self.curves.append(layer)
        self.reads.update((name, None) for name in read if name not in self.writes)
        self.writes.update(dict.fromkeys(layer.outputs))


def fused_layers(
    layers: Sequence[Layer], tensors: Mapping[str, Tensor], outputs: Sequence[str], batch: int
) -> tuple[LayerWork, ...]:
    """Group layers, in topological order, as TensorRT fuses them; sizes are those of one of `batch` samples."""
    groups, roots = _fuse(layers)
    used = Counter(name for group in groups for name in group.reads)
    used.update(root for name in outputs for root in roots.get(name, (name,)))
    return tuple(_work(group, tensors, used, batch) for group in groups)


def _fuse(layers: Sequence[Layer]) -> tuple[list[_Group], dict[str, tuple[str, ...]]]:
    """Return the groups, and what each shuffled tensor is made of."""
    groups: list[_Group] = []
    owner: dict[str, _Group] = {}
    roots: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        if not layer.inputs:
            continue
        read = [root for name in layer.inputs for root in roots.get(name, (name,))]
        if layer.op in SHUFFLES:
            roots.update((name, tuple(dict.fromkeys(read))) for name in layer.outputs)
            continue
        starts = layer.macs > 0 or layer.op in POOLS
        group = None if starts else _latest(groups, [owner[name] for name in read if name in owner])
        if group is None:
            group = _Group(layer)
            groups.append(group)
        if layer.macs:
            group.core = layer
        group.add(layer, read)
        owner.update((name, group) for name in layer.outputs)
    return groups, roots


def _latest(groups: Sequence[_Group], makers: Sequence[_Group]) -> _Group | None:
    """Return the group that ends last among those whose tensors are read: the others are done by then."""
    return next((group for group in reversed(groups) if any(group is maker for maker in makers)), None)


def _work(group: _Group, tensors: Mapping[str, Tensor], used: Mapping[str, int], batch: int) -> LayerWork:
    written = [name for name in group.writes if used[name]]
    rows, columns, depth, groups, window = _product(group.core, tensors, batch) if group.core else (0, 0, 0, 0, 0)
    return LayerWork(
        name=(group.core or group.first).name,
        op=_kind(group, depth, groups, window),
        macs=group.core.macs // batch if group.core else 0,
        rows=rows,
        columns=columns,
        depth=depth,
        groups=groups,
        window=window,
        weight_bytes=sum(tensors[name].elements for name in group.weights),
        input_bytes=sum(tensors[name].elements for name in group.reads) // batch,
        output_bytes=sum(tensors[name].elements for name in written) // batch,
        curve_bytes=_moved(group.curves, tensors) // batch,
    )


def _kind(group: _Group, depth: int, groups: int, window: int) -> str:
    if group.core is None:
        return "pool" if group.first.op in POOLS else "pointwise"
    if group.core.op == "Conv":
        return "depthwise" if groups > 1 and depth == window else "conv"
    return "deconv" if group.core.op == "ConvTranspose" else "matmul"


def _product(layer: Layer, tensors: Mapping[str, Tensor], batch: int) -> tuple[int, int, int, int, int]:
    """Return rows, columns, depth, groups and window of a layer's matrix product, for one sample."""
    first, second = (tensors[name] for name in layer.operands[:2])
    result = tensors[layer.outputs[0]]
    groups = int(layer.attributes.get("group", 1))
    if layer.op == "Conv":
        window = math.prod(second.shape[2:])
        return math.prod(result.shape[2:]), second.shape[0] // groups, second.shape[1] * window, groups, window
    if layer.op == "ConvTranspose":
        window = math.prod(second.shape[2:])
        return math.prod(first.shape[2:]), second.shape[1] * window, second.shape[0] // groups, groups, 1
    columns, depth = result.shape[-1], layer.macs // result.elements
    if second.name in layer.inputs and len(second.shape) > 2:  # both operands are activations: one product a head
        heads = math.prod(result.shape[:-2]) // batch
        return result.shape[-2], columns, depth, max(1, heads), 1
    return max(1, result.elements // columns // batch), columns, depth, 1, 1


def _moved(layers: Sequence[Layer], tensors: Mapping[str, Tensor]) -> int:
    return sum(tensors[name].elements for layer in layers for name in (*layer.inputs, *layer.outputs))
