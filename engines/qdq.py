"""INT8 networks in plain ONNX: QuantizeLinear/DequantizeLinear pairs on activations, INT8 weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.onnx_model import raise_opset
from engines.spec import INT8_MAX

if TYPE_CHECKING:
    import onnx

QDQ_OPSET = 13  # the first with one scale a channel
INT8_ZERO = "int8_zero"
FUSED_INTO = {"Relu": ("Conv", "Gemm", "Add")}  # no INT8 tensor lies between these and the activation behind them


def insert_qdq(
    model: onnx.ModelProto, amax_by_tensor: Mapping[str, float], fp16_layers: Collection[str] = ()
) -> onnx.ModelProto:
    """Return the network in symmetric INT8, opset 13 or later; its outputs stay float32, under their names.

    Each activation with a range is rounded to INT8 for every reader, except readers named in `fp16_layers`, and
    except between a Conv, Gemm or Add and the ReLU that is its only reader: TensorRT fuses those. Constant weights
    of Conv and Gemm become INT8 with one scale an output channel where their input is INT8; biases stay float32.
    """
    import onnx

    _check_ranges(amax_by_tensor)
    source = raise_opset(model, QDQ_OPSET)
    quantised = onnx.ModelProto(ir_version=source.ir_version, producer_name=source.producer_name)
    quantised.opset_import.extend(source.opset_import)
    quantised.functions.extend(source.functions)
    quantised.graph.CopyFrom(_QdqGraph(source.graph, amax_by_tensor, fp16_layers).build())
    return quantised


def _check_ranges(amax_by_tensor: Mapping[str, float]) -> None:
    for tensor, amax in amax_by_tensor.items():
        if not math.isfinite(amax) or amax < 0:
            raise EngineError(
                f"dynamic range of {tensor!r} is {amax}, expected a finite number, 0 or more; recalibrate"
            )


class _QdqGraph:
    """The rewriting of one graph: nodes are copied in order, each quantised tensor gets its pair behind its maker."""

    def __init__(self, graph: onnx.GraphProto, amax: Mapping[str, float], fp16_layers: Collection[str]) -> None:
        self._source = graph
        self._fp16_layers = fp16_layers
        self._constants = _constants(graph)
        between = _fused_tensors(graph)
        self._amax = {name: value for name, value in amax.items() if value > 0 and name not in between}
        self._nodes: list[onnx.NodeProto] = []
        self._added: dict[str, onnx.TensorProto] = {}
        self._quantised: set[str] = set()

    def build(self) -> onnx.GraphProto:
        """Return the rewritten graph, without the weights that nothing reads any more."""
        from onnx.helper import make_graph

        for value in self._source.input:
            self._quantise(value.name)
        for node in self._source.node:
            self._copy(node)
        read = {name for node in self._nodes for name in node.input}
        kept = [tensor for tensor in self._source.initializer if tensor.name in read]
        weights = [*kept, *self._added.values()]
        return make_graph(self._nodes, self._source.name, self._source.input, self._source.output, initializer=weights)

    def _copy(self, node: onnx.NodeProto) -> None:
        import onnx

        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        if node.name not in self._fp16_layers:
            self._read_int8(copied)
        self._nodes.append(copied)
        for name in node.output:
            self._quantise(name)

    def _read_int8(self, node: onnx.NodeProto) -> None:
        """Let a node read the INT8 form of its inputs, and of its weights where it computes in INT8."""
        axis = _weight_axis(node)
        if axis is not None and node.input[0] in self._quantised and node.input[1] in self._constants:
            node.input[1] = self._weight(node.input[1], axis)
        for index, name in enumerate(node.input):
            if name in self._quantised:
                node.input[index] = f"{name}_dq"

    def _quantise(self, name: str) -> None:
        """Add the pair that rounds a tensor to INT8, if it has a range."""
        from onnx.helper import make_node

        if name not in self._amax:
            return
        scale = self._add(f"{name}_scale", np.array(self._amax[name] / INT8_MAX, np.float32))
        zero = self._add(INT8_ZERO, np.array(0, np.int8))
        ends = [name, scale, zero], [f"{name}_q"]
        self._nodes.append(make_node("QuantizeLinear", *ends, name=f"{name}_QuantizeLinear"))
        back = [f"{name}_q", scale, zero], [f"{name}_dq"]
        self._nodes.append(make_node("DequantizeLinear", *back, name=f"{name}_DequantizeLinear"))
        self._quantised.add(name)

    def _weight(self, name: str, axis: int) -> str:
        """Add a weight as INT8 with its DequantizeLinear, once; return the name of the result."""
        from onnx.helper import make_node
        from onnx.numpy_helper import to_array

        made = f"{name}_dq{axis}"
        if f"{made}_int8" not in self._added:
            steps, scale = quantise_weight(to_array(self._constants[name]), axis)
            zeros = self._add(f"{made}_zeros", np.zeros(scale.size, np.int8))
            inputs = [self._add(f"{made}_int8", steps), self._add(f"{made}_scale", scale), zeros]
            self._nodes.append(
                make_node("DequantizeLinear", inputs, [made], name=f"{made}_DequantizeLinear", axis=axis)
            )
        return made

    def _add(self, name: str, values: NDArray[Any]) -> str:
        from onnx.numpy_helper import from_array

        self._added.setdefault(name, from_array(values, name))
        return name


def quantise_weight(weight: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return a weight as int8 of its shape, and float32 scales, one for each index along `axis`."""
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    amax = np.abs(rows).max(axis=1)
    scale = (np.where(amax > 0, amax, INT8_MAX) / INT8_MAX).astype(np.float32)
    wide = scale.reshape([-1 if index == axis else 1 for index in range(weight.ndim)])
    return np.clip(np.rint(weight / wide), -INT8_MAX, INT8_MAX).astype(np.int8), scale


def _weight_axis(node: onnx.NodeProto) -> int | None:
    """Return the axis of the output channels of a node's weight; None where its weight stays float32."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if any(attribute.name == "transB" and attribute.i for attribute in node.attribute) else 1
    return None


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    return constants


def _fused_tensors(graph: onnx.GraphProto) -> set[str]:
    """Return the tensors between a layer and the activation that is fused into it."""
    makers = {name: node.op_type for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    outputs = {value.name for value in graph.output}
    heads = [(node.input[0], FUSED_INTO[node.op_type]) for node in graph.node if node.op_type in FUSED_INTO]
    return {name for name, ops in heads if makers.get(name) in ops and readers[name] == 1 and name not in outputs}
