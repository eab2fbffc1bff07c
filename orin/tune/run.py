"""One measurement of a plan: short runs of a board, cut short when the interval is small enough; each a run record.

A board runs the bench; the virtual one can also be run in its own time, which takes a blink and builds no engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from dla.errors import DlaError
from engines.errors import EngineError
from orin.bench import Bench, bench, environment
from orin.errors import OrinError
from orin.outcome import flags_of
from orin.plan import Plan
from orin.record import Recorder, RunRecord, load_record
from orin.results import batch_latencies_ms, result, share
from orin.soc import Soc
from orin.sweep import Site, cool_down
from orin.tune.measurement import Measurement
from orin.virtual.driver import Crew, Item, offline
from orin.virtual.machine import Machine
from orin.virtual.model import CostModel, clocks_of
from orin.virtual.parameters import load_parameters
from orin.virtual.power import RailModel
from orin.virtual.predict import POWER_U95, Options, Workloads, plan_shapes, service_noise
from orin.work import WorkItem
from power.errors import PowerError
from power.quantity import Quantity

SLICES = (0.4, 0.6)  # of the seconds: the second is run where the first leaves too wide an interval
ITEMS_FOR_P99 = 8
ENOUGH = 0.03  # u95 of the speed, as a share, that ends a measurement: two short runs tell more than a long one
FAILURES = (OrinError, PowerError, EngineError, DlaError, CalibrationError)
NORMAL_P99 = 3.73  # sd of a normal sample's p99 times sqrt(n), over its sd: sqrt(0.99 * 0.01) / density there


@dataclass(frozen=True)
class Measured:
    """A measurement and the folders of its records."""

    measurement: Measurement
    folders: tuple[Path, ...] = ()


class Runner(Protocol):
    """What a tuning measures with."""

    name: str
    soc: Soc
    provenance: str

    def measure(self, plan: Plan, number: int) -> Measured:
        """Run a plan, the tuning's `number`-th; a plan that cannot run is a measurement that says so."""


class BoardRunner:
    """Runs the bench on a board, opened anew each time, that is waited for until it is as cool as at first."""

    def __init__(self, site: Site, options: Bench) -> None:
        with site.board() as board:
            self.name, self.soc, self.provenance = board.name, board.soc, str(board.provenance)
        self._site, self._options = site, options
        self._first_c: float | None = None

    def measure(self, plan: Plan, number: int) -> Measured:
        """Run a plan in slices; see `Runner`."""
        measured = _in_slices(lambda seconds, at: self._run(plan, seconds), self._options.seconds, self.soc)
        idled_s = self._options.idle_s * len(measured.folders)
        seconds = measured.measurement.seconds + idled_s
        return replace(measured, measurement=replace(measured.measurement, seconds=seconds))

    def _run(self, plan: Plan, seconds: float) -> RunRecord:
        with self._site.board() as board:
            start = cool_down(board, self._first_c, self._site.thermal, self._site.desk.say)
            self._first_c = start.hottest_c if self._first_c is None else self._first_c
            return bench(plan, board, self._site.desk, replace(self._options, seconds=max(1.0, seconds)))


class VirtualRunner:
    """Runs the virtual Orin in its own time, with the noise of its service times; power has the model's error."""

    provenance = "simulated"

    def __init__(self, soc: Soc, workloads: Callable[[Plan], Workloads], runs: Path, seconds: float) -> None:
        self.name, self.soc = f"virtual:{soc.name}", soc
        self._workloads, self._runs, self._seconds = workloads, runs, seconds

    def measure(self, plan: Plan, number: int) -> Measured:
        """Run a plan in slices; see `Runner`. The same number draws the same noise."""
        return _in_slices(lambda seconds, at: self._run(plan, seconds, 1000 * number + at), self._seconds, self.soc)

    def _run(self, plan: Plan, seconds: float, seed: int) -> RunRecord:
        options = Options(seconds=seconds, seed=seed, noise=True, full=True)
        parameters = load_parameters()
        model = CostModel(self.soc, clocks_of(plan, self.soc), plan.stack, parameters)
        machine = Machine(model, noise=service_noise(options, parameters))
        crew = _Watched(plan, model, plan_shapes(plan, self.soc, self._workloads(plan)), machine)
        observed = offline(crew, None, seconds, full=True)
        elapsed_s = observed.duration_ns * 1e-9
        rails = {name: joules / elapsed_s for name, joules in observed.totals.rail_j.items()}
        idle = dict(zip(rails, RailModel(self.soc, model.clocks, parameters).watts(0.0, 0, 0.0)))
        module_w, idle_w = (sum(w[rail.name] for rail in self.soc.board.total_rails()) for w in (rails, idle))
        values = {
            "loadgen": {"result_samples_per_second": sum(observed.samples.values()) / elapsed_s},
            "window_ns": [0, round(observed.duration_ns)],
            "power": {
                "module_w": _with_error(module_w),
                "rails_w": {name: _with_error(watts) for name, watts in rails.items()},
                "idle_w": _with_error(idle_w),
            },
            "valid": None,
        }
        with Recorder(self._runs, self._before(plan, seconds, seed, model)) as recorder:
            (recorder.folder / "plan.yaml").write_text(plan.dumps(), encoding="utf-8")
            for item in crew.items:
                recorder.note(item)
            recorder.finish(values)
        return load_record(recorder.folder)

    def _before(self, plan: Plan, seconds: float, seed: int, model: CostModel) -> dict[str, Any]:
        return {
            "provenance": self.provenance,
            "board": self.name,
            "soc": self.soc.name,
            "stack": plan.stack,
            "scenario": "offline",
            "mode": "performance",
            "seconds": seconds,
            "seed": seed,
            "driver": "virtual time: no engine, no LoadGen, no host",
            "plan": plan.as_json(),
            "network": {"name": Path(plan.network).stem},
            "outputs": "none",
            "clocks": asdict(model.clocks),
            "environment": environment(),
        }


def virtual_runner(name: str, runs: Path, seconds: float) -> VirtualRunner:
    """Return a runner of the virtual board with a name such as `virtual:agx-orin-64gb`; OrinError for another."""
    from orin.boards import open_board
    from orin.predict import workloads

    known: dict[tuple[Any, ...], Workloads] = {}

    def find(plan: Plan) -> Workloads:
        key = (plan.network, plan.weights, plan.rewrites, plan.dla_cores > 0)
        if key not in known:
            known[key] = workloads(plan)
        return known[key]

    return VirtualRunner(open_board(name, "speed").soc, find, runs, seconds)


class _Watched(Crew):
    """A crew that notes every work item: it begins when the one before it ends, or when it is issued."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.items: list[WorkItem] = []
        self._last_ns: dict[str, int] = {}

    def collect(self, until_ns: float | None = None) -> list[Item]:
        """Let time pass; see `Crew.collect`."""
        done = super().collect(until_ns)
        for item in done:
            end_ns = round(self.machine.now_ns)
            begin_ns = self._last_ns.get(item.accelerator, 0)
            self._last_ns[item.accelerator] = end_ns
            self.items.append(WorkItem(item.accelerator, 0, range(item.samples), [], None, begin_ns, end_ns))
        return done


def _with_error(watts: float) -> dict[str, float]:
    return Quantity(watts, POWER_U95 * watts).as_json()


def _in_slices(run: Callable[[float, int], RunRecord], seconds: float, soc: Soc) -> Measured:
    """Run slices until the interval is small, or all are run; what cannot run is a failure, not an error."""
    records: list[RunRecord] = []
    try:
        for at, part in enumerate(SLICES):
            records.append(run(part * seconds, at))
            found = measurement_of(records, soc)
            if found.flags or found.samples_per_s.u95 <= ENOUGH * found.samples_per_s.value:
                break
    except FAILURES as error:
        return Measured(Measurement.failed(str(error)), tuple(record.folder for record in records))
    return Measured(found, tuple(record.folder for record in records))


def measurement_of(records: Sequence[RunRecord], soc: Soc) -> Measurement:
    """Return what runs of one plan show together; OrinError where they say nothing of its speed."""
    figures = [result(record) for record in records]
    speeds = [steady_samples_per_s(record) or one["samples_per_s"] for record, one in zip(records, figures)]
    seconds = [_seconds(record) for record in records]
    if not all(speeds):
        raise OrinError(f"run {records[0].folder} has no throughput: make the runs longer (--seconds-per-run)")
    weights = np.array(seconds) / sum(seconds)
    spread = math.hypot(*(weight * relative_u95(record) for weight, record in zip(weights, records)))
    speed = float(weights @ np.array(speeds))
    watts = [one["power_w"]["module"] if one["power_w"] else None for one in figures]
    module_w = _mean([Quantity(**one) for one in watts if one], weights) if all(watts) else None
    latencies = [latency for record in records if (latency := item_latency_ms(record))]
    flags = [flag for record in records for flag in flags_of(record, soc) if not flag.startswith("no power")]
    shares = [share(record) for record in records]
    mixed = {name: float(sum(w * one[name] for w, one in zip(weights, shares))) for name in shares[0]}
    latency_ms = max(latencies, key=lambda one: one.value, default=None)
    idle = [idle_w for record in records if (idle_w := (record.values.get("power") or {}).get("idle_w"))]
    return Measurement(
        samples_per_s=Quantity(speed, spread * speed),
        module_w=module_w,
        latency_ms=latency_ms,
        share=mixed,
        seconds=sum(seconds),
        flags=tuple(flags),
        idle_w=Quantity(idle[-1]["value"], idle[-1]["u95"]) if idle else None,
    )


def _seconds(record: RunRecord) -> float:
    begin_ns, end_ns = record["window_ns"]
    return float(end_ns - begin_ns) * 1e-9


def _mean(quantities: Sequence[Quantity], weights: NDArray[Any]) -> Quantity:
    """The weighted mean; its u95 is no smaller than each one's, whose errors are mostly the same."""
    return Quantity(
        float(sum(w * q.value for w, q in zip(weights, quantities))),
        float(sum(w * q.u95 for w, q in zip(weights, quantities))),
    )


def steady_samples_per_s(record: RunRecord) -> float | None:
    """Return the rate between each accelerator's first and last completion: what a run much longer would show.

    None where an accelerator completed fewer than three items.
    """
    rates = []
    for accelerator in Plan(**record["plan"]).accelerators:
        items = sorted((b.end_ns, b.samples) for b in record.batches if b.accelerator == accelerator)
        if len(items) < 3:
            return None
        rates.append(sum(samples for _, samples in items[1:]) * 1e9 / (items[-1][0] - items[0][0]))
    return sum(rates)


def relative_u95(record: RunRecord) -> float:
    """Return the u95 of a run's samples per second, as a share, from how its items' completions scatter."""
    shares = share(record)
    parts = []
    for accelerator, part in shares.items():
        gaps = np.diff(_ends_ms(record, accelerator))[1:-1]  # the last item may be cut short
        if part and len(gaps) > 1:
            parts.append(part * 1.96 * float(np.std(gaps, ddof=1) / np.mean(gaps)) / math.sqrt(len(gaps)))
        elif part:
            parts.append(0.1 * part)  # too few to say: a tenth
    return math.hypot(*parts)


def item_latency_ms(record: RunRecord) -> Quantity | None:
    """Return the p99 over work items of issue to answer, the slowest accelerator's; None where one answered nothing.

    An accelerator that is kept busy gets an item as soon as the one `depth` before it is answered.
    """
    plan = Plan(**record["plan"])
    found = [_latency_ms(record, accelerator, plan.depth(accelerator)) for accelerator in plan.accelerators]
    known = [one for one in found if one is not None]
    return max(known, key=lambda one: one.value) if len(known) == len(found) else None


def _latency_ms(record: RunRecord, accelerator: str, depth: int) -> Quantity | None:
    ends = _ends_ms(record, accelerator)
    latencies = ends[depth:] - ends[:-depth]
    if len(latencies) >= ITEMS_FOR_P99:
        u95 = 1.96 * NORMAL_P99 * float(np.std(latencies, ddof=1)) / math.sqrt(len(latencies))
        return Quantity(float(np.quantile(latencies, 0.99)), u95)
    spans = batch_latencies_ms(record, accelerator)  # too few to look back: the longest one, behind as many like it
    longest = depth * float(spans.max(initial=0.0))
    return Quantity(longest, 0.2 * longest) if longest else None


def _ends_ms(record: RunRecord, accelerator: str) -> NDArray[np.float64]:
    return np.array(sorted(batch.end_ns for batch in record.batches if batch.accelerator == accelerator)) / 1e6
