"""Implicit calibration as TensorRT runs it: the cache if there is one, else batches, then a cache is written."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.cache import CalibrationCache, read_cache
from calibration.collect import collect_ranges
from calibration.errors import CalibrationError
from calibration.observers import Entropy, MinMax, Observer
from tests.standins.nvinfer.bridge import LIBRARY, Refused, log, memory, trt

LIBRARY.standin_calibrator_read.restype = ctypes.c_void_p
LIBRARY.standin_calibrator_read.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)]
LIBRARY.standin_calibrator_write.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
LIBRARY.standin_calibrator_batch.restype = ctypes.c_bool
LIBRARY.standin_calibrator_batch.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32]
LIBRARY.standin_calibrator_algorithm.argtypes = [ctypes.c_void_p]

# CalibrationAlgoType: the name in a cache's header, and what observes the tensors.
ALGORITHMS: dict[str, tuple[str, Callable[[], Observer]]] = {
    "ENTROPY_CALIBRATION": ("EntropyCalibration", Entropy),
    "ENTROPY_CALIBRATION_2": ("EntropyCalibration2", Entropy),
    "MINMAX_CALIBRATION": ("MinMaxCalibration", MinMax),
}
VERSION = 100300


def calibrated(model: Any, inputs: dict[str, tuple[int, ...]], calibrator: int, logger: int) -> dict[str, float]:
    """Return the amax of each tensor; `inputs` are the shapes of a batch. `Refused` where no range comes out."""
    kind = trt().CalibrationAlgoType(LIBRARY.standin_calibrator_algorithm(calibrator)).name
    if kind not in ALGORITHMS:
        raise Refused(f"calibration by {kind} is not one that this stand-in runs", 10, "Internal Error")
    algorithm, observer = ALGORITHMS[kind]
    cached = _read(calibrator)
    if cached:
        try:
            known = read_cache(cached.decode("utf-8", "replace"))
        except CalibrationError as error:
            raise Refused(f"the calibration cache cannot be read: {error}", 1, "Calibration failure") from None
        if known.algorithm == algorithm:
            return dict(known.to_ranges().amax_by_tensor)
        log(logger, trt().ILogger.WARNING, "Calibration table does not match calibrator algorithm type.")
    if len(inputs) != 1:
        raise Refused("this stand-in calibrates networks of one input", 10, "Internal Error")
    ((name, shape),) = inputs.items()
    try:
        ranges = collect_ranges(model, _batches(calibrator, name, shape), observer())
    except CalibrationError as error:
        raise Refused(f"Calibration failure occurred: {error}", 4, "Internal Error") from None
    text = CalibrationCache.from_ranges(ranges, VERSION, algorithm).dumps().encode()
    LIBRARY.standin_calibrator_write(calibrator, text, len(text))
    return dict(ranges.amax_by_tensor)


def _read(calibrator: int) -> bytes:
    size = ctypes.c_size_t(0)
    address = LIBRARY.standin_calibrator_read(calibrator, ctypes.byref(size))
    return ctypes.string_at(address, size.value) if address else b""


def _batches(calibrator: int, name: str, shape: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    """Yield float32 batches from the addresses that a calibrator gives, until it gives none."""
    names = (ctypes.c_char_p * 1)(name.encode())
    bindings = (ctypes.c_void_p * 1)()
    while LIBRARY.standin_calibrator_batch(calibrator, bindings, names, 1):
        size_bytes = int(np.prod(shape)) * np.dtype(np.float32).itemsize
        yield memory(bindings[0] or 0, size_bytes).view(np.float32).reshape(shape).copy()
