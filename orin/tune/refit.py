"""The model refitted to what runs showed, under one hypothesis: its factors, and what they leave.

In logarithms a plan's figure is the model's, at factors that are Gaussian around the hypothesis, plus a misfit that is
alike for plans that lie close, plus a slow drift of the board and the run's own noise. So factors are a regularised
least-squares problem, and every plan's figure is Gaussian with known covariances. How large the misfit is comes from
the runs: where they fall outside what was expected, the most likely misfit grows, and with it every interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from orin.tune.factors import Hypothesis
from orin.tune.measurement import Measurement
from orin.tune.objective import QUANTITIES
from orin.tune.planner import PlanModel, Scores
from orin.tune.tables import Array

OBSERVED = (*QUANTITIES, "balance", "idle")
MISFITS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.3)  # standard deviations of the logarithm that are tried
USUAL_MISFIT, MISFIT_SPREAD = 0.015, 1.0  # co-run error of the model that is documented, and how sure of it (log)
WEIGHT = np.array([1.0, 0.7, 1.5, 1.5, 0.5])  # of the usual misfit, by observed quantity
FLOOR_SD = {"speed": 0.005, "watts": 0.005, "latency": 0.01, "balance": 0.01, "idle": 0.01}  # of a run, however long
DRIFT_SD, DRIFT_RUNS = 0.003, 20.0  # of speed, and how many runs it lasts: temperature and what else goes slowly
STEP = 0.02  # of a factor, for slopes: long enough not to stumble over a kink
ITERATIONS, SETTLED = 20, 0.02  # of the refit at most, and the gain (of squared deviations) that ends it
DAMPING, LADDER = 0.1, np.array([0.01, 0.1, 1.0, 10.0, 100.0])  # at first, and what is tried around the last one
FURTHEST = 1.0  # step of a factor
UNSETTLED = 6  # runs: so long the refit also starts anew each time
# How far apart plans share a misfit: log2 of counts and clocks, number of DLA cores; rewrites never share one.
REACH: Mapping[str, float] = {
    "gpu_batch": 2.0,
    "gpu_depth": 1.0,
    "dla_cores": 1.0,
    "dla_batch": 1.5,
    "dla_loop": 2.0,
    "dla_depth": 1.0,
    "rewrites": 0.4,
    "memory": 0.4,
}
CLOCK_REACH = 0.5
OWN_SHARE = 0.3  # of a misfit's variance is a plan's own, shared with no other: kernels are chosen anew for each batch


@dataclass(frozen=True)
class Seen:
    """One run that the fit may use: the point, and what was measured."""

    index: int
    measurement: Measurement


@dataclass(frozen=True)
class Posterior:
    """Gaussian beliefs of some points: mean [quantity, point], and what is needed for covariances between them."""

    points: NDArray[np.intp]
    mean: Array
    slope: Array  # [quantity, point, factor], in prior standard deviations
    cross: Array  # [quantity, point, observation]: whitened covariance with what was observed
    misfit: Array  # [quantity]: its standard deviation
    near: Array  # [point]: correlation of its misfit with the incumbent's

    def variance(self, weights: Array) -> Array:
        """Return the variance [point] of a weighted sum of quantities."""
        slope, cross = np.tensordot(weights, self.slope, 1), np.tensordot(weights, self.cross, 1)
        own = float(np.sum((weights * self.misfit) ** 2))
        return np.asarray(np.maximum((slope**2).sum(-1) + own - (cross**2).sum(-1), 1e-12))

    def covariance(self, weights: Array, at: int) -> Array:
        """Return the covariance [point] of a weighted sum with that of the incumbent, which stands at `at`."""
        slope, cross = np.tensordot(weights, self.slope, 1), np.tensordot(weights, self.cross, 1)
        own = float(np.sum((weights * self.misfit) ** 2))
        return np.asarray(slope @ slope[at] + own * self.near - cross @ cross[at])


class Refit:
    """What runs say of a model's space under a hypothesis: `factors` are the most likely, `misfit` the spread left."""

    def __init__(
        self, model: PlanModel, seen: Sequence[Seen], hypothesis: Hypothesis, start: Array | None = None
    ) -> None:
        self.model, self.hypothesis = model, hypothesis
        self._columns = _columns(model)
        rows = [(at, quantity, *value) for at, run in enumerate(seen) for quantity, value in _logs(run)]
        self._run = np.array([row[0] for row in rows], int)
        self._quantity = np.array([OBSERVED.index(row[1]) for row in rows], int)
        self._value = np.array([row[2] for row in rows], float)
        self._noise = np.array([row[3] for row in rows], float)
        self._points = np.array([run.index for run in seen], int)
        self.factors = hypothesis.centre if start is None else start
        self.misfit = USUAL_MISFIT * WEIGHT  # [quantity], standard deviations
        if rows:
            self._fit()

    @property
    def log_evidence(self) -> float:
        """How well the hypothesis foretold what was seen: the logarithm of its density, but for a constant."""
        if not len(self._value):
            return 0.0
        off = self._value - self._base
        return float(-0.5 * off @ self._solved - np.log(np.diag(self._root)).sum())

    def drawn(self, count: int, random: np.random.Generator) -> Array:
        """Return factors [count, factor] drawn from what is believed of them."""
        sd = self.hypothesis.sd
        draws = random.normal(size=(count, len(sd))) * sd
        if len(self._value):  # Matheron's rule: move each draw of the prior by what the runs would have told of it
            told = self._value - self._base - draws @ self._seen_slope.T
            told = told - random.normal(size=told.shape) @ np.linalg.cholesky(self._rest(self.misfit)).T
            draws = draws + np.linalg.solve(self._root @ self._root.T, told.T).T @ self._seen_slope * sd**2
        return np.asarray(self.hypothesis.centre + draws)

    def forecast(self, points: NDArray[np.intp], incumbent: int = 0) -> Posterior:
        """Return beliefs of points; `incumbent` is the place among them of the one that the others are set against."""
        sd = self.hypothesis.sd
        value, slope = self._linear(points)
        slope = slope[: len(QUANTITIES)] * sd
        cross = np.zeros((len(QUANTITIES), len(points), len(self._value)))
        mean = value[: len(QUANTITIES)].copy()
        misfit = self.misfit[: len(QUANTITIES)]
        if len(self._value):
            near = self._near(points, self._points)[:, self._run]
            own = np.array([misfit[q] ** 2 * near * (self._quantity == q) for q in range(len(QUANTITIES))])
            mean += own @ self._solved + slope @ (self._told / sd)
            seen_slope = self._seen_slope * sd
            covariance = slope @ seen_slope.T + own
            cross = np.linalg.solve(self._root, covariance.reshape(-1, len(self._value)).T).T.reshape(cross.shape)
        near_incumbent = self._near(points, points[incumbent : incumbent + 1])[:, 0]
        return Posterior(points, mean, slope, cross, misfit, near_incumbent)

    # -- fit ----------------------------------------------------------------------------------------------------------

    def _fit(self) -> None:
        """Most likely factors, then the misfit that they leave, then the factors again."""
        starts = (self.factors, self.hypothesis.centre) if 1 < len(self._points) <= UNSETTLED else (self.factors,)
        found = np.stack([self._descend(start) for start in starts])
        self.factors = found[np.argmin(self._losses(found, np.linalg.inv(self._rest(self.misfit))))]
        self.misfit = self._likeliest()
        self.factors = self._descend(self.factors)
        value, slope = self._seen(self.factors)
        self._seen_slope = slope
        covariance = self._covariance(slope, self.misfit)
        self._root = np.linalg.cholesky(covariance)
        self._base = value + slope @ (self.hypothesis.centre - self.factors)  # what was expected, the model made linear
        self._solved = np.linalg.solve(covariance, self._value - self._base)
        # What the linear model would still move the factors by: next to nothing, but beside a kink.
        linear = self.hypothesis.centre + self.hypothesis.sd**2 * (slope.T @ self._solved)
        self._told = np.clip(linear - self.factors, -FURTHEST, FURTHEST)

    def _descend(self, factors: Array) -> Array:
        """Levenberg and Marquardt's way down to the most likely factors, several dampings tried at once."""
        trust, prior = np.linalg.inv(self._rest(self.misfit)), 1 / self.hypothesis.sd**2
        damping, loss = DAMPING, float(self._losses(factors[None], trust)[0])
        for _ in range(ITERATIONS):
            value, slope = self._seen(factors)
            bend = slope.T @ trust @ slope + np.diag(prior)
            down = slope.T @ trust @ (self._value - value) - prior * (factors - self.hypothesis.centre)
            damped = bend + (damping * LADDER)[:, None, None] * np.diag(np.diag(bend))
            steps = np.linalg.solve(damped, np.broadcast_to(down, (len(LADDER), len(down)))[..., None])[..., 0]
            tried = factors + np.clip(steps, -FURTHEST, FURTHEST)
            losses = self._losses(tried, trust)
            best = int(np.argmin(losses))
            gained = loss - float(losses[best])
            if gained <= 0:
                break
            factors, damping, loss = tried[best], max(1e-6, damping * float(LADDER[best])), float(losses[best])
            if gained < SETTLED:
                break
        return factors

    def _losses(self, factors: Array, trust: Array) -> Array:
        """Squared distances of factors [try, factor] from the runs, by their inverse covariance, and from the prior."""
        logs = _of_scores(self.model.scores(factors, self._points))  # [quantity, try, point]
        off = self._value - np.moveaxis(logs, 1, 0)[:, self._quantity, self._run]
        distance = np.einsum("ti,ij,tj->t", off, trust, off)
        return np.asarray(distance + np.sum(((factors - self.hypothesis.centre) / self.hypothesis.sd) ** 2, axis=-1))

    def _likeliest(self) -> Array:
        """Return the misfit of each quantity that makes what was seen most likely, the factors left open."""
        value, slope = self._seen(self.factors)
        off = self._value - value - slope @ (self.hypothesis.centre - self.factors)

        def loss(misfit: Array) -> float:
            covariance = self._covariance(slope, misfit)
            size = float(np.linalg.slogdet(covariance)[1])
            prior = float(np.sum((np.log(misfit / USUAL_MISFIT / WEIGHT) / MISFIT_SPREAD) ** 2))
            return float(off @ np.linalg.solve(covariance, off)) + size + prior

        found = self.misfit.copy()
        for quantity in np.unique(self._quantity):
            one = np.arange(len(OBSERVED)) == quantity
            found = min((np.where(one, sd * WEIGHT, found) for sd in MISFITS), key=loss)
        return np.asarray(found)

    def _covariance(self, slope: Array, misfit: Array) -> Array:
        return np.asarray((slope * self.hypothesis.sd**2) @ slope.T + self._rest(misfit))

    def _rest(self, misfit: Array) -> Array:
        """Covariance of what no factor explains: misfit, drift, noise."""
        own = misfit[self._quantity]
        return np.asarray(own[:, None] * own * self._alike + self._drift + np.diag(self._noise**2))

    @cached_property
    def _alike(self) -> Array:
        same = self._quantity[:, None] == self._quantity
        near = self._near(self._points, self._points)[np.ix_(self._run, self._run)]
        return np.asarray(same * near)

    @cached_property
    def _drift(self) -> Array:
        speed = (self._quantity[:, None] == self._quantity) & (self._quantity == OBSERVED.index("speed"))
        return np.asarray(speed * DRIFT_SD**2 * np.exp(-np.abs(self._run[:, None] - self._run) / DRIFT_RUNS))

    # -- model --------------------------------------------------------------------------------------------------------

    def _seen(self, factors: Array) -> tuple[Array, Array]:
        """Values [observation] and slopes [observation, factor] where runs were."""
        value, slope = self._linear(self._points, factors)
        return value[self._quantity, self._run], slope[self._quantity, self._run]

    def _linear(self, points: NDArray[np.intp], factors: Array | None = None) -> tuple[Array, Array]:
        """Values [quantity, point] and slopes [quantity, point, factor] of the model around factors."""
        factors = self.factors if factors is None else factors
        moved = np.vstack([factors, factors + STEP * np.eye(len(factors))])
        logs = _of_scores(self.model.scores(moved, points))
        return logs[:, 0], np.moveaxis((logs[:, 1:] - logs[:, :1]) / STEP, 1, -1)

    def _near(self, some: NDArray[np.intp], others: NDArray[np.intp]) -> Array:
        apart = self._columns[some][:, None] - self._columns[others]
        smooth = np.exp(-0.5 * (apart**2).sum(-1))
        return np.asarray((1 - OWN_SHARE) * smooth + OWN_SHARE * (some[:, None] == others))


@lru_cache(maxsize=1)
def _columns(model: PlanModel) -> Array:
    """Places of points, in units of how far a misfit reaches."""
    own = [column / REACH[name] for name, column in model.space.columns().items()]
    return np.column_stack([*own, model.clocks / CLOCK_REACH])


def _logs(run: Seen) -> list[tuple[str, tuple[float, float]]]:
    logs = run.measurement.logs()
    return [(name, (value, float(np.hypot(sd, FLOOR_SD[name])))) for name, (value, sd) in logs.items()]


def _of_scores(scores: Scores) -> Array:
    """Logarithms [quantity, ..., point]; a balance without both accelerators is that of next to nothing."""
    least = 1e-9
    balance = np.log(scores.dla_per_s + least) - np.log(scores.gpu_per_s + least)
    speed, watts, latency = scores.samples_per_s, scores.module_w, scores.latency_ms
    return np.stack([np.log(speed), np.log(watts), np.log(latency), balance, np.log(scores.idle_w)])
