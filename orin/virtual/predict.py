"""Predictions: a plan run on the machine as fast as it can be computed, with the model's documented errors."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Any

from engines.engine import Workload
from orin.errors import OrinError
from orin.mlperf import MULTISTREAM_SAMPLES, SCENARIOS
from orin.plan import Plan
from orin.roofline import Roofline, roofline
from orin.soc import GPU, Clocks, Soc
from orin.virtual.driver import Crew, Observed, offline, server, stream
from orin.virtual.machine import Machine
from orin.virtual.model import CostModel, EngineShape, clocks_of
from orin.virtual.parameters import Parameters, load_parameters
from power.quantity import Quantity

POWER_U95 = 0.08  # of module power: the model's documented error, as a share of the value
SERVER_LOAD = 0.8  # of the Offline rate, where no rate is asked for
SERVER_QUERIES = 20_000  # enough for a p99 of single-sample queries
STREAM_QUERIES = 256  # all alike, unless noise is on


@dataclass(frozen=True)
class Workloads:
    """What the engines of a plan hold: the network on the GPU, the (rewritten) one on a DLA and its GPU layers, and the
    tail engine behind each where there is one."""

    gpu: Workload
    dla: Workload
    dla_gpu_layers: tuple[str, ...] = ()
    gpu_tail: Workload | None = None
    dla_tail: Workload | None = None


@dataclass(frozen=True)
class Options:
    """How to predict: `samples` (of an Offline query) wins over `seconds`; `server_qps` None: 80 % of Offline.

    `processes` "separate" runs each engine in a process of its own; `full` runs every event; `seed` is that of Server's
    arrivals and, with `noise`, of the service times. `parameters` are a board's own (None: those of published rows).
    Clocks are locked, or with `dvfs`, the busy share that the GPU's governor aims at, caps: then the GPU's is the
    lowest step that leaves it no busier. `clocks` are those in force on a board (None: what the plan asks for).
    """

    seconds: float = 600.0
    samples: int | None = None
    server_qps: float | None = None
    processes: str = "one"
    full: bool = False
    seed: int = 0
    noise: bool = False
    parameters: Parameters | None = None
    dvfs: float | None = None
    clocks: Clocks | None = None


@dataclass(frozen=True)
class Varied:
    """What a plan does over a data set whose samples differ in length, of `mean_length` units on average.

    `latency_ms` has the mean and p50, p90, p99 over its samples; None in Offline, whose one query is the whole set.
    """

    data_set: str
    unit: str
    mean_length: float
    samples_per_s: float
    latency_ms: Mapping[str, float] | None

    @property
    def note(self) -> str:
        """Say it in one line."""
        whole = f"over {self.data_set} (mean {self.mean_length:.0f} {self.unit}): {_plain(self.samples_per_s, 3)}/s"
        if self.latency_ms is None:
            return whole
        return f"{whole}; ms: " + ", ".join(f"{name} {_plain(value, 4)}" for name, value in self.latency_ms.items())

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "latency_ms": dict(self.latency_ms) if self.latency_ms else None}


def _plain(value: float, digits: int) -> str:
    """Return a number with so many significant digits at least, never as a power of ten."""
    return f"{value:,.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


@dataclass(frozen=True)
class Prediction:
    """What the virtual board expects of a plan; power is that of the module (no carrier, no supply)."""

    network: str
    board: str
    stack: str
    scenario: str
    clocks: Clocks
    seconds: float
    samples_per_s: float
    latency_ms: Mapping[str, float]
    module_w: Quantity
    rails_w: Mapping[str, Quantity]
    samples_per_joule: Quantity
    speed_sd: float
    share: Mapping[str, float]
    utilisation: Mapping[str, float]
    dram_gb_per_s: float
    ceiling: Roofline
    notes: tuple[str, ...]
    varied: Varied | None = None

    @property
    def samples_per_s_u95(self) -> float:
        """Half of the 95 % interval, as if it lay evenly around the rate."""
        return self.samples_per_s * math.expm1(NormalDist().inv_cdf(0.975) * self.speed_sd)

    def interval(self, share: float = 0.8) -> tuple[float, float]:
        """Return the samples per second between which the board's lie with a probability, equal tails left out."""
        spread = math.exp(NormalDist().inv_cdf(0.5 + share / 2) * self.speed_sd)
        return self.samples_per_s / spread, self.samples_per_s * spread

    def as_json(self) -> dict[str, Any]:
        """Return the prediction under the keys that `orin bench --json` uses, and a few more."""
        rails = {name: watts.as_json() for name, watts in self.rails_w.items()}
        return {
            "provenance": "simulated",
            "network": self.network,
            "board": self.board,
            "stack": self.stack,
            "scenario": self.scenario,
            "samples_per_s": self.samples_per_s,
            "samples_per_s_u95": self.samples_per_s_u95,
            "samples_per_s_80": list(self.interval()),
            "latency_ms": dict(self.latency_ms),
            "power_w": {"module": self.module_w.as_json(), "rails": rails},
            "samples_per_joule": self.samples_per_joule.as_json(),
            "share": dict(self.share),
            "utilisation": dict(self.utilisation),
            "dram_gb_per_s": self.dram_gb_per_s,
            "ceiling_samples_per_s": self.ceiling.samples_per_s,
            "ceiling": self.ceiling.as_json(),
            "clocks": vars(self.clocks),
            "varied": self.varied.as_json() if self.varied else None,
            "notes": list(self.notes),
        }


def predict(
    plan: Plan, soc: Soc, scenario: str = "offline", workloads: Workloads | None = None, options: Options | None = None
) -> Prediction:
    """Predict a plan on a SoC; `workloads` may be left out for networks of the zoo.

    Raises OrinError for an unknown scenario, a network of which nothing is known, or an engine no DLA can run.
    """
    options = options or Options()
    _check(scenario, options)
    if scenario == "server" and options.server_qps is None:
        whole = predict(plan, soc, "offline", workloads, replace(options, samples=None, full=False, dvfs=None))
        options = replace(options, server_qps=SERVER_LOAD * whole.samples_per_s)
    shapes = plan_shapes(plan, soc, workloads or known_workloads(plan, options.parameters or load_parameters()))
    crew = _crew(plan, soc, shapes, options.clocks or clocks_of(plan, soc), options)
    if options.dvfs is not None:
        return _governed(crew, soc, scenario, options)
    return _prediction(crew, scenario, _observe(crew, scenario, options), options)


def _crew(plan: Plan, soc: Soc, shapes: Mapping[str, EngineShape], clocks: Clocks, options: Options) -> Crew:
    parameters = options.parameters or load_parameters()
    model = CostModel(soc, clocks, plan.stack, parameters)
    return Crew(plan, model, shapes, Machine(model, options.processes, service_noise(options, parameters)))


def _governed(crew: Crew, soc: Soc, scenario: str, options: Options) -> Prediction:
    """Predict at the lowest GPU clock that leaves it no busier than `dvfs`; at its cap where none does."""
    caps = crew.model.clocks
    for mhz in soc.gpu_steps_mhz(caps.gpu_mhz):
        slower = _crew(crew.plan, soc, crew.shapes, replace(caps, gpu_mhz=mhz), options)
        observed = _observe(slower, scenario, options)
        if observed.totals.busy_ns[GPU] <= (options.dvfs or 1.0) * observed.duration_ns:
            break
    return _prediction(slower, scenario, observed, options)


def service_ms(plan: Plan, soc: Soc, workloads: Workloads, options: Options, batch: int | None = None) -> float:
    """Return the milliseconds of one sample on the GPU alone: a query of its own, or a part of a batch in a row."""
    model = CostModel(soc, clocks_of(plan, soc), plan.stack, options.parameters)
    cost = model.cost(plan_shapes(plan, soc, workloads)[GPU], batch or 1)
    return 1e-6 * (cost.solo_ns / batch if batch else cost.submit_ns + cost.solo_ns)


def plan_shapes(plan: Plan, soc: Soc, workloads: Workloads) -> dict[str, EngineShape]:
    """Return what the model has to know of a plan's engines, by accelerator."""
    absent = [name for name in plan.accelerators if name not in soc.accelerators]
    if absent:
        raise OrinError(f"plan uses {absent[0]}, {soc.name} has {', '.join(soc.accelerators)}: lower dla_cores")
    gpu = EngineShape(plan.network, "gpu", plan.gpu_batch, plan.precision, workloads.gpu, (), workloads.gpu_tail)
    layers, tail = workloads.dla_gpu_layers, workloads.dla_tail
    dla = EngineShape(plan.network, "dla", plan.dla_batch, plan.precision, workloads.dla, layers, tail)
    shapes = {name: gpu if name == GPU else dla for name in plan.accelerators}
    return {name: replace(shape, sparse=plan.sparsity) for name, shape in shapes.items()}


def known_workloads(plan: Plan, parameters: Parameters) -> Workloads:
    """Return a zoo network's own workload; ResNet-50's DLA engine keeps GPU layers without both rewrites."""
    from engines.zoo import NETWORKS

    if plan.network not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise OrinError(f"network {plan.network!r} is not in the zoo ({known}): give its workloads")
    work = zoo_workload(plan.network)
    rewritten = {"global-pool", "gemm-to-conv"} <= set(plan.rewrites)
    fit = parameters.networks.get(plan.network)
    return Workloads(work, work, () if rewritten or fit is None else fit.unrewritten_gpu_layers)


@lru_cache(maxsize=16)
def zoo_workload(network: str) -> Workload:
    """Return what a zoo network asks for, as it is."""
    from engines.zoo import graph

    return graph(network).workload


def service_noise(options: Options, parameters: Parameters) -> Callable[[], float] | None:
    """Return a seeded source of lognormal factors on service times, or None for exact ones."""
    if not options.noise:
        return None
    source = random.Random(options.seed)
    return lambda: source.lognormvariate(0.0, parameters.shared["noise_cv"])


def ceiling(plan: Plan, model: CostModel, shapes: Mapping[str, EngineShape]) -> Roofline:
    """Return the roofline of a plan's accelerators at work, with the least DRAM traffic a sample has on any of them."""
    traffic = []
    for name, shape in shapes.items():
        batch = plan.gpu_batch if name == GPU else plan.dla_batch
        traffic.append(model.cost(shape, batch).dram_bytes / batch)
    macs = min(shape.workload.macs for shape in shapes.values()) // (2 if plan.sparsity else 1)  # zeros are skipped
    at_work = replace(plan, gpu_batch=plan.gpu_batch * (GPU in shapes), dla_cores=len(shapes.keys() - {GPU}))
    return roofline(at_work, model.soc, model.clocks, macs, min(traffic))


def _check(scenario: str, options: Options) -> None:
    if scenario not in SCENARIOS:
        raise OrinError(f"scenario is {scenario!r}, expected one of {', '.join(SCENARIOS)}")
    asked = {"seconds": options.seconds, "samples": options.samples, "server_qps": options.server_qps}
    for name, value in asked.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise OrinError(f"{name} is {value!r}, expected a positive number")
    if options.dvfs is not None and not 0 < options.dvfs <= 1:
        raise OrinError(f"dvfs is {options.dvfs!r}, expected a busy share above 0 and up to 1, such as 0.7")


def _observe(crew: Crew, scenario: str, options: Options) -> Observed:
    if scenario == "singlestream":
        return stream(crew, STREAM_QUERIES, 1)
    if scenario == "multistream":
        return stream(crew, STREAM_QUERIES, MULTISTREAM_SAMPLES)
    if scenario == "offline":
        return offline(crew, options.samples, options.seconds, options.full)
    per_s = options.server_qps
    assert per_s is not None, "predict() sets it"
    queries = options.samples or max(1, round(options.seconds * per_s))
    return server(crew, queries if options.full else min(SERVER_QUERIES, queries), per_s, options.seed)


def _notes(crew: Crew, used: list[EngineShape], speed_u95: float, options: Options) -> tuple[str, ...]:
    notes = [
        *crew.model.notes(used),
        f"u95: speed {speed_u95:.0%}, module power {POWER_U95:.0%} (documented model error)",
    ]
    if crew.plan.mode is None and crew.plan.clocks_mhz is None and options.clocks is None:
        notes.append(f"plan holds no power mode: {crew.model.soc.fullest_mode}")
    if options.dvfs is not None:
        settled = f"where the GPU is at most {options.dvfs:.0%} busy, or its cap; no published row shows it"
        notes.append(f"clocks are caps: the GPU's settles at {crew.model.clocks.gpu_mhz:g} MHz, {settled}")
    if options.processes == "separate":
        notes.append("separate processes: switching constants are in-sample (three published co-runs)")
    return tuple(notes)


def _prediction(crew: Crew, scenario: str, observed: Observed, options: Options) -> Prediction:
    plan, model = crew.plan, crew.model
    seconds = observed.duration_ns * 1e-9
    total = sum(observed.samples.values())
    rails_w = {name: joules / seconds for name, joules in observed.totals.rail_j.items()}
    module_w = sum(rails_w[rail.name] for rail in model.soc.board.total_rails())
    used = {name: crew.shapes[name] for name, count in observed.samples.items() if count}
    speed_sd = _speed_sd(crew, observed)
    speed_u95 = NormalDist().inv_cdf(0.975) * speed_sd
    per_joule = total / seconds / module_w
    everyone = model.soc.accelerators
    return Prediction(
        network=plan.network,
        board=f"virtual:{model.soc.name}",
        stack=plan.stack,
        scenario=scenario,
        clocks=model.clocks,
        seconds=seconds,
        samples_per_s=total / seconds,
        speed_sd=speed_sd,
        latency_ms=latency_ms(observed.latencies_ns),
        module_w=Quantity(module_w, POWER_U95 * module_w),
        rails_w={name: Quantity(watts, POWER_U95 * watts) for name, watts in rails_w.items()},
        samples_per_joule=Quantity(per_joule, per_joule * math.hypot(speed_u95, POWER_U95)),
        share={name: observed.samples.get(name, 0.0) / total for name in everyone},
        utilisation={name: observed.totals.busy_ns[name] / observed.duration_ns for name in everyone},
        dram_gb_per_s=observed.totals.dram_bytes / observed.duration_ns,
        ceiling=ceiling(plan, model, used),
        notes=_notes(crew, list(used.values()), speed_u95, options),
    )


def _speed_sd(crew: Crew, observed: Observed) -> float:
    """Spread of the rate: GPU and DLA are off independently of each other, the two DLA cores together."""
    total = sum(observed.samples.values())
    parts: dict[str, float] = {}
    for name, count in observed.samples.items():
        if count:
            shape = crew.shapes[name]
            parts[shape.device] = parts.get(shape.device, 0.0) + count / total * crew.model.speed_sd(shape)
    together = crew.model.parameters.shared["together_sd"] if len(parts) > 1 else 0.0
    return math.hypot(*parts.values(), together)


def latency_ms(latencies_ns: list[float]) -> dict[str, float]:
    """Return mean and percentiles (nearest rank) of query latencies."""
    ordered = sorted(latencies_ns)
    rank = {p: ordered[math.ceil(p / 100 * len(ordered)) - 1] * 1e-6 for p in (50, 90, 99)}
    return {"mean": sum(ordered) / len(ordered) * 1e-6, **{f"p{p}": value for p, value in rank.items()}}
