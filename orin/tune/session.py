"""A tuning in a folder: every run is kept as soon as it is done, so that the same command goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orin.errors import OrinError
from orin.plan import Plan
from orin.record import write_atomically
from orin.tune.measurement import Measurement
from orin.tune.objective import Objective
from orin.tune.placements import placements
from orin.tune.planner import PlanModel
from orin.tune.run import Measured, Runner
from orin.tune.search import Rules, Run, Tuner
from orin.tune.space import Axes, Space

STATE, PLAN = "tune.json", "plan.yaml"
VERSION = 1

Show = Callable[[Run, Tuner], None]


@dataclass(frozen=True)
class Job:
    """What to tune, for what, and where it is kept; without `axes` they follow from the objective."""

    base: Plan
    objective: Objective
    rules: Rules
    seconds_per_run: float
    folder: Path
    axes: Axes | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what decides the runs, all but how many they are: more can be asked for later."""
        rules = {name: value for name, value in asdict(self.rules).items() if name not in ("runs", "board_s")}
        goal = asdict(self.objective)
        axes = asdict(self.axes) if self.axes else None
        values = {"base": self.base.as_json(), **goal, **rules, "seconds_per_run": self.seconds_per_run, "axes": axes}
        return dict(json.loads(json.dumps(values)))


@dataclass(frozen=True)
class Tuned:
    """What came of a tuning: the tuner with its runs, the plan to use (None: no run succeeded), records of each run."""

    job: Job
    tuner: Tuner
    plan: Plan | None
    folders: tuple[tuple[str, ...], ...]
    board: str
    provenance: str
    resumed: int


def make_space(job: Job, runner: Runner) -> Space:
    """Return the space that a job searches on a runner's board."""
    axes = job.axes or (Axes.with_clocks(runner.soc) if job.objective.needs_watts else Axes.batches())
    return Space(job.base, runner.soc, placements(job.base), axes)


def tune(
    job: Job, runner: Runner, space: Space | None = None, show: Callable[[Run, Tuner], None] | None = None
) -> Tuned:
    """Run a tuning to its end, or on from where it stopped; `show` hears of each run, also those done before.

    OrinError where the folder holds another tuning.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    show = show or _nobody
    space = space or make_space(job, runner)
    tuner = Tuner(space, PlanModel(space), job.objective, job.rules)
    state = _State(job, runner.name)
    resumed = len(state.runs)
    while (trial := tuner.propose()) is not None:
        known = state.known(trial.number, trial.plan)
        if known is None:
            known = runner.measure(trial.plan, trial.number)
            state.add(trial.plan, trial.reason, known)
        show(tuner.observe(trial, known.measurement), tuner)
        plan = tuner.best.plan if tuner.best else None
        if plan is not None:
            write_atomically(job.folder / PLAN, plan.dumps())
    plan = tuner.best.plan if tuner.best else None
    folders = tuple(tuple(run["records"]) for run in state.runs[: len(tuner.runs)])
    return Tuned(job, tuner, plan, folders, runner.name, runner.provenance, min(resumed, len(tuner.runs)))


def _nobody(run: Run, tuner: Tuner) -> None:
    return None


class _State:
    """The runs of a folder, in one JSON file that is rewritten, whole, after each."""

    def __init__(self, job: Job, board: str) -> None:
        self._path = job.folder / STATE
        self._inputs = {"board": board, **job.as_json()}
        self.runs: list[dict[str, Any]] = self._load()

    def known(self, number: int, plan: Plan) -> Measured | None:
        """Return what a run showed earlier; None where it is still to be made."""
        if number > len(self.runs):
            return None
        kept = self.runs[number - 1]
        if kept["plan"] != json.loads(json.dumps(plan.as_json())):
            raise OrinError(
                f"{self._path}: run {number} was of a plan that this version does not propose: name another folder"
            )
        folders = tuple(self._path.parent / name for name in kept["records"])
        return Measured(Measurement.from_json(kept["measurement"]), folders)

    def add(self, plan: Plan, reason: str, measured: Measured) -> None:
        """Keep a run."""
        records = [_relative(folder, self._path.parent) for folder in measured.folders]
        found = {"plan": plan.as_json(), "reason": reason, "measurement": measured.measurement.as_json()}
        self.runs.append({**found, "records": records})
        text = json.dumps({"version": VERSION, "inputs": self._inputs, "runs": self.runs}, indent=1)
        write_atomically(self._path, text)

    def _load(self) -> list[dict[str, Any]]:
        try:
            values = json.loads(self._path.read_text(encoding="utf-8"))
            version, inputs, runs = values["version"], values["inputs"], list(values["runs"])
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OrinError(f"{self._path} cannot be used ({error}): name another folder, or delete it") from None
        if version != VERSION:
            raise OrinError(f"{self._path} has version {version!r}, expected {VERSION}: name another folder")
        self._check(inputs)
        return runs

    def _check(self, inputs: Mapping[str, Any]) -> None:
        for name, value in self._inputs.items():
            if inputs.get(name) != value:
                was, now = _differing(inputs.get(name), value)
                raise OrinError(
                    f"{self._path} is a tuning with {name} {was}, asked for {now}: ask for the same, "
                    "or name another folder"
                )


def _relative(folder: Path, root: Path) -> str:
    try:
        return folder.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return str(folder)


def _differing(was: Any, now: Any) -> tuple[Any, Any]:
    """Only the fields that differ, of two mappings."""
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return was, now
    names = [name for name in now if was.get(name) != now[name]]
    return {name: was.get(name) for name in names}, {name: now[name] for name in names}
