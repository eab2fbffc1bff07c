"""From a network and a folder of photos to engines and a measured run: place, rewrite, calibrate, tune, build, bench.

Batches to start from are those of NVIDIA's MLPerf submissions on AGX Orin, Offline (v2.0 for SSD, v3.0 for the others).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from calibration.source import file_sha256
from engines.cache import model_sha256
from orin.bench import IDLE_S, Bench, bench
from orin.board import Board
from orin.build import Desk, build_engines, builder_for, dla_network
from orin.errors import OrinError
from orin.memory import fastest_memory
from orin.plan import AUTO_MEMORY, Plan
from orin.record import write_atomically
from orin.results import result
from orin.steps import Done, Steps, Summary
from orin.subject import Subject, find_subject

STATE = "deploy.json"
PLAN = "plan.yaml"
CALIBRATION = "calibration.cache"
DLA_NETWORK = "dla.onnx"
TUNING = "tuning"
TUNE_S = 5.0  # of one run of the tuner
TUNED = ("gpu_batch", "gpu_depth", "dla_cores", "dla_batch", "dla_loop", "dla_depth")
METHOD = "entropy"
CALIBRATION_PHOTOS = 64

STARTING_PLANS: Mapping[str, dict[str, Any]] = {
    "resnet50": {"gpu_batch": 256, "dla_batch": 2, "dla_loop": 4},
    "ssd-mobilenet": {"gpu_batch": 128, "dla_batch": 64},
    "ssd-resnet34": {"gpu_batch": 8, "dla_batch": 8},
    "retinanet": {"gpu_batch": 4, "dla_batch": 1},
}
UNKNOWN_NETWORK: dict[str, Any] = {"gpu_batch": 8, "dla_batch": 2}  # fits any network of the zoo into memory


@dataclass(frozen=True)
class Job:
    """What to deploy and where to: photos calibrate the network and are what the run answers.

    `tune_runs` is how many runs may go into batches and depths before the engines to keep are built; 0: none.
    """

    plan: Plan
    folder: Path
    photos: Sequence[Path]
    seconds: float = 10.0
    scenario: str = "offline"
    idle_s: float = IDLE_S
    tune_runs: int = 0

    @property
    def state(self) -> Path:
        """The file that holds the steps done so far."""
        return self.folder / STATE


@dataclass(frozen=True)
class Deployed:
    """What came of it: each step's summary, those skipped, the plan with its calibration, the run's folder."""

    steps: dict[str, Summary]
    skipped: tuple[str, ...]
    plan: Plan
    run: Path


def starting_plan(network: str) -> Plan:
    """Return the plan to start from for a network."""
    return replace(Plan(network=network), **STARTING_PLANS.get(network, UNKNOWN_NETWORK))


def deploy(job: Job, board: Board, desk: Desk) -> Deployed:
    """Take every step that is not done yet; each is kept as soon as it is done, so that a stopped job goes on.

    The desk says and shows progress; engines go below the job's folder. What a step raises ends the job there.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    steps, plan = Steps(job.state, desk.say), job.plan
    desk = replace(desk, cache=job.folder, photos=job.photos)
    subject = find_subject(plan.network, Path(plan.weights) if plan.weights else None, plan.preprocess)
    network = _network_inputs(plan, subject)
    taken = {"place": steps.take("place", network, lambda: _place(plan, subject))}
    if plan.dla_cores:
        taken["rewrite"] = steps.take("rewrite", network, lambda: _rewrite(plan, subject, job.folder / DLA_NETWORK))
    if plan.precision == "int8" and plan.calibration is None:
        inputs = {**network, "method": METHOD, "photos": _photo_inputs(job.photos[:CALIBRATION_PHOTOS])}
        cache = job.folder / CALIBRATION
        taken["calibrate"] = steps.take("calibrate", inputs, lambda: _calibrate(subject, cache, desk))
        plan = replace(plan, calibration=str(cache))
    if job.tune_runs:
        inputs = network | _plan_inputs(plan) | {"board": board.name, "runs": job.tune_runs, "seconds": TUNE_S}
        taken["tune"] = steps.take("tune", inputs, lambda: _tune(job, plan, board, desk))
        plan = replace(plan, **taken["tune"]["plan"])
    inputs = network | _plan_inputs(plan) | {"board": board.name, "soc": board.soc.name}
    inputs["builder"] = builder_for(board.name, desk).name
    taken["build"] = steps.take("build", inputs, lambda: _build(plan, board, desk))
    inputs["engines"] = taken["build"]
    if plan.memory == AUTO_MEMORY:
        taken["memory"] = steps.take("memory", inputs, lambda: _memory(plan, board, desk))
        plan = replace(plan, memory=taken["memory"]["kind"])
    write_atomically(job.folder / PLAN, plan.dumps())
    inputs |= {"photos": _photo_inputs(job.photos), "seconds": job.seconds, "scenario": job.scenario}
    taken["bench"] = steps.take("bench", inputs, lambda: _bench(job, plan, board, desk))
    return Deployed(taken, tuple(steps.skipped), plan, job.folder / taken["bench"]["run"])


# -- what a step depends on -------------------------------------------------------------------------------------------


def _network_inputs(plan: Plan, subject: Subject) -> dict[str, Any]:
    return {
        "model_sha256": model_sha256(subject.model),
        "preprocess": asdict(subject.preprocess),
        "rewrites": list(plan.rewrites),
        "toolkit": _toolkit(),
    }


def _plan_inputs(plan: Plan) -> dict[str, Any]:
    """The plan's fields, with what the calibration cache holds in place of its path."""
    values = plan.as_json()
    if plan.calibration is not None:
        try:
            values["calibration"] = file_sha256(Path(plan.calibration))
        except OSError as error:
            reason = error.strerror or error
            raise OrinError(f"calibration cache {plan.calibration} cannot be read: {reason}") from None
    return values


def _photo_inputs(photos: Sequence[Path]) -> list[list[Any]]:
    return [[photo.name, photo.stat().st_size, photo.stat().st_mtime_ns] for photo in photos]


def _toolkit() -> str:
    try:
        return version("orin-toolkit")
    except PackageNotFoundError:  # run from a checkout
        return "checkout"


# -- the steps --------------------------------------------------------------------------------------------------------


def _place(plan: Plan, subject: Subject) -> Done:
    """Say what the DLA takes of the network as it is, and with the plan's rewrites."""
    _, _, before = dla_network(replace(plan, rewrites=()), subject.model)
    _, _, after = dla_network(plan, subject.model)
    found = {"gpu_layers_before": list(before.gpu_layers), "gpu_layers": list(after.gpu_layers)}
    return Done({**found, "loadables": len(after.loadables)})


def _rewrite(plan: Plan, subject: Subject, path: Path) -> Done:
    """Write the network that the DLA's engine is built from."""
    import onnx

    from dla.rewrite import rewrite

    rewritten, changes = rewrite(subject.model, plan.rewrites)
    part = path.with_name(path.name + ".part")
    onnx.save_model(rewritten, str(part))
    part.replace(path)
    return Done({"file": path.name, "changes": [asdict(change) for change in changes]}, [path])


def _calibrate(subject: Subject, path: Path, desk: Desk) -> Done:
    """Collect the ranges of the network on the first photos and write them as a TensorRT calibration cache."""
    from calibration.images import Images
    from calibration.job import Job as Calibration
    from calibration.job import calibrate_to

    images = Images(desk.photos[:CALIBRATION_PHOTOS], subject.preprocess, subject.image)
    calibration = Calibration.of_images(subject.model, images, METHOD)
    made = calibrate_to(path, calibration, desk.say, lambda done, total: desk.progress("calibrating", done, total))
    skipped = [asdict(entry) for entry in made.manifest.skipped]
    found = {"file": path.name, "images": made.ranges.images, "method": made.ranges.method, "skipped": skipped}
    return Done(found, [path])


def _tune(job: Job, plan: Plan, board: Board, desk: Desk) -> Done:
    """Find batches and depths in a few runs; the rewrites are done already."""
    from orin.boards import open_board
    from orin.predict import workloads
    from orin.report.tuning import live_line, write_tuning_report
    from orin.sweep import Site
    from orin.tune.objective import Objective
    from orin.tune.run import BoardRunner, VirtualRunner
    from orin.tune.search import Rules
    from orin.tune.session import Job as Tuning
    from orin.tune.session import tune
    from orin.tune.space import Space

    folder = job.folder / TUNING
    work = workloads(plan)
    runner = (
        VirtualRunner(board.soc, lambda _: work, folder / "runs", TUNE_S)
        if board.provenance == "simulated"
        else BoardRunner(
            Site(lambda: open_board(board.name, "speed"), desk),
            Bench("offline", TUNE_S, folder / "runs", idle_s=job.idle_s),
        )
    )
    tuning = Tuning(plan, Objective(), Rules(runs=job.tune_runs), TUNE_S, folder)
    space = Space(plan, board.soc, {plan.rewrites: work})
    tuned = tune(tuning, runner, space, lambda run, tuner: desk.say(live_line(run, tuner)))
    if tuned.plan is None:
        raise OrinError(f"none of {len(tuned.tuner.runs)} tuning runs succeeded: see {folder}")
    write_tuning_report(tuned)
    return Done({"runs": len(tuned.tuner.runs), "plan": {name: getattr(tuned.plan, name) for name in TUNED}})


def _build(plan: Plan, board: Board, desk: Desk) -> Done:
    built = build_engines(plan, desk, board.name)
    engines = {
        device: {
            "file": engine.path.relative_to(desk.cache).as_posix(),
            "builder": engine.manifest.builder,
            "sha256": engine.manifest.engine_sha256,
            "gpu_layers": list(engine.manifest.gpu_layers),
        }
        for device, engine in built.engines.items()
    }
    return Done(engines, [engine.path for engine in built.engines.values()])


def _memory(plan: Plan, board: Board, desk: Desk) -> Done:
    kind, seconds = fastest_memory(plan, board, build_engines(plan, desk, board.name).engines)
    return Done({"kind": kind, "seconds": seconds})


def _bench(job: Job, plan: Plan, board: Board, desk: Desk) -> Done:
    options = Bench(job.scenario, job.seconds, job.folder / "runs", idle_s=job.idle_s)
    record = bench(plan, board, desk, options)
    run = record.folder.relative_to(job.folder).as_posix()
    return Done({**result(record), "run": run}, [record.folder / "record.json"])
