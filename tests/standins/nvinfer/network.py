"""Networks: tensors and layers as TensorRT shows them, over the ONNX nodes that they came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.onnx_model import without_weights
from tests.standins.nvinfer.bridge import Native, Refused, WeightsView, memory, trt

if TYPE_CHECKING:
    import onnx

ALL_FORMATS = (1 << 16) - 1
STRONGLY_TYPED = 1  # NetworkDefinitionCreationFlag.STRONGLY_TYPED


class Tensor(Native):
    """A tensor of a network: `symbol` is its name in the ONNX network, which renaming leaves alone."""

    kind = "Tensor"

    def __init__(self, network: NetworkDefinition, name: str, dtype: Any, dims: tuple[int, ...]) -> None:
        super().__init__(network.logger, Name=name, Type=dtype, Dimensions=dims, AllowedFormats=ALL_FORMATS)
        self.settings |= {"Location": trt().TensorLocation.DEVICE, "BroadcastAcrossBatch": False}
        self.network = network
        self.symbol = name
        self.computed = dtype  # what the ONNX network computes it in, whatever type the user asks for
        self.range: tuple[float, float] | None = None
        self.axis_names: dict[int, str] = {}

    @property
    def name(self) -> str:
        """The name that users see."""
        return str(self.settings["Name"])

    @property
    def dims(self) -> tuple[int, ...]:
        """Dimensions, -1 for each that is dynamic."""
        return tuple(self.settings["Dimensions"])

    @property
    def named_dims(self) -> list[int | str]:
        """Dimensions as ONNX has them: a name for each that is dynamic."""
        return [size if size >= 0 else self.axis_names.get(axis, f"d{axis}") for axis, size in enumerate(self.dims)]

    @property
    def makers(self) -> list[Layer]:
        """The layer that makes this tensor, if any does."""
        return [layer for layer in self.network.layers if self in layer.wires.outputs]

    @property
    def readers(self) -> list[Layer]:
        """The layers that read this tensor."""
        return [layer for layer in self.network.layers if self in layer.wires.inputs]

    @property
    def dtype(self) -> Any:
        """Its `DataType`."""
        return self.settings["Type"]

    def setDimensions(self, dims: tuple[int, ...]) -> None:
        """Give an input another shape: those of all tensors follow."""
        if self not in self.network.inputs:
            raise Refused(f"Parameter check failed, condition: {self.name} is an input of the network")
        self.settings["Dimensions"] = dims
        self.network.infer_shapes()

    @property
    def amax(self) -> float | None:
        """Largest magnitude of its dynamic range."""
        return max(map(abs, self.range)) if self.range else None

    def getName(self) -> str:
        return self.name

    def setDynamicRange(self, low: float, high: float) -> bool:
        """Only symmetric ranges are supported (NvInfer.h, ITensor::setDynamicRange)."""
        if not (np.isfinite(low) and np.isfinite(high)) or low > high:
            raise Refused(f"Parameter check failed, condition: dynamic range [{low}, {high}] of {self.name}")
        self.range = (low, high)
        return True

    def dynamicRangeIsSet(self) -> bool:
        return self.range is not None

    def resetDynamicRange(self) -> None:
        self.range = None

    def getDynamicRangeMin(self) -> float:
        return self.range[0] if self.range else float("nan")

    def getDynamicRangeMax(self) -> float:
        return self.range[1] if self.range else float("nan")

    def isNetworkInput(self) -> bool:
        return self in self.network.inputs

    def isNetworkOutput(self) -> bool:
        return self in self.network.outputs

    def isShapeTensor(self) -> bool:
        return False

    def isExecutionTensor(self) -> bool:
        return True

    def setDimensionName(self, axis: int, name: str) -> None:
        self.axis_names[axis] = name

    def getDimensionName(self, axis: int) -> str | None:
        return self.axis_names.get(axis)


@dataclass
class Wires:
    """What a layer reads and makes."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


class Layer(Native):
    """A layer of a network: `node` is the name of the ONNX node that it came from, "" where there is none."""

    kind = "Layer"

    def __init__(self, network: NetworkDefinition, name: str, layer_type: Any, wires: Wires, node: str = "") -> None:
        super().__init__(network.logger, Name=name, Type=layer_type, Metadata="")
        self.wires = wires
        self.node = node
        self.precision: Any = None
        self.output_types: dict[int, Any] = {}

    @property
    def name(self) -> str:
        """The name that users see."""
        return str(self.settings["Name"])

    @property
    def type_name(self) -> str:
        """Its `LayerType`, by name."""
        return str(self.settings["Type"].name)

    def getNbInputs(self) -> int:
        return len(self.wires.inputs)

    def getInput(self, index: int) -> Tensor | None:
        return self.wires.inputs[index] if 0 <= index < len(self.wires.inputs) else None

    def getNbOutputs(self) -> int:
        return len(self.wires.outputs)

    def getOutput(self, index: int) -> Tensor | None:
        return self.wires.outputs[index] if 0 <= index < len(self.wires.outputs) else None

    def setPrecision(self, dtype: Any) -> None:
        self.precision = dtype

    def getPrecision(self) -> Any:
        return self.precision if self.precision is not None else trt().DataType.FLOAT

    def precisionIsSet(self) -> bool:
        return self.precision is not None

    def resetPrecision(self) -> None:
        self.precision = None

    def setOutputType(self, index: int, dtype: Any) -> None:
        self.output_types[index] = dtype

    def getOutputType(self, index: int) -> Any:
        return self.output_types.get(index, self.wires.outputs[index].dtype)

    def outputTypeIsSet(self, index: int) -> bool:
        return index in self.output_types

    def resetOutputType(self, index: int) -> None:
        self.output_types.pop(index, None)


class NetworkDefinition(Native):
    """A network under construction: `model` holds the ONNX nodes and weights behind its layers."""

    kind = "NetworkDefinition"

    def __init__(self, builder: Native, flags: int) -> None:
        import onnx

        super().__init__(builder.logger, Name="Unnamed Network 0", Flags=flags, Builder=builder)
        self.model = onnx.ModelProto(ir_version=10)
        self.model.opset_import.add(domain="", version=17)
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.layers: list[Layer] = []
        self.tensors: dict[str, Tensor] = {}
        self.verdicts: dict[str, Any] = {}  # where its layers can run: kept, since that is asked layer by layer

    @property
    def is_typed(self) -> bool:
        """Whether its types are its own, not the builder's to choose."""
        return bool(self.settings["Flags"] >> STRONGLY_TYPED & 1)

    def dispose(self) -> None:
        """End the network's tensors and layers with it."""
        for owned in (*self.layers, *self.tensors.values()):
            owned.drop()
        self.inputs, self.outputs, self.layers, self.tensors = [], [], [], {}
        self.verdicts.clear()
        super().dispose()

    def tensor(self, name: str, dtype: Any, dims: Sequence[int]) -> Tensor:
        """Return a new tensor; a name that is taken gets a number."""
        while name in self.tensors:
            name = f"{name}_{len(self.tensors)}"
        self.tensors[name] = Tensor(self, name, dtype, tuple(dims))
        return self.tensors[name]

    def layer(self, name: str, kind: str, wires: Wires, node: str = "") -> Layer:
        """Append a layer of a `LayerType`, by its name."""
        layer_type = getattr(trt().LayerType, kind, trt().LayerType.PLUGIN_V2)
        self.layers.append(Layer(self, name, layer_type, wires, node))
        return self.layers[-1]

    def to_onnx(self) -> onnx.ModelProto:
        """Return the ONNX network behind the layers, from the inputs to the tensors that are outputs now."""
        import onnx
        from onnx.helper import make_tensor_value_info, np_dtype_to_tensor_dtype

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        del model.graph.input[:], model.graph.output[:], model.graph.value_info[:]
        model.graph.name = model.graph.name or "network"
        for tensor in self.inputs:
            elements = np_dtype_to_tensor_dtype(np.dtype(trt().nptype(tensor.computed)))
            dims = [
                size if size >= 0 else tensor.axis_names.get(axis, f"d{axis}") for axis, size in enumerate(tensor.dims)
            ]
            model.graph.input.append(make_tensor_value_info(tensor.symbol, elements, dims))
        for tensor in self.outputs:
            elements = np_dtype_to_tensor_dtype(np.dtype(trt().nptype(tensor.computed)))
            model.graph.output.append(make_tensor_value_info(tensor.symbol, elements, None))
        return model

    def infer_shapes(self) -> None:
        """Give every tensor the shape that follows from those of the inputs."""
        import onnx

        graph = onnx.shape_inference.infer_shapes(without_weights(self.to_onnx()), data_prop=True).graph
        for value in (*graph.value_info, *graph.output):
            if value.name in self.tensors:
                dims = value.type.tensor_type.shape.dim
                self.tensors[value.name].settings["Dimensions"] = tuple(dim.dim_value or -1 for dim in dims)

    def node(self, layer: Layer) -> onnx.NodeProto | None:
        """Return the ONNX node that a layer came from."""
        return next((node for node in self.model.graph.node if node.name == layer.node), None)

    def operator(self, layer: Layer) -> str:
        """Return the ONNX operator that a layer came from, "" where there is none."""
        node = self.node(layer)
        return node.op_type if node is not None else ""

    def getFlag(self, flag: Any) -> bool:
        return bool(self.settings["Flags"] & 1 << int(flag))

    def hasImplicitBatchDimension(self) -> bool:
        return False

    def getNbLayers(self) -> int:
        return len(self.layers)

    def getLayer(self, index: int) -> Layer | None:
        return self.layers[index] if 0 <= index < len(self.layers) else None

    def getNbInputs(self) -> int:
        return len(self.inputs)

    def getInput(self, index: int) -> Tensor | None:
        return self.inputs[index] if 0 <= index < len(self.inputs) else None

    def getNbOutputs(self) -> int:
        return len(self.outputs)

    def getOutput(self, index: int) -> Tensor | None:
        return self.outputs[index] if 0 <= index < len(self.outputs) else None

    def addInput(self, name: str, dtype: Any, dims: tuple[int, ...]) -> Tensor:
        """Names of inputs are unique (NvInfer.h, INetworkDefinition::addInput)."""
        if name in self.tensors:
            raise Refused(f"Parameter check failed, condition: the name {name} of an input is used already")
        self.inputs.append(self.tensor(name, dtype, dims))
        return self.inputs[-1]

    def markOutput(self, tensor: Tensor) -> None:
        if tensor in self.outputs or tensor in self.inputs:
            raise Refused(f"Parameter check failed, condition: {tensor.name} is marked already, or an input")
        self.outputs.append(tensor)

    def unmarkOutput(self, tensor: Tensor) -> None:
        if tensor not in self.outputs:
            raise Refused(f"Parameter check failed, condition: {tensor.name} is no output")
        self.outputs.remove(tensor)

    # Layers added by hand: those that a small program builds a network from.

    def addIdentity(self, source: Tensor) -> Layer:
        return self._add("IDENTITY", "Identity", [source])

    def addActivation(self, source: Tensor, kind: Any) -> Layer:
        ops = {"RELU": "Relu", "SIGMOID": "Sigmoid", "TANH": "Tanh"}
        if kind.name not in ops:
            raise Refused(f"activation {kind.name} is not one that this stand-in computes")
        return self._add("ACTIVATION", ops[kind.name], [source])

    def addElementWise(self, first: Tensor, second: Tensor, operation: Any) -> Layer:
        ops = {"SUM": "Add", "PROD": "Mul", "SUB": "Sub", "DIV": "Div", "MAX": "Max", "MIN": "Min", "POW": "Pow"}
        if operation.name not in ops:
            raise Refused(f"operation {operation.name} is not one that this stand-in computes")
        return self._add("ELEMENTWISE", ops[operation.name], [first, second])

    def addSoftMax(self, source: Tensor) -> Layer:
        return self._add("SOFTMAX", "Softmax", [source], axis=max(len(source.dims) - 3, 0))

    def addCast(self, source: Tensor, dtype: Any) -> Layer:
        from onnx.helper import np_dtype_to_tensor_dtype

        layer = self._add("CAST", "Cast", [source], to=np_dtype_to_tensor_dtype(np.dtype(trt().nptype(dtype))))
        layer.wires.outputs[0].settings["Type"] = dtype
        return layer

    def addConstant(self, dims: tuple[int, ...], weights: WeightsView) -> Layer:
        from onnx.numpy_helper import from_array

        layer = self._add("CONSTANT", "", [])
        made = layer.wires.outputs[0]
        values = _values(weights, dims)
        made.settings |= {"Dimensions": dims, "Type": trt().DataType(weights.dtype)}
        self.model.graph.initializer.append(from_array(values, made.symbol))
        return layer

    def _add(self, kind: str, op: str, sources: list[Tensor], **attributes: Any) -> Layer:
        """Append a layer and the ONNX node behind it; its output has the broadcast shape of its inputs."""
        from onnx.helper import make_node

        name = f"(Unnamed Layer* {len(self.layers)}) [{kind.title()}]"
        made = self.tensor(f"{name}_output", _first_type(sources), _broadcast(source.dims for source in sources))
        if op:
            inputs = [source.symbol for source in sources]
            self.model.graph.node.append(make_node(op, inputs, [made.symbol], name=name, **attributes))
        return self.layer(name, kind, Wires(list(sources), [made]), name)


def _first_type(sources: list[Tensor]) -> Any:
    return sources[0].dtype if sources else trt().DataType.FLOAT


def _broadcast(shapes: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    listed = list(shapes)
    return tuple(max(sizes) if min(sizes) > 0 else -1 for sizes in zip(*listed))


def _values(weights: WeightsView, dims: tuple[int, ...]) -> NDArray[Any]:
    dtype = np.dtype(trt().nptype(trt().DataType(weights.dtype)))
    values: NDArray[Any] = memory(weights.address, weights.count * dtype.itemsize).view(dtype)
    return np.array(values.reshape(dims))
