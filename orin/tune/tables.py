"""What the halves of a space's plans cost under each of its settings, as the virtual Orin has it, in tables."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from orin.soc import DRAM_SUSTAINED_SHARE, GPU_STREAM_SHARE
from orin.tune.space import DlaHalf, Space
from orin.virtual.model import GPU_SEGMENT, CostModel, EngineCost, EngineShape, clocks_of
from orin.virtual.parameters import Parameters
from orin.virtual.power import RailModel

Array = NDArray[Any]
_Columns = TypeVar("_Columns", bound="Columns")


@dataclass(frozen=True)
class Columns:
    """Values of many points, one array a field."""

    def at(self: _Columns, index: Any) -> _Columns:
        """Return those of some points."""
        return type(self)(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class EngineColumns(Columns):
    """One enqueue: times alone in ms, bytes in MB, what the host spends in mJ; zeros where there is none.

    `fixed_ms` is the part of the time that does not grow with the batch (a GPU's kernels at their shortest, a DLA's
    weights), `on_gpu_ms` what of a DLA's runs on the GPU, `launch_ms` what the host needs to launch a GPU's kernels.
    """

    compute_ms: Array
    memory_ms: Array
    fixed_ms: Array
    on_gpu_ms: Array
    launch_ms: Array
    megabytes: Array
    submit_ms: Array
    host_mj: Array
    activity: Array


@dataclass(frozen=True)
class BoardColumns(Columns):
    """The board under a setting: DRAM in MB/ms (= GB/s), watts at full activity, clocks over the module's highest.

    `gpu_reach` is what the GPU can ask of DRAM at its clock, over what it could at its highest.
    """

    sustained: Array
    most: Array
    idle_w: Array
    gpu_w: Array
    dla_w: Array
    any_dla_w: Array
    dram_w: Array
    gpu_clock: Array
    dla_clock: Array
    emc_clock: Array
    cpu_clock: Array
    gpu_reach: Array


class Tables:
    """Costs by half and setting: `gpu` [GPU half, setting], `dla` [DLA half, setting], `board` [setting]."""

    def __init__(self, space: Space, parameters: Parameters) -> None:
        self._space, self._parameters = space, parameters
        self.models = [self._model(number) for number in range(len(space.settings))]
        self._rows: dict[Hashable, list[float]] = {}
        gpu = [[self._gpu(model, half.batch) for model in self.models] for half in space.gpu_halves]
        dla = [[self._dla(model, half) for model in self.models] for half in space.dla_halves]
        self.gpu = EngineColumns(*np.moveaxis(np.array(gpu, float), -1, 0))
        self.dla = EngineColumns(*np.moveaxis(np.array(dla, float), -1, 0))
        self.board = BoardColumns(*np.array([self._board(model) for model in self.models], float).T)

    def _model(self, number: int) -> CostModel:
        plan = self._space.at_setting(number)
        return CostModel(self._space.soc, clocks_of(plan, self._space.soc), plan.stack, self._parameters)

    def _gpu(self, model: CostModel, batch: int) -> list[float]:
        """A GPU half; settings that differ in the DLA's clock alone share it."""
        clocks = model.clocks
        key = ("gpu", batch, clocks.gpu_mhz, clocks.emc_mhz, clocks.cpu_mhz, clocks.sms)
        if key not in self._rows:
            self._rows[key] = self._gpu_row(model, batch) if batch else [0.0] * len(fields(EngineColumns))
        return self._rows[key]

    def _gpu_row(self, model: CostModel, batch: int) -> list[float]:
        """Without the gaps between kernels that wait for their launch: they depend on what else is on the board."""
        base, work = self._space.base, next(iter(self._space.workloads.values())).gpu
        shape = EngineShape(base.network, "gpu", batch, base.precision, work)
        cost, layers = model.cost(shape, batch), model.layers(shape, batch)
        row = _row(cost)
        launch_ms = model.launch_ms(shape)
        alone_ms = sum(layer.solo_ns for layer in layers) * 1e-6
        row[0] -= max(0.0, launch_ms - alone_ms)
        row[2] = sum(layer.overhead_ns for layer in layers) * 1e-6
        row[4] = launch_ms
        return row

    def _dla(self, model: CostModel, half: DlaHalf) -> list[float]:
        """A DLA half; the GPU's clock counts only where it takes part."""
        clocks = model.clocks
        loop = half.loop if self._space.base.tail == "gpu" else 1  # the tail comes once a loop
        engine = (half.cores > 0, half.rewrites, half.batch, loop)
        key: tuple[Hashable, ...] = ("dla", engine, clocks.dla_mhz, clocks.emc_mhz, clocks.cpu_mhz)
        if key not in self._rows:
            self._rows[key] = self._dla_row(model, half) if half.cores else [0.0] * len(fields(EngineColumns))
        if self._rows[key][3]:
            key = (*key, clocks.gpu_mhz, clocks.sms)
            self._rows.setdefault(key, self._dla_row(model, half))
        return self._rows[key]

    def _dla_row(self, model: CostModel, half: DlaHalf) -> list[float]:
        base, work = self._space.base, self._space.workloads[half.rewrites]
        shapes = [
            EngineShape(base.network, "dla", batch, base.precision, work.dla, work.dla_gpu_layers)
            for batch in (half.batch, 2 * half.batch)
        ]
        cost, doubled = (model.cost(shape, shape.batch) for shape in shapes)
        row = _row(cost)
        on_dla = [sum(s.solo_ns for s in one.segments if s.resource != GPU_SEGMENT) for one in (cost, doubled)]
        row[2] = max(0.0, 2 * on_dla[0] - on_dla[1]) * 1e-6
        if base.tail == "gpu" and "cut-tail" in half.rewrites:
            row[3] += model.tail().solo_ns * 1e-6 / half.loop
        return row

    def _board(self, model: CostModel) -> tuple[float, ...]:
        soc, clocks = self._space.soc, model.clocks
        top = soc.max_clocks
        peak = soc.dram_peak_bytes_per_s(clocks)
        rails = RailModel(soc, clocks, self._parameters)
        counted = [rails.rails.index(rail.name) for rail in soc.board.total_rails()]

        def watts(activity: float, dlas: int, dram: float) -> float:
            every = rails.watts(activity, dlas, dram)
            return sum(every[at] for at in counted)

        idle, one, two = watts(0.0, 0, 0.0), watts(0.0, 1, 0.0), watts(0.0, 2, 0.0)
        return (
            DRAM_SUSTAINED_SHARE * peak * 1e-9,
            GPU_STREAM_SHARE * peak * 1e-9,
            idle,
            watts(1.0, 0, 0.0) - idle,
            two - one,
            2 * one - two - idle,
            watts(0.0, 0, 1.0) - idle,
            clocks.gpu_mhz / top.gpu_mhz,
            clocks.dla_mhz / top.dla_mhz,
            clocks.emc_mhz / top.emc_mhz,
            clocks.cpu_mhz / top.cpu_mhz,
            soc.gpu_dram_bytes_per_s(clocks) / (GPU_STREAM_SHARE * peak),
        )


def _row(cost: EngineCost) -> list[float]:
    """An enqueue as numbers, in the order of `EngineColumns`; for a DLA's its own segments, with the GPU's apart."""
    main = [segment for segment in cost.segments if segment.resource != GPU_SEGMENT] or list(cost.segments)
    rest = [segment for segment in cost.segments if segment not in main]
    return [
        sum(segment.compute_ns for segment in main) * 1e-6,
        sum(segment.memory_ns for segment in main) * 1e-6,
        0.0,
        sum(segment.solo_ns for segment in rest) * 1e-6,
        0.0,
        sum(segment.dram_bytes for segment in main) * 1e-6,
        cost.submit_ns * 1e-6,
        cost.host_mj,
        sum(segment.activity * segment.solo_ns for segment in main) / max(sum(s.solo_ns for s in main), 1e-9),
    ]
