"""The tuner's model: every plan of a space at once, as steady-state rates, watts and latencies.

Costs of engines come from the virtual Orin's cost model. What differs from board to board enters as a few factors
(`orin.tune.factors`), zero where the model is right as it stands: `orin.tune.refit` finds them from runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orin.tune.factors import FACTORS, hypotheses, prior_sd
from orin.tune.space import Space
from orin.tune.tables import Array, EngineColumns, Tables
from orin.virtual.parameters import Parameters, load_parameters

HIDDEN_GPU_SHARE = 0.004  # of a DLA engine's time that runs on the GPU unseen, before anything is measured
USUAL_GPU_BATCH, USUAL_DLA_BATCH = 32, 2  # where times are as published
# Of idle power, what follows the memory's and the CPU's clock: idle is 0.4 W on the CPU's rail and 4.0 of 7.6 W on the
# one that feeds memory, most of it without a clock.
IDLE_EMC_SHARE, IDLE_CPU_SHARE = 0.1, 0.1
SWEEPS = 3  # of the DRAM shares' fixed point


@dataclass(frozen=True)
class Scores:
    """What the model expects [points]: samples per second by kind of accelerator, module watts (running and idle),
    latency of an item."""

    gpu_per_s: Array
    dla_per_s: Array
    module_w: Array
    idle_w: Array
    latency_ms: Array

    @property
    def samples_per_s(self) -> Array:
        """Both together."""
        return self.gpu_per_s + self.dla_per_s


class PlanModel:
    """Scores a space; `prior_sd` [factors] says how far off each factor may be before anything is measured."""

    factors = tuple(FACTORS)

    def __init__(self, space: Space, parameters: Parameters | None = None) -> None:
        self.space = space
        parameters = parameters or load_parameters()
        self.shared = parameters.shared
        tables = Tables(space, parameters)
        self.gpu = tables.gpu.at((space.gpu, space.setting))
        self.dla = tables.dla.at((space.dla, space.setting))
        self.board = tables.board.at(space.setting)
        self.gpu_batch = np.array([half.batch for half in space.gpu_halves], float)[space.gpu]
        self.gpu_depth = np.array([half.depth for half in space.gpu_halves], float)[space.gpu]
        rows = [(half.cores, half.batch, half.loop, half.depth) for half in space.dla_halves]
        self.cores, self.dla_batch, self.loop, self.dla_depth = np.array(rows, float)[space.dla].T
        mhz = [list(model.clocks.as_mhz().values()) for model in tables.models]
        self.clocks = np.log2(np.array(mhz, float))[space.setting]  # log2 of GPU, DLA, DRAM and CPU, [points, 4]
        self.gpu_share = _compute_share(self.gpu, self.gpu_batch > 0)
        self.dla_share = _compute_share(self.dla, self.cores > 0)
        self.activity = float(self.gpu.activity.max(initial=1.0))  # of the GPU, at its most
        self.prior_sd = prior_sd(space, tables.models[0])
        self.hypotheses = hypotheses(self.prior_sd)

    def scores(self, factors: Array, points: NDArray[np.intp] | slice = slice(None)) -> Scores:
        """Return what is expected [..., points] under factors [..., factor], logarithms."""
        by_name = {name: factors[..., at, None] for at, name in enumerate(self.factors)}
        return _View(self, points).scores(by_name)


class _View:
    """Some points of a model, and the arithmetic of one evaluation."""

    def __init__(self, model: PlanModel, points: NDArray[np.intp] | slice) -> None:
        self.gpu, self.dla, self.board = model.gpu.at(points), model.dla.at(points), model.board.at(points)
        self.gpu_batch, self.gpu_depth = model.gpu_batch[points], model.gpu_depth[points]
        self.cores, self.dla_batch = model.cores[points], model.dla_batch[points]
        self.loop, self.dla_depth = model.loop[points], model.dla_depth[points]
        self.floor, self.knee = model.shared["dram_floor"], model.shared["dram_knee"]
        self.gpu_share, self.dla_share, self.activity = model.gpu_share, model.dla_share, model.activity

    def scores(self, f: Mapping[str, Array]) -> Scores:
        """Rates from times alone, DRAM shares, the GPU's lost time and gaps; then watts."""
        has_gpu, has_dla = self.gpu_batch > 0, self.cores > 0
        gpu, dla, hidden_ms = self._gpu_alone(f), self._dla_alone(f), self._hidden_ms(f)
        gpu_mb = self.gpu.megabytes * np.exp(f["gpu_traffic"])
        dla_mb = self.dla.megabytes * np.exp(f["dla_traffic"])
        gpu_ms, dla_ms = self._sharing(f, gpu, dla)
        inside_ms = np.where(has_dla, self.dla.on_gpu_ms + hidden_ms, 0.0)
        engine_ms = dla_ms + inside_ms * (1 + has_gpu)
        dla_item_ms = _cycle(engine_ms * self.loop, self.dla.submit_ms * np.exp(f["dla_host"]), self.dla_depth)
        lost = np.minimum(0.9, self.cores * self.loop * inside_ms / np.maximum(dla_item_ms, 1e-9))
        gpu_item_ms = _cycle(gpu_ms / (1 - lost), self.gpu.submit_ms * np.exp(f["gpu_host"]), self.gpu_depth)
        hidden = np.minimum(0.9, self.cores * _ratio(hidden_ms * self.loop, dla_item_ms, has_dla))
        use = _Use(
            gpu=_ratio(gpu_ms, gpu_item_ms, has_gpu),
            gpu_hidden=hidden,
            dla=self.cores * _ratio(dla_ms * self.loop, dla_item_ms, has_dla),
            traffic=_ratio(gpu_mb, gpu_item_ms, has_gpu)
            + self.cores * _ratio(dla_mb * self.loop, dla_item_ms, has_dla),
            host_w=_ratio(self.gpu.host_mj, gpu_item_ms, has_gpu)
            + self.cores * _ratio(self.dla.host_mj * self.loop, dla_item_ms, has_dla),
        )
        latency_ms = np.maximum(
            np.where(has_gpu, self.gpu_depth * gpu_item_ms, 0), np.where(has_dla, self.dla_depth * dla_item_ms, 0)
        )
        idle_w = self._idle_w(f)
        return Scores(
            gpu_per_s=1e3 * _ratio(self.gpu_batch, gpu_item_ms, has_gpu),
            dla_per_s=1e3 * _ratio(self.cores * self.dla_batch * self.loop, dla_item_ms, has_dla),
            module_w=idle_w + self._dynamic_w(f, use),
            idle_w=idle_w,
            latency_ms=latency_ms,
        )

    # -- times --------------------------------------------------------------------------------------------------------

    def _gpu_alone(self, f: Mapping[str, Array]) -> tuple[Array, Array]:
        """Compute and memory time of a GPU enqueue with the factors on them."""
        gpu = self.gpu
        slower = np.exp(f["gpu_time"]) * (np.maximum(self.gpu_batch, 1) / USUAL_GPU_BATCH) ** f["gpu_time_batch"]
        memory = gpu.memory_ms * self.board.gpu_reach ** f["gpu_memory_clock"]
        compute, memory = _split(gpu.compute_ms, memory, self.gpu_share, f["gpu_split"])
        compute = slower * np.maximum(compute + gpu.fixed_ms * (np.exp(f["gpu_fixed"]) - 1), 0.05 * gpu.compute_ms)
        gaps = np.maximum(0.0, gpu.launch_ms * np.exp(f["gpu_launch"]) - compute - slower * memory)
        return compute + gaps, slower * memory

    def _dla_alone(self, f: Mapping[str, Array]) -> tuple[Array, Array]:
        """The same of a DLA enqueue: its fixed part is the weights that it reads."""
        dla = self.dla
        slower = np.exp(f["dla_time"]) * (np.maximum(self.dla_batch, 1) / USUAL_DLA_BATCH) ** f["dla_time_batch"]
        compute, memory = _split(dla.compute_ms, dla.memory_ms, self.dla_share, f["dla_split"])
        reads = dla.fixed_ms * (np.exp(f["dla_weights"]) - 1)
        return slower * compute, slower * np.maximum(memory + reads, 0.05 * dla.memory_ms)

    def _hidden_ms(self, f: Mapping[str, Array]) -> Array:
        """GPU work inside a DLA enqueue that nothing reports; it follows the GPU's clock."""
        whole = (self.dla.compute_ms + self.dla.memory_ms) * self.board.dla_clock / self.board.gpu_clock
        return np.asarray(HIDDEN_GPU_SHARE * np.exp(f["dla_hidden_gpu"]) * whole)

    def _sharing(
        self, f: Mapping[str, Array], gpu: tuple[Array, Array], dla: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        """Times of an enqueue with DRAM shared, from compute and memory time alone."""
        gpu_alone, dla_alone = gpu[0] + gpu[1], dla[0] + dla[1]
        gpu_asks = _ratio(self.gpu.megabytes * np.exp(f["gpu_traffic"]), gpu_alone, gpu_alone > 0)
        dla_asks = _ratio(self.dla.megabytes * np.exp(f["dla_traffic"]), dla_alone, dla_alone > 0)
        gpu_rate, dla_rate = np.ones_like(gpu_alone), np.ones_like(dla_alone)
        gpu_ms, dla_ms = gpu_alone, dla_alone
        knee = self.knee * np.exp(f["dram_knee"])
        gpu_unshared, dla_unshared = (1 + (asks / self.board.sustained) ** knee for asks in (gpu_asks, dla_asks))
        for _ in range(SWEEPS):
            gpu_draws, dla_draws = gpu_asks * gpu_rate, dla_asks * dla_rate
            gpu_stretch = (self._shared(gpu_asks, self.cores * dla_draws, knee) / gpu_unshared) ** (1 / knee) - 1
            beside = gpu_draws + np.maximum(self.cores - 1, 0) * dla_draws
            dla_stretch = (self._shared(dla_asks, beside, knee) / dla_unshared) ** (1 / knee) - 1
            gpu_ms = gpu_alone + gpu[1] * gpu_stretch * np.exp(f["gpu_contention"])
            dla_ms = dla_alone + dla[1] * dla_stretch * np.exp(f["dla_contention"])
            gpu_rate, dla_rate = _ratio(gpu_alone, gpu_ms, gpu_alone > 0), _ratio(dla_alone, dla_ms, dla_alone > 0)
        most = np.maximum(1.0, (gpu_asks * gpu_rate + self.cores * dla_asks * dla_rate) / self.board.most)
        return gpu_ms * most, dla_ms * most

    def _shared(self, asks: Array, others: Array, knee: Array) -> Array:
        """How memory stretches beside others, to the power of the knee: soft max-min, as in `orin.virtual.machine`."""
        available = np.maximum(self.floor * self.board.sustained, self.board.sustained - others)
        return np.asarray(1 + (asks / available) ** knee)

    # -- watts --------------------------------------------------------------------------------------------------------

    def _idle_w(self, f: Mapping[str, Array]) -> Array:
        board = self.board
        emc = IDLE_EMC_SHARE * np.exp(f["idle_w_emc"]) * (board.emc_clock - 1)
        cpu = IDLE_CPU_SHARE * np.exp(f["idle_w_cpu"]) * (board.cpu_clock - 1)
        return np.asarray(board.idle_w * np.exp(f["idle_w"]) * np.maximum(0.1, 1 + emc + cpu))

    def _dynamic_w(self, f: Mapping[str, Array], use: _Use) -> Array:
        board = self.board
        activity = self.gpu.activity * (np.maximum(self.gpu.activity, 1e-9) / self.activity) ** f["gpu_w_arithmetic"]
        gpu_w = board.gpu_w * np.exp(f["gpu_w"]) * board.gpu_clock ** f["gpu_w_clock"]
        dla_w = board.dla_w * use.dla * board.dla_clock ** f["dla_w_clock"] + board.any_dla_w * (self.cores > 0)
        dram_w = board.dram_w * use.traffic * np.exp(f["dram_w"])
        on_gpu_w = gpu_w * (activity * use.gpu + use.gpu_hidden)
        return np.asarray(on_gpu_w + dla_w * np.exp(f["dla_w"]) + dram_w + use.host_w)


@dataclass(frozen=True)
class _Use:
    """How busy the board is [points]: GPU (0 to 1) by its own engine and by hidden work of the DLAs', DLA cores (0 to
    their number), DRAM in GB/s, host in watts."""

    gpu: Array
    gpu_hidden: Array
    dla: Array
    traffic: Array
    host_w: Array


def _cycle(busy_ms: Array, submit_ms: Array, depth: Array) -> Array:
    """Time from one item to the next: what is in flight hides the host's submission."""
    return np.maximum(busy_ms, (busy_ms + submit_ms) / depth)


def _ratio(top: Array, bottom: Array, where: NDArray[np.bool_]) -> Array:
    return np.asarray(np.where(where, top / np.where(where, bottom, 1.0), 0.0))


def _compute_share(engine: EngineColumns, where: NDArray[np.bool_]) -> float:
    """Arithmetic's share of the time at the highest clocks and a large batch: where a byte takes least."""
    both = (engine.compute_ms + engine.memory_ms) / np.maximum(engine.megabytes, 1e-9)
    if not where.any():
        return 0.5
    at = int(np.argmin(np.where(where, both, np.inf)))
    return float(engine.compute_ms[at] / (engine.compute_ms[at] + engine.memory_ms[at]))


def _split(compute: Array, memory: Array, share: float, shift: Array) -> tuple[Array, Array]:
    """Move weight from memory to compute; where compute's part is `share`, their sum stays."""
    more, less = np.exp(shift * (1 - share)), np.exp(-shift * share)
    whole = share * more + (1 - share) * less
    return compute * more / whole, memory * less / whole
