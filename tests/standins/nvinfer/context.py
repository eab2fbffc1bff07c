"""Execution contexts: shapes and addresses, checked before an enqueue puts work on a stream."""

from __future__ import annotations

import ctypes
import itertools
from typing import TYPE_CHECKING, Any

from tests.standins.nvinfer import cuda
from tests.standins.nvinfer.bridge import Native, Refused, notify_shape, output_memory, trt
from tests.standins.nvinfer.plan import Binding, Shape
from tests.standins.nvinfer.work import Work, strides, tensor_bytes

if TYPE_CHECKING:
    from tests.standins.nvinfer.runtime import CudaEngine

ALIGNMENT_BYTES = 256  # NvInferRuntime.h, IExecutionContext::setTensorAddress
_numbers = itertools.count(1)


class ExecutionContext(Native):
    """`IExecutionContext`."""

    kind = "ExecutionContext"

    def __init__(self, engine: CudaEngine) -> None:
        super().__init__(engine.logger, Name="", DebugSync=False, Profiler=0, EnqueueEmitsProfile=True)
        self.settings |= {"PersistentCacheLimit": 0, "NvtxVerbosity": trt().ProfilingVerbosity.LAYER_NAMES_ONLY}
        self.settings |= {"DebugListener": None, "ErrorRecorder": None, "OptimizationProfile": 0}
        self.engine = engine
        self.is_running = False
        self.error = ""
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, int] = {}  # `IOutputAllocator`s of outputs
        self.shapes = {name: b.dims for name, b in engine.bindings.items() if b.is_input and -1 not in b.dims}
        self._numbers: dict[tuple[Any, ...], int] = {}

    def dispose(self) -> None:
        for number in self._numbers.values():
            cuda.JOBS.pop(number, None)
        super().dispose()

    def fail(self, text: str) -> None:
        """Keep what went wrong on a stream: as with CUDA, later calls fail."""
        self.error = self.error or text
        self.log(trt().ILogger.ERROR, f"IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime ({text})")

    def getEngine(self) -> CudaEngine:
        return self.engine

    def allInputDimensionsSpecified(self) -> bool:
        return all(name in self.shapes for name, binding in self.engine.bindings.items() if binding.is_input)

    def allInputShapesSpecified(self) -> bool:
        return True  # no input is a shape tensor

    def setOptimizationProfileAsync(self, index: int, stream: int) -> bool:
        if not 0 <= index < self.engine.plan.profiles:
            raise Refused(f"Parameter check failed, condition: profileIndex {index} < {self.engine.plan.profiles}")
        self.settings["OptimizationProfile"] = index
        return True

    def setInputShape(self, name: str, dims: Shape) -> bool:
        """Shapes lie inside the profile (NvInferRuntime.h, IExecutionContext::setInputShape)."""
        binding = self._binding(name)
        if not binding.is_input:
            raise Refused(f"Given invalid tensor name: {name} is not an input")
        low, _, high = binding.shapes[self.settings["OptimizationProfile"] if len(binding.shapes) > 1 else 0]
        if len(dims) != len(low) or not all(least <= size <= most for least, size, most in zip(low, dims, high)):
            raise Refused(
                f"Parameter check failed, condition: engineDims.d[i] == dims.d[i]. {name} of shape {list(dims)} is not"
                f" in [{list(low)}, {list(high)}]"
            )
        self.shapes[name] = dims
        return True

    def getTensorShape(self, name: str) -> Shape:
        binding = self._binding(name)
        if binding.is_input:
            return self.shapes.get(name, binding.dims)
        if -1 not in binding.dims or not self.allInputDimensionsSpecified():
            return binding.dims
        return self.engine.output_shapes(self.shapes)[name]

    def getTensorStrides(self, name: str) -> Shape:
        shape = self.getTensorShape(name)
        return strides(self._binding(name), shape) if -1 not in shape else (-1,) * len(shape)

    def getMaxOutputSize(self, name: str) -> int:
        return tensor_bytes(self._binding(name), self.getTensorShape(name))

    def inferShapes(self, count: int, names: int) -> int:
        return sum(name not in self.shapes for name, binding in self.engine.bindings.items() if binding.is_input)

    def setTensorAddress(self, name: str, address: int) -> bool:
        self._binding(name)
        if address % ALIGNMENT_BYTES:
            raise Refused(f"Parameter check failed, condition: address {address:#x} of {name} is aligned to 256 bytes")
        self.addresses[name] = address
        return True

    def setInputTensorAddress(self, name: str, address: int) -> bool:
        if not self._binding(name).is_input:
            raise Refused(f"Given invalid tensor name: {name} is not an input")
        return self.setTensorAddress(name, address)

    def setOutputTensorAddress(self, name: str, address: int) -> bool:
        if self._binding(name).is_input:
            raise Refused(f"Given invalid tensor name: {name} is not an output")
        return self.setTensorAddress(name, address)

    def getTensorAddress(self, name: str) -> int:
        return self.addresses.get(name, 0)

    def getOutputTensorAddress(self, name: str) -> int:
        return self.addresses.get(name, 0)

    def setOutputAllocator(self, name: str, allocator: int | None) -> bool:
        if self._binding(name).is_input:
            raise Refused(f"Given invalid tensor name: {name} is not an output")
        self.allocators[name] = allocator or 0
        return True

    def getOutputAllocator(self, name: str) -> int:
        return self.allocators.get(name, 0)

    def setAllTensorsDebugState(self, flag: bool) -> bool:
        return True  # no tensor is marked for debugging, so that a listener is never called either

    def enqueueV3(self, stream: int | None) -> bool:
        if self.error:
            raise Refused(self.error, 1, "Cuda Runtime")
        self._allocate(stream or 0)
        self._check()
        return self._launch(stream or 0)

    def executeV2(self, addresses: int) -> bool:
        """Run at once; addresses come in the engine's order of tensors."""
        listed = (ctypes.c_void_p * len(self.engine.bindings)).from_address(addresses)
        for name, address in zip(self.engine.bindings, listed):
            self.setTensorAddress(name, address or 0)
        self._check()
        Work(self, dict(self.addresses), dict(self.shapes))()
        return not self.error

    def _binding(self, name: str) -> Binding:
        if name not in self.engine.bindings:
            raise Refused(f"Given invalid tensor name: {name}. Get valid tensor names with getIOTensorName()")
        return self.engine.bindings[name]

    def _allocate(self, stream: int) -> None:
        """Ask the allocators of outputs for memory, and tell them the shapes."""
        for name, allocator in self.allocators.items():
            if allocator:
                shape = self.getTensorShape(name)
                size = tensor_bytes(self.engine.bindings[name], shape)
                self.addresses[name] = output_memory(allocator, name, self.addresses.get(name, 0), size, stream)
                notify_shape(allocator, name, shape)

    def _check(self) -> None:
        if not cuda.has_current_context():
            raise Refused("invalid device context", 1, "Cuda Runtime")
        if not self.allInputDimensionsSpecified():
            raise Refused("Parameter check failed, condition: allInputDimensionsSpecified(0)")
        for name, binding in self.engine.bindings.items():
            if not self.addresses.get(name):
                side = "input" if binding.is_input else "output"
                raise Refused(
                    f"Parameter check failed, condition: address of {side} tensor '{name}' is set. Neither"
                    " address nor allocator is set"
                )
            size = tensor_bytes(binding, self.getTensorShape(name))
            if not cuda.holds(self.addresses[name], size):
                raise Refused(f"an illegal memory access: {size} bytes of {name} are not allocated", 1, "Cuda Runtime")

    def _launch(self, stream: int) -> bool:
        key = (*self.addresses.items(), *self.shapes.items())
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = next(_numbers)
            cuda.JOBS[number] = Work(self, dict(self.addresses), dict(self.shapes))
        code = cuda.launch(stream, number)
        if code != cuda.SUCCESS:
            raise Refused(f"cuLaunchHostFunc answered {code}", 1, "Cuda Runtime")
        return True
