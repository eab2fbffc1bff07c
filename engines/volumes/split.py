"""Cutting a volume into windows, each as the network takes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.volumes.plan import OVERLAP, WINDOW, Triple, WindowPlan, plan_windows
from engines.volumes.preprocess import PAD

AXES = "[D,H,W] or [1,D,H,W]"


@dataclass(frozen=True)
class Split:
    """Windows of a volume [D,H,W] of any type; integers are real values once multiplied by `scale`.

    The volume is read where it lies, a window at a time; beyond its edges there is `pad`, a real value.
    """

    volume: NDArray[Any]
    plan: WindowPlan
    scale: float = 1.0
    pad: float = PAD

    def cut_into(self, start: Triple, out: NDArray[Any]) -> None:
        """Write the window that starts there into float32 [d,h,w]; 64-bit offsets throughout."""
        covered, inside = self.plan.covered(start), self.plan.inside(start)
        if out[covered].size < out.size:
            out.fill(self.pad)
        np.multiply(self.volume[inside], np.float32(self.scale), out=out[covered])


@dataclass(frozen=True)
class Windows:
    """How volumes are cut for calibration; what `calibration.volumes` asks for."""

    window: Triple = WINDOW
    overlap: float = OVERLAP
    scale: float = 1.0

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the windows beside the volume."""
        return {"kind": "sliding", "window": list(self.window), "overlap": self.overlap, "scale": self.scale}

    def count(self, shape: tuple[int, ...]) -> int:
        """Return the number of windows of a volume of this shape."""
        return len(plan_windows(_space(shape), self.window, self.overlap))

    def cut(self, volume: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """Yield the windows, each float32 [1,d,h,w] and its own array."""
        shape = _space(volume.shape)
        split = Split(volume.reshape(shape), plan_windows(shape, self.window, self.overlap), self.scale)
        for start in split.plan:
            window = np.empty((1, *self.window), np.float32)
            split.cut_into(start, window[0])
            yield window


def _space(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the three axes of space; a channel in front of them has to be the only one."""
    if len(shape) == 3 or (len(shape) == 4 and shape[0] == 1):
        return shape[-3:]
    raise EngineError(f"volume has the shape {list(shape)}, expected {AXES}; save one volume a file")
