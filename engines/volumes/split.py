"""Cutting a volume into windows, each as the network takes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.spec import INT8_MAX
from engines.volumes.plan import OVERLAP, PLANES, WINDOW, Share, Triple, WindowPlan, plan_windows
from engines.volumes.preprocess import PAD

AXES = "[D,H,W] or [1,D,H,W]"


@dataclass(frozen=True)
class Split:
    """Windows of a volume [D,H,W] of any type; integers are real values once multiplied by `scale`.

    The volume is read where it lies, a window at a time; beyond its edges there is `PAD`, a real value.
    """

    volume: NDArray[Any]
    plan: WindowPlan
    scale: float = 1.0

    def cut_into(self, start: Triple, out: NDArray[Any], share: Share = map) -> None:
        """Write the window that starts there into float32 [d,h,w]; 64-bit offsets throughout."""
        source, target = self.volume[self.plan.inside(start)], out[self.plan.covered(start)]
        if target.size < out.size:
            out.fill(PAD)

        def cut(first: int) -> None:
            part = slice(first, first + PLANES)
            np.multiply(source[part], np.float32(self.scale), out=target[part])

        for _ in share(cut, range(0, len(target), PLANES)):
            pass


def quantise(split: Split, scale: float, out: NDArray[Any]) -> None:
    """Write a volume in steps of `scale` into int8 [D,H,W], a plane at a time; EngineError where it holds NaN."""
    steps = np.float32(split.scale / scale)
    for number, (plane, into) in enumerate(zip(split.volume, out, strict=True)):
        if np.isnan(plane).any():
            raise EngineError(
                f"volume holds NaN in plane {number} of {len(out)}, expected numbers; pre-process it again"
            )
        into[...] = np.clip(np.rint(plane * steps), -INT8_MAX, INT8_MAX)


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
