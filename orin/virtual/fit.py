"""Fitting the virtual Orin to measured times: a maximum a posteriori estimate in the logarithms of its parameters.

One function serves both uses: all published rows from wide priors (`benchmarks/fit_virtual.py`), and one board's own
runs from what is believed already (`refit`). Residuals are logarithms of predicted over measured time, in units of each
row's own standard deviation; every parameter is pulled to where the prior has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orin.errors import OrinError
from orin.soc import Clocks, Soc
from orin.virtual.model import CostModel, EngineShape
from orin.virtual.parameters import Belief, NetworkFit, Parameters

FACTOR_SD = {"gpu_compute": 0.2, "gpu_memory": 0.3, "dla_compute": 0.15, "dla_memory": 0.3}
ROW_SD = 0.02  # of the logarithm of a measured time: what repeats differ by, and the law's own misses
_STEP = 1e-4  # of numeric derivatives, in logarithms
_SWEEPS = 30


@dataclass(frozen=True)
class Observation:
    """A measured time: `enqueues` of `samples` on one accelerator, after one another; `milliseconds` of them all.

    With `submits` the first enqueue's submission is part of it (a query alone), else it was hidden behind earlier work.
    `sd` is the standard deviation of the time's logarithm.
    """

    name: str
    shape: EngineShape
    soc: Soc
    clocks: Clocks
    stack: str
    milliseconds: float
    samples: int = 1
    enqueues: float = 1.0
    submits: bool = False
    sd: float = ROW_SD

    def predicted_ms(self, parameters: Parameters) -> float:
        """Return what parameters make of it."""
        cost = CostModel(self.soc, self.clocks, self.stack, parameters).cost(self.shape, self.samples)
        return (self.enqueues * cost.solo_ns + (cost.submit_ns if self.submits else 0.0)) * 1e-6

    def error(self, parameters: Parameters) -> float:
        """Return the logarithm of predicted over measured time."""
        return float(np.log(self.predicted_ms(parameters) / self.milliseconds))


@dataclass(frozen=True, eq=False)
class Prior:
    """What is believed before rows are seen: names, means and covariance of the parameters' logarithms."""

    names: tuple[str, ...]
    mean: NDArray[Any]
    covariance: NDArray[Any]

    @classmethod
    def of(cls, parameters: Parameters, belief: Belief | None = None) -> Prior:
        """Return the belief that a parameter set carries (or another one), centred on its values."""
        belief = belief or parameters.belief
        mean = np.log([parameters.value(name) for name in belief.names])
        return cls(belief.names, mean, belief.covariance)

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Prior:
        """Return the prior of a parameter document: its entries with a `prior` and the `sd` of its logarithm."""
        sections = [(name, document[name]) for name in ("law", "shared")]
        sections += [(f"stacks.{name}", stack.get("fit", {})) for name, stack in document["stacks"].items()]
        entries = {f"{section}.{name}": one for section, part in sections for name, one in part.items() if "sd" in one}
        mean = np.log([entry["prior"] for entry in entries.values()])
        return cls(tuple(entries), mean, np.diag([entry["sd"] ** 2 for entry in entries.values()]))

    def with_networks(self, rows: Sequence[Observation]) -> Prior:
        """Return a prior that also has the factors of networks and accelerators which the rows bring in."""
        wanted = dict.fromkeys(name for row in rows for name in factor_names(row.shape))
        new = [name for name in wanted if name not in self.names]
        sizes = [FACTOR_SD[name.rpartition(".")[2]] ** 2 for name in new]
        count = len(self.names)
        covariance = np.zeros((count + len(new),) * 2)
        covariance[:count, :count] = self.covariance
        covariance[range(count, count + len(new)), range(count, count + len(new))] = sizes
        return Prior((*self.names, *new), np.concatenate([self.mean, np.zeros(len(new))]), covariance)


def factor_names(shape: EngineShape) -> tuple[str, str]:
    """Return the full names of the two factors of a network on its accelerator."""
    stem = f"networks.{shape.network}.{shape.device}"
    return f"{stem}_compute", f"{stem}_memory"


def residuals(parameters: Parameters, rows: Sequence[Observation]) -> NDArray[Any]:
    """Return each row's log error over its standard deviation."""
    return np.array([row.error(parameters) / row.sd for row in rows])


def fit(
    parameters: Parameters, rows: Sequence[Observation], prior: Prior, start: Parameters | None = None
) -> Parameters:
    """Return parameters that explain the rows best, and what is believed of them then; OrinError where there are none.

    The search begins at the prior, or at `start`; where it ends is the same.
    """
    if not rows:
        raise OrinError("nothing to fit: no measured rows, expected at least one")
    prior = prior.with_networks(rows)
    whiten = np.linalg.inv(np.linalg.cholesky(prior.covariance))
    at = np.log([start.value(name) for name in prior.names]) if start else prior.mean.copy()
    here = parameters.with_values(prior.names, np.exp(at))
    damping = 1e-3
    cost, slopes = _cost(here, rows, whiten @ (at - prior.mean)), _slopes(here, rows, prior.names, at)
    for _ in range(_SWEEPS):
        step = _step(slopes, residuals(here, rows), whiten, at - prior.mean, damping)
        there = parameters.with_values(prior.names, np.exp(at + step))
        reached = _cost(there, rows, whiten @ (at + step - prior.mean))
        if reached > cost:
            damping *= 10
            if damping > 1e6:
                break
            continue
        done = cost - reached < 1e-6 * cost
        at, here, cost, damping = at + step, there, reached, max(1e-9, damping / 10)
        slopes = _slopes(here, rows, prior.names, at)
        if done:
            break
    covariance = np.linalg.inv(slopes.T @ slopes + whiten.T @ whiten)
    return _believed(here, rows, Belief(prior.names, covariance))


def refit(parameters: Parameters, rows: Sequence[Observation]) -> Parameters:
    """Return a board's own parameters: those at hand, moved by its runs as far as what is believed of them allows."""
    return fit(parameters, rows, Prior.of(parameters))


def _cost(parameters: Parameters, rows: Sequence[Observation], away: NDArray[Any]) -> float:
    return float(np.sum(residuals(parameters, rows) ** 2) + away @ away)


def _slopes(
    parameters: Parameters, rows: Sequence[Observation], names: Sequence[str], at: NDArray[Any]
) -> NDArray[Any]:
    """Derivatives of the residuals, [rows, parameters]; rows that a network's factor cannot touch are not run."""
    base = residuals(parameters, rows)
    slopes = np.zeros((len(rows), len(names)))
    for column, (name, value) in enumerate(zip(names, at)):
        touched = [i for i, row in enumerate(rows) if _touches(parameters, name, row)]
        moved = parameters.with_values([name], [np.exp(value + _STEP)])
        slopes[touched, column] = (residuals(moved, [rows[i] for i in touched]) - base[touched]) / _STEP
    return slopes


def _touches(parameters: Parameters, name: str, row: Observation) -> bool:
    section, _, rest = name.partition(".")
    if section == "networks":
        return name in factor_names(row.shape)
    if section == "stacks":
        return rest.rpartition(".")[0] == parameters.stack(row.stack).gpu_from
    device = rest.partition("_")[0]
    return device not in ("gpu", "dla") or section != "law" or device == row.shape.device


def _step(
    slopes: NDArray[Any], errors: NDArray[Any], whiten: NDArray[Any], away: NDArray[Any], damping: float
) -> NDArray[Any]:
    curvature = slopes.T @ slopes + whiten.T @ whiten
    downhill = slopes.T @ errors + whiten.T @ (whiten @ away)
    damped = curvature + damping * np.diag(np.diag(curvature))
    step: NDArray[Any] = -np.linalg.solve(damped, downhill)
    return step.clip(-1.0, 1.0)


def _believed(parameters: Parameters, rows: Sequence[Observation], belief: Belief) -> Parameters:
    """Note the belief, and of each measured network how far its factors are known once the shared law is given."""
    networks = dict(parameters.networks)
    by_engine: dict[tuple[str, str], list[Observation]] = {}
    for row in rows:
        by_engine.setdefault((row.shape.network, row.shape.device), []).append(row)
    for (network, device), own in by_engine.items():
        names = factor_names(own[0].shape)
        slopes = _slopes(parameters, own, names, np.log([parameters.value(name) for name in names]))
        sizes = [FACTOR_SD[name.rpartition(".")[2]] for name in names]
        known = np.linalg.inv(slopes.T @ slopes + np.diag(1 / np.square(sizes)))
        was = networks.get(network, NetworkFit({}, frozenset()))
        spread = {**was.spread, device: (float(known[0, 0]), float(known[1, 1]), float(known[0, 1]))}
        stacks = was.stacks.union(row.stack for row in own)
        networks[network] = replace(was, measured=was.measured | {device}, stacks=stacks, spread=spread)
    return replace(parameters, networks=networks, belief=belief)
