"""Searches that others use, as generators over a grid: each yields what to run and is sent the score it had.

A score is the objective's value, or minus the broken share of a limit: any plan within limits beats any outside.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from orin.plan import Plan
from tuning.cases import STATIC, Grid

Search = Generator[int, float, None]
RADIUS, STARTS = 3, 3  # Model Analyzer's quick mode: steps as far as three, at least three starting points
TPE_LEAST, TPE_PATIENCE = 20, 10  # Model Analyzer's Optuna mode: trials at least, trials without gain before it ends


def static(grid: Grid, random: np.random.Generator) -> Search:
    """GPU 64, DLA 2, both cores, full clocks: one run."""
    yield grid.near(STATIC)


def gpu_only(grid: Grid, random: np.random.Generator) -> Search:
    """The GPU alone: its batches, largest first."""
    for batch in reversed(grid.axes["gpu_batch"]):
        if batch:
            yield grid.near({**STATIC, "gpu_batch": batch, "dla_cores": 0})


def at_random(grid: Grid, random: np.random.Generator) -> Search:
    """Every entry once, in random order."""
    yield from (int(index) for index in random.permutation(len(grid)))


def full_grid(grid: Grid, random: np.random.Generator) -> Search:
    """Every entry once, in the order of the axes, as Model Analyzer's brute mode."""
    yield from (index for index in range(len(grid)))


def hill_climb(grid: Grid, random: np.random.Generator) -> Search:
    """Climb from three starts: look along each axis up to three steps away, go to the best, stop at the top."""
    seen: dict[int, float] = {}
    starts = [grid.near(STATIC), *map(int, random.integers(len(grid), size=STARTS - 1))]
    for at in starts:
        seen[at] = yield at
        while True:
            around = _around(grid, at, random)
            for near in around:
                if near not in seen:
                    seen[near] = yield near
            best = max(around, key=seen.__getitem__)
            if seen[best] <= seen[at]:
                break
            at = best


def _around(grid: Grid, at: int, random: np.random.Generator) -> list[int]:
    """One neighbour up and one down each axis, each a random one to three steps away."""
    here = grid.coordinates[at]
    found = []
    for axis, values in enumerate(grid.axes.values()):
        for way in (-1, 1):
            moved = here.copy()
            moved[axis] = np.clip(here[axis] + way * random.integers(1, RADIUS + 1), 0, len(values) - 1)
            index = grid.index(tuple(moved.tolist()))
            if index is not None and index != at:
                found.append(index)
    return found


def tpe(grid: Grid, random: np.random.Generator) -> Search:
    """Optuna's tree-structured Parzen estimator: 20 trials at least, ends after 10 without gain."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=int(random.integers(1 << 31)))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    best, since, count = -np.inf, 0, 0
    while count < TPE_LEAST or since < TPE_PATIENCE:
        trial = study.ask()
        at = [trial.suggest_int(name, 0, len(values) - 1) for name, values in grid.axes.items()]
        index = grid.index(tuple(at))
        if index is None:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            continue
        score = yield index
        study.tell(trial, score)
        count, since = count + 1, 0 if score > best else since + 1
        best = max(best, score)


BASELINES: dict[str, Callable[[Grid, np.random.Generator], Search]] = {
    "static": static,
    "GPU only": gpu_only,
    "random": at_random,
    "full grid": full_grid,
    "hill climbing": hill_climb,
    "Optuna TPE": tpe,
}


def _hand(network: str, mhz: tuple[float, float, float, float] | None, **counts: Any) -> Plan:
    clocks_mhz = dict(zip(("gpu", "dla", "emc", "cpu"), mhz)) if mhz else None
    return Plan(network=network, clocks_mhz=clocks_mhz, **counts)


# NVIDIA's submitted Offline settings (configs/*/Offline of MLPerf Inference results; copy streams are items in flight):
# ResNet-50 and RetinaNet of v3.1, the two SSDs of v2.0. MaxQ rows are GPU, DLA, EMC, CPU clocks in MHz.
HAND: dict[str, tuple[Plan, Plan]] = {
    "resnet50": (
        _hand("resnet50", None, gpu_batch=256, dla_batch=2, dla_loop=4),
        _hand("resnet50", (612.0, 780.2, 2133.0, 576.0), gpu_batch=256, dla_batch=8),
    ),
    "ssd-mobilenet": (
        _hand("ssd-mobilenet", None, gpu_batch=128, dla_batch=64, gpu_depth=1, dla_depth=1),
        _hand("ssd-mobilenet", (828.75, 960.0, 3199.0, 1036.8), gpu_batch=128, dla_batch=64, gpu_depth=1, dla_depth=1),
    ),
    "ssd-resnet34": (
        _hand("ssd-resnet34", None, gpu_batch=8, dla_batch=8, gpu_depth=4, dla_depth=1),
        _hand("ssd-resnet34", (828.75, 1600.0, 3199.0, 1036.8), gpu_batch=4, dla_batch=4, gpu_depth=4, dla_depth=1),
    ),
    "retinanet": (
        _hand("retinanet", None, gpu_batch=4, dla_batch=1, gpu_depth=1, dla_depth=1),
        _hand("retinanet", (612.0, 1088.2, 2133.0, 652.8), gpu_batch=1, dla_batch=1, gpu_depth=1, dla_depth=1),
    ),
}
