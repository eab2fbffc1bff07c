"""What an enqueue does when its turn on the stream comes: inputs read in their formats, outputs written in theirs."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.formats import CHANNELS_PER_VECTOR, pack, sample_bytes, unpack
from engines.spec import TensorFormat
from tests.standins.nvinfer import cuda
from tests.standins.nvinfer.bridge import complain, memory
from tests.standins.nvinfer.plan import Binding, Shape

if TYPE_CHECKING:
    from tests.standins.nvinfer.context import ExecutionContext

INT8_LOW, INT8_HIGH = -128, 127


def tensor_bytes(binding: Binding, shape: Shape) -> int:
    """Return the bytes that a tensor occupies, padding of its format included."""
    itemsize = np.dtype(binding.dtype).itemsize
    if binding.format == TensorFormat.LINEAR or not shape:
        return math.prod(shape) * itemsize
    return shape[0] * sample_bytes(binding.format, shape[1:], itemsize)


def strides(binding: Binding, shape: Shape) -> Shape:
    """Return strides in elements, or in vectors of a vectorised format (NvInferRuntime.h, getTensorStrides)."""
    itemsize = np.dtype(binding.dtype).itemsize
    if binding.format == TensorFormat.DLA_HWC4:
        _, channels, height, width = shape
        stored = 1 if channels == 1 else 4
        row = sample_bytes(binding.format, (channels, 1, width), itemsize) // itemsize
        return (row * height, 1, row, stored)
    sizes = list(shape)
    if binding.format == TensorFormat.DLA_LINEAR:
        sizes[-1] = sample_bytes(binding.format, (1, 1, shape[-1]), itemsize) // itemsize
    elif (vector := CHANNELS_PER_VECTOR.get(TensorFormat(binding.format))) is not None:
        sizes[1] = -(-sizes[1] // vector)
    return tuple(math.prod(sizes[axis + 1 :]) for axis in range(len(sizes)))


@dataclass(frozen=True)
class Work:
    """One enqueue: where each tensor lies, and its shape."""

    context: ExecutionContext
    addresses: Mapping[str, int]
    shapes: Mapping[str, Shape]

    def __call__(self) -> None:
        """Compute the outputs from what lies at the inputs' addresses now."""
        context = self.context
        if context.is_dead or context.is_running:
            context.fail(
                "two enqueues of one context ran at the same time" if context.is_running else "used after free"
            )
            return
        context.is_running = True
        try:
            self._compute()
        except MemoryError as error:
            context.fail(str(error))
        except Exception as error:
            complain(traceback.format_exc())
            context.fail(f"{type(error).__name__}: {error}")
        finally:
            context.is_running = False

    def _compute(self) -> None:
        engine = self.context.engine
        bindings = engine.plan.bindings
        feed = {binding.symbol: self._read(binding) for binding in bindings if binding.is_input}
        outputs = [binding for binding in bindings if not binding.is_input]
        for binding, values in zip(outputs, engine.compute([binding.symbol for binding in outputs], feed)):
            self._write(binding, values)

    def _memory(self, binding: Binding, shape: Shape) -> NDArray[Any]:
        size = tensor_bytes(binding, shape)
        address = self.addresses[binding.name]
        if not cuda.holds(address, size):
            raise MemoryError(
                f"an illegal memory access: {size} bytes of {binding.name} at {address:#x} are not allocated"
            )
        return memory(address, size)

    def _read(self, binding: Binding) -> NDArray[Any]:
        shape = self.shapes[binding.name]
        stored = self._memory(binding, shape)
        if binding.format == TensorFormat.LINEAR:
            values = stored.view(binding.dtype).reshape(shape)
        else:
            values = unpack(stored.reshape(shape[0], -1), binding.format, shape[1:], binding.dtype)
        if binding.scale is not None:
            values = values * np.float32(binding.scale)
        return values.astype(binding.computed, copy=False)

    def _write(self, binding: Binding, values: NDArray[Any]) -> None:
        if binding.scale is not None:
            values = np.clip(np.rint(values / np.float32(binding.scale)), INT8_LOW, INT8_HIGH)
        typed = np.ascontiguousarray(values.astype(binding.dtype))
        packed = typed if binding.format == TensorFormat.LINEAR else pack(typed, binding.format)
        self._memory(binding, tuple(values.shape))[:] = packed.reshape(-1).view(np.uint8)
