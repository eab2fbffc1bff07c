"""TensorRT's names for the tensors of a network, and what a calibration cache has and lacks of them.

TensorRT's ONNX parser keeps ONNX's names. A tensor that the parser makes itself, between two layers that it makes of
one node, is named after its layer, `<layer>_output`; where the layer has no name either, after its number among all
layers: `(Unnamed Layer* 125) [ElementWise]_output`. Such numbers belong to one version of a parser: they are recognised
here, not predicted.

Sources: caches of TensorRT 8.4 (Caffe parser: numbered names) and 8.6 (ONNX: none); verbose logs of TensorRT 10.3: a
Gemm with a bias is five layers in a row, a constant, `<node>` (MATRIX_MULTIPLY), a constant, its broadcast, and an
unnamed ELEMENTWISE that makes the node's own output.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from engines.graph import Graph
from engines.importer import Imported
from engines.spec import Ranges

FLOATS = ("float32", "float16", "float64")
NUMBERED = re.compile(r"\(Unnamed Layer\* \d+\) \[\w+\]_output")
BIASED = 3  # operands of a Gemm that adds a bias


@dataclass(frozen=True)
class ParserTensor:
    """A tensor that TensorRT's parser makes inside a node; `result` is the node's own output behind it."""

    name: str
    result: str


def parser_tensors(graph: Graph) -> tuple[ParserTensor, ...]:
    """Return the tensors that TensorRT 10.3's parser is known to make: the product in front of a Gemm's bias."""
    return tuple(
        ParserTensor(f"{layer.name}_output", layer.outputs[0])
        for layer in graph.layers
        if layer.op == "Gemm" and not layer.domain and len(layer.operands) == BIASED and layer.operands[2]
    )


def with_parser_names(graph: Graph, ranges: Ranges) -> Ranges:
    """Return ranges that name the parser's tensors too, each with the range of the result behind it.

    TensorRT fuses the two layers into one convolution, so that nothing is ever rounded to that range: it is there
    because TensorRT asks for it.
    """
    amax = dict(ranges.amax_by_tensor)
    for tensor in parser_tensors(graph):
        if tensor.result in amax:
            amax.setdefault(tensor.name, amax[tensor.result])
    return Ranges(amax, ranges.method, ranges.images)


def missing(graph: Graph, scales: Mapping[str, float]) -> tuple[str, ...]:
    """Return the floating-point tensors of a network that a cache has no scale for, in the network's order."""
    return tuple(name for name in _asked(graph) if name not in scales)


def unknown(graph: Graph, scales: Collection[str]) -> tuple[str, ...]:
    """Return the names in a cache that the network does not have, in the cache's order."""
    known = {*graph.tensors, *(tensor.name for tensor in parser_tensors(graph))}
    return tuple(name for name in scales if name not in known)


def is_numbered(name: str) -> bool:
    """Tell whether a name counts a parser's layers: it fits that parser, that network and that version alone."""
    return NUMBERED.fullmatch(name) is not None


def _asked(graph: Graph) -> Iterator[str]:
    """Yield the tensors that TensorRT asks a scale for: not constants, and not second names of one tensor."""
    network = Imported(graph)
    made = {tensor.result: tensor.name for tensor in parser_tensors(graph)}
    yield from (name for name in graph.inputs if graph.tensors[name].dtype in FLOATS)
    for layer in network.layers:
        gone = network.folded.get(layer.name) == ""
        for name in layer.outputs:
            if graph.tensors[name].dtype in FLOATS and (not gone or name in graph.outputs):
                yield from filter(None, (made.get(name), name))
