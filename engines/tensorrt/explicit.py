"""INT8 as TensorRT 11 takes it: a strongly typed network, every type and scale written in the ONNX model.

INT8 is QuantizeLinear/DequantizeLinear, all other arithmetic is FP16, as the DLA needs it. Source: TensorRT 11.4.1
documentation, "DLA and strongly typed networks".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.engine import Binding
from engines.onnx_model import raise_opset
from engines.qdq import Target, insert_qdq
from engines.spec import INT8_MAX
from engines.tensorrt.job import Job

if TYPE_CHECKING:
    import onnx

HALF_OPSET = 19  # the first whose QuantizeLinear takes an FP16 scale
LEAST_SCALE = 2.0**-14  # FP16's smallest number of full precision
LARGEST_HALF = 65504.0
FLOAT32_OPERANDS = {"Resize": (2,), "Upsample": (1,)}  # operands that ONNX wants in float32 whatever the type


class ExplicitInt8:
    """The strategy for TensorRT 11."""

    name = "explicit"

    def __init__(self, trt: Any) -> None:
        self._trt = trt

    @property
    def network_flags(self) -> int:
        """Flags of the network."""
        return 1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def prepared(self, job: Job) -> onnx.ModelProto:
        """Return what is parsed: types and scales written in the network."""
        return typed(job)

    def set_io(self, tensor: Any, binding: Binding) -> None:
        """Give an input or output its one format; the type is the network's."""
        tensor.allowed_formats = 1 << int(getattr(self._trt.TensorFormat, binding.format))

    def apply(self, network: Any, config: Any, job: Job) -> None:
        """Nothing is left to set: the network says it all."""


def typed(job: Job) -> onnx.ModelProto:
    """Return the job's network with each type as it shall run, opset 19 or later; its ends are those of the job."""
    import onnx

    spec = job.spec
    source = raise_opset(job.model, HALF_OPSET)
    made = onnx.ModelProto()
    if spec.precision == "int8":
        read = {name for node in source.graph.node for name in node.input}
        amax = {name: value for name, value in spec.amax_by_tensor.items() if name in read}
        target = Target.TENSORRT_DLA if spec.device == "dla" else Target.ONNXRUNTIME
        made = insert_qdq(source, amax, spec.fp16_layers, target)
    else:
        made.CopyFrom(source)
    made.ir_version = max(made.ir_version, 9)
    del made.graph.value_info[:]
    graph = _Typing(made.graph)
    if spec.precision != "fp32":
        graph.halve()
    for binding in job.inputs:
        graph.type_input(binding)
    for binding in job.outputs:
        graph.type_output(binding)
    return made


class _Typing:
    """Changes the types of one graph in place; `real` is the type that its arithmetic has."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        from onnx import TensorProto

        self._graph = graph
        self._real = int(TensorProto.FLOAT)
        self._dtype: Any = np.float32
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}

    def halve(self) -> None:
        """Make all float32 arithmetic FP16: constants, casts, the scales of Q/DQ."""
        from onnx import TensorProto

        self._real, self._dtype = int(TensorProto.FLOAT16), np.float16
        self._halve_scales()
        kept = {
            node.input[index]
            for node in self._graph.node
            for index in FLOAT32_OPERANDS.get(node.op_type, ())
            if index < len(node.input)
        }
        for tensor in self._graph.initializer:
            if tensor.name not in kept:
                _halve_tensor(tensor)
        for node in self._graph.node:
            if not kept.intersection(node.output):
                _halve_attributes(node)

    def type_input(self, binding: Binding) -> None:
        """Give an input its type, and turn it into what the network computes with."""
        value = next(value for value in self._graph.input if value.name == binding.name)
        if binding.dtype == "int8":
            self._int8_input(value, binding)
        elif value.type.tensor_type.elem_type == _FLOAT and self._real != _FLOAT:
            self._insert("Cast", [binding.name], 0, to=self._real)

    def type_output(self, binding: Binding) -> None:
        """Give an output its type, made of what the network computes with."""
        value = next(value for value in self._graph.output if value.name == binding.name)
        if value.type.tensor_type.elem_type != _FLOAT:
            return
        value.type.tensor_type.elem_type = {"int8": _INT8, "float16": _HALF}.get(binding.dtype, _FLOAT)
        if binding.dtype == "int8":
            self._append("QuantizeLinear", binding, [self._scale(binding), self._zero(binding)])
        elif binding.dtype == "float32" and self._real == _HALF:
            self._append("Cast", binding, [], to=_FLOAT)

    def _int8_input(self, value: onnx.ValueInfoProto, binding: Binding) -> None:
        """Let the input be INT8: where the network would quantise it, that step goes."""
        value.type.tensor_type.elem_type = _INT8
        quantiser = next((n for n in self._graph.node if _reads(n, "QuantizeLinear", binding.name)), None)
        if quantiser is None:
            self._insert("DequantizeLinear", [binding.name, self._scale(binding), self._zero(binding)], 0)
            return
        back = next(n for n in self._graph.node if _reads(n, "DequantizeLinear", quantiser.output[0]))
        self._graph.node.remove(quantiser)
        self._reread(binding.name, back.output[0])
        back.input[0] = binding.name

    def _insert(self, op: str, inputs: list[str], index: int, **attributes: Any) -> None:
        """Put a node in front of all readers of its first input."""
        from onnx.helper import make_node

        made = f"{inputs[0]}_io_real"
        self._reread(inputs[0], made)
        self._graph.node.insert(index, make_node(op, inputs, [made], name=f"{inputs[0]}_io_{op}", **attributes))

    def _append(self, op: str, binding: Binding, operands: list[str], **attributes: Any) -> None:
        """Put a node behind the maker of an output."""
        from onnx.helper import make_node

        real = f"{binding.name}_io_real"
        self._reread(binding.name, real)
        for node in self._graph.node:
            node.output[:] = [real if name == binding.name else name for name in node.output]
        made = make_node(op, [real, *operands], [binding.name], name=f"{binding.name}_io_{op}", **attributes)
        self._graph.node.append(made)

    def _reread(self, name: str, other: str) -> None:
        for node in self._graph.node:
            node.input[:] = [other if read == name else read for read in node.input]

    def _scale(self, binding: Binding) -> str:
        assert binding.scale is not None
        return self._add(f"{binding.name}_io_scale", np.array(_half_scale(binding.scale), self._dtype))

    def _zero(self, binding: Binding) -> str:
        return self._add(f"{binding.name}_io_zero", np.array(0, np.int8))

    def _add(self, name: str, values: NDArray[Any]) -> str:
        from onnx.numpy_helper import from_array

        if name not in self._initializers:
            self._graph.initializer.append(from_array(values, name))
            self._initializers[name] = self._graph.initializer[-1]
        return name

    def _halve_scales(self) -> None:
        """Round scales to what FP16 holds in full, and the INT8 weights to the steps of those."""
        from onnx.numpy_helper import from_array, to_array

        for node in self._graph.node:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                continue
            scale = self._initializers.get(node.input[1])
            if scale is None or scale.data_type != _FLOAT:
                continue
            exact = to_array(scale)
            rounded = _half_scale(exact)
            weight = self._initializers.get(node.input[0])
            if weight is not None and weight.data_type == _INT8:
                axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
                ratio = (exact / rounded).reshape([-1 if index == axis else 1 for index in range(len(weight.dims))])
                steps = np.clip(np.rint(to_array(weight) * ratio), -INT8_MAX, INT8_MAX).astype(np.int8)
                weight.CopyFrom(from_array(steps, weight.name))
            scale.CopyFrom(from_array(np.asarray(rounded, np.float32), scale.name))


_FLOAT, _INT8, _HALF = 1, 3, 10  # TensorProto.FLOAT, INT8, FLOAT16


def _reads(node: onnx.NodeProto, op: str, name: str) -> bool:
    return bool(node.op_type == op and node.input[0] == name)


def _half_scale(scale: Any) -> Any:
    """Return scales as float32 values that FP16 holds with full precision, INT8's steps no finer than 2^-14."""
    return np.maximum(scale, LEAST_SCALE).astype(np.float16).astype(np.float32)


def _halve_tensor(tensor: onnx.TensorProto) -> None:
    from onnx.numpy_helper import from_array, to_array

    if tensor.data_type == _FLOAT:
        values = np.clip(to_array(tensor), -LARGEST_HALF, LARGEST_HALF).astype(np.float16)
        tensor.CopyFrom(from_array(values, tensor.name))


def _halve_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            _halve_tensor(attribute.t)
        elif attribute.name == "to" and node.op_type == "Cast" and attribute.i == _FLOAT:
            attribute.i = _HALF
