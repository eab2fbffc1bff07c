"""What the DLA asks of INT8 scales, and which of its layers run in FP16 because a scale is missing.

Sources: TensorRT developer guide 8.4, "Working with DLA" (pooling, concatenation); NvInfer.h release/10.3,
`IElementWiseLayer` (both inputs equal: "the largest value shall be used").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from dla.placement import Placement
from engines.graph import Graph, Layer
from engines.spec import Ranges

# Tensors of a layer that must have one scale, by operator.
_EQUAL: Mapping[str, Callable[[Layer], tuple[str, ...]]] = {
    **dict.fromkeys(("MaxPool", "AveragePool"), lambda layer: (*layer.inputs[:1], *layer.outputs[:1])),
    **dict.fromkeys(("Add", "Sub", "Mul", "Max", "Min", "Sum"), lambda layer: layer.inputs),
    "Concat": lambda layer: (*layer.inputs, *layer.outputs),
}


def constrain(graph: Graph, placement: Placement, ranges: Ranges) -> tuple[Ranges, tuple[str, ...]]:
    """Return ranges that the DLA's layers can work with, and the DLA's layers that run in FP16 for want of one.

    Tensors that must share a scale, through one layer or a chain of them, all get the largest of their ranges. A
    range that is missing stays missing.
    """
    on_dla = {entry.node for entry in placement.layers if entry.final == "dla"}
    layers = [layer for layer in graph.layers if layer.name in on_dla]
    amax = dict(ranges.amax_by_tensor)
    for group in _groups(layers):
        known = [amax[name] for name in group if name in amax]
        amax.update({name: max(known) for name in group if name in amax})
    fp16 = tuple(layer.name for layer in layers if not amax.keys() >= {*layer.inputs, *layer.outputs})
    return Ranges(amax, ranges.method, ranges.images), fp16


def _groups(layers: list[Layer]) -> Iterator[set[str]]:
    """Yield the sets of tensors that must have one scale, merged where they overlap."""
    group_of: dict[str, set[str]] = {}
    for layer in layers:
        tensors = _EQUAL[layer.op](layer) if layer.op in _EQUAL else ()
        merged = set().union(*(group_of.get(name, {name}) for name in tensors))
        group_of.update(dict.fromkeys(merged, merged))
    yield from {id(group): group for group in group_of.values()}.values()
