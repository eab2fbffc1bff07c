"""Watts of GPU and DLAs by difference, measured on a board: idle, GPU alone, DLAs alone, all, one after another.

The engines are loaded and the clocks held in each of the four, and each begins when the sensor has settled, so that
two windows differ in nothing but what runs. The CPU's work of feeding an accelerator counts as that accelerator's.
Each second round goes backwards: what drifts steadily, such as leakage on a board that warms up, then cancels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from engines.engine import Engine
from orin.bench import AFTER_S, loaded_samples, prepare_samples
from orin.board import Board
from orin.build import Desk, build_engines
from orin.errors import OrinError
from orin.loadgen import SampleLibrary
from orin.pipeline import Outputs, Pipeline
from orin.plan import Plan
from orin.work import Chunk, WorkItem
from power.attribution import PHASES, Attribution, attribute

if TYPE_CHECKING:
    from power.energy import Energy
    from power.meter import Meter
    from power.quantity import Quantity

SETTLE_TAUS = 5.0  # after so many time constants a step has shown to 99 %
QUEUED_SETS = 32  # how often the loaded samples wait in the queue at least: the accelerators never run dry
TOP_UP_S = 0.02

IDLE, GPU_ALONE, DLAS_ALONE, _ = PHASES


@dataclass(frozen=True)
class Round:
    """One round: what the meter says of each window, and samples/s by window and accelerator."""

    windows: Mapping[str, Energy]
    samples_per_s: Mapping[str, Mapping[str, float]]

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "samples_per_s": {name: dict(rates) for name, rates in self.samples_per_s.items()},
            "windows": {name: energy.as_json() for name, energy in self.windows.items()},
        }


@dataclass(frozen=True)
class Split:
    """What the rounds of four windows say; `pace` as the board's `keeps_pace`."""

    plan: Plan
    board: str
    provenance: str
    clocks: Mapping[str, Any]
    attribution: Attribution
    rounds: Sequence[Round]
    pace: str | None

    @property
    def samples_per_s(self) -> dict[str, dict[str, float]]:
        """Mean rates over the rounds, by window and accelerator."""
        by_window = {name: [each.samples_per_s[name] for each in self.rounds] for name in PHASES}
        return {
            name: {one: fmean([rate.get(one, 0.0) for rate in rates]) for one in dict.fromkeys(chain(*rates))}
            for name, rates in by_window.items()
        }

    def mj_per_sample(self) -> dict[str, Quantity | None]:
        """Return what a sample costs GPU or DLAs over idle, when they run alone; None where that is not resolved."""
        draws = {GPU_ALONE: self.attribution.gpu_alone.module_w, DLAS_ALONE: self.attribution.dlas_alone.module_w}
        seen = self.samples_per_s
        rates = {name: sum(seen[name].values()) for name in draws}
        return {
            name: watts.scaled(1e3 / rates[name]) if rates[name] and watts.is_resolved else None
            for name, watts in draws.items()
        }

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "board": self.board,
            "provenance": self.provenance,
            "plan": self.plan.as_json(),
            "clocks": dict(self.clocks),
            "attribution": self.attribution.as_json(),
            "mj_per_sample": {name: cost and cost.as_json() for name, cost in self.mj_per_sample().items()},
            "samples_per_s": self.samples_per_s,
            "rounds": [each.as_json() for each in self.rounds],
            "pace": self.pace,
        }


class Feed:
    """A pipeline's client without an end: keeps its queue full and notes what is answered."""

    def __init__(self, pipeline: Pipeline, samples: int) -> None:
        self._pipeline = pipeline
        self._samples = samples
        self._answered: list[tuple[str, int, int]] = []  # appended to on the lanes' threads

    def done(self, item: WorkItem, outputs: Outputs) -> None:
        """Take the answers of a work item; see `orin.pipeline.Client`."""
        self._answered.append((item.accelerator, item.end_ns, len(item.ids)))

    def run(self, seconds: float) -> None:
        """Keep every accelerator busy for so long; raises the failure of one that fails."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            missing = QUEUED_SETS - self._pipeline.waiting // self._samples
            whole = range(self._samples)
            self._pipeline.put([Chunk(whole, whole) for _ in range(missing)])
            time.sleep(TOP_UP_S)

    def rates(self, begin_ns: int, end_ns: int) -> dict[str, float]:
        """Return samples/s of each accelerator by the answers of a window."""
        rates: dict[str, float] = {}
        for accelerator, at_ns, samples in self._answered:
            if begin_ns <= at_ns < end_ns:
                rates[accelerator] = rates.get(accelerator, 0.0) + samples * 1e9 / (end_ns - begin_ns)
        return rates


@dataclass(frozen=True)
class Load:
    """What runs in each window, how long, how often: engines by device ("gpu", "dla"), INT8 samples (n, C, H, W)."""

    engines: Mapping[str, Engine]
    samples: NDArray[Any]
    seconds: float
    say: Callable[[str], None]
    rounds: int = 1


def prepare(plan: Plan, desk: Desk, seconds: float, rounds: int = 1) -> Load:
    """Build a plan's engines and pre-process photos for them; OrinError where it leaves out the GPU or the DLAs."""
    if not plan.gpu_batch or not plan.dla_cores:
        raise OrinError(
            f"the plan runs on {' and '.join(plan.accelerators)} alone: to tell GPU and DLAs apart it takes both, so "
            "set gpu_batch and dla_cores above 0"
        )
    built = build_engines(plan, desk)
    prepared = prepare_samples(desk, built, plan, every=False)
    count = loaded_samples(plan, built, len(prepared.samples))
    return Load(built.engines, prepared.samples[:count], seconds, desk.say, rounds)


def measure(plan: Plan, board: Board, load: Load) -> Split:
    """Measure the windows and attribute the watts; PowerError where the rails were not read throughout."""
    with board.hold(plan) as clocks, board.meter() as meter:
        settle_s = SETTLE_TAUS * meter.tau_s
        seen = [
            {name: _window(name, _variant(name, plan), board, load, settle_s) for name in order}
            for order in orders(load.rounds)
        ]
        time.sleep(AFTER_S)
        rounds = [_round(meter, each) for each in seen]
    return Split(
        plan=plan,
        board=board.name,
        provenance=board.provenance,
        clocks=asdict(clocks),
        attribution=attribute([each.windows for each in rounds], plan.dla_cores),
        rounds=rounds,
        pace=board.keeps_pace(),
    )


def orders(rounds: int) -> list[tuple[str, ...]]:
    """Return the order of the windows in each round; OrinError for less than one."""
    if rounds < 1:
        raise OrinError(f"--rounds is {rounds}, expected 1 or more; 3 or more show how far the board itself varies")
    return [PHASES if number % 2 == 0 else PHASES[::-1] for number in range(rounds)]


Seen = tuple[tuple[int, int], dict[str, float]]  # begin and end of a window, samples/s by accelerator


def _round(meter: Meter, seen: Mapping[str, Seen]) -> Round:
    windows = {name: meter.energy(*span_ns) for name, (span_ns, _) in seen.items()}
    return Round(windows, {name: rates for name, (_, rates) in seen.items()})


def _variant(name: str, plan: Plan) -> Plan:
    """Return the plan of a window; idle has all engines loaded."""
    without: dict[str, dict[str, Any]] = {GPU_ALONE: {"dla_cores": 0}, DLAS_ALONE: {"gpu_batch": 0}}
    return replace(plan, **without.get(name, {}))


def _window(name: str, plan: Plan, board: Board, load: Load, settle_s: float) -> Seen:
    """Run one of the four; return its window, in which the sensor has settled, and each accelerator's samples/s."""
    load.say(f"{name}: {settle_s:.1f} s to settle, {load.seconds:g} s measured")
    count = len(load.samples)
    with Pipeline(plan, board, load.engines, capacity=count + plan.dla_batch) as pipeline:
        # Real photos, since the watts of an accelerator depend on the values that it computes with.
        SampleLibrary(pipeline, load.samples, count).load(range(count))
        if name == IDLE:
            return _timed(time.sleep, settle_s, load.seconds), {}
        feed = Feed(pipeline, count)
        pipeline.start(feed, ordered=False)
        span_ns = _timed(feed.run, settle_s, load.seconds)
        pipeline.abandon()
    return span_ns, feed.rates(*span_ns)


def _timed(run: Callable[[float], None], settle_s: float, seconds: float) -> tuple[int, int]:
    run(settle_s)
    begin_ns = time.monotonic_ns()
    run(seconds)
    return begin_ns, time.monotonic_ns()
