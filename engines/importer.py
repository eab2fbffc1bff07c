"""A network as TensorRT's ONNX parser sees it: what each node becomes, and what leaves no layer of its own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from engines.graph import Graph, Layer

PLUGIN = "PLUGIN"
NO_KIND = ""  # of an ONNX node that leaves no layer
SHUFFLE = "SHUFFLE"
CONVOLUTION = "CONVOLUTION"
MATRIX_MULTIPLY = "MATRIX_MULTIPLY"
LINEAR = ("Gemm", "MatMul")
FLATTENING = ("Flatten", "Reshape", "Squeeze")
CONVOLVING = ("Conv", "ConvTranspose")
STATIC = ("Shape", "Size", "ConstantOfShape")  # constants, since all shapes are static
QUANTISING = ("QuantizeLinear", "DequantizeLinear")
LEAST_RANK = 4  # of a tensor that needs no shuffle on its way into or out of a DLA layer


@dataclass(frozen=True)
class TrtLayer:
    """One TensorRT layer: `kind` is a `trt.LayerType` name, `nodes` the ONNX nodes that it comes from."""

    name: str
    kind: str
    nodes: tuple[str, ...]


def _table(*rows: tuple[str, str]) -> dict[str, tuple[str, ...]]:
    """Map each operator of a row to the row's kinds."""
    return {op: tuple(kinds.split()) or (NO_KIND,) for kinds, ops in rows for op in ops.split()}


# TensorRT layer kinds, then the operators that become them, in order; "" is folded away while parsing.
# Source: the importers of onnx-tensorrt (onnxOpImporters.cpp, release/10.3-GA) by operator name.
KINDS_BY_OP: Mapping[str, tuple[str, ...]] = _table(
    ("", "Constant Identity Dropout"),
    (CONVOLUTION, "Conv"),
    ("DECONVOLUTION", "ConvTranspose"),
    (MATRIX_MULTIPLY, "Gemm MatMul"),
    ("ACTIVATION", "Relu LeakyRelu Sigmoid Tanh Clip Elu Selu Softplus Softsign HardSigmoid ThresholdedRelu Celu Gelu"),
    ("ACTIVATION ELEMENTWISE", "HardSwish"),
    ("ACTIVATION ACTIVATION ELEMENTWISE", "Mish"),
    ("PARAMETRIC_RELU", "PRelu"),
    ("ELEMENTWISE", "Add Sub Mul Div Pow Max Min Sum Mean Mod And Or Xor Equal Greater Less BitShift"),
    ("ELEMENTWISE UNARY", "GreaterOrEqual LessOrEqual"),
    ("UNARY", "Abs Neg Exp Log Sqrt Reciprocal Floor Ceil Round Sign Not Erf Sin Cos Tan Asin Acos Atan Sinh Cosh"),
    ("UNARY", "Asinh Acosh Atanh IsInf IsNaN"),
    ("POOLING", "MaxPool AveragePool"),
    ("REDUCE", "GlobalAveragePool GlobalMaxPool ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd"),
    ("UNARY REDUCE", "ReduceL1"),
    ("ELEMENTWISE REDUCE", "ReduceSumSquare"),
    ("ELEMENTWISE REDUCE UNARY", "ReduceL2 GlobalLpPool LpNormalization LpPool"),
    ("REDUCE UNARY", "ReduceLogSum"),
    ("UNARY REDUCE UNARY", "ReduceLogSumExp"),
    (SHUFFLE, "Flatten Reshape Transpose Squeeze Unsqueeze DepthToSpace SpaceToDepth"),
    ("SCALE", "BatchNormalization"),
    ("NORMALIZATION", "LayerNormalization InstanceNormalization GroupNormalization MeanVarianceNormalization"),
    ("LRN", "LRN"),
    ("SOFTMAX", "Softmax"),
    ("SOFTMAX UNARY", "LogSoftmax"),
    ("CONCATENATION", "Concat"),
    ("SLICE", "Slice Split Expand Tile Pad"),
    ("RESIZE", "Resize Upsample"),
    ("TOPK", "TopK"),
    ("TOPK SHUFFLE", "ArgMax ArgMin"),
    ("GATHER", "Gather GatherElements GatherND"),
    ("SCATTER", "Scatter ScatterElements ScatterND"),
    ("SELECT", "Where"),
    ("CAST", "Cast CastLike"),
    ("SHAPE", "Shape Size"),
    ("FILL", "ConstantOfShape Range RandomUniform RandomNormal RandomUniformLike RandomNormalLike EyeLike"),
    ("QUANTIZE", "QuantizeLinear"),
    ("DEQUANTIZE", "DequantizeLinear"),
    ("EINSUM", "Einsum"),
    ("ONE_HOT", "OneHot"),
    ("NON_ZERO", "NonZero"),
    ("GRID_SAMPLE", "GridSample"),
    ("NMS", "NonMaxSuppression"),
    ("REVERSE_SEQUENCE", "ReverseSequence"),
    ("CUMULATIVE", "CumSum"),
    ("RECURRENCE", "LSTM GRU RNN Loop Scan"),
    ("CONDITION", "If"),
    ("UNARY ELEMENTWISE SELECT", "Shrink"),
    ("TRILU", "Trilu"),
)


class Imported:
    """A graph after parsing and folding: `layers` with constants as weights, and what each of them becomes.

    `folded` maps each node that leaves no layer to the node that takes it in, "" where none does. With `strong_types`
    (TensorRT 11) QuantizeLinear and DequantizeLinear are scales of their neighbours, not layers.
    """

    def __init__(self, graph: Graph, strong_types: bool = False) -> None:
        self.graph = graph
        self.folded: dict[str, str] = {}
        self._constants: set[str] = set()
        self._strong_types = strong_types
        self.layers = tuple(map(self._constants_folded, graph.layers))
        self._maker = {name: layer for layer in self.layers for name in layer.outputs}
        self._readers: dict[str, list[Layer]] = {}
        for layer in self.layers:
            for name in layer.inputs:
                self._readers.setdefault(name, []).append(layer)
        for layer in self.layers:
            if (carrier := self._carrier(layer)) is not None:
                self.folded[layer.name] = carrier
        self.kinds = {layer.name: self._kind(layer) for layer in self.layers}

    @property
    def trt_layers(self) -> tuple[TrtLayer, ...]:
        """The TensorRT layers in the graph's order, the shuffles around a 1x1 convolution made of a Gemm included."""
        taken: dict[str, list[str]] = {}
        for node, carrier in self.folded.items():
            taken.setdefault(carrier, []).append(node)
        return tuple(
            replace(made, nodes=(*made.nodes, *taken.get(made.name, ())))
            for layer in self.layers
            if layer.name not in self.folded
            for made in self._made(layer)
        )

    def rank(self, tensor: str) -> int:
        """Return how many axes a tensor has."""
        return len(self.graph.tensors[tensor].shape)

    def origin(self, tensor: str) -> str:
        """Return the tensor that folded layers made this one from: itself where none did."""
        maker = self._maker.get(tensor)
        while maker is not None and maker.name in self.folded and maker.inputs:
            tensor = maker.inputs[0]
            maker = self._maker.get(tensor)
        return tensor

    def maker(self, tensor: str) -> Layer | None:
        """Return the layer that makes a tensor, folded ones looked through; None for a graph's input."""
        return self._maker.get(self.origin(tensor))

    def readers(self, tensor: str) -> tuple[Layer, ...]:
        """Return the layers that read a tensor, folded ones looked through."""
        found: dict[str, Layer] = {}
        waiting = list(self._readers.get(tensor, ()))
        while waiting:
            layer = waiting.pop(0)
            if layer.name in self.folded:
                waiting += [reader for name in layer.outputs for reader in self._readers.get(name, ())]
            else:
                found[layer.name] = layer
        return tuple(found.values())

    def needs_shuffle_before(self, layer: Layer) -> bool:
        """Return whether TensorRT puts a shuffle in front of a layer: a tensor that it reads has under four axes."""
        return any(self.rank(self.origin(name)) < LEAST_RANK for name in layer.inputs)

    def needs_shuffle_after(self, layer: Layer) -> bool:
        """Return whether TensorRT puts a shuffle behind a layer: a tensor that it makes has under four axes."""
        return any(self.rank(name) < LEAST_RANK for name in layer.outputs)

    def _constants_folded(self, layer: Layer) -> Layer:
        """Return a layer whose constant inputs count as weights, and note its outputs where all of them are."""
        constant = {name for name in layer.inputs if name in self._constants}
        inputs = tuple(name for name in layer.inputs if name not in constant)
        if (not inputs and layer.op in KINDS_BY_OP) or layer.op in STATIC:
            self._constants.update(layer.outputs)
        if not constant:
            return layer
        known = constant.union(layer.weights)
        return replace(layer, inputs=inputs, weights=tuple(name for name in layer.operands if name in known))

    def _carrier(self, layer: Layer) -> str | None:
        """Return what takes a layer in that leaves none itself ("" for nothing); None for a layer of its own."""
        if all(name in self._constants for name in layer.outputs) or self._does_nothing(layer):
            return ""
        if self._is_absorbed(layer):
            return self._readers[layer.outputs[0]][0].name
        before = self._maker.get(layer.inputs[0]) if layer.inputs else None
        if before is None or len(self._readers[layer.inputs[0]]) > 1 or layer.inputs[0] in self.graph.outputs:
            return None
        if self._is_normalisation(layer, before) or self._is_bias(layer, before):
            return self.folded.get(before.name) or before.name
        return None

    def _does_nothing(self, layer: Layer) -> bool:
        if layer.domain or not layer.inputs:
            return False
        before, after = (self.graph.tensors[name].dtype for name in (layer.inputs[0], layer.outputs[0]))
        same_type = layer.op == "Cast" and before == after
        return KINDS_BY_OP.get(layer.op) == (NO_KIND,) or same_type or (self._strong_types and layer.op in QUANTISING)

    def _is_absorbed(self, layer: Layer) -> bool:
        """Return whether a flattening of [N,C,1,1] goes into the 1x1 convolutions that Gemm layers become.

        Source: verbose logs of TensorRT 8.4 and 10.3, ResNet-50 and a small classifier on AGX Orin.
        """
        if layer.op not in FLATTENING or layer.outputs[0] in self.graph.outputs:
            return False
        before, after = (self.graph.tensors[name].shape for name in (layer.inputs[0], layer.outputs[0]))
        readers = self._readers.get(layer.outputs[0], [])
        return before == (*after, 1, 1) and len(after) == 2 and bool(readers) and all(map(is_linear, readers))

    def _is_normalisation(self, layer: Layer, before: Layer) -> bool:
        return layer.op == "BatchNormalization" and before.op in CONVOLVING and len(before.inputs) == 1

    def _is_bias(self, layer: Layer, before: Layer) -> bool:
        """Return whether a layer adds one constant a feature to a MatMul by a constant."""
        if layer.op != "Add" or before.op != "MatMul" or len(layer.weights) != 1 or not is_linear(before):
            return False
        bias, made = (self.graph.tensors[name].shape for name in (layer.weights[0], layer.outputs[0]))
        return math.prod(bias) == bias[-1:][0] == made[-1] if bias and made else False

    def _kind(self, layer: Layer) -> str:
        """Return the type of the first TensorRT layer that a node becomes."""
        if is_linear(layer):
            return CONVOLUTION
        kinds = KINDS_BY_OP.get(layer.op) if not layer.domain else None
        return kinds[0] if kinds else PLUGIN

    def _made(self, layer: Layer) -> Iterator[TrtLayer]:
        first = self.kinds[layer.name]
        rest = KINDS_BY_OP.get(layer.op, ())[1:] if first != PLUGIN else ()
        if layer.op == "Split":
            rest = ("SLICE",) * (len(layer.outputs) - 1)  # one slice an output
        if is_linear(layer) and self.needs_shuffle_before(layer):
            yield TrtLayer(f"reshape_before_{layer.name}", SHUFFLE, ())
        yield TrtLayer(layer.name, first, (layer.name,))
        for index, kind in enumerate(rest, 1):
            yield TrtLayer(f"{layer.name}_{index}", kind, (layer.name,))
        if is_linear(layer) and self.needs_shuffle_after(layer):
            yield TrtLayer(f"reshape_after_{layer.name}", SHUFFLE, ())


def is_linear(layer: Layer) -> bool:
    """Return whether a layer multiplies by a constant matrix: TensorRT makes a 1x1 convolution of it."""
    return layer.op in LINEAR and not layer.domain and len(layer.inputs) == 1 and bool(layer.weights)


def import_layers(graph: Graph) -> tuple[TrtLayer, ...]:
    """Return the TensorRT layers of a graph in its order; an operator that TensorRT does not know is one "PLUGIN"."""
    return Imported(graph).trt_layers


class NodeNames:
    """From TensorRT's layer names to ONNX nodes.

    A node without a name is "node_of_" and its first output; the second and further layers of a node carry a number
    behind its name. Source: verbose logs of TensorRT 8.4 to 10.3.
    """

    def __init__(self, graph: Graph) -> None:
        self._names = {layer.name: layer.name for layer in graph.layers}
        for layer in graph.layers:
            self._names.update({f"node_of_{name}": layer.name for name in layer.outputs})

    def node(self, trt_layer: str) -> str | None:
        """Return the node that a layer comes from; None for one that TensorRT put in by itself."""
        return self._names.get(trt_layer) or self._names.get(re.sub(r"_\d+$", "", trt_layer))
