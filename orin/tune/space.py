"""The space of plans: batches, loops, cores, depths, rewrites, kinds of memory, clocks; plans are made when asked for.

A point joins what runs on the GPU, what runs on the DLAs, and one setting of the board; the halves are few, so that
what an engine costs is computed once for each half and not for each point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orin.errors import OrinError
from orin.plan import Plan
from orin.soc import Soc
from orin.virtual.predict import Workloads

LOWEST_GPU_MHZ = 400.0  # below it idle power makes every sample dearer
DLA_STEPS = 6  # from the lowest clock of a power mode; drivers take the nearest of their table
CPU_MHZ = (729.6, 1113.6)  # beside the highest: MLPerf's most frugal runs had 576 to 1037 MHz
POINTS_AT_MOST = 400_000

Rewrites = tuple[str, ...]
Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Axes:
    """The values of each axis; 0 in `gpu_batch` or `dla_cores` leaves an accelerator out.

    `settings` are plan fields for the whole board: a mode, locked clocks, or none of both. The DLA's batches end
    where its SRAM does; GPU batches beyond 9 c/k of `c + k n` gain less than a tenth.
    """

    gpu_batch: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
    dla_batch: tuple[int, ...] = (1, 2, 4, 8)
    dla_loop: tuple[int, ...] = (1, 4)
    dla_cores: tuple[int, ...] = (0, 1, 2)
    gpu_depth: tuple[int, ...] = (1, 2)
    dla_depth: tuple[int, ...] = (1, 2)
    memory: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = field(default=({},))

    @classmethod
    def batches(cls) -> Axes:
        """Return the axes where the board's clocks stay as they are."""
        return cls()

    @classmethod
    def with_clocks(cls, soc: Soc) -> Axes:
        """Return the axes where clocks are searched: two items in flight, every mode of the board and a grid."""
        return cls(gpu_depth=(2,), dla_depth=(2,), settings=clock_settings(soc))


def clock_settings(soc: Soc) -> tuple[Setting, ...]:
    """Return the modes of a board (they alone switch cores and TPCs off), and a grid of the clocks that they know."""
    top, modes = soc.max_clocks, soc.board.modes
    lowest_mhz = min(mode.dla_mhz or top.dla_mhz for mode in modes)
    grid = {
        "gpu": [mhz for mhz in soc.gpu_steps_mhz(top.gpu_mhz) if mhz > LOWEST_GPU_MHZ],
        "dla": np.linspace(lowest_mhz, top.dla_mhz, DLA_STEPS).round(1).tolist(),
        "emc": _known([mode.emc_mhz for mode in modes], top.emc_mhz),
        "cpu": [*CPU_MHZ, top.cpu_mhz],
    }
    locked = ({"clocks_mhz": dict(zip(grid, values))} for values in product(*grid.values()))
    return (*({"mode": mode.name} for mode in modes), *locked)


def _known(found: Sequence[float | None], top: float) -> list[float]:
    return sorted({min(mhz or top, top) for mhz in found} | {top})


@dataclass(frozen=True)
class GpuHalf:
    """What runs on the GPU."""

    batch: int
    depth: int


@dataclass(frozen=True)
class DlaHalf:
    """What runs on the DLA cores: `rewrites` decide which layers are left to the GPU."""

    cores: int
    rewrites: Rewrites
    batch: int
    loop: int
    depth: int


class Space:
    """Every plan that differs from `base` along the axes; `workloads` holds the placements worth trying, by rewrites.

    Points are numbered; `gpu`, `dla` and `setting` [points] are the numbers of their halves.
    """

    def __init__(self, base: Plan, soc: Soc, workloads: Mapping[Rewrites, Workloads], axes: Axes | None = None) -> None:
        axes = axes or Axes.batches()
        self.base, self.soc, self.workloads = base, soc, dict(workloads)
        self.settings = axes.settings
        self.memory = axes.memory or (base.memory,)
        self.gpu_halves = _gpu_halves(axes, base)
        self.dla_halves = _dla_halves(axes, base, soc, tuple(workloads))
        sizes = (len(self.gpu_halves), len(self.dla_halves), len(self.settings), len(self.memory))
        if np.prod(sizes) > POINTS_AT_MOST:
            raise OrinError(f"the space has {np.prod(sizes)} plans, expected at most {POINTS_AT_MOST}: shorten an axis")
        gpu, dla, setting, memory = (column.ravel() for column in np.indices(sizes))
        batch = np.array([half.batch for half in self.gpu_halves])
        cores = np.array([half.cores for half in self.dla_halves])
        used = (batch[gpu] > 0) | (cores[dla] > 0)
        if not used.any():
            raise OrinError("the axes leave no accelerator: give gpu_batch or dla_cores a value above 0")
        self.gpu, self.dla, self.setting, self._memory = gpu[used], dla[used], setting[used], memory[used]

    def __len__(self) -> int:
        return len(self.gpu)

    def plan(self, index: int) -> Plan:
        """Return one point as a plan."""
        gpu, dla = self.gpu_halves[self.gpu[index]], self.dla_halves[self.dla[index]]
        return replace(
            self.at_setting(self.setting[index]),
            gpu_batch=gpu.batch,
            gpu_depth=gpu.depth,
            dla_cores=dla.cores,
            rewrites=dla.rewrites,
            dla_batch=dla.batch,
            dla_loop=dla.loop,
            dla_depth=dla.depth,
            memory=self.memory[self._memory[index]],
        )

    def at_setting(self, number: int) -> Plan:
        """Return the base plan with one setting of the board."""
        fields = self.settings[number]
        return replace(self.base, **({"mode": None, "clocks_mhz": None, **fields} if fields else {}))

    def index(self, plan: Plan) -> int | None:
        """Return a plan's number, None where it is none of these."""
        return self._index.get(self._key(plan))

    @cached_property
    def _index(self) -> dict[tuple[Any, ...], int]:
        return {self._key(self.plan(index)): index for index in range(len(self))}

    def _key(self, plan: Plan) -> tuple[Any, ...]:
        gpu = (plan.gpu_batch, plan.gpu_depth if plan.gpu_batch else 0)
        dla = (plan.dla_cores, plan.dla_batch, plan.dla_loop, plan.dla_depth, plan.rewrites) if plan.dla_cores else ()
        clocks = tuple(sorted(plan.clocks_mhz.items())) if plan.clocks_mhz else None
        return (*gpu, *dla, plan.mode, clocks, plan.memory)

    def same_engines(self, index: int) -> NDArray[np.bool_]:
        """Return which points [points] build the engines of one point: where it fails to run, they do."""
        gpu = np.array([half.batch == self.gpu_halves[self.gpu[index]].batch for half in self.gpu_halves])
        one = self.dla_halves[self.dla[index]]
        same = [(h.rewrites, h.batch, h.cores > 0) == (one.rewrites, one.batch, one.cores > 0) for h in self.dla_halves]
        return np.asarray(gpu[self.gpu] & np.array(same)[self.dla])

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return each axis as numbers [points], those that are counts as log2, to say how far points lie apart."""
        gpu = np.array([(half.batch, half.depth) for half in self.gpu_halves], float)[self.gpu]
        sets = list(self.workloads)
        rows = [
            (half.cores, half.batch, half.loop, half.depth, sets.index(half.rewrites) if half.cores else 0)
            for half in self.dla_halves
        ]
        dla = np.array(rows, float)[self.dla]
        return {
            "gpu_batch": np.log2(gpu[:, 0] + 0.5),
            "gpu_depth": np.log2(gpu[:, 1]),
            "dla_cores": dla[:, 0],
            "dla_batch": np.log2(dla[:, 1]),
            "dla_loop": np.log2(dla[:, 2]),
            "dla_depth": np.log2(dla[:, 3]),
            "rewrites": dla[:, 4],
            "memory": self._memory.astype(float),
        }


def _gpu_halves(axes: Axes, base: Plan) -> list[GpuHalf]:
    used = [GpuHalf(batch, depth) for batch in axes.gpu_batch if batch for depth in axes.gpu_depth]
    return [GpuHalf(0, base.gpu_depth)] * (0 in axes.gpu_batch) + used


def _dla_halves(axes: Axes, base: Plan, soc: Soc, rewrites: Sequence[Rewrites]) -> list[DlaHalf]:
    """The DLA takes no FP32; a loop of one enqueue is kept for every batch."""
    cores = [count for count in axes.dla_cores if 0 < count <= soc.dla_cores and base.precision != "fp32"]
    none = [DlaHalf(0, base.rewrites, base.dla_batch, base.dla_loop, base.dla_depth)] * (0 in axes.dla_cores)
    used = product(cores, rewrites, axes.dla_batch, axes.dla_loop, axes.dla_depth)
    return none + [DlaHalf(*values) for values in used]
