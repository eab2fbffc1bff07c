"""libcuda through ctypes, for what pycuda has no call: stream priorities, events on such streams, host threads, graphs.

Signatures, flags and error codes: CUDA Driver API reference 12.6; the `_v2` names are those that cuda.h maps to.
ctypes lets go of the GIL in every call, so that waiting here never holds up another thread.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

from orin.errors import OrinError

LIBRARY = "libcuda.so.1"
NOT_READY = 600  # CUDA_ERROR_NOT_READY

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxGetCurrent": (POINTER(c_void_p),),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuCtxGetStreamPriorityRange": (POINTER(c_int), POINTER(c_int)),
    "cuStreamCreateWithPriority": (POINTER(c_void_p), c_uint, c_int),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventDestroy_v2": (c_void_p,),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventQuery": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_uint64),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
}

_MENDS = {
    2: "memory is shared with the CPU: close other programs, or use smaller batches or fewer samples",
    3: "the driver has shut down: close the board before the program ends",
    100: "no GPU is visible: in a container, run it with `--runtime nvidia`",
    700: "an engine read or wrote outside its memory: build it again, and report it if that does not help",
    719: "the accelerator stopped: see `sudo dmesg`, then start the program again",
    999: "see `sudo dmesg`",
}  # by CUresult
_MEND = "run `orin doctor`"


class Driver:
    """The driver's C interface; every call that fails is an OrinError with the driver's words and what to do."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as reason:
            raise no_library(reason) from None
        for name, types in _SIGNATURES.items():
            getattr(self._library, name).argtypes = types

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the driver; OrinError unless it answers with success."""
        self.check(function, self.code(function, *arguments))

    def code(self, function: str, *arguments: Any) -> int:
        """Call a function of the driver and return its CUresult."""
        return int(getattr(self._library, function)(*arguments))

    def check(self, function: str, code: int) -> None:
        """Raise OrinError unless a CUresult is success."""
        if code:
            raise self.error(f"{function.partition('_v')[0]} failed: {self.text(code)}")

    def text(self, code: int) -> str:
        """Return the driver's words for a CUresult."""
        words = c_char_p()
        self._library.cuGetErrorString(code, ctypes.byref(words))
        return (words.value or b"unknown error").decode()

    def error(self, what: str) -> OrinError:
        """Return the error for what failed in the driver's words, which pycuda has too, with the next thing to try."""
        mend = next((mend for code, mend in _MENDS.items() if self.text(code) in what), _MEND)
        return OrinError(f"CUDA: {what}; {mend}")


def no_library(reason: object) -> OrinError:
    """Return the error for a machine where the driver's library cannot be loaded."""
    return OrinError(
        f"CUDA: {LIBRARY} cannot be loaded ({reason}); it comes with the board's Linux (package nvidia-l4t-cuda): "
        "in a container, run it with `--runtime nvidia`"
    )
