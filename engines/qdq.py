"""INT8 networks in plain ONNX: QuantizeLinear/DequantizeLinear pairs on activations and weights.

Sources of what each runtime takes: "DLA strongly typed networks" (TensorRT 11.4) and Model Optimizer's `--target_dla`
(release 0.46: pairs "in all tensors for optimal DLA deployment").
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.graph import layer_names
from engines.importer import QUANTISING
from engines.onnx_model import raise_opset
from engines.spec import INT8_MAX

if TYPE_CHECKING:
    import onnx

QDQ_OPSET = 13  # the first with one scale a channel
ENDINGS = ("q", "dq", "scale", "real", "0", "1", "dq0", "dq1")  # of the names that are added, behind a tensor's own
FUSED_INTO = {"Relu": ("Conv", "Gemm", "Add")}  # no INT8 tensor lies between these and the activation behind them


class Target(str, Enum):
    """What a Q/DQ network is for: ONNX Runtime on any machine, or the DLA through TensorRT 11.4."""

    ONNXRUNTIME = "onnxruntime"
    TENSORRT_DLA = "tensorrt-dla"


def insert_qdq(
    model: onnx.ModelProto,
    amax_by_tensor: Mapping[str, float],
    fp16_layers: Collection[str] = (),
    target: Target | str = Target.ONNXRUNTIME,
) -> onnx.ModelProto:
    """Return the network in symmetric INT8, opset 13 or later; its outputs stay float32, under their names.

    Each activation with a range is rounded to INT8 for every reader, except readers named in `fp16_layers`. Constant
    weights of Conv, ConvTranspose, Gemm and MatMul are rounded with one scale an output channel where their input is;
    biases stay float32. For ONNX Runtime no rounding stands between a Conv, Gemm or Add and the ReLU that is its only
    reader, as TensorRT fuses them, and weights are stored as INT8. For the DLA each tensor with a range has its pair,
    outputs of the network too, and weights stay float32 with a pair of their own: TensorRT folds it.
    """
    import onnx

    _check_ranges(amax_by_tensor)
    _check_plain(model.graph)
    rewriting = _rewriting(target)
    source = raise_opset(model, QDQ_OPSET)
    quantised = onnx.ModelProto(ir_version=source.ir_version, producer_name=source.producer_name)
    quantised.opset_import.extend(source.opset_import)
    quantised.functions.extend(source.functions)
    quantised.graph.CopyFrom(rewriting(source.graph, amax_by_tensor, fp16_layers).build())
    return quantised


def _rewriting(target: Target | str) -> type[_QdqGraph]:
    known = {Target.ONNXRUNTIME.value: _QdqGraph, Target.TENSORRT_DLA.value: _DlaGraph}
    name = target.value if isinstance(target, Target) else target
    if name not in known:
        raise EngineError(f"Q/DQ target {name!r} is not known, expected {' or '.join(known)}")
    return known[name]


def _check_ranges(amax_by_tensor: Mapping[str, float]) -> None:
    for tensor, amax in amax_by_tensor.items():
        if not math.isfinite(amax) or amax < 0:
            raise EngineError(
                f"dynamic range of {tensor!r} is {amax}, expected a finite number, 0 or more; recalibrate"
            )


def _check_plain(graph: onnx.GraphProto) -> None:
    rounded = next((node for node in graph.node if node.op_type in QUANTISING), None)
    if rounded is not None:
        raise EngineError(
            f"network {graph.name!r} has {rounded.op_type} {rounded.name!r} already; take its Q/DQ out with `orin qdq`"
        )


class _QdqGraph:
    """The rewriting of one graph: nodes are copied in order, each quantised tensor gets its pair behind its maker."""

    def __init__(self, graph: onnx.GraphProto, amax: Mapping[str, float], fp16_layers: Collection[str]) -> None:
        self._source = graph
        self._fp16_layers = fp16_layers
        self._constants = _constants(graph)
        self._mark = _mark(graph)
        between = self._unrounded()
        self._amax = {name: value for name, value in amax.items() if _scale(value) > 0 and name not in between}
        self._nodes: list[onnx.NodeProto] = []
        self._added: dict[str, onnx.TensorProto] = {}
        self._quantised: set[str] = set()

    def _unrounded(self) -> set[str]:
        """Return the tensors that stay in floating point whatever their range."""
        return _fused_tensors(self._source)

    def build(self) -> onnx.GraphProto:
        """Return the rewritten graph, without the weights that nothing reads any more."""
        from onnx.helper import make_graph

        for value in self._source.input:
            self._quantise(value.name)
        for node, name in zip(self._source.node, layer_names(self._source.node), strict=True):
            self._copy(node, in_int8=name not in self._fp16_layers)
        read = {name for node in self._nodes for name in node.input}
        kept = [tensor for tensor in self._source.initializer if tensor.name in read]
        weights = [*kept, *self._added.values()]
        return make_graph(self._nodes, self._source.name, self._source.input, self._source.output, initializer=weights)

    def _copy(self, node: onnx.NodeProto, in_int8: bool) -> None:
        import onnx

        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        if in_int8:
            self._read_int8(copied)
        self._nodes.append(copied)
        for name in node.output:
            self._quantise(name)

    def _read_int8(self, node: onnx.NodeProto) -> None:
        """Let a node read the INT8 form of its inputs, and of its weights where it computes in INT8."""
        weight = self._constants.get(node.input[1]) if len(node.input) > 1 else None
        axis = _weight_axis(node, len(weight.dims)) if weight is not None else None
        if axis is not None and node.input[0] in self._quantised:
            node.input[1] = self._weight(node.input[1], axis)
        for index, name in enumerate(node.input):
            if name in self._quantised:
                node.input[index] = f"{name}{self._mark}dq"

    def _quantise(self, name: str) -> None:
        """Add the pair that rounds a tensor to INT8, if it has a range."""
        if name not in self._amax:
            return
        scale = self._add(f"{name}{self._mark}scale", _scale(self._amax[name]))
        zero = self._add(f"int8{self._mark}zero", np.array(0, np.int8))
        self._pair(name, name, [scale, zero])
        self._quantised.add(name)

    def _pair(self, name: str, stem: str, steps: list[str], **axis: int) -> str:
        """Add the two nodes that round a tensor with this scale and zero point; return the name of the result."""
        from onnx.helper import make_node

        rounded, made = f"{stem}{self._mark}q", f"{stem}{self._mark}dq"
        self._nodes.append(make_node("QuantizeLinear", [name, *steps], [rounded], f"{stem}_QuantizeLinear", **axis))
        self._nodes.append(make_node("DequantizeLinear", [rounded, *steps], [made], f"{stem}_DequantizeLinear", **axis))
        return made

    def _weight(self, name: str, axis: int) -> str:
        """Add a weight as INT8 with its DequantizeLinear, once; return the name of the result."""
        from onnx.helper import make_node
        from onnx.numpy_helper import to_array

        made = f"{name}{self._mark}dq{axis}"
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


class _DlaGraph(_QdqGraph):
    """The same for the DLA: a pair at every tensor with a range, float32 weights with pairs of their own."""

    def __init__(self, graph: onnx.GraphProto, amax: Mapping[str, float], fp16_layers: Collection[str]) -> None:
        made = {name for node in graph.node for name in node.output}
        mark = _mark(graph)
        rounded = [value.name for value in graph.output if value.name in made and _scale(amax.get(value.name, 0.0)) > 0]
        self._outputs = {name: f"{name}{mark}real" for name in rounded}
        source = _renamed(graph, self._outputs)
        super().__init__(source, {self._outputs.get(name, name): value for name, value in amax.items()}, fp16_layers)

    def build(self) -> onnx.GraphProto:
        """Return the rewritten graph; the pair behind an output of the network makes it."""
        return _renamed(super().build(), {f"{real}{self._mark}dq": name for name, real in self._outputs.items()})

    def _unrounded(self) -> set[str]:
        return set()

    def _weight(self, name: str, axis: int) -> str:
        from onnx.numpy_helper import to_array

        stem = f"{name}{self._mark}{axis}"
        if f"{stem}_scale" in self._added:
            return f"{stem}{self._mark}dq"
        _, scale = quantise_weight(to_array(self._constants[name]), axis)
        zeros = self._add(f"{stem}_zeros", np.zeros(scale.size, np.int8))
        return self._pair(name, stem, [self._add(f"{stem}_scale", scale), zeros], axis=axis)


def _mark(graph: onnx.GraphProto) -> str:
    """Return what stands between a tensor's name and an ending: "_", more of it where the network has such names."""
    names = {tensor.name for tensor in (*graph.initializer, *graph.input)}
    names.update(name for node in graph.node for name in node.output)
    mark = "_"
    while any(f"{name}{mark}{ending}" in names for name in names for ending in ENDINGS) or f"int8{mark}zero" in names:
        mark += "_"
    return mark


def _scale(amax: float) -> NDArray[Any]:
    return np.array(amax / INT8_MAX, np.float32)


def _renamed(graph: onnx.GraphProto, names: Mapping[str, str]) -> onnx.GraphProto:
    """Return a copy of a graph whose nodes read and make tensors under other names."""
    import onnx

    copied = onnx.GraphProto()
    copied.CopyFrom(graph)
    for node in copied.node:
        for ends in (node.input, node.output):
            ends[:] = [names.get(name, name) for name in ends]
    return copied


def quantise_weight(weight: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return a weight as int8 of its shape, and float32 scales, one for each index along `axis`."""
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    amax = np.abs(rows).max(axis=1)
    scale = (np.where(amax > 0, amax, INT8_MAX) / INT8_MAX).astype(np.float32)
    wide = scale.reshape([-1 if index == axis else 1 for index in range(weight.ndim)])
    return np.clip(np.rint(weight / wide), -INT8_MAX, INT8_MAX).astype(np.int8), scale


def _weight_axis(node: onnx.NodeProto, rank: int) -> int | None:
    """Return the axis of the output channels of a node's weight; None where its weight stays float32."""
    if node.op_type == "Gemm":
        return 0 if any(attribute.name == "transB" and attribute.i for attribute in node.attribute) else 1
    if node.op_type == "MatMul":
        return rank - 1 if rank > 1 else None
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type)


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
