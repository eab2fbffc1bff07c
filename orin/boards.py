"""Opening a board by name: `jetson` is the attached one, `virtual:NAME` a simulated one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from orin.board import Board
from orin.errors import OrinError
from orin.soc import AGX_ORIN_64GB_SOC, soc

DEFAULT_VIRTUAL = f"virtual:{AGX_ORIN_64GB_SOC.name}"
Purpose = Literal["speed", "results"]


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether this machine is a Jetson; the device tree says so, inside containers too."""
    try:
        return b"nvidia,tegra" in (root / "proc/device-tree/compatible").read_bytes()
    except OSError:
        return False


def board_name(asked: str | None, say: Callable[[str], None], root: Path = Path("/")) -> str:
    """Return the board to use: the one asked for, else this Jetson, else the virtual AGX Orin, said in one line."""
    if asked is not None:
        return asked
    name = "jetson" if is_jetson(root) else DEFAULT_VIRTUAL
    if name != "jetson":
        say(f"no Jetson here: using {name}; every figure is SIMULATED (--board to choose)")
    return name


def open_board(name: str, purpose: Purpose, seed: int = 0) -> Board:
    """Open a board for `speed` (paced in wall time, no outputs) or for `results` (outputs, no speed)."""
    if name == "jetson":
        if not is_jetson():
            raise OrinError(
                f"--board jetson: this machine is no Jetson (no nvidia,tegra in /proc/device-tree); "
                f"use --board {DEFAULT_VIRTUAL}"
            )
        raise OrinError("--board jetson: this version has no TensorRT builder yet; use " + DEFAULT_VIRTUAL)
    kind, _, soc_name = name.partition(":")
    if kind != "virtual" or not soc_name:
        raise OrinError(f"--board is {name!r}, expected jetson or virtual:NAME such as {DEFAULT_VIRTUAL}")
    from orin.virtual.board import VirtualBoard

    return VirtualBoard(soc(soc_name), pacing="paced" if purpose == "speed" else "numerics", seed=seed)
