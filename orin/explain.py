"""Where a predicted run's time and joules go, accelerator by accelerator, beside the roofline: simulated.

Each sample's time on an accelerator is its segments' compute and DRAM time alone on the SoC, plus waiting (DRAM and
GPU shared with the others, time slices), plus overhead (submission, the host, no work). Its joules are what the module
would draw idle, what each accelerator adds while it computes, what moving the bytes costs, and the host's part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orin.errors import OrinError
from orin.mlperf import MULTISTREAM_SAMPLES
from orin.plan import Plan
from orin.predict import predict_on, workloads
from orin.roofline import BYTES
from orin.soc import GPU, soc
from orin.virtual.model import GPU_SEGMENT, CostModel, EngineShape, LayerTime, Segment
from orin.virtual.power import RailModel
from orin.virtual.predict import Options, Prediction, plan_shapes

SAMPLES_OF_A_QUERY = {"singlestream": 1, "multistream": MULTISTREAM_SAMPLES}


@dataclass(frozen=True)
class SegmentTime:
    """Segments of a query, or of a full batch, on one resource ("gpu" or "dla"): times alone, bytes; of one sample."""

    resource: str
    count: int
    compute_ms: float
    dram_ms: float
    dram_mb: float


@dataclass(frozen=True)
class Account:
    """One accelerator's time for one of its samples; `floor_ms` is the least that arithmetic or DRAM would take.

    `layers` are the fused layers of one batch, alone on the SoC and without what the software stack adds.
    """

    accelerator: str
    batch: int
    samples_per_s: float
    segments: tuple[SegmentTime, ...]
    waiting_ms: float
    overhead_ms: float
    floor_compute_ms: float
    floor_dram_ms: float
    layers: tuple[LayerTime, ...] = ()

    @property
    def compute_ms(self) -> float:
        """Compute time alone on the SoC."""
        return sum(segment.compute_ms for segment in self.segments)

    @property
    def dram_ms(self) -> float:
        """DRAM time alone on the SoC."""
        return sum(segment.dram_ms for segment in self.segments)

    @property
    def total_ms(self) -> float:
        """All of it: one over the accelerator's rate."""
        return self.compute_ms + self.dram_ms + self.waiting_ms + self.overhead_ms

    @property
    def floor_ms(self) -> float:
        """The roofline: the longer of arithmetic and DRAM at their peaks."""
        return max(self.floor_compute_ms, self.floor_dram_ms)

    def as_json(self) -> dict[str, Any]:
        """Return its fields and sums."""
        return {**asdict(self), "total_ms": self.total_ms, "floor_ms": self.floor_ms}


@dataclass(frozen=True)
class Explanation:
    """A prediction, taken apart; `millijoules` of one sample (over all accelerators) by where they go."""

    prediction: Prediction
    accounts: tuple[Account, ...]
    millijoules: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return accounts and joules."""
        return {
            "accelerators": [account.as_json() for account in self.accounts],
            "millijoules_per_sample": dict(self.millijoules),
        }


def explain(plan: Plan, soc_name: str, scenario: str = "offline", options: Options | None = None) -> Explanation:
    """Predict a plan and take it apart; OrinError for Server, whose batches follow its arrivals."""
    if scenario == "server":
        raise OrinError("--explain takes offline, singlestream or multistream: Server's batches follow its arrivals")
    board, work = soc(soc_name), workloads(plan)
    prediction = predict_on(plan, board, scenario, work, options)
    model = CostModel(board, prediction.clocks, plan.stack, (options or Options()).parameters)
    engines = tuple(
        _engine(name, shape, model, SAMPLES_OF_A_QUERY.get(scenario, shape.batch))
        for name, shape in plan_shapes(plan, board, work).items()
        if prediction.share[name]
    )
    accounts = tuple(_account(engine, model, prediction) for engine in engines)
    return Explanation(prediction, accounts, _millijoules(engines, model, prediction))


@dataclass(frozen=True)
class _Engine:
    """The enqueues of one query, or one full batch: their segments, and what one sample asks of arithmetic."""

    accelerator: str
    batch: int
    samples: int
    segments: tuple[Segment, ...]
    ops: float
    layers: tuple[LayerTime, ...] = ()

    @property
    def solo_ns(self) -> float:
        return sum(segment.solo_ns for segment in self.segments)


def _engine(name: str, shape: EngineShape, model: CostModel, samples: int) -> _Engine:
    batches = [min(shape.batch, samples - done) for done in range(0, samples, shape.batch)]
    segments = tuple(segment for batch in batches for segment in model.cost(shape, batch).segments)
    ops = 2.0 * shape.workload.macs * BYTES[shape.precision]  # in INT8 operations, as peaks are
    return _Engine(name, batches[0], samples, segments, ops, model.layers(shape, batches[0]))


def _account(engine: _Engine, model: CostModel, prediction: Prediction) -> Account:
    name, soc, clocks = engine.accelerator, model.soc, model.clocks
    rate = prediction.samples_per_s * prediction.share[name]
    busy_ms, solo_ms = 1e3 * prediction.utilisation[name] / rate, engine.solo_ns / engine.samples * 1e-6
    ops_per_s = soc.gpu_peak_ops(clocks) if name == GPU else soc.dla_peak_ops(clocks)
    bytes_per_s = soc.gpu_dram_bytes_per_s(clocks) if name == GPU else soc.dram_peak_bytes_per_s(clocks)
    segments = _segments(engine)
    return Account(
        accelerator=name,
        batch=engine.batch,
        samples_per_s=rate,
        segments=segments,
        waiting_ms=busy_ms - solo_ms,
        overhead_ms=1e3 / rate - busy_ms,
        floor_compute_ms=1e3 * engine.ops / ops_per_s,
        floor_dram_ms=1e9 * sum(part.dram_mb for part in segments) / bytes_per_s,
        layers=engine.layers,
    )


def _segments(engine: _Engine) -> tuple[SegmentTime, ...]:
    found = []
    for resource in dict.fromkeys(segment.resource for segment in engine.segments):
        parts = [segment for segment in engine.segments if segment.resource == resource]
        compute_ms = sum(part.compute_ns for part in parts) / engine.samples * 1e-6
        dram_ms = sum(part.memory_ns for part in parts) / engine.samples * 1e-6
        dram_mb = sum(part.dram_bytes for part in parts) / engine.samples * 1e-6
        found.append(SegmentTime(resource, len(parts), compute_ms, dram_ms, dram_mb))
    return tuple(found)


def _millijoules(engines: Sequence[_Engine], model: CostModel, prediction: Prediction) -> dict[str, float]:
    """Millijoules of one sample: differences of the power model, each for the share of time that it is drawn."""
    rails = RailModel(model.soc, model.clocks, model.parameters)
    total = [rail.name for rail in model.soc.board.total_rails()]

    def watts(activity: float = 0.0, dlas: int = 0, gb_per_s: float = 0.0) -> float:
        return sum(watts for name, watts in zip(rails.rails, rails.watts(activity, dlas, gb_per_s)) if name in total)

    idle_w = watts()
    parts_w = {"idle": idle_w}
    busy = {one.accelerator: prediction.utilisation[one.accelerator] * _own_share(one) for one in engines}
    dlas = [name for name in busy if name != GPU]
    if GPU in busy:  # it halves while a DLA's engine runs small kernels there, which take twice their time then
        fallback = sum(prediction.utilisation[name] - busy[name] for name in dlas)
        parts_w[GPU] = (watts(activity=_activity(engines[0])) - idle_w) * (busy[GPU] - fallback)
    for name in dlas:
        parts_w[name] = (watts(dlas=len(dlas)) - idle_w) / len(dlas) * busy[name]
    parts_w["DRAM"] = watts(gb_per_s=prediction.dram_gb_per_s) - idle_w
    parts_w["host and rest"] = prediction.module_w.value - sum(parts_w.values())
    return {name: 1e3 * part_w / prediction.samples_per_s for name, part_w in parts_w.items()}


def _own_share(engine: _Engine) -> float:
    """Share of an engine's time on its own accelerator: a DLA's engine may hold segments that run on the GPU."""
    is_gpu = engine.accelerator == GPU
    own = sum(part.solo_ns for part in engine.segments if (part.resource == GPU_SEGMENT) == is_gpu)
    return own / engine.solo_ns if engine.solo_ns else 0.0


def _activity(engine: _Engine) -> float:
    """Power of an engine's GPU segments relative to INT8, by time."""
    active = sum(part.solo_ns * part.activity for part in engine.segments)
    return active / engine.solo_ns if engine.solo_ns else 0.0
