"""What a tuning has learnt: what mattered, who came second, and where the model was off on this board."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from orin.tune.objective import QUANTITIES
from orin.tune.refit import OBSERVED
from orin.tune.search import Forecast, Tuner
from orin.tune.tables import Array

CLOCKS = ("gpu clock", "dla clock", "emc clock", "cpu clock")
FELT = 0.5  # a factor is named where the runs moved it by this many of its prior standard deviations


@dataclass(frozen=True)
class Sensitivity:
    """One axis around the best plan, and how far its worst value is behind its best (0.1: by 10 %)."""

    axis: str
    values: int
    spread: float


@dataclass(frozen=True)
class Off:
    """A factor of the model on this board: 1.1 is 10 % more than the model had; `prior_sd` of its logarithm."""

    name: str
    factor: float
    prior_sd: float


def sensitivity(tuner: Tuner) -> list[Sensitivity]:
    """Return how much each axis matters, all others as in the best plan, by the refitted model; the most first."""
    if tuner.best is None:
        return []
    columns = tuner.space.columns() | dict(zip(CLOCKS, tuner.model.clocks.T))
    names, rows = list(columns), np.column_stack(list(columns.values()))
    same = rows == rows[tuner.best.index]
    utility = _utility(tuner)
    found = []
    for at, name in enumerate(names):
        alike = np.delete(same, at, axis=1).all(axis=1)
        spread = utility[alike]
        count = len(np.unique(rows[alike, at]))
        if count > 1:
            found.append(Sensitivity(name, count, float(1 - math.exp(spread.min() - spread.max()))))
    return sorted(found, key=lambda one: -one.spread)


def _utility(tuner: Tuner) -> Array:
    scores = tuner.model.scores(tuner.belief.factors)
    logs = np.log(np.stack([scores.samples_per_s, scores.module_w, scores.latency_ms]))
    return np.asarray(np.array(tuner.objective.weights) @ logs)


def runner_up(tuner: Tuner) -> tuple[int, Forecast] | None:
    """Return the best of the other plans that were measured, and what is now believed of it; None without one."""
    others = {run.trial.index for run in tuner.runs if run.is_used} - {tuner.best.index if tuner.best else -1}
    believed = [(index, tuner.forecast(index)) for index in sorted(others)]
    if not believed:
        return None
    sign = -1.0 if tuner.objective.kind == "latency" else 1.0
    return max(believed, key=lambda pair: (pair[1].feasible >= 0.5, sign * pair[1].goal.value))


def off(tuner: Tuner) -> list[Off]:
    """Return the factors that the runs moved, the furthest first (in prior standard deviations)."""
    belief, prior_sd = tuner.belief, tuner.model.prior_sd
    moved = np.abs(belief.factors) / prior_sd
    order = [int(at) for at in np.argsort(-moved) if moved[at] >= FELT]
    return [Off(tuner.model.factors[at], math.exp(belief.factors[at]), float(prior_sd[at])) for at in order]


def misfits(tuner: Tuner) -> dict[str, Any]:
    """Return how far off the model was before it was refitted (rms of logarithms, by quantity), and what is left."""
    rows = []
    bare = np.zeros(len(tuner.model.factors))
    for run in tuner.runs:
        if run.is_used:
            logs = run.measurement.logs()
            scores = tuner.model.scores(bare, np.array([run.trial.index]))
            expected = dict(zip(QUANTITIES, (scores.samples_per_s, scores.module_w, scores.latency_ms)))
            rows.append({name: logs[name][0] - math.log(expected[name][0]) for name in QUANTITIES if name in logs})
    before = {
        name: math.sqrt(float(np.mean([row[name] ** 2 for row in rows if name in row])))
        for name in QUANTITIES
        if any(name in row for row in rows)
    }
    return {"before": before, "after": dict(zip(OBSERVED, map(float, tuner.belief.misfit)))}


def front(speed: Array, watts: Array) -> list[int]:
    """Return the points that no other beats in both speed and power, by power."""
    order = np.lexsort((-speed, watts))
    found, fastest = [], -math.inf
    for at in order:
        if speed[at] > fastest:
            found.append(int(at))
            fastest = float(speed[at])
    return found
