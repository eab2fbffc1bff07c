"""Predictions: a plan run on the machine as fast as it can be computed, with the model's documented errors."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engines.engine import Workload
from orin.errors import OrinError
from orin.mlperf import MULTISTREAM_SAMPLES, SCENARIOS
from orin.plan import Plan
from orin.roofline import Roofline, roofline
from orin.soc import GPU, Clocks, Soc
from orin.virtual.driver import Crew, Observed, offline, server, stream
from orin.virtual.machine import Machine
from orin.virtual.model import RESTING_MODE, CostModel, EngineShape, clocks_of
from orin.virtual.parameters import Parameters, load_parameters
from power.quantity import Quantity

# Documented model errors, as shares of the value: co-run throughput of measured networks, of networks known only by
# their layers (a prior: up to a factor of two off, docs/virtual-orin.md), and module power.
SPEED_U95, PRIOR_U95, POWER_U95 = 0.04, 1.0, 0.08
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
    arrivals and, with `noise`, of the service times.
    """

    seconds: float = 600.0
    samples: int | None = None
    server_qps: float | None = None
    processes: str = "one"
    full: bool = False
    seed: int = 0
    noise: bool = False


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
    samples_per_s_u95: float
    share: Mapping[str, float]
    utilisation: Mapping[str, float]
    dram_gb_per_s: float
    ceiling: Roofline
    notes: tuple[str, ...]

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
            "latency_ms": dict(self.latency_ms),
            "power_w": {"module": self.module_w.as_json(), "rails": rails},
            "samples_per_joule": self.samples_per_joule.as_json(),
            "share": dict(self.share),
            "utilisation": dict(self.utilisation),
            "dram_gb_per_s": self.dram_gb_per_s,
            "ceiling_samples_per_s": self.ceiling.samples_per_s,
            "ceiling": self.ceiling.as_json(),
            "clocks": vars(self.clocks),
            "notes": list(self.notes),
        }


def predict(
    plan: Plan, soc: Soc, scenario: str = "offline", workloads: Workloads | None = None, options: Options | None = None
) -> Prediction:
    """Predict a plan on a SoC; `workloads` may be left out for networks with measured parameters.

    Raises OrinError for an unknown scenario, a network of which nothing is known, or an engine no DLA can run.
    """
    options = options or Options()
    _check(scenario, options)
    parameters = load_parameters()
    model = CostModel(soc, clocks_of(plan, soc), plan.stack, parameters)
    shapes = plan_shapes(plan, soc, workloads or known_workloads(plan, parameters))
    crew = Crew(plan, model, shapes, Machine(model, options.processes, service_noise(options, parameters)))
    return _prediction(crew, scenario, _observe(crew, scenario, options), options)


def plan_shapes(plan: Plan, soc: Soc, workloads: Workloads) -> dict[str, EngineShape]:
    """Return what the model has to know of a plan's engines, by accelerator."""
    absent = [name for name in plan.accelerators if name not in soc.accelerators]
    if absent:
        raise OrinError(f"plan uses {absent[0]}, {soc.name} has {', '.join(soc.accelerators)}: lower dla_cores")
    gpu = EngineShape(plan.network, "gpu", plan.gpu_batch, plan.precision, workloads.gpu, tail=workloads.gpu_tail)
    layers, tail = workloads.dla_gpu_layers, workloads.dla_tail
    dla = EngineShape(plan.network, "dla", plan.dla_batch, plan.precision, workloads.dla, layers, tail)
    return {name: gpu if name == GPU else dla for name in plan.accelerators}


def known_workloads(plan: Plan, parameters: Parameters) -> Workloads:
    """Return a measured network's own workload; without both rewrites its DLA engine keeps GPU layers."""
    try:
        fit = parameters.networks[plan.network]
    except KeyError:
        known = ", ".join(parameters.networks)
        raise OrinError(
            f"network {plan.network!r} has no measured parameters (measured: {known}): give its workloads"
        ) from None
    rewritten = {"global-pool", "gemm-to-conv"} <= set(plan.rewrites)
    return Workloads(fit.workload, fit.workload, () if rewritten else fit.unrewritten_gpu_layers)


def service_noise(options: Options, parameters: Parameters) -> Callable[[], float] | None:
    """Return a seeded source of lognormal factors on service times, or None for exact ones."""
    if not options.noise:
        return None
    source = random.Random(options.seed)
    return lambda: source.lognormvariate(0.0, parameters.shared["noise_cv"])


def ceiling(plan: Plan, model: CostModel, shapes: Mapping[str, EngineShape]) -> Roofline:
    """Return a plan's roofline, with the least DRAM traffic a sample has on any of its accelerators."""
    traffic = []
    for name, shape in shapes.items():
        batch = plan.gpu_batch if name == GPU else plan.dla_batch
        traffic.append(model.cost(shape, batch).dram_bytes / batch)
    macs = min(shape.workload.macs for shape in shapes.values())
    return roofline(plan, model.soc, model.clocks, macs, min(traffic))


def _check(scenario: str, options: Options) -> None:
    if scenario not in SCENARIOS:
        raise OrinError(f"scenario is {scenario!r}, expected one of {', '.join(SCENARIOS)}")
    asked = {"seconds": options.seconds, "samples": options.samples, "server_qps": options.server_qps}
    for name, value in asked.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise OrinError(f"{name} is {value!r}, expected a positive number")


def _observe(crew: Crew, scenario: str, options: Options) -> Observed:
    if scenario == "singlestream":
        return stream(crew, STREAM_QUERIES, 1)
    if scenario == "multistream":
        return stream(crew, STREAM_QUERIES, MULTISTREAM_SAMPLES)
    if scenario == "offline":
        return offline(crew, options.samples, options.seconds, options.full)
    per_s = options.server_qps or SERVER_LOAD * sum(crew.solo_rate(name) for name in crew.names) * 1e9
    queries = options.samples or max(1, round(options.seconds * per_s))
    return server(crew, queries if options.full else min(SERVER_QUERIES, queries), per_s, options.seed)


def _notes(crew: Crew, used: list[EngineShape], speed_u95: float, options: Options) -> tuple[str, ...]:
    notes = [
        *crew.model.notes(used),
        f"u95: speed {speed_u95:.0%}, module power {POWER_U95:.0%} (documented model error)",
    ]
    if crew.plan.mode is None and crew.plan.clocks_mhz is None:
        notes.append(f"plan holds no power mode: {RESTING_MODE}")
    if options.processes == "separate":
        notes.append("separate processes: switching constants are in-sample (three published co-runs)")
    return tuple(notes)


def _prediction(crew: Crew, scenario: str, observed: Observed, options: Options) -> Prediction:
    plan, model = crew.plan, crew.model
    seconds = observed.duration_ns * 1e-9
    total = sum(observed.samples.values())
    rails_w = {name: joules / seconds for name, joules in observed.totals.rail_j.items()}
    module_w = sum(rails_w[rail.name] for rail in model.soc.board.total_rails())
    used = [crew.shapes[name] for name, count in observed.samples.items() if count]
    speed_u95 = SPEED_U95 if all(map(model.is_measured, used)) else PRIOR_U95
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
        samples_per_s_u95=total / seconds * speed_u95,
        latency_ms=_latency_ms(observed.latencies_ns),
        module_w=Quantity(module_w, POWER_U95 * module_w),
        rails_w={name: Quantity(watts, POWER_U95 * watts) for name, watts in rails_w.items()},
        samples_per_joule=Quantity(per_joule, per_joule * math.hypot(speed_u95, POWER_U95)),
        share={name: observed.samples.get(name, 0.0) / total for name in everyone},
        utilisation={name: observed.totals.busy_ns[name] / observed.duration_ns for name in everyone},
        dram_gb_per_s=observed.totals.dram_bytes / observed.duration_ns,
        ceiling=ceiling(plan, model, crew.shapes),
        notes=_notes(crew, used, speed_u95, options),
    )


def _latency_ms(latencies_ns: list[float]) -> dict[str, float]:
    """Mean and percentiles (nearest rank) of query latencies."""
    ordered = sorted(latencies_ns)
    rank = {p: ordered[math.ceil(p / 100 * len(ordered)) - 1] * 1e-6 for p in (50, 90, 99)}
    return {"mean": sum(ordered) / len(ordered) * 1e-6, **{f"p{p}": value for p, value in rank.items()}}
