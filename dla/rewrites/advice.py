"""What no rewrite mends: normalisation by statistics of the input, attention; and what it would take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engines.graph import Graph, Layer

_STATISTICS = (
    "mean and variance are taken from each input: the DLA has the mean (average pools) and the square (Mul), but no"
    " square root and no division by a tensor before TensorRT 10, so every one of them ends a loadable. "
)
_TEXT_BY_OP: Mapping[str, str] = {
    "GroupNormalization": _STATISTICS
    + "Train with BatchNormalization in its place: it folds into the convolution in front; frozen statistics are"
    " not identical and cost accuracy.",
    "InstanceNormalization": _STATISTICS
    + "Train with BatchNormalization in its place, or leave the layer to the GPU and keep both sides large.",
    "LayerNormalization": _STATISTICS
    + "It belongs to a transformer: end the DLA's part in front of the first block and run the rest on the GPU.",
}
_ATTENTION = (
    "both factors are activations, and the DLA multiplies by constants only: attention stays on the GPU. End the"
    " DLA's part in front of it (for a detector with a transformer: the backbone), or train with convolutions there."
)


@dataclass(frozen=True)
class Advice:
    """A layer that stays on the GPU whatever is rewritten, and what it would take to change that."""

    node: str
    op: str
    text: str


def explain(graph: Graph) -> tuple[Advice, ...]:
    """Return what it would take for normalisations and attention, which have no identical form on the DLA."""
    return tuple(_advice(graph))


def _advice(graph: Graph) -> Iterator[Advice]:
    for layer in graph.layers:
        text = _TEXT_BY_OP.get(layer.op) or (_ATTENTION if _is_product(layer) else None)
        if text is not None:
            yield Advice(layer.name, layer.op, text)


def _is_product(layer: Layer) -> bool:
    return layer.op == "MatMul" and len(layer.inputs) == 2
