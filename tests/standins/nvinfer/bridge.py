"""Between the C++ that routes slots and the Python that answers them: objects, parameters, results, log, failures."""

from __future__ import annotations

import atexit
import ctypes
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tests.standins.nvinfer.slots import read_tables

RESULT_WORDS = 9
MAX_DIMS = 8


class Refused(Exception):
    """What TensorRT refuses: logged as an error through the object's logger, and answered with null or false."""

    def __init__(self, text: str, code: int = 3, kind: str = "API Usage Error") -> None:
        super().__init__(text)
        self.code, self.kind = code, kind


class Unanswered(Exception):
    """A slot that this stand-in does not answer, or a call on an object that is gone: loud, as an error in Python."""


@dataclass
class Failure:
    """An injected failure of one slot: `after` calls pass, then `times` calls log `message` and answer `answer`."""

    message: str
    answer: Any
    after: int
    times: int


@dataclass(frozen=True)
class WeightsView:
    """Weights as TensorRT passes them: a `DataType` number, an address, a count of elements."""

    dtype: int
    address: int
    count: int


class Dims(ctypes.Structure):
    """`nvinfer1::Dims`: at most eight dimensions."""

    _fields_ = [("count", ctypes.c_int32), ("sizes", ctypes.c_int64 * MAX_DIMS)]


class Weights(ctypes.Structure):
    """`nvinfer1::Weights`."""

    _fields_ = [("dtype", ctypes.c_int32), ("address", ctypes.c_void_p), ("count", ctypes.c_int64)]


LIBRARY = ctypes.CDLL("libnvinfer.so.10")
LIBRARY.standin_make.restype = ctypes.c_void_p
LIBRARY.standin_make.argtypes = [ctypes.c_char_p]
LIBRARY.standin_live.argtypes = LIBRARY.standin_drop.argtypes = [ctypes.c_char_p]
LIBRARY.standin_output_memory.restype = ctypes.c_void_p
LIBRARY.standin_output_memory.argtypes = [
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_uint64,
    ctypes.c_void_p,
]
LIBRARY.standin_output_shape.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(Dims)]
LIBRARY.standin_log.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p]

OBJECTS: dict[int, Native] = {}
FAILURES: dict[str, Failure] = {}
FACTORIES: dict[str, Callable[..., Any]] = {}  # what answers "create.Builder" and its like
_TABLES = read_tables()
_SLOTS = {f"{table.name}.{slot.name}": slot for table in _TABLES for slot in table.slots}
_texts: dict[str, ctypes.Array[ctypes.c_char]] = {}  # strings that C++ reads: kept for the life of the process
_errors: list[bytes] = []


class Native:
    """An object behind a public one: methods are named like the slots, and a dictionary answers plain get and set.

    `settings` maps a name to its value: "DLACore" answers getDLACore and setDLACore.
    """

    kind: ClassVar[str]

    def __init__(self, logger: int, **settings: Any) -> None:
        self.logger = logger
        self.settings = settings
        self.is_dead = False
        self.address = LIBRARY.standin_make(self.kind.encode())
        OBJECTS[self.address] = self

    def log(self, severity: Any, text: str) -> None:
        """Log a line the way TensorRT does: through the `ILogger` that made the object."""
        log(self.logger, severity, text)

    def dispose(self) -> None:
        """End this object; objects that own others end those with it."""
        self.is_dead = True
        OBJECTS.pop(self.address, None)

    def drop(self) -> None:
        """End an object that its parent owns: no destructor of its own runs."""
        self.dispose()
        LIBRARY.standin_drop(self.kind.encode())

    def answer(self, name: str) -> Callable[..., Any]:
        """Return what answers a slot; `Unanswered` where nothing does."""
        method = getattr(self, name, None)
        if method is not None:
            return method  # type: ignore[no-any-return]
        verb, setting = name[:3], name[3:]
        if setting not in self.settings or verb not in ("get", "set"):
            raise Unanswered(f"{self.kind}.{name} is not answered by this stand-in")
        return (lambda: self.settings[setting]) if verb == "get" else self._setter(setting)

    def _setter(self, setting: str) -> Callable[[Any], bool]:
        def set_(value: Any) -> bool:
            self.settings[setting] = value
            return True

        return set_


def log(logger: int, severity: Any, text: str) -> None:
    """Call an `ILogger`."""
    LIBRARY.standin_log(logger, int(severity), text.encode())


def output_memory(allocator: int, name: str, memory: int, size: int, stream: int) -> int:
    """Ask an `IOutputAllocator` for an output's memory; 0 where it has none."""
    return LIBRARY.standin_output_memory(allocator, name.encode(), memory, size, stream) or 0


def notify_shape(allocator: int, name: str, shape: tuple[int, ...]) -> None:
    """Tell an `IOutputAllocator` the shape of an output."""
    sizes = (ctypes.c_int64 * MAX_DIMS)(*shape)
    LIBRARY.standin_output_shape(allocator, name.encode(), ctypes.byref(Dims(len(shape), sizes)))


def trt() -> Any:
    """Return NVIDIA's bindings, whose enums name what the slots take: nothing is written down twice."""
    import tensorrt

    return tensorrt


def _object(word: int) -> Any:
    return OBJECTS.get(word, word) if word else None


def _dims(word: int) -> tuple[int, ...]:
    dims = Dims.from_address(word)
    return tuple(dims.sizes[: max(dims.count, 0)])


def _weights(word: int) -> WeightsView:
    weights = Weights.from_address(word)
    return WeightsView(weights.dtype, weights.address or 0, weights.count)


_DECODERS: dict[str, Callable[[int], Any]] = {
    "char const*": lambda word: ctypes.string_at(word).decode() if word else None,
    "Dims const&": _dims,
    "Weights": _weights,
    "float": lambda word: struct.unpack("<d", struct.pack("<q", word))[0],
    "bool": bool,
}


@cache
def _decoder(type_: str) -> Callable[[int], Any]:
    """Return what turns a word into a value of a C++ type; addresses of things that are not ours stay numbers."""
    if type_ in _DECODERS:
        return _DECODERS[type_]
    if type_.endswith(("&", "*")):
        single = type_.startswith("I") and type_.count("*") + type_.count("&") == 1
        return _object if single else int
    return getattr(trt(), type_, int)


def _encode(type_: str, value: Any) -> list[int]:
    if type_ == "void" or value is None:
        return [0]
    if type_ == "Dims":
        return [len(value), *value]
    if type_ == "float":
        return [struct.unpack("<q", struct.pack("<d", value))[0]]
    if type_ == "char const*":
        return [text_address(value)]
    return [value.address if isinstance(value, Native) else int(value)]


def memory(address: int, size_bytes: int) -> NDArray[Any]:
    """Return the bytes at an address as an array: uint8 [size_bytes], not a copy."""
    values: NDArray[Any] = np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))
    return values


def text_address(text: str) -> int:
    """Return the address of a C string that stays."""
    return ctypes.addressof(_texts.setdefault(text, ctypes.create_string_buffer(text.encode())))


def _answer(name: str, owner: int, words: list[int]) -> list[int]:
    kind, method = name.split(".", 1)
    subject = OBJECTS.get(owner)
    if method == "~":
        if subject is not None:
            subject.dispose()
        return [0]
    if (failure := _failure(name)) is not None:
        return [_injected(failure, subject, words)]
    if kind == "create":
        created = FACTORIES[method](*words)
        return [created.address if created is not None else 0]
    if subject is None:
        raise Unanswered(f"{name} was called on an object that was destroyed")
    slot = _SLOTS.get(name)
    if slot is None:  # of a table that is not listed
        raise Unanswered(f"{name} is not answered by this stand-in")
    parameters = [_decoder(parameter.type)(word) for parameter, word in zip(slot.parameters, words)]
    try:
        return _encode(slot.result, subject.answer(method)(*parameters))
    except Refused as refused:
        text = f"I{kind}::{method}: Error Code {refused.code}: {refused.kind} ({refused})"
        subject.log(trt().ILogger.ERROR, text)
        return [0]


def _failure(name: str) -> Failure | None:
    """Return the failure that this call meets."""
    failure = FAILURES.get(name)
    if failure is None:
        return None
    failure.after -= 1
    if failure.after >= 0 or failure.times == 0:
        return None
    failure.times -= 1
    return failure


def _injected(failure: Failure, subject: Native | None, words: list[int]) -> int:
    if failure.message:
        logger = subject.logger if subject is not None else words[-2]  # a factory's last two: logger, version
        log(logger, trt().ILogger.ERROR, failure.message)
    return int(failure.answer or 0)


def _dispatch(name: bytes, owner: int | None, words: Any, count: int, result: Any) -> int:
    """Answer one slot: 0, or the address of what went wrong."""
    slot = name.decode()
    try:
        for index, word in enumerate(_answer(slot, owner or 0, words[:count])):
            result[index] = word
        return 0
    except Exception as error:
        text = str(error) if isinstance(error, Unanswered) else f"{slot}: {traceback.format_exc()}"
        _errors.append(text.encode() + b"\0")
        return ctypes.cast(ctypes.c_char_p(_errors[-1]), ctypes.c_void_p).value or 0


_WORDS = ctypes.POINTER(ctypes.c_int64)
_callback = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, _WORDS, ctypes.c_int, _WORDS)(_dispatch)


def complain(text: str) -> None:
    """Keep and print what goes wrong where no caller can be told."""
    _errors.append(text.encode() + b"\0")
    print(f"stand-in of libnvinfer: {text}", file=sys.stderr)


def connect() -> None:
    """Answer the library's slots from here until the process ends."""
    LIBRARY.standin_register(_callback)
    atexit.register(LIBRARY.standin_register, None)


def live() -> dict[str, int]:
    """Return the number of live objects of each kind that has any; the one plugin registry is not counted."""
    names = [table.name for table in _TABLES if table.name != "PluginRegistry"]
    counts = {name: LIBRARY.standin_live(name.encode()) for name in names}
    return {name: count for name, count in counts.items() if count}


def errors() -> list[str]:
    """Return what went wrong inside the stand-in itself: slots that are not answered, exceptions."""
    return [text.rstrip(b"\0").decode() for text in _errors]
