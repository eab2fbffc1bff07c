"""What the package does to ONNX models as such: load, set the batch, raise the opset, declare a tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import EngineError

if TYPE_CHECKING:
    import onnx

ONNX_DOMAINS = ("", "ai.onnx")
SMALL_ELEMENTS = 1024  # constants up to this size keep their values: shape inference reads them


def load_model(path: Path, external_data: bool = True) -> onnx.ModelProto:
    """Load an ONNX file; EngineError where it is missing, unreadable, not ONNX, or its external weights are."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path, load_external_data=external_data)
    except DecodeError:
        raise EngineError(f"{path} is not an ONNX file: its bytes do not parse; export the network again") from None
    except (OSError, onnx.checker.ValidationError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise EngineError(f"network {path} cannot be read: {reason}") from None
    if any(isinstance(name, bytes) for name in _names(model.graph)):
        raise EngineError(f"{path} holds names that are not UTF-8; export the network again")
    if not model.graph.node:
        raise EngineError(f"{path} holds no layers, expected an ONNX network; export it again")
    return model


def _names(graph: onnx.GraphProto) -> Iterator[str | bytes]:
    """Yield every name; protobuf gives bytes where it is not UTF-8."""
    for named in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        yield named.name
    for node in graph.node:
        yield from (node.op_type, node.domain, *node.input, *node.output, *(entry.name for entry in node.attribute))


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the ONNX operator set that a model imports; EngineError where it names none."""
    versions = [int(entry.version) for entry in model.opset_import if entry.domain in ONNX_DOMAINS]
    if not versions:
        raise EngineError(f"network {model.graph.name!r} names no ONNX opset; export it again with opset 13 or later")
    return max(versions)


def raise_opset(model: onnx.ModelProto, minimum: int) -> onnx.ModelProto:
    """Return the model at opset `minimum` or later: itself where it already is."""
    from onnx import version_converter

    opset = opset_of(model)
    if opset >= minimum:
        return model
    try:
        return version_converter.convert_version(model, minimum)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise EngineError(f"opset {opset} cannot be raised to {minimum}: {reason}; export the network again") from None


def model_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller feeds, without the initializers that old files list among them."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in initializers]


def shape_of(value: onnx.ValueInfoProto) -> tuple[int | None, ...] | None:
    """Return a value's dimensions, None for each that is not static; None where it has no shape at all."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(int(dim.dim_value) if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim)


def with_batch(model: onnx.ModelProto, batch: int | str) -> onnx.ModelProto:
    """Return a copy whose inputs and outputs have this batch: a number (static) or a name (symbolic)."""
    import onnx

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.value_info[:]  # shapes in between are stale now, and every reader infers them again
    for value in (*model_inputs(changed), *changed.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and isinstance(batch, str):
            dims[0].dim_param = batch
        elif dims:
            dims[0].dim_value = batch
    return changed


def declared_tensor(name: str, shape: Sequence[int], data_type: int) -> onnx.TensorProto:
    """Return an initializer with a shape and no data: external data that is never read."""
    import onnx

    tensor = onnx.TensorProto(name=name, dims=shape, data_type=data_type, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="not-loaded")
    return tensor


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without the data of large initializers: gigabytes are neither copied nor parsed."""
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    for tensor in model.graph.initializer:
        large = math.prod(tensor.dims) > SMALL_ELEMENTS
        graph.initializer.append(declared_tensor(tensor.name, tensor.dims, tensor.data_type) if large else tensor)
    return light


def has_all_weights(model: onnx.ModelProto) -> bool:
    """Tell whether each initializer holds its data."""
    import onnx

    return all(tensor.data_location != onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)


def keeps_batch(model: onnx.ModelProto, batch: str) -> bool:
    """Tell whether a symbolic batch at the inputs reaches every output: no constant in between fixes it.

    An operator of another domain is TensorRT's plugin: it is taken to keep the batch of what it reads.
    """
    import onnx

    symbolic = with_batch(without_weights(model), batch)
    for value in symbolic.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(symbolic, data_prop=True).graph
    plugins = [node for node in graph.node if node.domain not in ONNX_DOMAINS]
    read_for = {name: list(node.input) for node in plugins for name in node.output}
    ends = {name for value in graph.output for name in read_for.get(value.name, [value.name])}
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output)}
    return all([dim.dim_param for dim in shapes.get(name, ())][:1] == [batch] for name in ends)
