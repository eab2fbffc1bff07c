"""What is believed of every plan: the refits of all hypotheses, each weighed by how well it foretold the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orin.tune.factors import Hypothesis
from orin.tune.planner import PlanModel
from orin.tune.refit import Posterior, Refit, Seen
from orin.tune.tables import Array

LEAST, GONE = 0.02, 1e-3  # of the likeliest one's probability: what a hypothesis needs to be asked, and to stay


@dataclass(frozen=True)
class Mixture:
    """Beliefs of some points under several hypotheses: the moments of all together, as `Posterior` has them of one."""

    parts: Sequence[Posterior]
    weights: Array

    @property
    def points(self) -> NDArray[np.intp]:
        """The points."""
        return self.parts[0].points

    @property
    def mean(self) -> Array:
        """Expected logarithms [quantity, point]."""
        return np.asarray(np.tensordot(self.weights, np.stack([part.mean for part in self.parts]), 1))

    def variance(self, weights: Array) -> Array:
        """Return the variance [point] of a weighted sum of quantities: within hypotheses and between them."""
        within = np.stack([part.variance(weights) for part in self.parts])
        return np.asarray(self.weights @ (within + self._apart(weights) ** 2))

    def covariance(self, weights: Array, at: int) -> Array:
        """Return the covariance [point] of a weighted sum with that of the incumbent, which stands at `at`."""
        within = np.stack([part.covariance(weights, at) for part in self.parts])
        apart = self._apart(weights)
        return np.asarray(self.weights @ (within + apart * apart[:, at : at + 1]))

    def _apart(self, weights: Array) -> Array:
        """How far each hypothesis is from the mean, [hypothesis, point]."""
        sums = np.stack([weights @ part.mean for part in self.parts])
        return np.asarray(sums - self.weights @ sums)


class Belief:
    """What runs say of a model's space; `earlier` is the belief before the last of them."""

    def __init__(self, model: PlanModel, seen: Sequence[Seen], earlier: Belief | None = None) -> None:
        left = earlier.left if earlier else [(one, None) for one in model.hypotheses]
        self.refits = [Refit(model, seen, hypothesis, start) for hypothesis, start in left]
        logs = np.array([refit.log_evidence + np.log(refit.hypothesis.probability) for refit in self.refits])
        self._share = np.exp(logs - logs.max())
        asked = np.where(self._share < LEAST, 0.0, self._share)
        self.weights = asked / asked.sum()

    @property
    def left(self) -> list[tuple[Hypothesis, Array | None]]:
        """The hypotheses that may still be so, each with its likeliest factors."""
        return [(one.hypothesis, one.factors) for one, share in zip(self.refits, self._share) if share >= GONE]

    @property
    def likeliest(self) -> Refit:
        """The refit of the likeliest hypothesis."""
        return self.refits[int(np.argmax(self.weights))]

    @property
    def factors(self) -> Array:
        """The likeliest factors."""
        return self.likeliest.factors

    @property
    def misfit(self) -> Array:
        """What they leave, as standard deviations by observed quantity."""
        return self.likeliest.misfit

    def forecast(self, points: NDArray[np.intp], incumbent: int = 0) -> Mixture:
        """Return beliefs of points; `incumbent` is the place among them of the one that the others are set against."""
        asked = np.flatnonzero(self.weights)
        return Mixture([self.refits[at].forecast(points, incumbent) for at in asked], self.weights[asked])

    def drawn(self, count: int, random: np.random.Generator) -> Array:
        """Return factors [count, factor] of boards drawn from what is believed of this one."""
        which = random.choice(len(self.refits), count, p=self.weights)
        return np.concatenate([self.refits[at].drawn(int(np.sum(which == at)), random) for at in np.unique(which)])
