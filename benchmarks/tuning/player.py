"""The tuner at play: it proposes and observes over the baselines' grid, at their prices."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from orin.plan import Plan
from orin.predict import workloads
from orin.soc import AGX_ORIN_64GB_SOC as SOC
from orin.soc import DLAS, GPU
from orin.tune.objective import Objective
from orin.tune.planner import PlanModel
from orin.tune.search import Measurement, Rules, Tuner
from orin.tune.space import Axes, Space
from orin.virtual.predict import Workloads
from power.quantity import Quantity
from tuning.cases import CLOCKS, WARM_UP_S, Case, Goal, Grid
from tuning.grading import RUN_S, Step
from tuning.perturbed import Run

COOL_S = 30.0  # of rest after a throttled run, counted; the run is made again


@dataclass(frozen=True)
class Played:
    """What the tuner did: steps as the baselines', the plan it hands over, how long it thought."""

    steps: list[Step]
    plan: Plan
    planning_s: float


def tune(case: Case, limit_s: float, runs: int = 10) -> Played:
    """Let the tuner search a case until it stops of itself, or the board-seconds are spent."""
    board, spent = case.board(), 0.0
    started = time.process_time()
    tuner = Tuner(space(case.grid), PlanModel(space(case.grid)), objective(case.goal), Rules(runs=runs))
    planning_s = time.process_time() - started
    steps: list[Step] = []
    while spent + WARM_UP_S + RUN_S <= limit_s:
        started = time.process_time()
        trial = tuner.propose()
        planning_s += time.process_time() - started
        if trial is None:
            break
        board.rest(WARM_UP_S)
        run = board.run(trial.plan, RUN_S)
        spent += WARM_UP_S + RUN_S
        if run.throttled:
            board.rest(COOL_S)
            run = board.run(trial.plan, RUN_S)
            spent += COOL_S + RUN_S
        started = time.process_time()
        tuner.observe(trial, measurement(trial.plan, run))
        best = tuner.best
        planning_s += time.process_time() - started
        steps.append(Step(spent, *(case.judge(best.plan) if best else (1.0, 0.0))))
    plan = tuner.best.plan if tuner.best else case.grid.plan(0)
    return Played(steps, plan, planning_s)


def measurement(plan: Plan, run: Run) -> Measurement:
    """Say what a run showed in the tuner's words; power and latency are read with the uncertainty of the rate."""
    dlas = DLAS[: plan.dla_cores]
    share = {GPU: run.gpu_share, **{name: (1 - run.gpu_share) / len(dlas) for name in dlas}}
    return Measurement(
        samples_per_s=Quantity(run.samples_per_s, run.u95 * run.samples_per_s),
        module_w=Quantity(run.module_w, run.u95 * run.module_w),
        latency_ms=Quantity(run.latency_ms, run.u95 * run.latency_ms),
        share={name: part for name, part in share.items() if part > 0},
        seconds=run.seconds,
        flags=("throttled: the board was warm",) if run.throttled else (),
    )


def objective(goal: Goal) -> Objective:
    """Return a goal as the tuner takes it."""
    return Objective(
        kind=goal.objective,
        slo_ms=goal.slo_ms if goal.slo_ms < float("inf") else None,
        budget_w=goal.budget_w if goal.budget_w < float("inf") else None,
        min_samples_per_s=goal.min_samples_per_s or None,
    )


def space(grid: Grid) -> Space:
    """Return a grid as the tuner's space."""
    counts = {name: tuple(map(int, values)) for name, values in grid.axes.items() if name not in CLOCKS}
    clocks: list[dict[str, float]] = [{}]
    if grid.clocks:
        for name in CLOCKS:
            clocks = [{**one, name: mhz} for one in clocks for mhz in grid.axes[name]]
    settings = tuple({"clocks_mhz": one} if one else {} for one in clocks)
    base = Plan(network=grid.network)
    return Space(base, SOC, _workloads(grid.network), Axes(**counts, memory=(), settings=settings))


@lru_cache(maxsize=16)
def _workloads(network: str) -> Mapping[tuple[str, ...], Workloads]:
    plan = Plan(network=network)
    return {plan.rewrites: workloads(plan)}
