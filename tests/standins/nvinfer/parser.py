"""The ONNX parser: a network's nodes become layers of TensorRT's types, its errors name node and operator."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.importer import KINDS_BY_OP
from engines.onnx_model import ONNX_DOMAINS, model_inputs, shape_of, without_weights
from tests.standins.nvinfer.bridge import Native, trt
from tests.standins.nvinfer.efficient_nms import is_plugin
from tests.standins.nvinfer.network import NetworkDefinition, Tensor, Wires
from tests.standins.nvinfer.plugins import are_registered

if TYPE_CHECKING:
    import onnx

# Operators whose constant operands become CONSTANT layers; others take them as weights or parameters.
CONSTANT_OPERANDS = frozenset(
    (
        "Add Sub Mul Div Pow Max Min Sum Mean Mod And Or Xor Equal Greater Less Gemm MatMul Concat Gather Where PRelu"
    ).split()
)
PLUGIN = "PLUGIN_V2"
NO_PLUGIN = (
    "(importFallbackPluginImporter): UNSUPPORTED_NODE: Assertion failed: creator &&"
    ' "Plugin not found, are the plugin name, version, and namespace correct?"'
)
# ONNX element types under the names of TensorRT's `DataType`; DOUBLE is cast to FLOAT while parsing.
TYPES = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "HALF", 11: "FLOAT", 16: "BF16"}


class ParserError(Native):
    """One error of the parser."""

    kind = "ParserError"

    def __init__(self, parser: Native, code: str, text: str, node: tuple[int, str, str] = (-1, "", "")) -> None:
        super().__init__(parser.logger)
        self._code, self._text = code, text
        self._index, self._name, self._operator = node

    def code(self) -> Any:
        return getattr(trt().ErrorCode, self._code)

    def desc(self) -> str:
        return self._text

    def file(self) -> str:
        return "ModelImporter.cpp"

    def line(self) -> int:
        return 0

    def func(self) -> str:
        return "parseNode" if self._name else "parse"

    def node(self) -> int:
        return self._index

    def nodeName(self) -> str:
        return self._name

    def nodeOperator(self) -> str:
        return self._operator

    def localFunctionStackSize(self) -> int:
        return 0


@dataclass(frozen=True)
class Known:
    """What shape inference says of a network: element types and shapes by tensor."""

    types: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]


class Parser(Native):
    """`nvonnxparser::IParser`: fills a network from ONNX bytes or a file."""

    kind = "Parser"

    def __init__(self, network: NetworkDefinition, logger: int) -> None:
        super().__init__(logger, Flags=0)
        self.network = network
        self.errors: list[ParserError] = []

    def dispose(self) -> None:
        self.clearErrors()
        super().dispose()

    def parse(self, address: int, size: int, path: str | None = None) -> bool:
        return self._parse(ctypes.string_at(address, size), Path(path).parent if path else None)

    def parseWithWeightDescriptors(self, address: int, size: int) -> bool:
        return self.parse(address, size)

    def parseFromFile(self, path: str, verbosity: int) -> bool:
        if not Path(path).is_file():
            return self._fail("MODEL_DESERIALIZE_FAILED", f"Failed to open file: {path}")
        return self._parse(Path(path).read_bytes(), Path(path).parent)

    def supportsOperator(self, name: str) -> bool:
        return name in KINDS_BY_OP

    def supportsModelV2(self, address: int, size: int, path: str | None) -> bool:
        model = _load(ctypes.string_at(address, size), None)
        return model is not None and all(map(_is_known, model.graph.node))

    def getNbErrors(self) -> int:
        return len(self.errors)

    def getError(self, index: int) -> ParserError | None:
        return self.errors[index] if 0 <= index < len(self.errors) else None

    def clearErrors(self) -> None:
        for error in self.errors:
            error.drop()
        self.errors = []

    def getFlag(self, flag: Any) -> bool:
        return bool(self.settings["Flags"] & 1 << int(flag))

    def setFlag(self, flag: Any) -> None:
        self.settings["Flags"] |= 1 << int(flag)

    def clearFlag(self, flag: Any) -> None:
        self.settings["Flags"] &= ~(1 << int(flag))

    def _fail(self, code: str, text: str, node: tuple[int, str, str] = (-1, "", "")) -> bool:
        self.errors.append(ParserError(self, code, text, node))
        self.log(trt().ILogger.ERROR, text)
        return False

    def _parse(self, blob: bytes, folder: Path | None) -> bool:
        import onnx

        model = _load(blob, folder)
        if model is None:
            return self._fail("MODEL_DESERIALIZE_FAILED", "Failed to parse the ONNX model: its bytes are no network")
        names = node_names(model.graph)
        for index, node in enumerate(model.graph.node):
            if not _is_known(node):
                where = f"In node {index} with name: {names[index]} and operator: {node.op_type}"
                return self._fail("UNSUPPORTED_NODE", f"{where} {NO_PLUGIN}", (index, names[index], node.op_type))
        try:
            inferred = onnx.shape_inference.infer_shapes(without_weights(model), strict_mode=True, data_prop=True)
        except Exception as error:  # onnx raises several kinds
            return self._fail("INVALID_GRAPH", f"shape inference: {' '.join(str(error).split())}")
        _fill(self.network, model, _known(inferred.graph))
        return True


def _load(blob: bytes, folder: Path | None) -> onnx.ModelProto | None:
    """Parse ONNX bytes and load what lies in files beside them; None where the bytes are no network."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load_from_string(blob)
        if folder is not None:
            onnx.load_external_data_for_model(model, str(folder))
    except (DecodeError, ValueError, OSError):
        return None
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    return model if model.graph.node else None


def _is_known(node: onnx.NodeProto) -> bool:
    return (is_plugin(node) and are_registered()) or (node.op_type in KINDS_BY_OP and node.domain in ONNX_DOMAINS)


def node_names(graph: onnx.GraphProto) -> list[str]:
    """Return one unique name a node, by the rule of `engines.graph`: its own, or operator and position."""
    counts = Counter(node.name for node in graph.node)
    return [
        node.name if node.name and counts[node.name] == 1 else f"{node.name or node.op_type}_{index}"
        for index, node in enumerate(graph.node)
    ]


def _known(graph: onnx.GraphProto) -> Known:
    values = [*graph.input, *graph.value_info, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    shapes = {value.name: tuple(dim or -1 for dim in shape_of(value) or ()) for value in values}
    for tensor in graph.initializer:
        types[tensor.name], shapes[tensor.name] = tensor.data_type, tuple(tensor.dims)
    return Known(types, shapes)


def _fill(network: NetworkDefinition, model: onnx.ModelProto, known: Known) -> None:
    """Give a network the inputs, layers and outputs of an ONNX model."""
    network.model = model
    network.settings["Name"] = model.graph.name or network.settings["Name"]
    for value in model_inputs(model):
        network.addInput(value.name, _type(known, value.name), known.shapes[value.name])
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                network.tensors[value.name].setDimensionName(axis, dim.dim_param)
    constants = {tensor.name for tensor in model.graph.initializer}
    for node, name in zip(model.graph.node, node_names(model.graph)):
        node.name = name
        _add_node(network, node, known, constants)
    for value in model.graph.output:
        network.markOutput(network.tensors[value.name])


def _add_node(network: NetworkDefinition, node: onnx.NodeProto, known: Known, constants: set[str]) -> None:
    """Add the layers of one node: the first has its name, the last makes its outputs."""
    sources = [_source(network, node, name, known, constants) for name in node.input if name]
    inputs = [tensor for tensor in sources if tensor is not None]
    made = [network.tensor(name, _type(known, name), known.shapes.get(name, ())) for name in node.output if name]
    if node.op_type == "Split":
        for index, tensor in enumerate(made):
            network.layer(f"{node.name}_{index}" if index else node.name, "SLICE", Wires(inputs, [tensor]), node.name)
        return
    kinds = [kind for kind in KINDS_BY_OP.get(node.op_type, (PLUGIN,)) if kind] or [
        "CONSTANT" if node.op_type == "Constant" else "IDENTITY"
    ]
    for index, kind in enumerate(kinds[:-1]):
        name = f"{node.name}_{index}" if index else node.name
        between = network.tensor(f"{name}_between", made[0].dtype, inputs[0].dims if inputs else ())
        network.layer(name, kind, Wires(inputs, [between]), node.name)
        inputs = [between]
    last = f"{node.name}_{len(kinds) - 1}" if len(kinds) > 1 else node.name
    network.layer(last, kinds[-1], Wires(inputs, made), node.name)


def _source(
    network: NetworkDefinition, node: onnx.NodeProto, name: str, known: Known, constants: set[str]
) -> Tensor | None:
    """Return the tensor that a node reads; a constant becomes a layer where TensorRT makes it one, else None."""
    if name in network.tensors:
        return network.tensors[name]
    if name in constants and node.op_type not in CONSTANT_OPERANDS:
        return None
    tensor = network.tensor(name, _type(known, name), known.shapes.get(name, ()))
    network.layer(name, "CONSTANT", Wires([], [tensor]))
    return tensor


def _type(known: Known, name: str) -> Any:
    return getattr(trt().DataType, TYPES.get(known.types.get(name, 1), "FLOAT"))
