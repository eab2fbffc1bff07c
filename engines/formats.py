"""Memory layouts of engine inputs and outputs: samples packed into bytes and back, padding zeroed.

Source: `TensorFormat` in NVIDIA's NvInferRuntimeBase.h, and the developer guide's "I/O Formats on DLA" for Orin:
rows of DLA_LINEAR and DLA_HWC4 are padded to 64 bytes (32 on Xavier).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.spec import TensorFormat

CHANNELS_PER_VECTOR = {TensorFormat.CHW4: 4, TensorFormat.CHW16: 16, TensorFormat.CHW32: 32}
DLA_ROW_BYTES = 64


def sample_bytes(format: str, shape: tuple[int, ...], itemsize: int = 1) -> int:
    """Return the bytes that one sample of `shape` (no batch axis) occupies, padding included."""
    return math.prod(_memory_shape(_format(format), shape, itemsize)) * itemsize


def pack(array: NDArray[Any], format: str) -> NDArray[Any]:
    """Lay samples [N, ...] out in a format: uint8 [N, sample_bytes]."""
    layout = _format(format)
    memory = np.zeros((len(array), *_memory_shape(layout, array.shape[1:], array.itemsize)), array.dtype)
    for stored, values in _windows(layout, memory, array):
        stored[...] = values
    return memory.reshape(len(array), -1).view(np.uint8)


def unpack(packed: NDArray[Any], format: str, shape: tuple[int, ...], dtype: str = "int8") -> NDArray[Any]:
    """Return the samples [N, *shape] that `pack` laid out: the inverse on uint8 [N, sample_bytes]."""
    array = np.empty((len(packed), *shape), dtype)
    for stored, values in _stored(packed, format, array):
        values[...] = stored
    return array


def view(packed: NDArray[Any], format: str, shape: tuple[int, ...], dtype: str = "int8") -> NDArray[Any] | None:
    """Return the samples [N, *shape] of contiguous `packed` where they lie; None where they lie in several blocks."""
    array = np.empty((len(packed), *shape), dtype)
    stored = [stored for stored, _ in _stored(packed, format, array)]
    return stored[0] if len(stored) == 1 else None


def _stored(packed: NDArray[Any], format: str, array: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield the parts of packed samples and of an array that hold the same elements."""
    layout, shape, itemsize = _format(format), array.shape[1:], array.itemsize
    expected = sample_bytes(layout, shape, itemsize)
    if packed.ndim != 2 or packed.dtype != np.uint8 or packed.shape[1] != expected:
        seen = f"{packed.dtype}{list(packed.shape)}"
        raise EngineError(f"packed samples are {seen}, expected uint8[N, {expected}] for {layout.value} of {shape}")
    memory = np.ascontiguousarray(packed).view(array.dtype).reshape(-1, *_memory_shape(layout, shape, itemsize))
    yield from _windows(layout, memory, array)


def same_bytes(a: str, b: str, shape: tuple[int, ...], itemsize: int = 1) -> bool:
    """Tell whether two formats put each element of a sample at the same address, so that one buffer serves both."""
    return _addresses(_format(a), shape, itemsize) == _addresses(_format(b), shape, itemsize)


def _format(name: str) -> TensorFormat:
    try:
        return TensorFormat(name)
    except ValueError:
        known = ", ".join(entry.value for entry in TensorFormat)
        raise EngineError(f"tensor format {name!r} is not known, expected one of {known}") from None


def _memory_shape(layout: TensorFormat, shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    if layout is TensorFormat.LINEAR:
        return shape
    if len(shape) != 3:
        raise EngineError(f"{layout.value} holds samples of shape C,H,W, not {shape}; use LINEAR")
    channels, height, width = shape
    if layout is TensorFormat.DLA_LINEAR:
        return channels, height, _round_up(width, DLA_ROW_BYTES // itemsize)
    if layout is TensorFormat.DLA_HWC4:
        if channels > 4:
            raise EngineError(f"DLA_HWC4 holds 1 to 4 channels, not {channels}; use DLA_LINEAR or CHW32")
        stored = 1 if channels == 1 else 4
        return height, _round_up(width, DLA_ROW_BYTES // stored // itemsize), stored
    vector = CHANNELS_PER_VECTOR[layout]
    return -(-channels // vector), height, width, vector


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _windows(
    layout: TensorFormat, memory: NDArray[Any], array: NDArray[Any]
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield pairs of views of one shape that hold the same elements: where they are stored, and in the array."""
    if layout is TensorFormat.LINEAR:
        yield memory, array
    elif layout is TensorFormat.DLA_LINEAR:
        yield memory[..., : array.shape[-1]], array
    elif layout is TensorFormat.DLA_HWC4:
        yield memory[:, :, : array.shape[3], : array.shape[1]].transpose(0, 3, 1, 2), array
    else:
        vector = CHANNELS_PER_VECTOR[layout]
        for block in range(memory.shape[1]):
            values = array[:, block * vector : (block + 1) * vector]
            yield memory[:, block, :, :, : values.shape[1]].transpose(0, 3, 1, 2), values


def _addresses(layout: TensorFormat, shape: tuple[int, ...], itemsize: int) -> tuple[object, ...]:
    memory = np.empty((1, *_memory_shape(layout, shape, itemsize)), f"V{itemsize}")
    views = [stored for stored, _ in _windows(layout, memory, np.empty((1, *shape), f"V{itemsize}"))]
    places = [(view.ctypes.data - memory.ctypes.data, view.shape, view.strides[1:]) for view in views]
    return memory.nbytes, places
