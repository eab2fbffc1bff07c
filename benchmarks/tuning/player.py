"""The tuner at play: it proposes and observes over the baselines' grid, at their prices."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from orin.plan import Plan
from orin.predict import workloads
from orin.soc import AGX_ORIN_64GB_SOC as SOC
from orin.soc import DLAS, GPU
from orin.tune.measurement import Measurement
from orin.tune.objective import Objective
from orin.tune.planner import PlanModel
from orin.tune.search import Rules, Trial, Tuner
from orin.tune.space import Axes, Space
from orin.virtual.predict import Workloads
from power.quantity import Quantity
from tuning.cases import CLOCKS, Case, Goal, Grid
from tuning.forms import Form, in_form
from tuning.grading import Step
from tuning.runs import Seen, measure

ALL = 1000  # runs: the board-seconds end the search
TEN_RUNS = Rules(runs=10)
COOL_S = 30.0  # of rest after a throttled run, counted; the run is made again


@dataclass(frozen=True)
class Played:
    """What the tuner did: steps as the baselines', the plan it hands over, how long it thought."""

    steps: list[Step]
    plan: Plan
    planning_s: float


def tune(case: Case, limit_s: float, rules: Rules | None = None, space: Space | None = None) -> Played:
    """Let the tuner search a case, over the grid or another space, until it stops or the board-seconds are spent."""
    board, spent = case.board(), 0.0
    started = time.process_time()
    known = space or grid_space(case.grid)
    tuner = Tuner(known, PlanModel(known), objective(case.goal), rules or Rules(runs=ALL, board_s=limit_s))
    planning_s = time.process_time() - started
    steps: list[Step] = []
    handed: Trial | None = None
    while True:
        started = time.process_time()
        trial = tuner.propose()
        planning_s += time.process_time() - started
        if trial is None:
            break
        seen = measure(board, trial.plan)
        if seen.run.throttled:
            board.rest(trial.plan, COOL_S)
            again = measure(board, trial.plan)
            seen = replace(again, seconds=seen.seconds + COOL_S + again.seconds)
        spent += seen.seconds
        started = time.process_time()
        tuner.observe(trial, measurement(trial.plan, seen))
        best = tuner.best
        planning_s += time.process_time() - started
        if spent <= limit_s:
            steps.append(Step(spent, *(case.judge(best.plan) if best else (1.0, 0.0))))
            handed = best
    plan = handed.plan if handed else case.grid.plan(0)
    return Played(steps, plan, planning_s)


def measurement(plan: Plan, seen: Seen) -> Measurement:
    """Say what a run showed in the tuner's words; power and latency are read with the uncertainty of the rate."""
    dlas = DLAS[: plan.dla_cores]
    share = {GPU: seen.run.gpu_share, **{name: (1 - seen.run.gpu_share) / len(dlas) for name in dlas}}
    return Measurement(
        samples_per_s=Quantity(seen.run.samples_per_s, seen.run.u95 * seen.run.samples_per_s),
        module_w=Quantity(seen.run.module_w, seen.run.u95 * seen.run.module_w),
        latency_ms=Quantity(seen.run.latency_ms, seen.run.u95 * seen.run.latency_ms),
        share={name: part for name, part in share.items() if part > 0},
        seconds=seen.seconds,
        flags=("throttled: the board was warm",) if seen.run.throttled else (),
        idle_w=Quantity(seen.idle_w, 0.02 * seen.idle_w),
    )


def objective(goal: Goal) -> Objective:
    """Return a goal as the tuner takes it."""
    return Objective(
        kind=goal.objective,
        slo_ms=goal.slo_ms if goal.slo_ms < float("inf") else None,
        budget_w=goal.budget_w if goal.budget_w < float("inf") else None,
        min_samples_per_s=goal.min_samples_per_s or None,
    )


def whole_space(grid: Grid) -> Space:
    """Return the tuner's own space for a grid's network, with clocks where the grid has them."""
    axes = Axes.with_clocks(SOC) if grid.clocks else Axes.batches()
    return Space(Plan(network=grid.network), SOC, _workloads(grid.network), axes)


def grid_space(grid: Grid) -> Space:
    """Return a grid as the tuner's space."""
    counts = {name: tuple(map(int, values)) for name, values in grid.axes.items() if name not in CLOCKS}
    clocks: list[dict[str, float]] = [{}]
    if grid.clocks:
        for name in CLOCKS:
            clocks = [{**one, name: mhz} for one in clocks for mhz in grid.axes[name]]
    settings = tuple({"clocks_mhz": one} if one else {} for one in clocks)
    base = Plan(network=grid.network)
    return Space(base, SOC, _workloads(grid.network), Axes(**counts, memory=(), settings=settings))


@lru_cache(maxsize=64)
def _workloads(network: str) -> Mapping[tuple[str, ...], Workloads]:
    form = Form.of(network)
    plan = Plan(network=form.base)
    found = workloads(plan) if network == form.base else _workloads(form.base)[plan.rewrites]
    return {plan.rewrites: found if network == form.base else in_form(found, form)}
