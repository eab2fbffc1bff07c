"""Controls of libcuda's stand-in: what is alive, what was called, and which call fails."""

from __future__ import annotations

import ctypes

KINDS = ("context", "stream", "event", "graph", "executable", "device", "host", "managed", "registered")


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libcuda.so.1")
    for name in ("Live", "Bytes", "LeftBehind", "Calls"):
        getattr(library, f"cuStandin{name}").restype = ctypes.c_long
    library.cuStandinUnanswered.restype = ctypes.c_char_p
    library.cuStandinFail.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_long)
    return library


def live() -> dict[str, int]:
    """Return how many objects of each kind are alive; kinds of which there is none are left out."""
    library = _library()
    counts = {kind: library.cuStandinLive(kind.encode()) for kind in KINDS}
    return {kind: count for kind, count in counts.items() if count}


def live_bytes() -> int:
    """Return the bytes of all live allocations."""
    return int(_library().cuStandinBytes())


def left_behind() -> int:
    """Return how many objects were alive when their context was destroyed, since the last reset."""
    return int(_library().cuStandinLeftBehind())


def calls(function: str) -> int:
    """Return how often a function was called since the last reset."""
    return int(_library().cuStandinCalls(function.encode()))


def fail(function: str, code: int, after: int = 0) -> None:
    """Let `after` calls of a function pass, then answer all others with a CUresult; 0 lifts it."""
    _library().cuStandinFail(function.encode(), code, after)


def unanswered() -> str:
    """Return the last function called that the stand-in does not answer; empty where there was none."""
    return bytes(_library().cuStandinUnanswered()).decode()


def trace(on: bool = True) -> None:
    """Print the name of each function that is called and not answered."""
    _library().cuStandinTrace(int(on))


def reset() -> None:
    """Lift injected failures; forget calls and objects left behind."""
    _library().cuStandinReset()
