"""What is believed of every plan on this board after some runs: the model with its factors refitted, and what is left.

In logarithms a plan's figure is the model's, at factors that are Gaussian around zero, plus a misfit that is alike for
plans that lie close, plus a slow drift of the board and the run's own noise. So factors are a regularised least-squares
problem (Gauss-Newton), and every plan's figure is Gaussian with known covariances. How large the misfit is comes from
the runs: where they fall outside what was expected, the most likely misfit grows, and with it every interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from orin.tune.measurement import Measurement
from orin.tune.objective import QUANTITIES
from orin.tune.planner import Array, PlanModel, Scores

OBSERVED = (*QUANTITIES, "balance")
MISFITS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.3)  # standard deviations of the logarithm that are tried
USUAL_MISFIT, MISFIT_SPREAD = 0.015, 1.0  # co-run error of the model that is documented, and how sure of it (log)
WEIGHT = np.array([1.0, 1.0, 1.5, 1.5])  # of the usual misfit, by quantity
FLOOR_SD = {"speed": 0.003, "watts": 0.004, "latency": 0.01, "balance": 0.01}  # of a run, however long
DRIFT_SD = 0.002  # per run, of speed and watts: temperature and what else goes slowly
STEPS, STEP, ITERATIONS, SETTLED = (1.0, 0.5, 0.25, 0.1), 1e-4, 12, 1e-4
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


class Belief:
    """What runs say of a model's space; `factors` are the most likely ones, `misfit` the spread that is left."""

    def __init__(self, model: PlanModel, seen: Sequence[Seen], start: Array | None = None) -> None:
        self.model = model
        self._columns = _columns(model)
        rows = [(at, quantity, *value) for at, run in enumerate(seen) for quantity, value in _logs(run)]
        self._run = np.array([row[0] for row in rows], int)
        self._quantity = np.array([OBSERVED.index(row[1]) for row in rows], int)
        self._value = np.array([row[2] for row in rows], float)
        self._noise = np.array([row[3] for row in rows], float)
        self._points = np.array([run.index for run in seen], int)
        self.factors = np.zeros(len(model.factors)) if start is None else start
        self.misfit = USUAL_MISFIT * WEIGHT  # [quantity], standard deviations
        if rows:
            self._fit()

    @property
    def observations(self) -> int:
        """How many figures were fitted."""
        return len(self._value)

    def forecast(self, points: NDArray[np.intp], incumbent: int = 0) -> Posterior:
        """Return beliefs of points; `incumbent` is the place among them of the one that the others are set against."""
        sd = self.model.prior_sd
        value, slope = self._linear(points)
        slope = slope[: len(QUANTITIES)] * sd
        cross = np.zeros((len(QUANTITIES), len(points), len(self._value)))
        mean = value[: len(QUANTITIES)].copy()
        misfit = self.misfit[: len(QUANTITIES)]
        if len(self._value):
            near = self._near(points, self._points)[:, self._run]
            own = np.array([misfit[q] ** 2 * near * (self._quantity == q) for q in range(len(QUANTITIES))])
            mean += own @ self._solved
            seen_slope = self._seen_slope * sd
            covariance = slope @ seen_slope.T + own
            cross = np.linalg.solve(self._root, covariance.reshape(-1, len(self._value)).T).T.reshape(cross.shape)
        near_incumbent = self._near(points, points[incumbent : incumbent + 1])[:, 0]
        return Posterior(points, mean, slope, cross, misfit, near_incumbent)

    # -- fit ----------------------------------------------------------------------------------------------------------

    def _fit(self) -> None:
        """Most likely factors from two starts (hidden GPU work is bimodal), then the misfit, then the factors again."""
        self.misfit = self._likeliest()
        hidden = np.zeros(len(self.factors))
        hidden[self.model.factors.index("dla_hidden_gpu")] = 1.5 * self._hidden_sd
        found = [self._descend(start) for start in (self.factors, hidden)]
        self.factors = min(found, key=self._loss)
        self.misfit = self._likeliest()
        self.factors = self._descend(self.factors)
        value, slope = self._seen(self.factors)
        self._seen_slope = slope
        covariance = self._covariance(slope, self.misfit)
        self._root = np.linalg.cholesky(covariance)
        self._solved = np.linalg.solve(covariance, self._value - value + slope @ self.factors)

    @property
    def _hidden_sd(self) -> float:
        return float(self.model.prior_sd[self.model.factors.index("dla_hidden_gpu")])

    def _descend(self, factors: Array) -> Array:
        variance, rest = self.model.prior_sd**2, self._rest(self.misfit)
        for _ in range(ITERATIONS):
            value, slope = self._seen(factors)
            covariance = (slope * variance) @ slope.T + rest
            goal = variance * (slope.T @ np.linalg.solve(covariance, self._value - value + slope @ factors))
            tried = [factors + step * (goal - factors) for step in STEPS]
            best = min(tried, key=self._loss)
            if self._loss(best) > self._loss(factors) - SETTLED:
                break
            factors = best
        return factors

    def _loss(self, factors: Array) -> float:
        """Squared distance from the runs and from the prior."""
        off = self._value - self._values(factors)
        distance = off @ np.linalg.solve(self._rest(self.misfit), off)
        return float(distance + np.sum((factors / self.model.prior_sd) ** 2))

    def _likeliest(self) -> Array:
        """Return the misfit of each quantity that makes what was seen most likely, the factors left open."""
        value, slope = self._seen(self.factors)
        off = self._value - value + slope @ self.factors

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
        return np.asarray((slope * self.model.prior_sd**2) @ slope.T + self._rest(misfit))

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
        same = (self._quantity[:, None] == self._quantity) & (self._quantity < 2)
        return np.asarray(same * DRIFT_SD**2 * np.minimum(self._run[:, None], self._run))

    # -- model --------------------------------------------------------------------------------------------------------

    def _values(self, factors: Array) -> Array:
        logs = _of_scores(self.model.scores(factors, self._points))
        return np.asarray(logs[self._quantity, self._run])

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
    return np.stack([np.log(speed), np.log(watts), np.log(latency), balance])
