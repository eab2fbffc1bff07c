"""The runtime and its engines: plans read back, what their tensors are, what the inspector tells."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.formats import CHANNELS_PER_VECTOR
from engines.numerics import PROVIDER
from engines.onnx_model import without_weights
from engines.spec import TensorFormat
from tests.standins.nvinfer.bridge import Native, Refused, trt
from tests.standins.nvinfer.config import HostMemory
from tests.standins.nvinfer.context import ExecutionContext
from tests.standins.nvinfer.efficient_nms import NAME, Front, is_plugin, output_shapes
from tests.standins.nvinfer.placements import PLACEMENTS
from tests.standins.nvinfer.plan import Binding, Plan, Shape, loads
from tests.standins.nvinfer.plugins import are_registered

NOT_VECTORISED = -1
DETAILED, NONE = 2, 1  # ProfilingVerbosity


class Runtime(Native):
    """`IRuntime`."""

    kind = "Runtime"

    def __init__(self, logger: int) -> None:
        super().__init__(logger, MaxThreads=1, ErrorRecorder=None, TemporaryDirectory="/tmp", TempfileControlFlags=3)
        self.settings |= {"EngineHostCodeAllowed": False, "DLACore": 0 if PLACEMENTS.dla_cores else -1}

    def getNbDLACores(self) -> int:
        return PLACEMENTS.dla_cores

    def getLogger(self) -> int:
        return self.logger

    def setDLACore(self, core: int) -> None:
        """A core that is not there is refused (NvInferRuntime.h, IRuntime::setDLACore)."""
        if not 0 <= core < PLACEMENTS.dla_cores:
            raise Refused(f"Parameter check failed, condition: dlaCore {core} < getNbDLACores() {PLACEMENTS.dla_cores}")
        self.settings["DLACore"] = core

    def deserializeCudaEngine(self, address: int, size: int) -> CudaEngine:
        plan = loads(ctypes.string_at(address, size))
        if plan.uses_dla and not PLACEMENTS.dla_cores:
            raise Refused("the engine runs on DLA, which this platform does not have", 1, "Serialization")
        if NAME.encode() in plan.network and not are_registered():
            missing = "Cannot deserialize plugin since corresponding IPluginCreator not found in Plugin Registry"
            raise Refused(f"{missing}: {NAME}", 1, "Serialization")
        return CudaEngine(self.logger, plan, self.settings["DLACore"] if plan.uses_dla else -1)


class CudaEngine(Native):
    """`ICudaEngine`: its numbers are ONNX Runtime's, on the network inside the plan."""

    kind = "CudaEngine"

    def __init__(self, logger: int, plan: Plan, dla_core: int) -> None:
        super().__init__(logger, Name=plan.name, ErrorRecorder=None)
        self.plan = plan
        self.dla_core = dla_core
        self.bindings = {binding.name: binding for binding in plan.bindings}
        self._session: Any = None
        self._shapes: dict[tuple[Any, ...], Mapping[str, Shape]] = {}

    def dispose(self) -> None:
        self._session = None
        super().dispose()

    def compute(self, outputs: list[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the network; integer arithmetic is exact, as `engines.numerics` has it."""
        if self._session is None:
            import onnxruntime as ort

            options = ort.SessionOptions()
            options.log_severity_level = 3
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # several engines share the cores
            self._front = Front.of(self.plan.network)
            self._session = ort.InferenceSession(self._front.network, options, providers=[PROVIDER])
        asked = self._front.asked(outputs)
        return self._front.finished(outputs, dict(zip(asked, self._session.run(asked, dict(feed)), strict=True)))

    def output_shapes(self, shapes: Mapping[str, Shape]) -> Mapping[str, Shape]:
        """Return the shapes of the outputs that follow from those of the inputs."""
        key = tuple(sorted(shapes.items()))
        if key not in self._shapes:
            self._shapes[key] = self._inferred(shapes)
        return self._shapes[key]

    def _inferred(self, shapes: Mapping[str, Shape]) -> Mapping[str, Shape]:
        import onnx

        model = without_weights(onnx.load_from_string(self.plan.network))
        symbols = {binding.symbol: binding.name for binding in self.plan.bindings}
        for value in model.graph.input:
            dims = value.type.tensor_type.shape
            dims.ClearField("dim")
            for size in shapes[symbols[value.name]]:
                dims.dim.add(dim_value=size)
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        known = {
            value.name: tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)
            for value in (*graph.value_info, *graph.output)
        }
        for node in filter(is_plugin, graph.node):
            known.update(zip(node.output, output_shapes(node, [known[name] for name in node.input]), strict=True))
        return {symbols[value.name]: known[value.name] for value in graph.output}

    def serialize(self) -> HostMemory:
        return HostMemory(self.logger, self.plan.dumps())

    def createExecutionContext(self, strategy: Any) -> ExecutionContext:
        return ExecutionContext(self)

    def createEngineInspector(self) -> EngineInspector:
        return EngineInspector(self)

    def getNbLayers(self) -> int:
        return len(self.plan.layers)

    def getNbIOTensors(self) -> int:
        return len(self.bindings)

    def getIOTensorName(self, index: int) -> str | None:
        names = list(self.bindings)
        return names[index] if 0 <= index < len(names) else None

    def getNbOptimizationProfiles(self) -> int:
        return self.plan.profiles

    def getTensorIOMode(self, name: str) -> Any:
        mode = trt().TensorIOMode
        if name not in self.bindings:
            return mode.NONE
        return mode.INPUT if self.bindings[name].is_input else mode.OUTPUT

    def getTensorShape(self, name: str) -> Shape:
        return self._binding(name).dims

    def getTensorDataType(self, name: str) -> Any:
        names = {"float32": "FLOAT", "float16": "HALF", "bool": "BOOL"}
        dtype = self._binding(name).dtype
        return getattr(trt().DataType, names.get(dtype, dtype.upper()))

    def getTensorLocation(self, name: str) -> Any:
        return trt().TensorLocation.DEVICE

    def isShapeInferenceIO(self, name: str) -> bool:
        return False

    def getTensorFormat(self, name: str) -> Any:
        return getattr(trt().TensorFormat, self._binding(name).format)

    def getTensorFormatDesc(self, name: str) -> str:
        binding = self._binding(name)
        return f"{binding.dtype} tensor in the format k{binding.format}"

    def getTensorBytesPerComponent(self, name: str) -> int:
        """-1 where the format is not vectorised (NvInferRuntime.h, ICudaEngine)."""
        binding = self._binding(name)
        return np.dtype(binding.dtype).itemsize if self._vector(binding) > 1 else NOT_VECTORISED

    def getTensorComponentsPerElement(self, name: str) -> int:
        vector = self._vector(self._binding(name))
        return vector if vector > 1 else NOT_VECTORISED

    def getTensorVectorizedDim(self, name: str) -> int:
        return 1 if self._vector(self._binding(name)) > 1 else NOT_VECTORISED

    def getTensorFormatV2(self, name: str, profile: int) -> Any:
        return self.getTensorFormat(name)

    def getTensorFormatDescV2(self, name: str, profile: int) -> str:
        return self.getTensorFormatDesc(name)

    def getTensorBytesPerComponentV2(self, name: str, profile: int) -> int:
        return self.getTensorBytesPerComponent(name)

    def getTensorComponentsPerElementV2(self, name: str, profile: int) -> int:
        return self.getTensorComponentsPerElement(name)

    def getTensorVectorizedDimV2(self, name: str, profile: int) -> int:
        return self.getTensorVectorizedDim(name)

    def getProfileShape(self, name: str, profile: int, selector: int) -> Shape:
        binding = self._binding(name)
        if not binding.is_input or not 0 <= profile < self.plan.profiles:
            raise Refused(
                f"Parameter check failed, condition: {name} is an input and {profile} a profile of the engine"
            )
        return binding.shapes[profile if len(binding.shapes) > 1 else 0][selector]

    def getDeviceMemorySize(self) -> int:
        return 0  # activations live in ONNX Runtime's memory

    def getDeviceMemorySizeV2(self) -> int:
        return 0

    def getProfilingVerbosity(self) -> Any:
        return trt().ProfilingVerbosity(self.plan.verbosity)

    def getEngineCapability(self) -> Any:
        return trt().EngineCapability.STANDARD

    def hasImplicitBatchDimension(self) -> bool:
        return False

    def isRefittable(self) -> bool:
        return False

    def getNbAuxStreams(self) -> int:
        return 0

    def getTacticSources(self) -> int:
        return 0

    def getHardwareCompatibilityLevel(self) -> Any:
        return trt().HardwareCompatibilityLevel.NONE

    def getStreamableWeightsSize(self) -> int:
        return 0

    def isDebugTensor(self, name: str) -> bool:
        return False

    def _binding(self, name: str) -> Binding:
        if name not in self.bindings:
            raise Refused(f"Given invalid tensor name: {name}. Get valid tensor names with getIOTensorName()")
        return self.bindings[name]

    def _vector(self, binding: Binding) -> int:
        return CHANNELS_PER_VECTOR.get(TensorFormat(binding.format), 1)


class EngineInspector(Native):
    """`IEngineInspector`: JSON or one line a layer, as detailed as the build kept it."""

    kind = "EngineInspector"

    def __init__(self, engine: CudaEngine) -> None:
        super().__init__(engine.logger, ErrorRecorder=None, ExecutionContext=None)
        self.engine = engine

    def getLayerInformation(self, index: int, form: Any) -> str:
        layers = self.engine.plan.layers
        if not 0 <= index < len(layers):
            raise Refused(f"Parameter check failed, condition: layerIndex {index} < {len(layers)}")
        return self._text(layers[index], form)

    def getEngineInformation(self, form: Any) -> str:
        shown = [] if self.engine.plan.verbosity == NONE else list(self.engine.plan.layers)
        if form == trt().LayerInformationFormat.ONELINE:
            return "\n".join(self._text(layer, form) for layer in shown)
        names = list(self.engine.bindings)
        return json.dumps({"Layers": [self._entry(layer) for layer in shown], "Bindings": names}, indent=1)

    def _text(self, layer: Mapping[str, Any], form: Any) -> str:
        entry = self._entry(layer)
        return (
            json.dumps(entry) if form == trt().LayerInformationFormat.JSON else f"{layer['LayerType']}: {layer['Name']}"
        )

    def _entry(self, layer: Mapping[str, Any]) -> Any:
        return dict(layer) if self.engine.plan.verbosity == DETAILED else layer["Name"]
