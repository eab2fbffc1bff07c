"""The tuner's model: every plan of a space at once, as steady-state rates, watts and latencies.

Costs of engines come from the virtual Orin's cost model. What differs from board to board enters as a few factors in
logarithms (`FACTORS`), zero where the model is right as it stands: `orin.tune.refit` finds them from runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orin.soc import DRAM_SUSTAINED_SHARE, GPU, GPU_STREAM_SHARE
from orin.tune.space import Space
from orin.virtual.model import GPU_SEGMENT, CostModel, EngineCost, EngineShape, clocks_of
from orin.virtual.parameters import Parameters, load_parameters
from orin.virtual.power import RailModel

Array = NDArray[np.float64]

MEASURED_SD, UNMEASURED_SD = 0.05, 0.35  # of a network's time: its rows were fitted, or its layers alone are known
HIDDEN_GPU_SHARE = 0.004  # of a DLA engine's time that runs on the GPU unseen, before anything is measured
SWEEPS = 3  # of the DRAM shares' fixed point

# Factors, as standard deviations of their logarithms before the first run. Speed and power: the model's documented
# errors. DRAM sharing was never isolated on an Orin, so its strength is known to a factor of two; the hidden GPU work
# of a DLA plan is mostly none and sometimes a third of its time.
FACTORS: Mapping[str, float] = {
    "gpu_time": math.nan,
    "gpu_split": 0.35,
    "gpu_fixed": 0.4,
    "gpu_host": 0.4,
    "dla_time": math.nan,
    "dla_split": 0.35,
    "dla_host": 0.4,
    "dla_weights": 0.5,
    "dla_hidden_gpu": 2.0,
    "gpu_contention": 0.7,
    "dla_contention": 0.7,
    "idle_w": 0.08,
    "gpu_w": 0.12,
    "dla_w": 0.15,
    "dram_w": 0.3,
    "gpu_w_clock": 0.15,
}


@dataclass(frozen=True)
class Scores:
    """What the model expects [points]: samples per second by kind of accelerator, module watts, latency of an item."""

    gpu_per_s: Array
    dla_per_s: Array
    module_w: Array
    latency_ms: Array

    @property
    def samples_per_s(self) -> Array:
        """Both together."""
        return self.gpu_per_s + self.dla_per_s


@dataclass(frozen=True)
class _Engine:
    """One enqueue [points]: times alone in ms, bytes in MB, what the host spends in mJ; zeros where there is none."""

    compute_ms: Array
    memory_ms: Array
    fixed_ms: Array
    on_gpu_ms: Array
    megabytes: Array
    submit_ms: Array
    host_mj: Array
    activity: Array

    def at(self, index: tuple[NDArray[np.intp], ...]) -> _Engine:
        """Return the engines of points."""
        return _Engine(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class _Setting:
    """The board under one setting [points]: DRAM in MB/ms (= GB/s), watts at full activity, GPU clock over its top."""

    sustained: Array
    most: Array
    idle_w: Array
    gpu_w: Array
    dla_w: Array
    any_dla_w: Array
    dram_w: Array
    gpu_clock: Array


class PlanModel:
    """Scores a space; `prior_sd` [factors] says how far off each factor may be before anything is measured."""

    factors = tuple(FACTORS)

    def __init__(self, space: Space, parameters: Parameters | None = None) -> None:
        self.space = space
        self._parameters = parameters or load_parameters()
        self._models = [self._model(number) for number in range(len(space.settings))]
        gpu, dla, settings = self._tables()
        self._gpu = gpu.at((space.gpu, space.setting))
        self._dla = dla.at((space.dla, space.setting))
        self._setting = _Setting(*(getattr(settings, name)[space.setting] for name in settings.__dataclass_fields__))
        self._gpu_batch = np.array([half.batch for half in space.gpu_halves], float)[space.gpu]
        self._gpu_depth = np.array([half.depth for half in space.gpu_halves], float)[space.gpu]
        rows = [(half.cores, half.batch, half.loop, half.depth) for half in space.dla_halves]
        self._cores, self._dla_batch, self._loop, self._dla_depth = np.array(rows, float)[space.dla].T
        self.prior_sd = self._prior_sd()

    def scores(self, factors: Array, points: NDArray[np.intp] | slice = slice(None)) -> Scores:
        """Return what is expected [..., points] under factors [..., factor], logarithms."""
        by_name = {name: factors[..., at, None] for at, name in enumerate(self.factors)}
        return _View(self, points).scores(by_name)

    @property
    def clocks(self) -> Array:
        """Clocks of GPU, DLA, DRAM and CPU, as log2 [points, 4]."""
        mhz = [list(model.clocks.as_mhz().values()) for model in self._models]
        return np.asarray(np.log2(np.array(mhz, float))[self.space.setting])

    # -- tables of costs, by half and setting -------------------------------------------------------------------------

    def _model(self, number: int) -> CostModel:
        plan = self.space.at_setting(number)
        return CostModel(self.space.soc, clocks_of(plan, self.space.soc), plan.stack, self._parameters)

    def _tables(self) -> tuple[_Engine, _Engine, _Setting]:
        gpu = [[self._gpu_row(model, half.batch) for model in self._models] for half in self.space.gpu_halves]
        dla = [[self._dla_row(model, number) for model in self._models] for number in range(len(self.space.dla_halves))]
        board = [self._setting_row(model) for model in self._models]
        return (
            _Engine(*np.moveaxis(np.array(gpu, float), -1, 0)),
            _Engine(*np.moveaxis(np.array(dla, float), -1, 0)),
            _Setting(*np.array(board, float).T),
        )

    def _gpu_row(self, model: CostModel, batch: int) -> tuple[float, ...]:
        if not batch:
            return (0.0,) * 8
        base = self.space.base
        workload = next(iter(self.space.workloads.values())).gpu
        cost = model.cost(EngineShape(base.network, "gpu", batch, base.precision, workload), batch)
        row = _row(cost)
        twice = EngineShape(base.network, "gpu", 2 * batch, base.precision, workload)
        fixed_ms = max(0.0, 2 * cost.solo_ns - model.cost(twice, 2 * batch).solo_ns) * 1e-6
        return (*row[:2], min(fixed_ms, row[0] + row[1]), *row[3:])

    def _dla_row(self, model: CostModel, number: int) -> tuple[float, ...]:
        half = self.space.dla_halves[number]
        if not half.cores:
            return (0.0,) * 8
        base, work = self.space.base, self.space.workloads[half.rewrites]
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
        return tuple(row)

    def _setting_row(self, model: CostModel) -> tuple[float, ...]:
        soc, clocks = self.space.soc, model.clocks
        peak = soc.dram_peak_bytes_per_s(clocks) * 1e-9
        rails = RailModel(soc, clocks, self._parameters)
        counted = [rails.rails.index(rail.name) for rail in soc.board.total_rails()]

        def watts(activity: float, dlas: int, dram: float) -> float:
            every = rails.watts(activity, dlas, dram)
            return sum(every[at] for at in counted)

        idle, one, two = watts(0.0, 0, 0.0), watts(0.0, 1, 0.0), watts(0.0, 2, 0.0)
        return (
            DRAM_SUSTAINED_SHARE * peak,
            GPU_STREAM_SHARE * peak,
            idle,
            watts(1.0, 0, 0.0) - idle,
            two - one,
            2 * one - two - idle,
            watts(0.0, 0, 1.0) - idle,
            clocks.gpu_mhz / soc.max_clocks.gpu_mhz,
        )

    def _prior_sd(self) -> Array:
        known = {name: self._speed_sd(name) for name in ("gpu", "dla")}
        return np.array(
            [known[name[:3]] if math.isnan(sd) else sd for name, sd in FACTORS.items()],
        )

    def _speed_sd(self, device: str) -> float:
        base, work = self.space.base, next(iter(self.space.workloads.values()))
        shape = EngineShape(base.network, device, 1, base.precision, work.gpu if device == GPU else work.dla)
        return MEASURED_SD if self._models[0].is_measured(shape) else UNMEASURED_SD


def _row(cost: EngineCost) -> list[float]:
    """An enqueue as numbers, in the order of `_Engine`; for a DLA's its own segments, with those on the GPU apart."""
    main = [segment for segment in cost.segments if segment.resource != GPU_SEGMENT] or list(cost.segments)
    rest = [segment for segment in cost.segments if segment not in main]
    return [
        sum(segment.compute_ns for segment in main) * 1e-6,
        sum(segment.memory_ns for segment in main) * 1e-6,
        0.0,
        sum(segment.solo_ns for segment in rest) * 1e-6,
        sum(segment.dram_bytes for segment in main) * 1e-6,
        cost.submit_ns * 1e-6,
        cost.host_mj,
        sum(segment.activity * segment.solo_ns for segment in main) / max(sum(s.solo_ns for s in main), 1e-9),
    ]


class _View:
    """Some points of a model, and the arithmetic of one evaluation."""

    def __init__(self, model: PlanModel, points: NDArray[np.intp] | slice) -> None:
        index = (points,)
        self.gpu, self.dla = model._gpu.at(index), model._dla.at(index)  # type: ignore[arg-type]
        board = model._setting
        self.board = _Setting(*(getattr(board, name)[points] for name in board.__dataclass_fields__))
        self.gpu_batch, self.gpu_depth = model._gpu_batch[points], model._gpu_depth[points]
        self.cores, self.dla_batch = model._cores[points], model._dla_batch[points]
        self.loop, self.dla_depth = model._loop[points], model._dla_depth[points]
        shared = model._parameters.shared
        self.floor, self.knee = shared["dram_floor"], shared["dram_knee"]

    def scores(self, f: Mapping[str, Array]) -> Scores:
        """Rates from times alone, DRAM shares, the GPU's lost time and gaps; then watts."""
        has_gpu, has_dla = self.gpu_batch > 0, self.cores > 0
        gpu_compute, gpu_memory, dla_compute, dla_memory, hidden = self._alone(f)
        gpu_ms, dla_ms = self._sharing(f, gpu_compute, gpu_memory, dla_compute, dla_memory)
        inside_ms = np.where(has_dla, self.dla.on_gpu_ms + hidden, 0.0)
        engine_ms = dla_ms + inside_ms * (1 + has_gpu)
        dla_item_ms = self._cycle(engine_ms * self.loop, self.dla.submit_ms * np.exp(f["dla_host"]), self.dla_depth)
        lost = np.minimum(0.9, self.cores * self.loop * inside_ms / np.maximum(dla_item_ms, 1e-9))
        gpu_busy_ms = gpu_ms / (1 - lost)
        gpu_item_ms = self._cycle(gpu_busy_ms, self.gpu.submit_ms * np.exp(f["gpu_host"]), self.gpu_depth)
        gpu_per_ms = _ratio(self.gpu_batch, gpu_item_ms, has_gpu)
        dla_per_ms = _ratio(self.cores * self.dla_batch * self.loop, dla_item_ms, has_dla)
        use = _Use(
            gpu=_ratio(gpu_ms, gpu_item_ms, has_gpu),
            dla=self.cores * _ratio(dla_ms * self.loop, dla_item_ms, has_dla),
            traffic=_ratio(self.gpu.megabytes, gpu_item_ms, has_gpu)
            + self.cores * _ratio(self.dla.megabytes * self.loop, dla_item_ms, has_dla),
            host_w=_ratio(self.gpu.host_mj, gpu_item_ms, has_gpu)
            + self.cores * _ratio(self.dla.host_mj * self.loop, dla_item_ms, has_dla),
        )
        latency_ms = np.maximum(
            np.where(has_gpu, self.gpu_depth * gpu_item_ms, 0), np.where(has_dla, self.dla_depth * dla_item_ms, 0)
        )
        return Scores(gpu_per_ms * 1e3, dla_per_ms * 1e3, self._watts(f, use), latency_ms)

    def _alone(self, f: Mapping[str, Array]) -> tuple[Array, Array, Array, Array, Array]:
        """Compute and memory times with the factors on them; a split keeps the sum, to first order."""
        gpu, dla = self.gpu, self.dla
        slower = np.exp(f["gpu_time"])
        compute, memory = _split(gpu.compute_ms, gpu.memory_ms, f["gpu_split"])
        gpu_compute = slower * compute + gpu.fixed_ms * (np.exp(f["gpu_fixed"]) - 1)
        gpu_compute = np.maximum(gpu_compute, 0.05 * compute)
        dla_slower = np.exp(f["dla_time"])
        dla_compute, dla_memory = _split(dla.compute_ms, dla.memory_ms, f["dla_split"])
        reads = dla.fixed_ms * (np.exp(f["dla_weights"]) - 1)
        dla_memory = np.maximum(dla_slower * dla_memory + reads, 0.05 * dla_memory)
        dla_compute = dla_slower * dla_compute
        hidden = HIDDEN_GPU_SHARE * np.exp(f["dla_hidden_gpu"]) * (dla.compute_ms + dla.memory_ms)
        return gpu_compute, slower * memory, dla_compute, dla_memory, hidden

    def _sharing(
        self, f: Mapping[str, Array], gpu_compute: Array, gpu_memory: Array, dla_compute: Array, dla_memory: Array
    ) -> tuple[Array, Array]:
        """Times of an enqueue with DRAM shared."""
        gpu_alone, dla_alone = gpu_compute + gpu_memory, dla_compute + dla_memory
        gpu_asks = _ratio(self.gpu.megabytes, gpu_alone, gpu_alone > 0)
        dla_asks = _ratio(self.dla.megabytes, dla_alone, dla_alone > 0)
        gpu_rate, dla_rate = np.ones_like(gpu_alone), np.ones_like(dla_alone)
        gpu_ms, dla_ms = gpu_alone, dla_alone
        for _ in range(SWEEPS):
            gpu_draws, dla_draws = gpu_asks * gpu_rate, dla_asks * dla_rate
            gpu_stretch = self._stretch(gpu_asks, self.cores * dla_draws) - 1
            dla_stretch = self._stretch(dla_asks, gpu_draws + np.maximum(self.cores - 1, 0) * dla_draws) - 1
            gpu_ms = gpu_alone + gpu_memory * gpu_stretch * np.exp(f["gpu_contention"])
            dla_ms = dla_alone + dla_memory * dla_stretch * np.exp(f["dla_contention"])
            gpu_rate, dla_rate = (
                _ratio(gpu_alone, gpu_ms, gpu_alone > 0),
                _ratio(dla_alone, dla_ms, dla_alone > 0),
            )
        most = np.maximum(1.0, (gpu_asks * gpu_rate + self.cores * dla_asks * dla_rate) / self.board.most)
        return gpu_ms * most, dla_ms * most

    def _stretch(self, asks: Array, others: Array) -> Array:
        """How much longer memory takes than alone: soft weighted max-min sharing, as `orin.virtual.machine` has it."""
        sustained = self.board.sustained
        available = np.maximum(self.floor * sustained, sustained - others)
        together, alone = (asks / available) ** self.knee, (asks / sustained) ** self.knee
        return np.asarray(((1 + together) / (1 + alone)) ** (1 / self.knee))

    @staticmethod
    def _cycle(busy_ms: Array, submit_ms: Array, depth: Array) -> Array:
        """Time from one item to the next: what is in flight hides the host's submission."""
        return np.maximum(busy_ms, (busy_ms + submit_ms) / depth)

    def _watts(self, f: Mapping[str, Array], use: _Use) -> Array:
        board = self.board
        gpu_w = board.gpu_w * np.exp(f["gpu_w"]) * board.gpu_clock ** f["gpu_w_clock"] * self.gpu.activity
        dla_w = board.dla_w * use.dla + board.any_dla_w * (self.cores > 0)
        return np.asarray(
            board.idle_w * np.exp(f["idle_w"])
            + gpu_w * use.gpu
            + dla_w * np.exp(f["dla_w"])
            + board.dram_w * use.traffic * np.exp(f["dram_w"])
            + use.host_w
        )


@dataclass(frozen=True)
class _Use:
    """How busy the board is [points]: GPU (0 to 1), DLA cores (0 to their number), DRAM in GB/s, host in watts."""

    gpu: Array
    dla: Array
    traffic: Array
    host_w: Array


def _ratio(top: Array, bottom: Array, where: NDArray[np.bool_]) -> Array:
    return np.asarray(np.where(where, top / np.where(where, bottom, 1.0), 0.0))


def _split(compute: Array, memory: Array, shift: Array) -> tuple[Array, Array]:
    """Move weight from memory to compute, so that the reference's sum stays."""
    both = np.maximum(compute + memory, 1e-12)
    return compute * np.exp(shift * memory / both), memory * np.exp(-shift * compute / both)
