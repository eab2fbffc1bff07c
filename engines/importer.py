"""ONNX nodes as the layers that TensorRT's ONNX parser makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engines.graph import Graph, Layer

PLUGIN = "PLUGIN"


@dataclass(frozen=True)
class TrtLayer:
    """One TensorRT layer: `kind` is a `trt.LayerType` name, `nodes` the ONNX nodes that it comes from."""

    name: str
    kind: str
    nodes: tuple[str, ...]


def _table(*rows: tuple[str, str]) -> dict[str, tuple[str, ...]]:
    """Map each operator of a row to the row's kinds."""
    return {op: tuple(kinds.split()) for kinds, ops in rows for op in ops.split()}


# TensorRT layer kinds, then the operators that become them, in order; "" is folded away while parsing.
# Source: the importers of onnx-tensorrt (onnxOpImporters.cpp, release/10.3-GA) by operator name.
KINDS_BY_OP: Mapping[str, tuple[str, ...]] = _table(
    ("", "Constant Identity Dropout"),
    ("CONVOLUTION", "Conv"),
    ("DECONVOLUTION", "ConvTranspose"),
    ("MATRIX_MULTIPLY", "Gemm MatMul"),
    ("ACTIVATION", "Relu LeakyRelu Sigmoid Tanh Clip Elu Selu Softplus Softsign HardSigmoid ThresholdedRelu Celu Gelu"),
    ("ACTIVATION ELEMENTWISE", "HardSwish"),
    ("PARAMETRIC_RELU", "PRelu"),
    ("ELEMENTWISE", "Add Sub Mul Div Pow Max Min Sum Mean Mod And Or Xor Equal Greater Less BitShift"),
    ("ELEMENTWISE UNARY", "GreaterOrEqual LessOrEqual"),
    ("UNARY", "Abs Neg Exp Log Sqrt Reciprocal Floor Ceil Round Sign Not Erf Sin Cos Tan Asin Acos Atan Sinh Cosh"),
    ("UNARY", "Asinh Acosh Atanh IsInf IsNaN"),
    ("POOLING", "MaxPool AveragePool"),
    ("REDUCE", "GlobalAveragePool GlobalMaxPool ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd"),
    ("UNARY REDUCE", "ReduceL1"),
    ("ELEMENTWISE REDUCE UNARY", "ReduceL2 GlobalLpPool"),
    ("SHUFFLE", "Flatten Reshape Transpose Squeeze Unsqueeze DepthToSpace SpaceToDepth"),
    ("SCALE", "BatchNormalization"),
    ("NORMALIZATION", "LayerNormalization InstanceNormalization GroupNormalization"),
    ("LRN", "LRN"),
    ("SOFTMAX", "Softmax"),
    ("SOFTMAX UNARY", "LogSoftmax"),
    ("CONCATENATION", "Concat"),
    ("SLICE", "Slice Split Expand Tile Pad"),
    ("RESIZE", "Resize Upsample"),
    ("TOPK", "TopK"),
    ("TOPK SHUFFLE", "ArgMax ArgMin"),
    ("GATHER", "Gather GatherElements GatherND"),
    ("SCATTER", "ScatterElements ScatterND"),
    ("SELECT", "Where"),
    ("CAST", "Cast CastLike"),
    ("SHAPE", "Shape Size"),
    ("FILL", "ConstantOfShape Range RandomUniform RandomNormal"),
    ("QUANTIZE", "QuantizeLinear"),
    ("DEQUANTIZE", "DequantizeLinear"),
    ("EINSUM", "Einsum"),
    ("ONE_HOT", "OneHot"),
    ("NON_ZERO", "NonZero"),
    ("GRID_SAMPLE", "GridSample"),
    ("NMS", "NonMaxSuppression"),
    ("REVERSE_SEQUENCE", "ReverseSequence"),
    ("RECURRENCE", "LSTM GRU RNN Loop Scan"),
    ("CONDITION", "If"),
)


def import_layers(graph: Graph) -> tuple[TrtLayer, ...]:
    """Return the TensorRT layers of a graph in its order; an operator that TensorRT does not know is one "PLUGIN"."""
    return tuple(made for layer in graph.layers for made in _layers(layer))


def _layers(layer: Layer) -> list[TrtLayer]:
    kinds = KINDS_BY_OP.get(layer.op, (PLUGIN,))
    if layer.op == "Split":
        kinds *= len(layer.outputs)  # one slice an output
    names = (layer.name, *(f"{layer.name}_{index}" for index in range(1, len(kinds))))
    return [TrtLayer(name, kind, (layer.name,)) for name, kind in zip(names, kinds, strict=False)]
