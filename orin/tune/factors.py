"""How boards differ from the model, as a few factors that runs find: names, and how far off each may be beforehand.

Two questions have answers too far apart for one Gaussian: whether the GPU's kernels wait for their launches (in CUDA
graphs they do not), and whether a DLA's plan has GPU work that nothing reports. Each pair of answers is a hypothesis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from orin.soc import GPU
from orin.tune.space import Space
from orin.virtual.model import CostModel, EngineShape

# Standard deviations before the first run, of logarithms; those that end in clock, batch or arithmetic, of an exponent.
# Times take theirs from the cost model (NaN here). DRAM sharing was never isolated on an Orin: its strength is known to
# a factor of three. Dynamic power is V^2 f, so that its exponent lies between 1 (fixed voltage) and 3 (one that follows
# the clock): 1.5 as published, 0.3 around it.
FACTORS: Mapping[str, float] = {
    "gpu_time": math.nan,
    "gpu_split": 0.8,  # of arithmetic and memory: published compute shares run from 0.60 to 0.90
    "gpu_fixed": 0.7,
    "gpu_launch": 1.0,  # and the answers below
    "gpu_host": 0.4,
    "gpu_memory_clock": 0.5,  # whether memory time follows the GPU's clock where that limits what it can ask for
    "gpu_time_batch": 0.03,
    "dla_time": math.nan,
    "dla_split": 0.8,
    "dla_host": 0.4,
    "dla_weights": 0.5,
    "dla_time_batch": 0.06,
    "dla_hidden_gpu": 2.0,
    "gpu_traffic": 0.5,
    "dla_traffic": 0.4,
    "gpu_contention": 1.0,
    "dla_contention": 1.0,
    "dram_knee": 1.0,
    "idle_w": 0.1,
    "idle_w_emc": 0.7,
    "idle_w_cpu": 0.7,
    "gpu_w": 0.2,
    "gpu_w_clock": 0.3,
    "gpu_w_arithmetic": 0.8,
    "dla_w": 0.2,
    "dla_w_clock": 0.3,
    "dram_w": 0.3,
}


# (probability, centre, standard deviation of the logarithm) of each answer; one network in seven has hidden GPU work.
ANSWERS: Mapping[str, tuple[tuple[float, float, float], ...]] = {
    "gpu_launch": ((0.5, 0.0, 0.4), (0.5, -3.0, 1.0)),
    "dla_hidden_gpu": ((0.85, 0.0, 0.7), (0.15, 4.0, 0.8)),
}


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """Answers to the questions: their probability beforehand, and where the factors then lie, [factors]."""

    probability: float
    centre: NDArray[np.float64]
    sd: NDArray[np.float64]


def hypotheses(sd: NDArray[np.float64]) -> tuple[Hypothesis, ...]:
    """Return every combination of answers; all other factors lie around zero with standard deviations `sd`."""
    names = list(FACTORS)
    found = []
    for answers in product(*ANSWERS.values()):
        centre, own_sd = np.zeros(len(names)), sd.copy()
        for question, (_, middle, spread) in zip(ANSWERS, answers):
            centre[names.index(question)], own_sd[names.index(question)] = middle, spread
        found.append(Hypothesis(math.prod(answer[0] for answer in answers), centre, own_sd))
    return tuple(found)


def prior_sd(space: Space, model: CostModel) -> NDArray[np.float64]:
    """Return the standard deviation of each factor before anything is measured, [factors].

    A board's software need not be the stack of the plan: how far stacks lie apart is part of a time's.
    """
    stack_sd = model.parameters.shared["stack_sd"]
    times = {f"{device}_time": math.hypot(_speed_sd(space, model, device), stack_sd) for device in ("gpu", "dla")}
    return np.array([times.get(name, sd) for name, sd in FACTORS.items()])


def _speed_sd(space: Space, model: CostModel, device: str) -> float:
    base, work = space.base, next(iter(space.workloads.values()))
    on_gpu = device == GPU or base.precision == "fp32"  # which no DLA takes
    shape = EngineShape(base.network, "gpu" if on_gpu else "dla", 1, base.precision, work.gpu if on_gpu else work.dla)
    return model.speed_sd(shape)
