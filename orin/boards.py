"""Opening a board by name: `jetson` is the attached one, `virtual:NAME` a simulated one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from orin.board import Board
from orin.errors import OrinError
from orin.jetson.detect import Machine
from orin.soc import AGX_ORIN_64GB_SOC, soc

DEFAULT_VIRTUAL = f"virtual:{AGX_ORIN_64GB_SOC.name}"
Purpose = Literal["speed", "results"]


def board_name(asked: str | None, say: Callable[[str], None], root: Path = Path("/")) -> str:
    """Return the board to use: the one asked for, else this Jetson, else the virtual AGX Orin, said in one line."""
    if asked is not None:
        return asked
    name = "jetson" if Machine(root).jetson else DEFAULT_VIRTUAL
    if name != "jetson":
        say(f"no Jetson here: using {name}; every figure is SIMULATED (--board to choose)")
    return name


def open_board(name: str, purpose: Purpose, seed: int = 0) -> Board:
    """Open a board; the virtual one for `speed` (paced in wall time, no outputs) or for `results` (outputs, no speed).

    OrinError, or EngineError for TensorRT, where a board is not there or lacks something, with what to do.
    """
    if name == "jetson":
        from orin.jetson.board import open_jetson

        return open_jetson()
    kind, _, soc_name = name.partition(":")
    if kind != "virtual" or not soc_name:
        raise OrinError(f"--board is {name!r}, expected jetson or virtual:NAME such as {DEFAULT_VIRTUAL}")
    from orin.virtual.board import VirtualBoard

    return VirtualBoard(soc(soc_name), pacing="paced" if purpose == "speed" else "numerics", seed=seed)
