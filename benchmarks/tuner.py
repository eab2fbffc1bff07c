"""The tuner against other searches, on perturbed boards that share no code with its planner below `Plan` (simulated).

Regret against the exhaustive optimum over board-seconds (probes and warm-up included) where the static default loses at
least 5 %; NVIDIA's hand settings; broken limits; planning time; replay of published grids. Every miss is printed.
`--parameters FILE` names the parameter document whose covariance the boards are drawn from.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from common import ROOT, SHARED, emit, machine
from tuning.baselines import BASELINES, HAND
from tuning.cases import TOLERANCE, Case, Goal, Grid, cases, optimum
from tuning.forms import names
from tuning.grading import EQUIVALENT_S, Curve, Step, curve, draw, play, reached_s, regret_at, violations
from tuning.perturbed import Settings, board, published_networks
from tuning.player import TEN_RUNS, tune, whole_space
from tuning.replay import replay, rows, tables
from tuning.runs import RUN_S

from engines.files import replace_file
from orin.virtual.parameters import PARAMETERS_PATH

TUNER, TEN = "orin tune", "orin tune, 10 runs"
RESULTS = ROOT / "benchmarks" / "results" / "tuner.json"
QUICK_NETWORKS = ("resnet50", "yolov5s@0.5x1")  # one published, one that the model has never seen


@dataclass(frozen=True)
class Size:
    """How much is graded."""

    networks: tuple[str, ...]
    seeds: int
    hand_boards: int
    limit_s: float


@dataclass(frozen=True)
class Graded:
    """One case: every search's steps, and what the tuner thought about it for."""

    network: str
    board_seed: int
    goal: str
    steps: dict[str, list[Step]]
    planning_s: float


@dataclass(frozen=True)
class HandCase:
    """The tuned plan against NVIDIA's on one board: ratios of samples/s, and of samples per joule where MaxQ."""

    network: str
    board_seed: int
    mode: str
    samples_per_s: float
    samples_per_joule: float

    @property
    def kept_up(self) -> bool:
        """No worse, within what runs of one plan differ by."""
        least = 1 - TOLERANCE
        return self.samples_per_s >= least and (self.mode == "MAXN" or self.samples_per_joule >= least)


def grade(job: tuple[str, int, bool], parameters: dict[str, Any], limit_s: float) -> list[Graded]:
    """Play every search on the graded cases of one board."""
    network, seed, clocks = job
    graded = []
    for case in cases((network,), range(seed, seed + 1), parameters, clocks):
        steps = {name: play(case, name, seed, limit_s) for name in BASELINES}
        played = tune(case, EQUIVALENT_S)
        steps[TUNER] = played.steps
        steps[TEN] = tune(case, limit_s, TEN_RUNS).steps
        graded.append(Graded(network, seed, case.goal.name, steps, played.planning_s))
    return graded


def against_hand(job: tuple[str, int, str], parameters: dict[str, Any]) -> HandCase:
    """Tune over the tuner's own space, with NVIDIA's samples/s as the floor where the aim is samples per joule."""
    network, seed, mode = job
    hand = HAND[network][mode == "MaxQ"]
    one = board(network, seed, parameters)
    by_hand = one.steady(Settings.of([hand]))
    grid = Grid(network, clocks=mode == "MaxQ")
    goal = (
        Goal("efficiency", min_samples_per_s=float(by_hand.samples_per_s[0])) if mode == "MaxQ" else Goal("throughput")
    )
    case = Case(seed, network, goal, grid, parameters, best=optimum(goal, one.steady(grid.settings)))
    found = one.steady(Settings.of([tune(case, EQUIVALENT_S, space=whole_space(grid)).plan]))
    rate = float(found.samples_per_s[0] / by_hand.samples_per_s[0])
    return HandCase(network, seed, mode, rate, float(found.samples_per_joule[0] / by_hand.samples_per_joule[0]))


def summarise(graded: list[Graded], limit_s: float) -> tuple[dict[str, Any], dict[str, Curve]]:
    """Curves of every search, and the figures that are asked for."""
    traces = {name: [case.steps[name] for case in graded] for name in graded[0].steps}
    curves = {name: curve(steps, limit_s) for name, steps in traces.items()}
    limited = [case for case in graded if "+" in case.goal]
    figures = {
        name: {
            "regret_median": float(one.median[int(EQUIVALENT_S)]),
            "regret_median_95": [float(one.low[int(EQUIVALENT_S)]), float(one.high[int(EQUIVALENT_S)])],
            "regret_p95": float(one.p95[int(EQUIVALENT_S)]),
            "to_1_percent_s": _finite(one.reached_s()),
            "to_1_percent_95_s": [_finite(one.reached_s(bound=bound)) for bound in ("low", "high")],
            "reached_share": float(np.mean([reached_s(steps) < float("inf") for steps in traces[name]])),
            "broken_limits": violations([case.steps[name] for case in limited], TOLERANCE) if limited else None,
            "broken_at_all": violations([case.steps[name] for case in limited], 0.0) if limited else None,
        }
        for name, one in curves.items()
    }
    return figures, curves


def misses(graded: list[Graded]) -> list[str]:
    """Name every case where the tuner is above 5 % after ten runs' worth, or breaks a limit."""
    lines = []
    for case in graded:
        steps = case.steps[TUNER]
        regret, excess = regret_at(steps, EQUIVALENT_S), steps[-1].excess if steps else 1.0
        where = f"{case.network}, board {case.board_seed}, {case.goal}"
        if excess > TOLERANCE:
            lines.append(f"{where}: breaks a limit by {excess:.1%}")
        elif regret > 0.05:
            lines.append(f"{where}: regret {regret:.1%}")
    return lines


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="under 40 s on 2 cores")
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    parser.add_argument("--parameters", type=Path, default=PARAMETERS_PATH, help="document with the fit's covariance")
    parser.add_argument("--seeds", type=int, default=2, help="boards a network: with clocks to choose and without")
    parser.add_argument("--first-seed", type=int, default=0, help="of the boards")
    parser.add_argument("--hand-boards", type=int, default=10, help="boards a network, against NVIDIA's settings")
    parser.add_argument("--limit-s", type=float, default=350.0, help="board-seconds of the longest search")
    parser.add_argument("--picture", type=Path, help="where to draw the regret curves")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/tuner.json")
    return parser.parse_args()


def spread(pool: ProcessPoolExecutor, one: Callable[[Any], Any], jobs: Iterable[Any]) -> list[Any]:
    """Run jobs on all cores, in order."""
    return list(pool.map(one, list(jobs)))


def main() -> None:
    """Grade, print, draw."""
    asked = options()
    size = Size(names(tuple(published_networks())), asked.seeds, asked.hand_boards, asked.limit_s)
    if asked.quick:
        size = replace(size, networks=QUICK_NETWORKS, seeds=1, hand_boards=1, limit_s=140.0)
    parameters = yaml.safe_load(asked.parameters.read_text(encoding="utf-8"))
    first = asked.first_seed
    seeds, hand_seeds = range(first, first + size.seeds), range(1000 + first, 1000 + first + size.hand_boards)
    # Every other board is asked with clocks to choose, the networks in turn.
    boards = [(name, seed, (at + seed) % 2 == 1) for at, name in enumerate(size.networks) for seed in seeds]
    by_hand_of = size.networks if asked.quick else HAND
    hands = [
        (name, seed, mode) for name in by_hand_of if name in HAND for seed in hand_seeds for mode in ("MAXN", "MaxQ")
    ]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        job = partial(grade, parameters=parameters, limit_s=size.limit_s)
        graded = [case for part in spread(pool, job, boards) for case in part]
        by_hand = spread(pool, partial(against_hand, parameters=parameters), hands)
    replayed = [replay(table) for table in tables(rows(SHARED))]
    figures, curves = summarise(graded, size.limit_s)
    results = {
        "benchmark": "tuner",
        "provenance": "simulated (replay: published)",
        "cases": len(graded),
        "networks": len({case.network for case in graded}),
        "run_s": RUN_S,
        "limit_s": size.limit_s,
        "searches": figures,
        "goals": _by_goal(graded),
        "planning_s_max": max(case.planning_s for case in graded),
        "hand": [asdict(one) for one in by_hand],
        "replay": [asdict(one) for one in replayed],
        "misses": misses(graded),
    }
    _report(results, by_hand, asked)
    if asked.picture:
        draw(
            {name: one for name, one in curves.items() if name != TEN},
            asked.picture,
            f"Regret on perturbed boards, {len(graded)} cases (simulated)",
        )
    if asked.write:
        text = json.dumps({**results, "machine": machine()}, indent=1) + "\n"
        replace_file(RESULTS, lambda file: file.write(text.encode()))


def _by_goal(graded: list[Graded]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[float]] = defaultdict(list)
    for case in graded:
        groups[case.goal].append(regret_at(case.steps[TUNER], EQUIVALENT_S))
    return {
        name: {"cases": len(found), "regret_median": statistics.median(found), "regret_max": max(found)}
        for name, found in groups.items()
    }


def _report(results: dict[str, Any], by_hand: list[HandCase], asked: argparse.Namespace) -> None:
    figures = results["searches"]
    mine = figures[TUNER]
    others = [one["to_1_percent_s"] for name, one in figures.items() if name not in (TUNER, TEN)]
    others = [seconds for seconds in others if seconds]
    limit_s = results["limit_s"]
    lines = [
        ("graded cases (static default loses 5 % or more)", str(results["cases"]), ""),
        ("networks they are of", str(results["networks"]), ">= 30"),
        ("regret after 70 board-seconds, median", f"{mine['regret_median']:.2%}", "<= 1 %"),
        ("regret after 70 board-seconds, 95th percentile", f"{mine['regret_p95']:.2%}", "<= 5 %"),
        (
            "board-seconds to 1 % median regret",
            _seconds(mine["to_1_percent_s"], limit_s),
            "<= 1/5 of the best baseline's",
        ),
        ("the same, best baseline", _seconds(min(others, default=None), limit_s), ""),
        ("limits broken by more than 1 %", _percent(mine["broken_limits"]), "<= 2 %"),
        ("limits broken at all", _percent(mine["broken_at_all"]), ""),
        ("planning, longest of a case", f"{results['planning_s_max']:.1f} s", "<= 5 s"),
    ]
    for mode in ("MAXN", "MaxQ"):
        kept = [one.kept_up for one in by_hand if one.mode == mode]
        lines.append((f"no worse than NVIDIA's {mode} settings", f"{sum(kept)} of {len(kept)}", ">= 95 %"))
    for one in results["replay"]:
        lines.append((f"replay: {one['name']}", f"{one['regret']:.1%} in {one['runs']} runs", f"of {one['entries']}"))
    for name, one in figures.items():
        seen = f"{one['regret_median']:.1%}, {one['regret_p95']:.0%}, {_seconds(one['to_1_percent_s'], limit_s)}"
        lines.append((f"{name}: median, p95 at 70 s; to 1 %", seen, f"broken {_percent(one['broken_limits'])}"))
    for line in results["misses"]:
        lines.append((f"miss: {line}"[:120], "", ""))
    for lost in by_hand:
        if not lost.kept_up:
            seen = f"{lost.samples_per_s:.3f}, {lost.samples_per_joule:.3f}"
            lines.append(
                (f"below NVIDIA's {lost.mode}: {lost.network}, board {lost.board_seed}", seen, "rate, per joule")
            )
    emit(results, lines, asked)


def _finite(seconds: float) -> float | None:
    return seconds if seconds < float("inf") else None


def _seconds(seconds: float | None, limit_s: float) -> str:
    return f"not in {limit_s:.0f} s" if seconds is None else f"{seconds:.0f} s"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


if __name__ == "__main__":
    main()
