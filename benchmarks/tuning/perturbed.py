"""The board that the tuner is graded on: close to what was published, and wrong for every model of it.

Nothing here comes from the virtual Orin or from the tuner: a network is nine numbers (`networks.yaml`), a steady state
is solved for whole arrays of settings at once, and DRAM is shared by another law, which differs from board to board.
Only `Plan` and the facts of the SoC are common ground. The parameter file is read as data: its covariance says how far
a board may lie from the published ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from orin.plan import Plan
from orin.soc import AGX_ORIN_64GB_SOC as SOC
from tuning.forms import Form

Floats = NDArray[Any]
NETWORKS_PATH = Path(__file__).with_name("networks.yaml")
CONTENTION = ("norm 1", "norm 1.5", "norm 2", "DLA first", "GPU first")
UNEXPECTED_SHARE = 0.15  # of networks have GPU work inside the DLA engine that no tool reported
PRIOR_SD = {"gpu_compute": 0.2, "gpu_memory": 0.3, "dla_compute": 0.15, "dla_memory": 0.3}  # of factors never measured
LAW = {  # shared parameter of the file that a factor goes against
    "gpu_compute": "law.gpu_efficiency",
    "gpu_memory": "law.gpu_memory_share",
    "dla_compute": "law.dla_efficiency",
    "dla_memory": "law.dla_gb_per_s",
}
REWRITES = frozenset({"global-pool", "gemm-to-conv", "cut-tail"})
BOUNDARY_MS = 0.07  # of each change between DLA and GPU inside an engine; published 0.07 +- 0.07
HOST_MS, SUBMIT_MS = 0.14, 0.16  # of a GPU and of a DLA work item, hidden behind the one before
SWEEPS = 20


@dataclass(frozen=True)
class Network:
    """Nine numbers of one network on one board, and what no tool reported; units as in `networks.yaml`."""

    gpu_compute: float
    gpu_memory: float
    gpu_fixed_ms: float
    dla_compute: float
    dla_memory: float
    dla_weight_ms: float
    gpu_mb: float
    dla_mb: float
    tail_ms: float
    unexpected_ms: float = 0.0  # of GPU work for each DLA sample


@dataclass(frozen=True)
class Nature:
    """What makes one board differ from the next: constants of its memory, host, power, noise and cooling."""

    contention: str
    dram_share: float
    norm: float  # how DLA arithmetic and memory add up: 1 one after the other
    gpu_spill: float  # more memory time for each doubling of the batch from 16 on
    dla_spill: float
    host: float
    idle_w: float
    gpu_w: float
    dla_w: float
    w_per_gb_s: float
    gpu_exponent: float
    drift: float  # standard deviation of the slow wander of speed
    noise: float  # between runs
    cooling_s: float
    throttle_w: float  # heat that the cooler takes for ever


@dataclass(frozen=True, eq=False)
class Settings:
    """Plans as columns, one entry each; clocks in MHz."""

    gpu_batch: Floats
    dla_batch: Floats
    dla_loop: Floats
    dla_cores: Floats
    gpu_depth: Floats
    dla_depth: Floats
    gpu_mhz: Floats
    dla_mhz: Floats
    emc_mhz: Floats
    cpu_mhz: Floats
    cuts: Floats  # changes to the GPU inside the DLA engine, for want of rewrites
    gpu_tail: Floats
    copies: Floats  # 1 where inputs are copied to the device first

    @classmethod
    def of(cls, plans: Sequence[Plan]) -> Settings:
        """Lay plans out as columns."""
        return cls(*np.array([_row(plan) for plan in plans], dtype=float).T)

    def take(self, where: Any) -> Settings:
        """Return some of the entries."""
        return Settings(*(getattr(self, field.name)[where] for field in fields(self)))


@dataclass(frozen=True, eq=False)
class Steady:
    """What settings come to on a quiet, cool board: no noise, no drift."""

    samples_per_s: Floats
    module_w: Floats
    latency_ms: Floats
    items_per_s: Floats
    gpu_share: Floats  # of the samples

    @property
    def samples_per_joule(self) -> Floats:
        """Samples per second per watt of the module."""
        return self.samples_per_s / self.module_w


def _row(plan: Plan) -> tuple[float, ...]:
    mhz = SOC.max_clocks.as_mhz() if plan.mode is None else SOC.clocks(plan.mode).as_mhz()
    mhz.update(plan.clocks_mhz or {})
    counts = (plan.gpu_batch, plan.dla_batch, plan.dla_loop, plan.dla_cores, plan.gpu_depth, plan.dla_depth)
    cuts = len(REWRITES - set(plan.rewrites))
    return (
        *counts,
        *(mhz[name] for name in ("gpu", "dla", "emc", "cpu")),
        cuts,
        plan.tail == "gpu",
        plan.memory == "device",
    )


class PerturbedBoard:
    """One network on one board: `steady` is the truth, `run` what a run of some seconds shows of it."""

    def __init__(self, name: str, network: Network, nature: Nature, seed: int) -> None:
        self.name, self.network, self.nature = name, network, nature
        self.clock_s = 0.0
        self._random = np.random.default_rng([seed, 1])
        self._wander = 0.0
        self._heat_w = nature.idle_w

    def steady(self, settings: Settings) -> Steady:
        """Solve the steady state of many settings at once: rates, DRAM traffic and GPU sharing settle together."""
        state = _State(np.zeros_like(settings.gpu_batch), np.zeros_like(settings.gpu_batch))
        for _ in range(SWEEPS):
            flow = _flow(self.network, self.nature, settings, state)
            state = state.towards(flow)
        return _steady(self.nature, settings, flow)

    def run(self, plan: Plan, seconds: float) -> Run:
        """Run a plan for some seconds of the board's life."""
        settings = Settings.of([plan])
        truth = self.steady(settings)
        watts = float(truth.module_w[0])
        throttled = self._warm(watts, seconds)
        if throttled:
            truth = self.steady(replace(settings, gpu_mhz=0.85 * settings.gpu_mhz))
        items = max(1.0, float(truth.items_per_s[0]) * seconds)
        scatter = 0.05 / float(np.sqrt(items))  # 5 % from item to item
        spread = float(np.hypot(self.nature.noise, scatter))
        factor = float(np.exp(self._drifted(seconds) + self._random.normal(0.0, spread)))
        power = float(truth.module_w[0] * np.exp(self._random.normal(0.0, self.nature.noise)))
        self.clock_s += seconds
        rate, latency_ms = float(truth.samples_per_s[0]) * factor, float(truth.latency_ms[0]) / factor
        return Run(rate, power, latency_ms, 1.96 * scatter, seconds, throttled, float(truth.gpu_share[0]))

    def rest(self, plan: Plan, seconds: float) -> float:
        """Let the board idle at a plan's clocks; returns its module watts as read then."""
        watts = float(_idle_w(self.nature, Settings.of([plan]))[0])
        self._warm(watts, seconds)
        self._drifted(seconds)
        self.clock_s += seconds
        return watts * float(np.exp(self._random.normal(0.0, 2 * self.nature.noise)))

    def _warm(self, watts: float, seconds: float) -> bool:
        """Heat lags power by the cooler's time; say whether the run met the limit."""
        share = 1 - float(np.exp(-seconds / self.nature.cooling_s))
        self._heat_w += share * (watts - self._heat_w)
        return self._heat_w > self.nature.throttle_w

    def _drifted(self, seconds: float) -> float:
        """Speed wanders with a memory of five minutes."""
        keep = float(np.exp(-seconds / 300))
        self._wander = keep * self._wander + self.nature.drift * float(np.sqrt(1 - keep * keep) * self._random.normal())
        return self._wander


@dataclass(frozen=True)
class Run:
    """What a run showed: `u95` is half of the rate's 95 % interval by the scatter of its items, as a share."""

    samples_per_s: float
    module_w: float
    latency_ms: float
    u95: float
    seconds: float
    throttled: bool
    gpu_share: float


@dataclass(frozen=True, eq=False)
class _State:
    """Traffic of the GPU and of one DLA core, bytes per second."""

    gpu: Floats
    dla: Floats
    gpu_busy: Any = 1.0
    lost: Any = 0.0

    def towards(self, flow: _Flow) -> _State:
        half = [0.5 * (old + new) for old, new in ((self.gpu, flow.gpu_bytes), (self.dla, flow.dla_bytes))]
        return _State(half[0], half[1], 0.5 * (self.gpu_busy + flow.gpu_own), 0.5 * (self.lost + flow.lost))


@dataclass(frozen=True, eq=False)
class _Flow:
    """One sweep: rates in samples per ms, periods of work items in ms, busy shares, bytes per second."""

    gpu_rate: Floats
    dla_rate: Floats  # of one core
    gpu_period_ms: Floats
    dla_period_ms: Floats
    gpu_own: Floats
    dla_busy: Floats
    lost: Floats  # share of the GPU that DLA engines take
    gpu_bytes: Floats
    dla_bytes: Floats


def _flow(network: Network, nature: Nature, s: Settings, state: _State) -> _Flow:
    gpu_slow, host_slow = SOC.max_clocks.gpu_mhz / s.gpu_mhz, nature.host * SOC.max_clocks.cpu_mhz / s.cpu_mhz
    emc_slow = SOC.max_clocks.emc_mhz / s.emc_mhz
    gpu_stretch, dla_stretch = _stretches(nature, s, state)
    n, m = np.maximum(1.0, s.gpu_batch), s.dla_batch
    spilled = 1 + nature.gpu_spill * np.maximum(0.0, np.log2(n / 16)) + 0.15 * s.copies
    sample_ms = network.gpu_compute * gpu_slow + network.gpu_memory * spilled * emc_slow * gpu_stretch
    gpu_ms = (network.gpu_fixed_ms * gpu_slow + n * sample_ms) / np.maximum(0.05, 1 - state.lost)
    gpu_period = np.maximum(gpu_ms, (gpu_ms + HOST_MS * host_slow) / s.gpu_depth)
    side_ms = (s.cuts * BOUNDARY_MS + m * (network.unexpected_ms + s.gpu_tail * network.tail_ms)) * gpu_slow
    item_ms = s.dla_loop * (_dla_ms(network, nature, s, dla_stretch * emc_slow) + side_ms * (1 + state.gpu_busy))
    submit_ms = SUBMIT_MS * host_slow + 0.01 * s.dla_loop
    dla_period = np.maximum(item_ms, (item_ms + submit_ms) / s.dla_depth)
    gpu_rate = np.where(s.gpu_batch > 0, n / gpu_period, 0.0)
    dla_rate = np.where(s.dla_cores > 0, m * s.dla_loop / dla_period, 0.0)
    return _Flow(
        gpu_rate=gpu_rate,
        dla_rate=dla_rate,
        gpu_period_ms=gpu_period,
        dla_period_ms=dla_period,
        gpu_own=np.where(s.gpu_batch > 0, np.minimum(1.0, gpu_ms / gpu_period), 0.0),
        dla_busy=np.where(s.dla_cores > 0, item_ms / dla_period, 0.0),
        lost=np.minimum(0.95, s.dla_cores * dla_rate / m * side_ms),
        gpu_bytes=gpu_rate * network.gpu_mb * spilled * 1e9,
        dla_bytes=dla_rate * network.dla_mb * 1e9,
    )


def _dla_ms(network: Network, nature: Nature, s: Settings, memory_slow: Floats) -> Floats:
    """One enqueue of a DLA: weights once a batch, activations out of SRAM with large ones, parts added by a norm.

    The norm is scaled to give the published time, where both parts are as they were measured (batch 2, full clocks).
    """
    p, m = nature.norm, s.dla_batch
    here = network.dla_memory * (1 + nature.dla_spill * np.maximum(0.0, np.log2(m / 2))) + network.dla_weight_ms / m
    measured = (network.dla_compute / 1.6, network.dla_memory + network.dla_weight_ms / 2)
    scale = sum(measured) / sum(part**p for part in measured) ** (1 / p)
    parts = (network.dla_compute * 1e3 / s.dla_mhz) ** p + (here * memory_slow) ** p
    return np.asarray(m * scale * parts ** (1 / p))


def _stretches(nature: Nature, s: Settings, state: _State) -> tuple[Floats, Floats]:
    """How much longer memory takes on the GPU and on a DLA than alone."""
    limit = nature.dram_share * SOC.dram_bytes_per_clk * 1e6 * s.emc_mhz
    dlas = s.dla_cores * state.dla
    for_gpu, for_dla = dlas / limit, (state.gpu + np.maximum(0.0, s.dla_cores - 1) * state.dla) / limit
    over = np.maximum(1.0, (state.gpu + dlas) / limit)
    if nature.contention == "DLA first":
        return 1 / (1 - np.minimum(0.8, for_gpu)), over
    if nature.contention == "GPU first":
        return over, 1 / (1 - np.minimum(0.8, for_dla))
    p = float(nature.contention.split()[1])
    return over * (1 + for_gpu**p) ** (1 / p), over * (1 + for_dla**p) ** (1 / p)


def _idle_w(nature: Nature, s: Settings) -> Floats:
    top = SOC.max_clocks
    return np.asarray(nature.idle_w * (0.7 + 0.15 * s.emc_mhz / top.emc_mhz + 0.15 * s.cpu_mhz / top.cpu_mhz))


def _steady(nature: Nature, s: Settings, flow: _Flow) -> Steady:
    top = SOC.max_clocks
    busy = np.minimum(1.0, flow.gpu_own + flow.lost)
    gpu_w = nature.gpu_w * busy * (s.gpu_mhz / top.gpu_mhz) ** nature.gpu_exponent
    dla_w = nature.dla_w * s.dla_cores * flow.dla_busy * (s.dla_mhz / top.dla_mhz) ** 1.44
    bytes_per_s = flow.gpu_bytes + s.dla_cores * flow.dla_bytes
    latencies = (
        np.where(s.gpu_batch > 0, s.gpu_depth * flow.gpu_period_ms, 0.0),
        np.where(s.dla_cores > 0, s.dla_depth * flow.dla_period_ms, 0.0),
    )
    items = np.where(s.gpu_batch > 0, 1e3 / flow.gpu_period_ms, 0) + s.dla_cores * 1e3 / flow.dla_period_ms
    return Steady(
        samples_per_s=1e3 * (flow.gpu_rate + s.dla_cores * flow.dla_rate),
        module_w=_idle_w(nature, s) + gpu_w + dla_w + 0.47 * (s.dla_cores > 0) + nature.w_per_gb_s * bytes_per_s * 1e-9,
        latency_ms=np.maximum(*latencies),
        items_per_s=items,
        gpu_share=flow.gpu_rate / (flow.gpu_rate + s.dla_cores * flow.dla_rate),
    )


@lru_cache(maxsize=1)
def published_networks() -> dict[str, Network]:
    """Return the networks as published, before any board perturbs them."""
    text = yaml.safe_load(NETWORKS_PATH.read_text(encoding="utf-8"))
    return {name: Network(**{k: v for k, v in row.items() if k != "source"}) for name, row in text.items()}


def factors(
    names: Sequence[str], parameters: Mapping[str, Any], random: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Draw one board's four factors for each network from the covariance of the parameter document.

    Shared and network parameters are drawn together, as they were fitted; a factor that no row measured has the prior.
    """
    belief = parameters.get("belief", {"names": [], "covariance": []})
    lower = [list(row) for row in belief["covariance"]]
    covariance = np.zeros((len(lower), len(lower)))
    for i, row in enumerate(lower):
        covariance[i, : len(row)] = row
        covariance[: len(row), i] = row
    drawn = random.multivariate_normal(np.zeros(len(lower)), covariance, method="eigh") if lower else ()
    moved = dict(zip(belief["names"], map(float, drawn)))
    own = {}
    for name in names:
        logs = {}
        for factor, sd in PRIOR_SD.items():
            prior = float(random.normal(0.0, sd))  # always drawn: the same seed gives the same later numbers
            logs[factor] = moved.get(f"networks.{name}.{factor}", prior) - moved.get(LAW[factor], 0.0)
        own[name] = {factor: float(np.exp(log)) for factor, log in logs.items()}
    return own


def _in_form(network: Network, form: Form) -> Network:
    """A network with more or fewer channels on larger or smaller images, by what each of its numbers counts."""
    by = (
        (form.macs, ("gpu_compute", "dla_compute")),
        (form.tensors, ("gpu_memory", "dla_memory", "gpu_mb", "dla_mb")),
        (form.weights, ("dla_weight_ms",)),
        (form.side**2, ("tail_ms",)),
    )
    sizes = [(name, factor) for factor, names in by for name in names]
    return replace(network, **{name: getattr(network, name) * factor for name, factor in sizes})


def board(name: str, seed: int, parameters: Mapping[str, Any]) -> PerturbedBoard:
    """Draw the board of a seed with one network on it."""
    random = np.random.default_rng([seed, sum(name.encode())])
    base = _in_form(published_networks()[Form.of(name).base], Form.of(name))
    own = factors([name], parameters, random)[name]
    values = {field.name: getattr(base, field.name) for field in fields(base)}
    values.update({factor: values[factor] * size for factor, size in own.items()})
    dla_ms = values["dla_compute"] / 1.6 + values["dla_memory"]
    unexpected = random.random() < UNEXPECTED_SHARE
    values["unexpected_ms"] = float(random.uniform(0.05, 0.4)) * dla_ms if unexpected else 0.0
    return PerturbedBoard(name, Network(**values), _nature(random), seed)


def _nature(random: np.random.Generator) -> Nature:
    """Constants as published for one devkit (module power: idle 7.6 W, GPU 17.9 W, 3.9 W a core), and their spread."""

    def around(value: float, sd: float) -> float:
        return float(value * np.exp(random.normal(0.0, sd)))

    return Nature(
        contention=str(random.choice(CONTENTION)),
        dram_share=float(random.uniform(0.80, 0.92)),
        norm=float(random.choice((1.0, 1.5, 2.0))),
        gpu_spill=float(random.uniform(0.0, 0.06)),
        dla_spill=float(random.uniform(0.0, 0.12)),
        host=around(1.0, 0.2),
        idle_w=around(7.6, 0.08),
        gpu_w=around(17.9, 0.08),
        dla_w=around(3.9, 0.08),
        w_per_gb_s=around(0.114, 0.15),
        gpu_exponent=float(random.uniform(1.4, 1.8)),
        drift=float(random.uniform(0.0, 0.01)),
        noise=0.005,
        cooling_s=float(random.uniform(60, 240)),
        throttle_w=float(random.choice((26.0, 60.0), p=(0.2, 0.8))),
    )
