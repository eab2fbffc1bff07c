"""Ranges that follow from others: operators that move or choose values keep the range of what they read.

The rules are arithmetic, not a device's: a range is passed on only where rounding to it loses no value that the tensor
next to it has. INT8 with scale s saturates at 127 s, so an operator that commutes with saturation passes a range back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from engines.graph import Graph, Layer

Back = Literal["always", "alone", "never"]


@dataclass(frozen=True)
class Unchanged:
    """How an operator passes ranges on: forward where `forward` holds; back to its inputs "always", never, or
    "alone": only where nothing else reads the input, since the operator drops what saturation changes."""

    forward: Callable[[Graph, Layer], bool]
    back: Back
    why: str


def _yes(_: Graph, __: Layer) -> bool:
    return True


def _pads_within(graph: Graph, layer: Layer) -> bool:
    """Tell whether a Pad adds zeros, or values that are there already."""
    if layer.attributes.get("mode", "constant") != "constant":
        return True
    value = layer.operands[2] if len(layer.operands) > 2 else ""
    return not value or graph.tensors[value].values == (0.0,)


def _chooses(_: Graph, layer: Layer) -> bool:
    return layer.attributes.get("mode", "nearest") in ("nearest", "linear")


def _holds_zero(graph: Graph, layer: Layer) -> bool:
    """Tell whether a Clip lets zero through: then it moves every value towards zero, or keeps it."""
    low = layer.attributes.get("min", _bound(graph, layer, 1))
    high = layer.attributes.get("max", _bound(graph, layer, 2))
    return low is not None and high is not None and low <= 0 <= high


def _bound(graph: Graph, layer: Layer, index: int) -> float | None:
    """Return a bound of a Clip, 0 where it has none, None where it is not constant."""
    name = layer.operands[index] if index < len(layer.operands) else ""
    if not name:
        return 0.0
    values = graph.tensors[name].values
    return values[0] if values else None


_MOVE = Unchanged(_yes, "always", "every value is kept, in another place")
_PART = Unchanged(_yes, "alone", "every result is one of the values read, and the choice survives saturation")
_BETWEEN = Unchanged(_yes, "never", "a mean lies between the values read; these may lie outside of it")

UNCHANGED: Mapping[str, Unchanged] = {
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout"), _MOVE),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth", "Tile", "Expand"), _MOVE),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool", "Slice", "Split", "Relu"), _PART),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), _BETWEEN),
    "Clip": Unchanged(_holds_zero, "alone", "a clip commutes with saturation"),
    "Pad": Unchanged(_pads_within, "alone", "zeros and copies are in every range"),
    "Resize": Unchanged(_chooses, "never", "copies, or values between two others"),
    "Concat": Unchanged(_yes, "always", "the result holds every value read: the largest range holds all"),
}


def spread(graph: Graph, amax_by_tensor: Mapping[str, float]) -> dict[str, float]:
    """Return the ranges with those that follow from them; none that is there changes.

    An output of the graph that has no range gets none: it leaves in floating point, and a range would round it. A range
    of 0 counts as none.
    """
    known = dict(amax_by_tensor)
    readers = _readers(graph)
    waiting = True
    while waiting:
        waiting = False
        for layers, follow in ((graph.layers, _forward), (reversed(graph.layers), _backward)):
            for layer in layers:
                found = dict(follow(graph, layer, known, readers))
                new = {name: amax for name, amax in found.items() if not known.get(name) and name not in graph.outputs}
                known.update(new)
                waiting = waiting or bool(new)
    return known


def _readers(graph: Graph) -> dict[str, int]:
    counts: dict[str, int] = {}
    for layer in graph.layers:
        for name in layer.inputs:
            counts[name] = counts.get(name, 0) + 1
    return counts


_Found = Iterator[tuple[str, float]]


def _forward(graph: Graph, layer: Layer, known: Mapping[str, float], _: Mapping[str, int]) -> _Found:
    rule = _rule(layer)
    read = [known.get(name, 0.0) for name in _read(layer)]
    if rule and read and all(read) and rule.forward(graph, layer):
        yield from ((name, max(read)) for name in _made(layer))


def _backward(_: Graph, layer: Layer, known: Mapping[str, float], readers: Mapping[str, int]) -> _Found:
    rule = _rule(layer)
    made = [known.get(name, 0.0) for name in _made(layer)]
    if rule and made and all(made):
        passed = {"always": _read(layer), "alone": [name for name in _read(layer) if readers[name] == 1], "never": ()}
        yield from ((name, max(made)) for name in passed[rule.back])


def _rule(layer: Layer) -> Unchanged | None:
    return None if layer.domain else UNCHANGED.get(layer.op)


def _read(layer: Layer) -> Sequence[str]:
    """Return the activations whose values a layer passes on: all of a Concat, the first operand of any other."""
    if layer.op == "Concat":
        return layer.inputs if not layer.weights else ()
    return layer.inputs[:1] if layer.inputs[:1] == layer.operands[:1] else ()


def _made(layer: Layer) -> Sequence[str]:
    """Return the outputs that hold such values: all of a Split, the first of any other."""
    return layer.outputs if layer.op == "Split" else layer.outputs[:1]
