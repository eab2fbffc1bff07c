"""What is asked of a search, and of which board: objectives with their limits, the grid, its exhaustive optimum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orin.plan import Plan
from orin.soc import AGX_ORIN_64GB_SOC as SOC
from tuning.perturbed import PerturbedBoard, Run, Settings, Steady, board

Floats = NDArray[Any]
STATIC: dict[str, Any] = {
    "gpu_batch": 64,
    "dla_batch": 2,
    "dla_loop": 1,
    "dla_cores": 2,
    "gpu_depth": 2,
    "dla_depth": 2,
}
BATCHES: dict[str, tuple[float, ...]] = {
    "gpu_batch": (0, 1, 2, 4, 8, 16, 32, 64, 128, 256),
    "dla_batch": (1, 2, 4, 8),
    "dla_loop": (1, 4),
    "dla_cores": (0, 1, 2),
    "gpu_depth": (1, 2),
    "dla_depth": (1, 2),
}
CLOCKS: dict[str, tuple[float, ...]] = {  # steps of the driver's tables
    "gpu": (408.0, 612.0, 714.0, 816.0, 918.0, 1122.0, 1300.5),
    "dla": (614.4, 883.2, 1088.2, 1369.6, 1600.0),
    "emc": (2133.0, 3199.0),
    "cpu": (729.6, 1036.8, 2201.6),
}
COARSE: dict[str, tuple[float, ...]] = {"gpu_depth": (2,), "dla_depth": (2,)}  # where clocks are searched too
TOLERANCE = 0.01  # of a limit: what runs of one plan differ by
MINIMUM_LOSS = 0.05  # of the static default, for a case to be graded


@dataclass(frozen=True)
class Goal:
    """An objective ("throughput", "efficiency" or "latency") and its limits."""

    objective: str
    slo_ms: float = math.inf
    budget_w: float = math.inf
    min_samples_per_s: float = 0.0

    @property
    def name(self) -> str:
        """The objective, and which limits it has."""
        limits = {
            "SLO": self.slo_ms < math.inf,
            "budget": self.budget_w < math.inf,
            "floor": self.min_samples_per_s > 0,
        }
        return " + ".join([self.objective, *(name for name, has in limits.items() if has)])

    @property
    def limited(self) -> bool:
        """Say whether it has limits at all."""
        return "+" in self.name

    def value(self, seen: Steady | Run) -> Any:
        """What is to be as large as possible."""
        if self.objective == "latency":
            return 1 / seen.latency_ms
        return seen.samples_per_s / seen.module_w if self.objective == "efficiency" else seen.samples_per_s

    def excess(self, seen: Steady | Run) -> Any:
        """By what share the worst limit is broken; 0 or less where all are kept."""
        worst = np.maximum(seen.latency_ms / self.slo_ms - 1, seen.module_w / self.budget_w - 1)
        return np.maximum(worst, self.min_samples_per_s / seen.samples_per_s - 1)


class Grid:
    """Every combination of some axes, as columns for the board and as plans for a search."""

    def __init__(self, network: str, clocks: bool) -> None:
        self.network, self.clocks = network, clocks
        self.axes = {**BATCHES, **COARSE, **CLOCKS} if clocks else dict(BATCHES)
        columns = np.meshgrid(*(np.arange(len(values)) for values in self.axes.values()), indexing="ij")
        coordinates = np.stack([column.ravel() for column in columns], axis=1)
        gpu, cores = (list(self.axes).index(name) for name in ("gpu_batch", "dla_cores"))
        self.coordinates = coordinates[(coordinates[:, gpu] > 0) | (coordinates[:, cores] > 0)]
        self._where = {tuple(row): i for i, row in enumerate(self.coordinates.tolist())}

    def __len__(self) -> int:
        return len(self.coordinates)

    def index(self, coordinates: tuple[int, ...]) -> int | None:
        """Return which entry has these positions on the axes, or None."""
        return self._where.get(coordinates)

    def near(self, values: Mapping[str, float]) -> int:
        """Return the entry closest to some values; axes left out stand at their largest."""
        wanted = []
        for name, axis in self.axes.items():
            value = values.get(name, axis[-1])
            wanted.append(min(range(len(axis)), key=lambda i: abs(axis[i] - value)))
        return self._where[tuple(wanted)]

    def plan(self, index: int) -> Plan:
        """Return an entry as a plan."""
        values = {name: axis[at] for (name, axis), at in zip(self.axes.items(), self.coordinates[index])}
        clocks_mhz = {name: values.pop(name) for name in CLOCKS} if self.clocks else None
        return Plan(network=self.network, clocks_mhz=clocks_mhz, **{name: int(value) for name, value in values.items()})

    @cached_property
    def settings(self) -> Settings:
        """All entries as the board takes them."""
        top = SOC.max_clocks.as_mhz()
        size = len(self)
        picked = {
            name: np.array(axis, dtype=float)[self.coordinates[:, i]]
            for i, (name, axis) in enumerate(self.axes.items())
        }
        mhz = [picked.get(name, np.full(size, top[name])) for name in CLOCKS]
        nothing = np.zeros(size)  # rewritten in full, no tail on the GPU, no copies
        return Settings(*(picked[name] for name in BATCHES), *mhz, nothing, nothing, nothing)


@dataclass(frozen=True, eq=False)
class Case:
    """A goal on a board, with the truth over the whole grid."""

    board_seed: int
    network: str
    goal: Goal
    grid: Grid
    parameters: Mapping[str, Any]
    best: float

    def board(self) -> PerturbedBoard:
        """Return the board as it was before anybody ran anything on it."""
        return board(self.network, self.board_seed, self.parameters)

    @cached_property
    def _quiet(self) -> PerturbedBoard:
        return self.board()

    def judge(self, plan: Plan) -> tuple[float, float]:
        """Return a plan's regret against the exhaustive optimum, and by what share it breaks a limit.

        The regret is negative where a plan off the grid is better, 1 where a limit is broken beyond the tolerance.
        """
        truth = self._quiet.steady(Settings.of([plan]))
        excess = float(self.goal.excess(truth)[0])
        if excess > TOLERANCE:
            return 1.0, excess
        return 1 - float(self.goal.value(truth)[0]) / self.best, excess


def optimum(goal: Goal, truth: Steady) -> float:
    """Return the best value that keeps the limits, NaN where none does."""
    kept = goal.excess(truth) <= 0
    return float(np.max(goal.value(truth)[kept])) if kept.any() else math.nan


def cases(networks: tuple[str, ...], seeds: range, parameters: Mapping[str, Any], clocks: bool) -> Iterator[Case]:
    """Draw boards and goals, and keep those where the static default loses at least 5 %."""
    for network in networks:
        grid = Grid(network, clocks)
        for seed in seeds:
            one = board(network, seed, parameters)
            truth = one.steady(grid.settings)
            for goal in _goals(truth, seed, clocks):
                case = Case(seed, network, goal, grid, parameters, optimum(goal, truth))
                if not math.isnan(case.best) and case.judge(Plan(network=network, **STATIC))[0] >= MINIMUM_LOSS:
                    yield case


def _goals(truth: Steady, seed: int, clocks: bool) -> list[Goal]:
    """Limits that bind, round as they are asked for: an SLO within reach, a budget below full power, a floor below the
    full rate."""
    random = np.random.default_rng([seed, 2])
    rate = float(truth.samples_per_s.max())
    if clocks:
        watts = float(truth.module_w[np.argmax(truth.samples_per_s)])
        return [
            Goal("efficiency"),
            Goal("efficiency", min_samples_per_s=_round(rate * random.uniform(0.5, 0.9))),
            Goal("throughput", budget_w=_round(watts * random.uniform(0.5, 0.85))),
        ]
    slo_ms = _round(np.quantile(truth.latency_ms, random.uniform(0.2, 0.6)))
    floor = Goal("latency", min_samples_per_s=_round(rate * random.uniform(0.5, 0.9)))
    return [Goal("throughput"), Goal("throughput", slo_ms=slo_ms), floor]


def _round(value: float) -> float:
    """Two digits: a limit that happens to be some plan's own figure is kept or broken by chance."""
    return float(f"{value:.2g}")
