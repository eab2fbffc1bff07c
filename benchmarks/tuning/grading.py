"""How good a search is after so many board-seconds: regret curves, time to 1 %, broken limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuning.baselines import BASELINES
from tuning.cases import Case
from tuning.runs import RUN_S, WARM_UP_S, measure

EQUIVALENT_S = 10 * (RUN_S + WARM_UP_S)  # board-seconds of ten runs
GOAL_REGRET = 0.01
RESAMPLES = 400


@dataclass(frozen=True)
class Step:
    """What a search would hand over after so many board-seconds: true regret, and by what share a limit is broken."""

    seconds: float
    regret: float
    excess: float


@dataclass(frozen=True, eq=False)
class Curve:
    """Median and 95th percentile of regret over cases, at board-seconds; `low` to `high` is the median's 95 % band."""

    seconds: NDArray[Any]
    median: NDArray[Any]
    low: NDArray[Any]
    high: NDArray[Any]
    p95: NDArray[Any]

    def reached_s(self, regret: float = GOAL_REGRET, bound: str = "median") -> float:
        """Return the first board-seconds from which a bound stays at or below a regret, infinity if it never does."""
        above = np.flatnonzero(getattr(self, bound) > regret)
        first = above[-1] + 1 if len(above) else 0
        return float(self.seconds[first]) if first < len(self.seconds) else float("inf")


def play(case: Case, name: str, seed: int, limit_s: float) -> list[Step]:
    """Let a baseline search a case; it hands over the plan with the best score it has seen."""
    board, search = case.board(), BASELINES[name](case.grid, np.random.default_rng([seed, case.board_seed]))
    steps: list[Step] = []
    seconds, best, judged = 0.0, -np.inf, (1.0, 0.0)
    try:
        index = next(search)
        while seconds < limit_s:
            plan = case.grid.plan(index)
            seen = measure(board, plan)
            seconds += seen.seconds
            excess = float(case.goal.excess(seen.run))
            score = float(case.goal.value(seen.run)) if excess <= 0 else -excess
            if score > best:
                best, judged = score, case.judge(plan)
            steps.append(Step(seconds, *judged))
            index = search.send(score)
    except StopIteration:
        pass
    return steps


def regret_at(steps: Sequence[Step], seconds: float) -> float:
    """Return the regret of what a search has after some board-seconds; 1 before its first run ends."""
    done = [step.regret for step in steps if step.seconds <= seconds + 1e-9]
    return max(0.0, done[-1]) if done else 1.0


def reached_s(steps: Sequence[Step], regret: float = GOAL_REGRET) -> float:
    """Return the board-seconds from which a search's regret stays at or below one, infinity if it never does."""
    above = [at for at, step in enumerate(steps) if step.regret > regret]
    first = above[-1] + 1 if above else 0
    return steps[first].seconds if first < len(steps) else float("inf")


def curve(traces: Sequence[Sequence[Step]], limit_s: float, seed: int = 0) -> Curve:
    """Summarise traces over cases every second; bands are bootstrapped over the cases."""
    seconds = np.arange(0.0, limit_s + 0.5)
    regrets = np.array([_held(steps, seconds) for steps in traces])
    random = np.random.default_rng(seed)
    picked = random.integers(len(regrets), size=(RESAMPLES, len(regrets)))
    medians = np.median(regrets[picked], axis=1)
    low, high = np.quantile(medians, (0.025, 0.975), axis=0)
    return Curve(seconds, np.median(regrets, axis=0), low, high, np.quantile(regrets, 0.95, axis=0))


def _held(steps: Sequence[Step], seconds: NDArray[Any]) -> NDArray[Any]:
    """Regret at each of many times, held from step to step."""
    ends = np.array([step.seconds for step in steps])
    regrets = np.array([1.0, *(max(0.0, step.regret) for step in steps)])
    return np.asarray(regrets[np.searchsorted(ends, seconds + 1e-9, side="right")])


def violations(traces: Sequence[Sequence[Step]], tolerance: float) -> float:
    """Return the share of traces that end on a plan which breaks a limit by more than the tolerance."""
    return float(np.mean([not steps or steps[-1].excess > tolerance for steps in traces]))


def draw(curves: dict[str, Curve], path: Any, title: str) -> None:
    """Draw the medians with their bands over board-seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, one in curves.items():
        line = axes.step(
            one.seconds, 100 * one.median, where="post", label=name, linewidth=2.5 if name == "orin tune" else 1.3
        )
        axes.fill_between(
            one.seconds, 100 * one.low, 100 * one.high, step="post", alpha=0.15, color=line[0].get_color()
        )
    axes.axhline(100 * GOAL_REGRET, color="grey", linestyle=":", linewidth=1)
    axes.axvline(EQUIVALENT_S, color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="board-seconds, probes and warm-up included", ylabel="regret, %", title=title, ylim=(0.05, 110))
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_yticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    axes.legend(loc="lower left", ncols=2)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
