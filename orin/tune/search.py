"""The search: probe, refit, score the whole space, verify the uncertain best, stop when little is to be gained.

A pure loop: whoever drives it measures. The same measurements in the same order lead to the same proposals, so that an
interrupted search goes on by replaying what it has.

    while (trial := tuner.propose()) is not None:
        tuner.observe(trial, measure(trial.plan))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import numpy as np
from numpy.typing import NDArray

from orin.plan import Plan
from orin.tune.belief import Belief, Mixture
from orin.tune.measurement import Measurement
from orin.tune.objective import QUANTITIES, Objective
from orin.tune.planner import PlanModel
from orin.tune.refit import Seen
from orin.tune.space import Space
from orin.tune.tables import Array
from power.quantity import Quantity

SHORTLIST, BOARDS = 400, 8  # the most promising points, whose uncertainty is worked out; drawn boards that add theirs
LOOKED_AT = 1 << 16  # points that are scored for one proposal, at most
SURPRISE = 2.6  # standard deviations off: one run in a hundred
FEASIBLE, LIKELY = 0.9, 0.5  # a plan to recommend keeps its limits with this probability; one to try, perhaps
RUN_SD = 0.007  # of the logarithm of what a run shows
U95 = 1.96


@dataclass(frozen=True)
class Rules:
    """When to stop: after `runs`, or when less than `gain` (of the logarithm) is expected of the best next run.

    The best plan so far is run again every `reference_every` runs, which shows drift; a run that was throttled is
    repeated `repeats` times, then taken as what the board does. With `board_s` no run begins that would likely end
    after so many board-seconds. Plans whose work items take longer than `item_ms` from issue to answer count for less
    where candidates are picked: a run of seconds says little of them, and a larger batch gains next to nothing there.
    """

    runs: int = 10
    board_s: float | None = None
    item_ms: float = 500.0
    gain: float = 0.0005
    min_runs: int = 4
    reference_every: int = 8
    repeats: int = 1


@dataclass(frozen=True)
class Forecast:
    """What is expected of a plan; the goal's own figure is in the objective's unit."""

    samples_per_s: Quantity
    module_w: Quantity
    latency_ms: Quantity
    goal: Quantity
    feasible: float


@dataclass(frozen=True)
class Trial:
    """One plan to measure: its number among the runs, why it is run, what is expected, what it may gain (log)."""

    number: int
    index: int
    plan: Plan
    reason: str
    expected: Forecast
    gain: float = math.inf


@dataclass(frozen=True)
class Run:
    """A trial with what it showed; `surprises` are the quantities that fell outside what was expected."""

    trial: Trial
    measurement: Measurement
    surprises: tuple[str, ...] = ()

    @property
    def is_used(self) -> bool:
        """Whether it counts: it ran, and nothing speaks against it."""
        return self.measurement.failure is None and not self.measurement.flags


class Tuner:
    """Proposes plans of a space and learns from what they show; `best` is the best of those measured."""

    def __init__(
        self, space: Space, model: PlanModel, objective: Objective | None = None, rules: Rules | None = None
    ) -> None:
        self.space, self.model = space, model
        self.objective, self.rules = objective or Objective(), rules or Rules()
        self.runs: list[Run] = []
        self.stopped_by = ""
        self._weights = np.array(self.objective.weights)
        self._allowed = np.ones(len(space), bool)
        self._belief = Belief(model, ())

    # -- the loop -----------------------------------------------------------------------------------------------------

    def propose(self) -> Trial | None:
        """Return the next plan to measure; None when enough is known, `stopped_by` then says why."""
        number = len(self.runs) + 1
        if number > self.rules.runs:
            self.stopped_by = f"{self.rules.runs} runs"
            return None
        if self.rules.board_s is not None and self._spent_s + self._usual_s > self.rules.board_s:
            self.stopped_by = f"{self.rules.board_s:g} board-seconds"
            return None
        if not self._allowed.any():
            self.stopped_by = "no plan of the space can run"
            return None
        again = self._again()
        if again is not None:
            return self._trial(number, *again)
        probe = self._probe(number)
        if probe is not None:
            return self._trial(number, *probe)
        index, gain = self._most_promising()
        if number > self.rules.min_runs and gain < self.rules.gain and not self._surprised_lately():
            self.stopped_by = f"the best next run is expected to gain {100 * max(gain, 0.0):.2g} %"
            return None
        return self._trial(number, index, "most promising", gain)

    def observe(self, trial: Trial, measurement: Measurement) -> Run:
        """Learn from a run; returns it with what was surprising about it."""
        run = Run(trial, measurement, self._surprises(trial, measurement))
        self.runs.append(run)
        if measurement.failure is not None:
            self._exclude(trial.index)
        self._belief = Belief(self.model, self._seen(), self._belief)
        self.__dict__.pop("best", None)
        return run

    @cached_property
    def best(self) -> Trial | None:
        """The trial whose plan to use: the best that keeps its limits almost surely, else the likeliest to keep them.

        None before a run succeeded.
        """
        at = self._best_index(FEASIBLE)
        return next((run.trial for run in self.runs if run.trial.index == at), None)

    def forecast(self, index: int) -> Forecast:
        """Return what is now expected of a plan."""
        found = self._belief.forecast(np.array([index]))
        q = [_quantity(found.mean[k, 0], found.variance(np.eye(len(QUANTITIES))[k])[0]) for k in range(len(QUANTITIES))]
        utility = float((self._weights @ found.mean)[0])
        goal, u95 = self.objective.figure(utility), U95 * math.sqrt(found.variance(self._weights)[0])
        return Forecast(q[0], q[1], q[2], Quantity(goal, goal * u95), float(self._feasible(found)[0]))

    def ranking(self, count: int) -> list[int]:
        """Return the points that are now expected to be best, limits kept, best first."""
        points = self._shortlist()
        found = self._belief.forecast(points)
        order = np.argsort(-np.where(self._feasible(found) >= LIKELY, self._weights @ found.mean, -np.inf))
        return [int(points[at]) for at in order[:count]]

    @property
    def _spent_s(self) -> float:
        return sum(run.measurement.seconds for run in self.runs)

    @property
    def _usual_s(self) -> float:
        """Board-seconds of a run, by those so far: their median."""
        return median([run.measurement.seconds for run in self.runs]) if self.runs else 0.0

    @property
    def belief(self) -> Belief:
        """What is believed of the board now."""
        return self._belief

    # -- what next ----------------------------------------------------------------------------------------------------

    def _trial(self, number: int, index: int, reason: str, gain: float = math.inf) -> Trial:
        return Trial(number, index, self.space.plan(index), reason, self.forecast(index), gain)

    def _again(self) -> tuple[int, str] | None:
        """The last plan again where its run is not to be trusted; the best one from time to time."""
        if not self.runs:
            return None
        last = self.runs[-1]
        tries = sum(run.trial.index == last.trial.index and bool(run.measurement.flags) for run in self.runs)
        if last.measurement.flags and tries <= self.rules.repeats:
            return last.trial.index, "again: " + last.measurement.flags[0]
        if self.best is not None and len(self.runs) % self.rules.reference_every == 0:
            return self.best.index, "the best again, against drift"
        return None

    def _probe(self, number: int) -> tuple[int, str] | None:
        """The best by the model as it comes, then the GPU alone, whose part in the rest is then known."""
        if number == 1:
            return self.ranking(1)[0], "probe: the model's best"
        if number == 2 and self.runs[0].trial.plan.dla_cores:
            alone = np.flatnonzero(self._allowed & (self.space.dla == self._dla_none))
            if alone.size and self.runs[0].trial.plan.gpu_batch:
                found = self._belief.forecast(alone)
                return int(alone[np.argmax(self._score(found))]), "probe: the GPU alone"
        return None

    @property
    def _dla_none(self) -> int:
        return next((at for at, half in enumerate(self.space.dla_halves) if not half.cores), -1)

    def _most_promising(self) -> tuple[int, float]:
        """The point with the largest expected improvement over the best so far, times its chance to keep the limits."""
        incumbent = self._best_index(FEASIBLE)
        points = self._shortlist()
        if incumbent is None:
            found = self._belief.forecast(points)
            return int(points[np.argmax(self._score(found))]), math.inf
        points = np.append(points[points != incumbent], incumbent)
        at = len(points) - 1
        found = self._belief.forecast(points, at)
        utility, variance = self._weights @ found.mean, found.variance(self._weights)
        spread = np.sqrt(np.maximum(variance + variance[at] - 2 * found.covariance(self._weights, at), 1e-12))
        feasible = self._feasible(found)
        gain = _expected_gain(utility - utility[at], spread)
        if feasible[at] < FEASIBLE:  # what is found must beat nothing at all as yet
            gain += 1 - feasible[at]
        gain *= feasible * self._news(points, variance)
        gain[at] = 0.0
        chosen = int(np.argmax(gain))
        return int(points[chosen]), float(gain[chosen])

    def _news(self, points: NDArray[np.intp], variance: Array) -> Array:
        """What share of its variance a run would take from each point: little where it was measured before."""
        seen = np.isin(points, [run.trial.index for run in self._counted()])
        return np.where(seen, variance / (variance + RUN_SD**2), 1.0)

    def _shortlist(self) -> NDArray[np.intp]:
        """The most promising points on the board as it is most likely, and on boards drawn from what is believed of it;
        all that were measured."""
        everything = np.flatnonzero(self._allowed)
        random = np.random.default_rng(len(self.runs))
        if len(everything) > LOOKED_AT:  # others the next time; plans have many that are nearly as good
            everything = random.choice(everything, LOOKED_AT, replace=False)
        found = [self._top(everything, self._belief.factors, SHORTLIST)]
        for factors in self._belief.drawn(BOARDS, random):
            some = everything[random.random(len(everything)) < 1 / BOARDS]
            found.append(self._top(some, factors, SHORTLIST // BOARDS))
        seen = [run.trial.index for run in self.runs if self._allowed[run.trial.index]]
        return np.unique(np.concatenate([*found, np.array(seen, int)]))

    def _top(self, points: NDArray[np.intp], factors: Array, count: int) -> NDArray[np.intp]:
        """The best of points under given factors, limits counted softly."""
        scores = self.model.scores(factors, points)
        logs = {"speed": scores.samples_per_s, "watts": scores.module_w, "latency": scores.latency_ms}
        logs = {name: np.log(value) for name, value in logs.items()}
        value = sum(weight * logs[name] for name, weight in zip(QUANTITIES, self._weights) if weight)
        for name, sign, limit in self.objective.limits:
            value = value - 5 * np.maximum(0.0, sign * (logs[name] - limit))
        value = value - np.maximum(0.0, logs["latency"] - math.log(self.rules.item_ms))
        count = min(count, len(points))
        return points[np.argpartition(-value, count - 1)[:count]] if count else points

    # -- judging ------------------------------------------------------------------------------------------------------

    def _feasible(self, found: Mixture) -> Array:
        """Probability [point] that every limit is kept, each taken for itself."""
        chance = np.ones(len(found.points))
        for name, sign, limit in self.objective.limits:
            one = np.eye(len(QUANTITIES))[QUANTITIES.index(name)]
            slack = -sign * (one @ found.mean - limit)
            chance = chance * _normal(slack / np.sqrt(found.variance(one)))
        return chance

    def _score(self, found: Mixture) -> Array:
        """Utility where limits are likely kept, else far below, by how likely."""
        feasible = self._feasible(found)
        utility = self._weights @ found.mean
        return np.where(feasible >= LIKELY, utility, utility.min() - 1 + feasible)

    def _best_index(self, certain: float) -> int | None:
        points = np.unique([run.trial.index for run in self._counted() if self._allowed[run.trial.index]])
        if not points.size:
            return None
        found = self._belief.forecast(points.astype(int))
        feasible = self._feasible(found)
        utility = np.where(feasible >= certain, self._weights @ found.mean, -np.inf)
        if np.isinf(utility).all():
            return int(points[np.argmax(feasible)])
        return int(points[np.argmax(utility)])

    def _counted(self) -> list[Run]:
        """Runs that count; where a plan was only ever throttled, its last run does: that is what the board gives."""
        used = [run for run in self.runs if run.is_used]
        known = {run.trial.index for run in used}
        late = {run.trial.index: run for run in self.runs if run.measurement.failure is None}
        last = self.runs[-1].trial.index if self.runs else None
        tries = {at: sum(run.trial.index == at for run in self.runs) for at in late}
        kept = [run for at, run in late.items() if at not in known and (tries[at] > self.rules.repeats or at != last)]
        return sorted(used + kept, key=lambda run: run.trial.number)

    def _seen(self) -> Sequence[Seen]:
        return [Seen(run.trial.index, run.measurement) for run in self._counted() if run.measurement.logs()]

    def _surprises(self, trial: Trial, measurement: Measurement) -> tuple[str, ...]:
        """Quantities outside what was expected, the run's own noise counted."""
        expected = trial.expected
        wanted = {"speed": expected.samples_per_s, "watts": expected.module_w, "latency": expected.latency_ms}
        found = measurement.logs() if measurement.failure is None else {}
        return tuple(
            name
            for name, quantity in wanted.items()
            if name in found
            and abs(found[name][0] - math.log(quantity.value))
            > SURPRISE * math.hypot(found[name][1], quantity.u95 / quantity.value / U95)
        )

    def _surprised_lately(self) -> bool:
        return any(run.surprises for run in self.runs[-2:])

    def _exclude(self, index: int) -> None:
        """Leave out every point that builds the same engines as one that failed."""
        self._allowed &= ~self.space.same_engines(index)


def _quantity(log: float, variance: float) -> Quantity:
    value = math.exp(log)
    return Quantity(value, value * U95 * math.sqrt(variance))


def _normal(x: Array) -> Array:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])


def _expected_gain(mean: Array, spread: Array) -> Array:
    """Expected improvement over zero of Gaussians."""
    z = mean / spread
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return np.asarray(spread * density + mean * _normal(z))
