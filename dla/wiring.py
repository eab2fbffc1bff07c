"""How the layers of a network hang together once TensorRT has folded what leaves no layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from engines.graph import Graph, Layer
from engines.importer import import_layers

NO_KIND = ""  # of an ONNX node that leaves no layer
LINEAR = ("Gemm", "MatMul")
FLATTENING = ("Flatten", "Reshape", "Squeeze")
STATIC = ("Shape", "Size")  # constants, since all shapes are static


class Wiring:
    """The layers of a graph, constants folded into `weights`, and which of them feeds which."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._constants: set[str] = set()
        self.layers = tuple(map(self._constants_folded, graph.layers))
        self.kinds = _kinds(graph)
        self._maker = {name: layer for layer in self.layers for name in layer.outputs}
        self._readers: dict[str, list[Layer]] = {}
        for layer in self.layers:
            for name in layer.inputs:
                self._readers.setdefault(name, []).append(layer)
        self._folded = {layer.name for layer in self.layers if self._leaves_no_layer(layer)}

    def is_folded(self, layer: Layer) -> bool:
        """Return whether a node leaves no layer in the engine."""
        return layer.name in self._folded

    def rank(self, tensor: str) -> int:
        """Return how many axes a tensor has."""
        return len(self._graph.tensors[tensor].shape)

    def origin(self, tensor: str) -> str:
        """Return the tensor that folded layers made this one from: itself where none did."""
        maker = self._maker.get(tensor)
        while maker is not None and self.is_folded(maker) and maker.inputs:
            tensor = maker.inputs[0]
            maker = self._maker.get(tensor)
        return tensor

    def producers(self, layer: Layer) -> tuple[str, ...]:
        """Return the names of the layers that a layer reads from, folded ones looked through."""
        makers = (self._maker.get(self.origin(name)) for name in layer.inputs)
        return tuple(dict.fromkeys(maker.name for maker in makers if maker is not None))

    def neighbours(self, layer: Layer) -> tuple[str, ...]:
        """Return the producers that may share a loadable with a layer: no shuffle and no other batch in between."""
        batch = self._graph.tensors[layer.outputs[0]].shape[:1]
        near = []
        for tensor in map(self.origin, layer.inputs):
            maker = self._maker.get(tensor)
            if maker is not None and self.rank(tensor) >= 4 and self._graph.tensors[tensor].shape[:1] == batch:
                near.append(maker.name)
        return tuple(dict.fromkeys(near))

    def _constants_folded(self, layer: Layer) -> Layer:
        """Return a layer whose constant inputs count as weights, and note its outputs where all of them are."""
        constant = tuple(name for name in layer.inputs if name in self._constants)
        inputs = tuple(name for name in layer.inputs if name not in self._constants)
        if not inputs or layer.op in STATIC:
            self._constants.update(layer.outputs)
        return replace(layer, inputs=inputs, weights=constant + layer.weights) if constant else layer

    def _leaves_no_layer(self, layer: Layer) -> bool:
        constant = all(name in self._constants for name in layer.outputs)
        return constant or self.kinds[layer.name] == NO_KIND or self._is_absorbed(layer)

    def _is_absorbed(self, layer: Layer) -> bool:
        """Return whether a flattening of [N,C,1,1] goes into the 1x1 convolutions that Gemm layers become.

        Source: verbose logs of TensorRT 8.4 and 10.3, ResNet-50 and a small classifier on AGX Orin.
        """
        if layer.op not in FLATTENING or layer.outputs[0] in self._graph.outputs:
            return False
        before, after = (self._graph.tensors[name].shape for name in (layer.inputs[0], layer.outputs[0]))
        readers = self._readers.get(layer.outputs[0], [])
        return before == (*after, 1, 1) and len(after) == 2 and all(reader.op in LINEAR for reader in readers)


def _kinds(graph: Graph) -> Mapping[str, str]:
    """Return the type of the first TensorRT layer that each node becomes."""
    kinds = {layer.name: NO_KIND for layer in graph.layers}
    for made in import_layers(graph):
        for node in made.nodes:
            kinds[node] = kinds[node] or made.kind
    return kinds
