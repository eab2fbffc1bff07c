"""The CUDA driver that this process has loaded, if any: work goes on its streams, it knows what is allocated."""

from __future__ import annotations

import ctypes
import os
import traceback
from collections.abc import Callable
from typing import Any

from tests.standins.nvinfer.bridge import complain

HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
RANGE_START, RANGE_SIZE = 11, 12  # CUpointer_attribute: CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, _RANGE_SIZE
SUCCESS = 0

JOBS: dict[int, Callable[[], None]] = {}  # work by the number that a stream carries; a captured graph keeps it


_found: list[Any] = []


def driver() -> Any | None:
    """Return the driver library that is loaded; None where a process has none."""
    if not _found:
        try:
            _found.append(ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW))
        except OSError:
            return None
    return _found[0]


def has_current_context() -> bool:
    """Tell whether the calling thread has a current CUDA context; a process without a driver needs none."""
    library = driver()
    if library is None:
        return True
    context = ctypes.c_void_p()
    return library.cuCtxGetCurrent(ctypes.byref(context)) == SUCCESS and bool(context.value)


def holds(address: int, size: int) -> bool:
    """Tell whether the bytes at an address are the driver's: allocated, not freed, long enough."""
    library = driver()
    if library is None:
        return True
    start, length = ctypes.c_uint64(), ctypes.c_size_t()
    where = ctypes.c_uint64(address)
    for value, attribute in ((start, RANGE_START), (length, RANGE_SIZE)):
        if library.cuPointerGetAttribute(ctypes.byref(value), attribute, where) != SUCCESS:
            return False
    return start.value <= address and address + size <= start.value + length.value


def launch(stream: int, number: int) -> int:
    """Put a job on a stream: `JOBS[number]` runs when its turn comes. Returns the driver's code, 0 for success.

    Without a driver it runs at once, on the calling thread.
    """
    library = driver()
    if library is None:
        _run(number)
        return SUCCESS
    return int(library.cuLaunchHostFunc(ctypes.c_void_p(stream), _host_function, ctypes.c_void_p(number)))


def _run(number: int | None) -> None:
    job = JOBS.get(number or 0)
    if job is None:
        complain("a stream ran work of an execution context that was destroyed")
        return
    try:
        job()
    except Exception:
        complain(traceback.format_exc())


_host_function = HOST_FUNCTION(_run)
