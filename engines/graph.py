"""A network as the toolkit sees it: layers with shapes, multiply-accumulates and bytes; no weights loaded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.costs import fused_layers
from engines.engine import Workload
from engines.errors import EngineError
from engines.onnx_model import ONNX_DOMAINS, load_model, model_inputs, opset_of, shape_of, without_weights

if TYPE_CHECKING:
    import onnx

MIN_OPSET = 11
MAX_ELEMENTS = 1 << 40  # of a constant: more is a damaged file
MAX_VALUES = 64  # constants up to this size are exposed: parameters of layers, never weights
UNKNOWN = "unknown"  # dtype of a tensor whose shape nothing says: what a custom operator makes


@dataclass(frozen=True)
class Tensor:
    """A tensor's name, static shape (batch axis first) and ONNX element type, e.g. "float32".

    `values` holds the elements of a small constant (at most `MAX_VALUES`) in row-major order: Clip bounds, Resize
    scales, Slice starts, Reshape shapes; None for activations, large weights and weights in another file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    values: tuple[float, ...] | None = None

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layer:
    """One ONNX node: `inputs` and `outputs` name activations, `weights` name initializers, both in the node's order.

    `attributes` holds the node's plain attributes (ints, floats, strings, tuples of them); `macs` counts
    multiply-accumulates of convolution, transposed convolution, Gemm and MatMul, for the whole batch. `operands` are
    all that the node reads by position, "" where it leaves one out; `domain` is "" for ONNX's own operators.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    macs: int
    operands: tuple[str, ...] = ()
    domain: str = ""


@dataclass(frozen=True)
class Graph:
    """A network with static shapes: `tensors` holds every activation and weight by name."""

    name: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]
    tensors: Mapping[str, Tensor]

    @property
    def workload(self) -> Workload:
        """What one sample of this graph asks of an accelerator, at one byte an element."""
        batch = self.tensors[self.inputs[0]].shape[0]
        reads = Counter(name for layer in self.layers for name in layer.inputs)
        weights = {name for layer in self.layers for name in layer.weights}
        made = {name for layer in self.layers if layer.inputs for name in layer.outputs}
        moved = sum((1 + reads[name]) * self.tensors[name].elements for name in made.union(self.inputs))
        return Workload(
            macs=sum(layer.macs for layer in self.layers) // batch,
            weight_bytes=sum(self.tensors[name].elements for name in weights),
            activation_bytes=moved // batch,
            output_bytes=sum(self.tensors[name].elements for name in self.outputs) // batch,
            layers=fused_layers(self.layers, self.tensors, self.outputs, batch),
        )


def read_graph(
    source: Path | onnx.ModelProto, name: str | None = None, shapes: Mapping[str, Sequence[int]] | None = None
) -> Graph:
    """Read a static-shape ONNX network (a file, or a model in memory), opset 11 or later; weights are not loaded.

    `shapes` replaces the shapes of the inputs that it names. Initializers and the outputs of Constant nodes are
    weights. A tensor that a custom operator makes has dtype "unknown" and shape (). EngineError where the file, its
    opset or the shape of an input cannot be used.
    """
    model = load_model(source, external_data=False) if isinstance(source, Path) else source
    try:
        name = name or (source.stem if isinstance(source, Path) else model.graph.name or "network")
        light = without_weights(model)
        if shapes:
            set_shapes(light, shapes, name)
        _check(light, name)
        return _graph(_inferred(light, name), name)
    except UnicodeDecodeError:  # protobuf decodes a name only when it is asked for
        raise EngineError(f"{name or 'network'} holds a name that is not UTF-8 text; export it again") from None


def set_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], name: str) -> None:
    """Give a model's inputs other shapes, and forget the ones in between: they are inferred again.

    EngineError where an input is not there or has another number of axes.
    """
    inputs = {value.name: value for value in model_inputs(model)}
    for tensor, shape in shapes.items():
        if tensor not in inputs:
            raise EngineError(f"{name} has no input {tensor!r} to give a shape; its inputs: {', '.join(inputs)}")
        seen = shape_of(inputs[tensor])
        if min(shape, default=1) < 1 or (seen is not None and len(seen) != len(shape)):
            rank = "any number of" if seen is None else len(seen)
            raise EngineError(
                f"{name}: shape {_times(shape)} of input {tensor!r} does not fit, expected {rank} axes >= 1"
            )
        dims = inputs[tensor].type.tensor_type.shape
        del dims.dim[:]
        for size in shape:
            dims.dim.add(dim_value=size)
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _times(shape: Sequence[int | None]) -> str:
    return "x".join(map(str, shape))


def _check(model: onnx.ModelProto, name: str) -> None:
    opset = opset_of(model)
    if opset < MIN_OPSET:
        raise EngineError(f"{name} has opset {opset}, expected {MIN_OPSET} or later; export it again with opset 13")
    if not model.graph.node:
        raise EngineError(f"{name} holds no layers, expected an ONNX network")
    values = model_inputs(model)
    if not values:
        raise EngineError(f"{name} has no input, expected one at least")
    for value in values:
        _check_input(value, name)
    held = [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    for tensor in (*model.graph.initializer, *held):
        _check_constant(tensor, name)


def _check_constant(tensor: onnx.TensorProto, name: str) -> None:
    """Refuse what makes shape inference abort the whole process: sizes that no tensor has."""
    if not all(0 <= dim <= MAX_ELEMENTS for dim in tensor.dims) or math.prod(tensor.dims) > MAX_ELEMENTS:
        raise EngineError(f"{name}: constant {tensor.name!r} has the shape {_times(tensor.dims)}; export it again")


def _check_input(value: onnx.ValueInfoProto, name: str) -> None:
    shape = shape_of(value)
    if shape is None:
        raise EngineError(
            f"{name}: input {value.name!r} has no shape; give it a static one: --shape {value.name}=1x3x224x224"
        )
    if not shape:
        raise EngineError(f"{name}: input {value.name!r} is a scalar, expected a batch axis first; export it again")
    if None in shape:
        dims = value.type.tensor_type.shape.dim
        seen = ",".join(str(dim.dim_value) if dim.dim_value > 0 else dim.dim_param or "?" for dim in dims)
        example = _times([_example(axis, size) for axis, size in enumerate(shape)])
        raise EngineError(
            f"{name}: input {value.name!r} has shape [{seen}], which is dynamic; give it a static one:"
            f" --shape {value.name}={example}"
        )


def _example(axis: int, size: int | None) -> int:
    """Return a size for an axis that has none: one sample, three channels, 224 pixels."""
    return size if size is not None else {0: 1, 1: 3}.get(axis, 224)


def _inferred(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    import onnx

    try:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (RuntimeError, ValueError, onnx.shape_inference.InferenceError) as error:
        raise EngineError(f"{name}: ONNX shape inference refuses the network: {' '.join(str(error).split())}") from None


def _graph(model: onnx.ModelProto, name: str) -> Graph:
    tensors = _tensors(model.graph)
    constants = {tensor.name for tensor in model.graph.initializer}
    constants.update(output for node in model.graph.node if node.op_type == "Constant" for output in node.output)
    names = layer_names(model.graph.node)
    _check_order(model.graph, names, tensors)
    return Graph(
        name=name,
        opset=opset_of(model),
        inputs=tuple(value.name for value in model_inputs(model)),
        outputs=tuple(value.name for value in model.graph.output),
        layers=tuple(_layer(node, names[i], tensors, constants) for i, node in enumerate(model.graph.node)),
        tensors=tensors,
    )


def _check_order(graph: onnx.GraphProto, names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a network that is not in order, as ONNX asks: each tensor made once, before it is read."""
    known = {value.name for value in (*graph.input, *graph.initializer)}
    for node, name in zip(graph.node, names):
        late = next((tensor for tensor in node.input if tensor in tensors and tensor and tensor not in known), None)
        if late is not None:
            raise EngineError(f"layer {name!r} reads {late!r} before any layer makes it; export the network again")
        for tensor in filter(None, node.output):
            if tensor in known:
                raise EngineError(f"layer {name!r} makes {tensor!r}, which is there already; export the network again")
            known.add(tensor)


def _tensors(graph: onnx.GraphProto) -> dict[str, Tensor]:
    tensors = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensors[value.name] = _tensor(value.name, shape_of(value), value.type.tensor_type.elem_type)
    for initializer in graph.initializer:
        tensors[initializer.name] = _constant(initializer.name, initializer)
    for node in graph.node:
        for name in filter(None, node.output):
            tensors.setdefault(name, Tensor(name, (), UNKNOWN))
        if node.op_type == "Constant" and node.attribute:
            tensors[node.output[0]] = _constant(node.output[0], _constant_value(node.attribute[0]))
    return tensors


def _constant(name: str, value: onnx.TensorProto) -> Tensor:
    """Return a constant with its values where it is small, numeric and in this file."""
    from onnx import TensorProto, numpy_helper

    tensor = _tensor(name, tuple(value.dims), value.data_type)
    numeric = tensor.dtype.startswith(("int", "uint", "float", "bool"))
    if not numeric or tensor.elements > MAX_VALUES or value.data_location == TensorProto.EXTERNAL:
        return tensor
    try:
        array = numpy_helper.to_array(value)
    except (ValueError, TypeError) as error:
        raise EngineError(
            f"constant {name!r} cannot be read: {' '.join(str(error).split())}; export it again"
        ) from None
    return replace(tensor, values=tuple(array.ravel().tolist()))


def _constant_value(attribute: onnx.AttributeProto) -> onnx.TensorProto:
    """Return what a Constant node holds as a tensor: the attribute may also be a number, or a list of them."""
    import numpy as np
    from onnx import TensorProto, numpy_helper
    from onnx.helper import get_attribute_value

    value = get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return value
    kind = np.float32 if attribute.name.startswith("value_float") else np.int64
    if attribute.name.startswith(("value_float", "value_int")):
        return numpy_helper.from_array(np.array(value, kind))
    return TensorProto(data_type=TensorProto.STRING)


def _tensor(name: str, shape: tuple[int | None, ...] | None, data_type: int) -> Tensor:
    from onnx import TensorProto
    from onnx.helper import tensor_dtype_to_np_dtype

    static = tuple(dim for dim in shape or () if dim is not None)
    if shape is None or len(static) != len(shape) or data_type not in TensorProto.DataType.values()[1:]:
        return Tensor(name, (), UNKNOWN)
    return Tensor(name, static, str(tensor_dtype_to_np_dtype(data_type).name))


def layer_names(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """Return one name a node, as `Layer.name`: its own, or operator and position where it has none or shares it."""
    counts = Counter(node.name for node in nodes)
    return [
        node.name if node.name and counts[node.name] == 1 else f"{node.name or node.op_type}_{index}"
        for index, node in enumerate(nodes)
    ]


def _layer(node: onnx.NodeProto, name: str, tensors: Mapping[str, Tensor], constants: set[str]) -> Layer:
    read = [tensor for tensor in node.input if tensor]
    outputs = tuple(tensor for tensor in node.output if tensor)
    missing = [tensor for tensor in read if tensor not in tensors]
    if missing:
        raise EngineError(f"layer {name!r} reads {missing[0]!r}, which nothing makes; export the network again")
    attributes = _attributes(node)
    return Layer(
        name=name,
        op=node.op_type,
        inputs=tuple(tensor for tensor in read if tensor not in constants),
        weights=tuple(tensor for tensor in read if tensor in constants),
        outputs=outputs,
        attributes=attributes,
        macs=_macs(node.op_type, [tensors[tensor] for tensor in (*read[:2], *outputs[:1])], attributes),
        operands=tuple(node.input),
        domain="" if node.domain in ONNX_DOMAINS else node.domain,
    )


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import AttributeProto
    from onnx.helper import get_attribute_value

    lists = (AttributeProto.INTS, AttributeProto.FLOATS, AttributeProto.STRINGS)
    plain = {}
    for attribute in node.attribute:
        try:
            value = get_attribute_value(attribute)
        except ValueError:
            raise EngineError(
                f"attribute {attribute.name!r} of layer {node.name!r} has no type that ONNX knows; export it again"
            ) from None
        if isinstance(value, (int, float, bytes)):
            plain[attribute.name] = _text(value)
        elif attribute.type in lists and value:
            plain[attribute.name] = tuple(map(_text, value))
    return plain


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


# Multiply-accumulates from first operand, second operand, result and attributes.
_MACS: Mapping[str, Callable[[Tensor, Tensor, Tensor, Mapping[str, Any]], int]] = {
    "Conv": lambda _, weight, out, __: math.prod(weight.shape[1:]) * out.elements,
    "ConvTranspose": lambda x, weight, _, __: math.prod(weight.shape[1:]) * x.elements,
    "Gemm": lambda a, _, out, attributes: a.shape[0 if attributes.get("transA") else 1] * out.elements,
    "MatMul": lambda a, _, out, __: a.shape[-1] * out.elements,
}


def _macs(op: str, operands: Sequence[Tensor], attributes: Mapping[str, Any]) -> int:
    if op not in _MACS or len(operands) != 3 or any(tensor.dtype == UNKNOWN for tensor in operands):
        return 0
    first, second, result = operands
    return _MACS[op](first, second, result, attributes)
