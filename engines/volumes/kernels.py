"""What the kernels in `kernels.cu` are compiled with and launched with: plain values, no CUDA needed.

A launch takes a batch of windows, in the plan's order. Accumulators need not be cleared, and along the axis that
changes last in that order they reach no further than the windows of one batch; weights are one vector an axis, since
the product of three Gaussians is separable.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.volumes.plan import Triple, WindowPlan
from engines.volumes.weights import window_weights

SOURCE = Path(__file__).with_suffix(".cu")
C_TYPES = {"float16": "__half", "float32": "float"}
VECTOR = 8  # voxels: 16 bytes of half-precision logits
THREADS = 128  # of a block: few, since each needs many registers
CDHW32 = 32  # bytes of a voxel
LARGEST_LABEL = 127
LARGEST_GRID = 65_535  # blocks along z (CUDA C++ Programming Guide, technical specifications)

_AXIS = np.dtype([(name, "i4") for name in ("size", "side", "count", "step", "last", "stride", "kept")])
_PLAN = np.dtype([("axes", _AXIS, 3), ("begin", "i4"), ("end", "i4")])
_CUT = np.dtype([("plan", _PLAN), ("volume", "u8"), ("windows", "u8"), ("pad", "i4")], align=True)
_ADDRESSES = [(name, "u8") for name in ("logits", "weights", "sums", "labels")]
_MERGE = np.dtype([("plan", _PLAN), *_ADDRESSES, ("least", "f4")], align=True)


@dataclass(frozen=True)
class Buffers:
    """Where the GPU finds what: addresses, each a multiple of 16.

    `volume` and `labels` are int8 [D,H,W]; `windows` int8 [N,d,h,w] or in CDHW32 [N,d,h,w,32]; `logits` [N,C,d,h,w];
    `weights` float32 [w+h+d]; `sums` of the shape `Kernels.sums_shape`.
    """

    volume: int
    windows: int
    logits: int
    weights: int
    sums: int
    labels: int


@dataclass(frozen=True)
class Launch:
    """One kernel's launch: its name, grid and block (x, y, z), and its one argument, a structure."""

    kernel: str
    grid: Triple
    block: Triple
    job: np.void


@dataclass(frozen=True)
class Kernels:
    """The kernels for one volume: `batch` windows a launch at most, the types of logits and of accumulators.

    `pad` is the INT8 value beyond the volume; `weights` is a kind of `engines.volumes.weights`; `cdhw32` is how the
    network reads its windows.
    """

    plan: WindowPlan
    batch: int = 1
    classes: int = 3
    logits: str = "float16"
    sums: str = "float16"
    weights: str = "mlperf"
    pad: int = 0
    cdhw32: bool = False

    def __post_init__(self) -> None:
        for name in (self.logits, self.sums):
            if name not in C_TYPES:
                raise EngineError(f"logits or sums in {name!r}: the kernels take {' or '.join(C_TYPES)}")
        if not (1 <= self.classes <= LARGEST_LABEL and 1 <= self.batch <= LARGEST_GRID):
            wanted = f"1 to {LARGEST_LABEL} and 1 to {LARGEST_GRID}"
            raise EngineError(f"{self.classes} classes, {self.batch} windows a launch: expected {wanted}")

    @property
    def options(self) -> tuple[str, ...]:
        """What nvcc is told beside the architecture."""
        types = {"LOGIT": C_TYPES[self.logits], "SUM": C_TYPES[self.sums]}
        constants = {**types, "CLASSES": self.classes, "VECTOR": self.vector}
        return ("-std=c++17", *(f"-D{name}={value}" for name, value in constants.items()))

    @property
    def vector(self) -> int:
        """Voxels that a thread takes: 8 where every row begins and every window starts at a multiple of it, else 1."""
        columns = (self.plan.shape[2], self.plan.window[2], *self.plan.starts[2])
        return 1 if any(number % VECTOR for number in columns) else VECTOR

    @cached_property
    def strides(self) -> Triple:
        """By how much the number of a window grows from one start to the next along each axis."""
        windows: list[tuple[int, ...]] = list(self.plan)
        corner = windows[0]
        seconds = (starts[min(1, len(starts) - 1)] for starts in self.plan.starts)
        nexts = ((*corner[:axis], second, *corner[axis + 1 :]) for axis, second in enumerate(seconds))
        first, second, third = (max(1, windows.index(start)) for start in nexts)
        return first, second, third

    @cached_property
    def kept(self) -> Triple:
        """Voxels along each axis of the volume that accumulators are kept for: all but on the one that changes last."""
        last = max(range(3), key=lambda axis: self.strides[axis] * (len(self.plan.starts[axis]) - 1))
        along = [start[last] for start in self.plan]
        spread = max(along[windows[-1]] - along[windows[0]] for windows in self.batches())
        reach = min(spread + self.plan.window[last], self.plan.shape[last])
        first, second, third = (reach if axis == last else size for axis, size in enumerate(self.plan.shape))
        return first, second, third

    @property
    def sums_shape(self) -> tuple[int, int, int, int]:
        """Shape of the accumulators."""
        return self.classes, *self.kept

    def batches(self) -> Iterator[range]:
        """Yield the windows of each launch, by number."""
        for begin in range(0, len(self.plan), self.batch):
            yield range(begin, min(begin + self.batch, len(self.plan)))

    def axis_weights(self) -> NDArray[Any]:
        """Return the weights along the axes of a window, float32 [w+h+d]: columns, rows, planes."""
        axes = [window_weights(self.weights, (1, 1, side)).ravel() for side in reversed(self.plan.window)]
        return np.concatenate(axes)

    @property
    def room(self) -> dict[str, int]:
        """Bytes of each of the `Buffers` but volume and labels."""
        side = self.batch * math.prod(self.plan.window)
        return {
            "windows": side * (CDHW32 if self.cdhw32 else 1),
            "logits": side * self.classes * np.dtype(self.logits).itemsize,
            "weights": self.axis_weights().nbytes,
            "sums": math.prod(self.sums_shape) * np.dtype(self.sums).itemsize,
        }

    def cut(self, buffers: Buffers, windows: range) -> Launch:
        """Cut these windows out of the volume, in INT8 as the engine reads them: linear or CDHW32."""
        job = np.zeros((), _CUT)
        job["plan"] = self._job_plan(windows)
        job["volume"], job["windows"], job["pad"] = buffers.volume, buffers.windows, self.pad
        if self.cdhw32:
            return self._launch("cut32", 2, windows, job)
        return self._launch("cut", 1 / self.vector, windows, job)

    def merge(self, buffers: Buffers, windows: range) -> Launch:
        """Weigh and add what the network says of these windows, and label what no later window reaches.

        A label is -1 where the network gave NaN.
        """
        job = np.zeros((), _MERGE)
        job["plan"] = self._job_plan(windows)
        for name in ("logits", "weights", "sums", "labels"):
            job[name] = getattr(buffers, name)
        job["least"] = window_weights(self.weights, self.plan.window).min()
        return self._launch("merge", 1 / self.vector, windows, job)

    def _job_plan(self, windows: range) -> Any:
        plan, job = self.plan, np.zeros((), _PLAN)
        steps = (starts[1] - starts[0] if len(starts) > 1 else 1 for starts in plan.starts)
        lasts = (starts[-1] for starts in plan.starts)
        counts = map(len, plan.starts)
        job["axes"] = list(zip(plan.shape, plan.window, counts, steps, lasts, self.strides, self.kept))
        job["begin"], job["end"] = windows.start, windows.stop
        return job

    def _launch(self, kernel: str, threads_per_column: float, windows: range, job: NDArray[Any]) -> Launch:
        depth, height, width = self.plan.window
        columns = min(int(width * threads_per_column), THREADS)
        rows = min(THREADS // columns, height)
        grid = (-(-height // rows), depth, len(windows))
        return Launch(kernel, grid, (columns, rows, 1), np.void(job.tobytes()))
