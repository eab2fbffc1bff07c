"""A tuning's report: the runs against the whole space, what mattered, the runner-up, and the model's misfit here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orin.plan import Plan
from orin.record import write_atomically
from orin.report import REPORT
from orin.report.page import Table, Tile
from orin.report.pictures import STYLE, Picture, new_figure, svg_element
from orin.report.text import DASH, number, percent, quantity
from orin.tune.insight import front, misfits, off, runner_up, sensitivity

if TYPE_CHECKING:
    from orin.tune.search import Run, Tuner
    from orin.tune.session import Tuned

RUN_HEADER = ("run", "samples/s", "expected", "module W", "latency ms", "remarks")
BEST_COLOUR, RUN_COLOUR, SPACE_COLOUR, FRONT_COLOUR = "#b4470e", "#2c62a8", "#d5d9df", "#8b8f96"
_HEIGHT_IN = 4.2


def plan_words(plan: Plan) -> str:
    """Return what a tuning varies of a plan: `batch*loop` x items in flight, clocks of GPU, DLA, EMC and CPU."""
    parts = [f"GPU {plan.gpu_batch}x{plan.gpu_depth}"] if plan.gpu_batch else []
    if plan.dla_cores:
        loop = f"*{plan.dla_loop}" if plan.dla_loop > 1 else ""
        parts.append(f"{plan.dla_cores} DLA {plan.dla_batch}{loop}x{plan.dla_depth}")
    clocks = plan.clocks_mhz
    parts += ["/".join(f"{mhz:.0f}" for mhz in clocks.values()) + " MHz"] if clocks else []
    left_out = [name for name in Plan().rewrites if name not in plan.rewrites] if plan.dla_cores else []
    parts += [f"without {' and '.join(left_out)}"] if left_out else []
    return ", ".join(parts + ([plan.mode] if plan.mode else []))


def live_line(run: Run, tuner: Tuner) -> str:
    """Return one run in a line: what was expected, what it showed, and the best so far."""
    measured, trial = run.measurement, run.trial
    of = f"/{tuner.rules.runs}" if tuner.rules.board_s is None else ""
    what = f"run {trial.number}{of}  {plan_words(trial.plan):<28} {trial.reason}"
    if measured.failure is not None:
        return f"{what}: {measured.failure}"
    best = tuner.best
    goal = tuner.forecast(best.index).goal if best else None
    so_far = f"; best so far {number(goal.value)} {tuner.objective.unit} (run {best.number})" if best and goal else ""
    surprise = f"; outside the interval: {', '.join(run.surprises)}" if run.surprises else ""
    speed, expected = quantity(measured.samples_per_s.as_json()), quantity(trial.expected.samples_per_s.as_json())
    return f"{what}: {speed} samples/s, expected {expected}{surprise}{so_far}"


def tuning_title(tuned: Tuned, words: str) -> str:
    """Return a title that says SIMULATED where the runs were."""
    return f"SIMULATED: {words}" if tuned.provenance == "simulated" else words


def run_rows(tuned: Tuned) -> list[tuple[str, ...]]:
    """Return a row for each run, as `RUN_HEADER` names the columns."""
    best = tuned.tuner.best
    return [_row(run, best is not None and run.trial.number == best.number) for run in tuned.tuner.runs]


def _row(run: Run, is_best: bool) -> tuple[str, ...]:
    found = run.measurement
    words = (
        ["best"] * is_best + [f"{name} off" for name in run.surprises] + [flag.split(":")[0] for flag in found.flags]
    )
    return (
        f"{run.trial.number}: {plan_words(run.trial.plan)}",
        DASH if found.failure else quantity(found.samples_per_s.as_json()),
        quantity(run.trial.expected.samples_per_s.as_json()),
        quantity(found.module_w.as_json()) if found.module_w else DASH,
        quantity(found.latency_ms.as_json()) if found.latency_ms else DASH,
        found.failure or ", ".join(words),
    )


def summary_rows(tuned: Tuned) -> list[tuple[str, str]]:
    """Return the choice, the runner-up, what mattered, and the misfit, in words."""
    tuner = tuned.tuner
    if tuner.best is None:
        return []
    found = tuner.forecast(tuner.best.index)
    rows = [
        ("plan", plan_words(tuner.best.plan)),
        (tuner.objective.kind, f"{quantity(found.goal.as_json())} {tuner.objective.unit}, run {tuner.best.number}"),
    ]
    if tuner.objective.limits:
        rows.append(("keeps its limits", f"with a probability of {percent(found.feasible)}"))
    second = runner_up(tuner)
    if second is not None:
        words = plan_words(tuner.space.plan(second[0]))
        rows.append(("runner-up", f"{words}: {quantity(second[1].goal.as_json())} {tuner.objective.unit}"))
    mattered = [f"{one.axis} {percent(one.spread)}" for one in sensitivity(tuner)[:3]]
    rows += [("what mattered", ", ".join(mattered))] if mattered else []
    rows.append(("model's misfit here", misfit_words(tuned)))
    rows.append(("stopped by", tuner.stopped_by))
    return rows


def misfit_words(tuned: Tuned) -> str:
    """Return how far off the model was, and is after the refit."""
    found = misfits(tuned.tuner)
    before = ", ".join(f"{name} {percent(rms)}" for name, rms in found["before"].items())
    return f"{before} (rms) before the refit; {percent(found['after']['speed'])} of speed is left to single plans"


def tuning_json(tuned: Tuned) -> dict[str, Any]:
    """Return a tuning as plain values."""
    tuner = tuned.tuner
    best = tuner.best
    second = runner_up(tuner)
    return {
        "provenance": tuned.provenance,
        "board": tuned.board,
        "network": tuned.job.base.network,
        "objective": asdict(tuner.objective),
        "plans": len(tuner.space),
        "runs": [_run_json(run, folders) for run, folders in zip(tuner.runs, tuned.folders)],
        "resumed": tuned.resumed,
        "stopped_by": tuner.stopped_by,
        "best": best.number if best else None,
        "plan": best.plan.as_json() if best else None,
        "expected": asdict(tuner.forecast(best.index)) if best else None,
        "runner_up": {"plan": tuner.space.plan(second[0]).as_json(), **asdict(second[1])} if second else None,
        "sensitivity": [asdict(one) for one in sensitivity(tuner)],
        "factors": [asdict(one) for one in off(tuner)],
        "misfit": misfits(tuner),
        "board_seconds": sum(run.measurement.seconds for run in tuner.runs),
    }


def _run_json(run: Run, folders: Sequence[str]) -> dict[str, Any]:
    return {
        "number": run.trial.number,
        "reason": run.trial.reason,
        "plan": run.trial.plan.as_json(),
        "expected": asdict(run.trial.expected),
        "measured": run.measurement.as_json(),
        "surprises": list(run.surprises),
        "records": list(folders),
    }


def write_tuning_report(tuned: Tuned) -> Path:
    """Write `report.html` into the tuning's folder and return its path; OSError where the folder takes no file."""
    from jinja2 import Environment, StrictUndefined

    source = resources.files("orin.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    path = tuned.job.folder / REPORT
    write_atomically(path, template.from_string(source).render(_context(tuned)))
    return path


def _context(tuned: Tuned) -> Mapping[str, Any]:
    words = f"{tuned.job.base.network} on {tuned.board}: tuned for {tuned.tuner.objective.kind}"
    return {
        "title": tuning_title(tuned, words),
        "provenance": tuned.provenance,
        "state": None,
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "run": tuned.job.folder.name,
        "tiles": _tiles(tuned),
        "ceiling": None,
        "reached": None,
        "share": [],
        "pictures": [pareto_picture(tuned)],
        "tables": [table for table in _tables(tuned) if table.rows],
        "plan_title": "the plan to use",
        "plan": tuned.plan.dumps() if tuned.plan else "none: no run succeeded",
    }


def _tiles(tuned: Tuned) -> list[Tile]:
    tuner = tuned.tuner
    if tuner.best is None:
        return []
    found = tuner.forecast(tuner.best.index)
    return [
        Tile("samples per second", quantity(found.samples_per_s.as_json()), "by all runs together"),
        Tile("module watts", quantity(found.module_w.as_json()), "all rails that feed the module"),
        Tile("latency of a work item, ms", quantity(found.latency_ms.as_json()), "p99, issue to answer"),
    ]


def _tables(tuned: Tuned) -> list[Table]:
    tuner = tuned.tuner
    axes = [(one.axis, str(one.values), percent(one.spread)) for one in sensitivity(tuner)]
    factors = [(one.name, f"x {one.factor:.3f}", f"± {percent(1.96 * one.prior_sd)}") for one in off(tuner)]
    return [
        Table(tuning_title(tuned, "summary"), [*summary_rows(tuned)]),
        Table(tuning_title(tuned, "runs"), run_rows(tuned), RUN_HEADER),
        Table("what mattered, around this plan", [*axes], ("axis", "values", "worst behind best")),
        Table("the model on this board", [*factors], ("factor", "this board", "expected before")),
    ]


def pareto_picture(tuned: Tuned) -> Picture:
    """Draw the space as the refitted model has it, its Pareto front, and the runs as they were measured."""
    import matplotlib

    tuner = tuned.tuner
    scores = tuner.model.scores(tuner.belief.factors)
    ahead = front(scores.samples_per_s, scores.module_w)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(_HEIGHT_IN)
        axes = figure.add_subplot()
        shown = np.linspace(0, len(tuner.space) - 1, min(len(tuner.space), 2000)).astype(int)
        axes.scatter(scores.module_w[shown], scores.samples_per_s[shown], s=4, color=SPACE_COLOUR, lw=0)
        axes.plot(scores.module_w[ahead], scores.samples_per_s[ahead], color=FRONT_COLOUR, lw=1)
        for run in tuner.runs:
            _point(axes, run, tuner.best is not None and run.trial.index == tuner.best.index)
        axes.set(xlabel="module power, W", ylabel="samples per second")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_title(tuning_title(tuned, "every plan by the refitted model, and the runs"))
        caption = (
            "Grey: plans of the space and their Pareto front, by the model after its refit. Blue: runs, with their "
            "number and 95 % intervals. Orange: the plan to use."
        )
        return Picture(svg_element(figure, "tuning"), caption)


def _point(axes: Any, run: Run, is_best: bool) -> None:
    speed, watts = run.measurement.samples_per_s, run.measurement.module_w
    if watts is None:
        return
    colour = BEST_COLOUR if is_best else RUN_COLOUR
    bars = {"xerr": [watts.u95], "yerr": [speed.u95], "fmt": "o", "ms": 5, "capsize": 2, "lw": 1, "color": colour}
    axes.errorbar([watts.value], [speed.value], **bars, zorder=3 if is_best else 2)
    axes.annotate(
        str(run.trial.number), (watts.value, speed.value), xytext=(5, 5), textcoords="offset points", fontsize=8
    )
