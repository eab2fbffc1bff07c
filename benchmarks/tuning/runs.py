"""One run of a plan on a perturbed board, at the price that every search pays for it: idling before it is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from orin.plan import Plan
from tuning.perturbed import PerturbedBoard, Run

WARM_UP_S = 2.0  # of idling before each run, in which idle power is read
SLICES_S = (2.0, 3.0)  # the second is run where the first leaves too wide an interval
RUN_S = sum(SLICES_S)
ENOUGH = 0.03  # u95 of the rate, as a share


@dataclass(frozen=True)
class Seen:
    """What a run and the idling before it showed; `seconds` are all that it took of the board."""

    run: Run
    idle_w: float
    seconds: float


def measure(board: PerturbedBoard, plan: Plan) -> Seen:
    """Run a plan, cut short where its interval is small enough."""
    runs: list[Run] = []
    seconds = 0.0
    for slice_s in SLICES_S:
        idle_w = board.rest(plan, WARM_UP_S)
        runs.append(board.run(plan, slice_s))
        seconds += WARM_UP_S + slice_s
        whole = _together(runs)
        if whole.throttled or whole.u95 <= ENOUGH:
            break
    return Seen(whole, idle_w, seconds)


def _together(runs: Sequence[Run]) -> Run:
    weights = np.array([run.seconds for run in runs]) / sum(run.seconds for run in runs)

    def mean(name: str) -> float:
        return float(weights @ np.array([getattr(run, name) for run in runs]))

    return replace(
        runs[-1],
        samples_per_s=mean("samples_per_s"),
        module_w=mean("module_w"),
        latency_ms=mean("latency_ms"),
        u95=float(np.hypot.reduce(weights * np.array([run.u95 for run in runs]))),
        seconds=sum(run.seconds for run in runs),
    )
