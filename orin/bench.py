"""One benchmark run: engines and photos in, LoadGen over the pipeline, a record out."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orin.board import Board
from orin.build import Built, Desk, build_engines
from orin.errors import OrinError
from orin.jetson.detect import Machine, jetpack
from orin.loadgen import LoadgenResult, SampleLibrary, run_loadgen
from orin.memory import with_memory
from orin.mlperf import MULTISTREAM_SAMPLES
from orin.pipeline import Pipeline
from orin.plan import Plan
from orin.record import Recorder, RunRecord, load_record
from orin.scenario import ScenarioSettings, settings_from_probe
from orin.soc import GPU
from orin.virtual.model import clocks_of
from orin.virtual.predict import Options, Workloads, predict

if TYPE_CHECKING:
    from calibration.dataset import Prepared
    from power.meter import Energy, Meter

MIN_SAMPLES = 256  # distinct samples made from few photos, by crops
IDLE_S = 3.0
AFTER_S = 0.3  # readings behind the window, for its edge
IDLE_SETTLE_S = 1.3  # three time constants of the sensor's filter
PACKAGES = ("numpy", "onnx", "onnxruntime", "mlcommons-loadgen", "opencv-python-headless", "tensorrt", "pycuda")


@dataclass(frozen=True)
class Bench:
    """What to run beside the plan: scenario, seconds, where records go; `server_qps` for Server alone."""

    scenario: str = "offline"
    seconds: float = 10.0
    runs: Path = Path("runs")
    accuracy: bool = False
    server_qps: float | None = None
    idle_s: float = IDLE_S


def prepare_samples(desk: Desk, built: Built, plan: Plan, every: bool) -> Prepared:
    """Pre-process photos to INT8 samples: few give several crops each; of many, as many as are loaded, or `every`."""
    from calibration.dataset import prepare_images

    photos = list(desk.photos if every else desk.photos[: built.qsl_samples])
    crops = 1 if every else max(1, -(-max(MIN_SAMPLES, plan.gpu_batch) // len(photos)))

    def progress(done: int, total: int) -> None:
        desk.progress("photos", done, total)

    prepared = prepare_images(photos, built.preprocess, crops=crops, progress=progress)
    for skipped in prepared.skipped:
        desk.say(f"skipped {skipped.source}: {skipped.reason}")
    return prepared


def bench(plan: Plan, board: Board, desk: Desk, options: Bench) -> RunRecord:
    """Run a plan under LoadGen on a board and return the record; OrinError names what failed.

    An accuracy run computes every answer and measures neither speed nor power.
    """
    options.runs.mkdir(parents=True, exist_ok=True)  # what cannot be written is said before anything is built
    if board.provenance == "simulated":
        clocks_of(plan, board.soc)  # nor a mode that it lacks; a Jetson may have modes of its own
    built = build_engines(plan, desk, board.name)
    plan, memory_s = with_memory(plan, board, built.engines)
    prepared = prepare_samples(desk, built, plan, every=options.accuracy)
    count = loaded_samples(plan, built, len(prepared.samples))
    desk.say(_headline(plan, board, options))
    with Recorder(options.runs, _before(plan, board, built, prepared, options)) as recorder:
        (recorder.folder / "plan.yaml").write_text(plan.dumps(), encoding="utf-8")
        with Pipeline(plan, board, built.engines, capacity=count + MULTISTREAM_SAMPLES) as pipeline:
            library = SampleLibrary(pipeline, prepared.samples, count)
            note_clocks(recorder, pipeline)
            recorder.values["memory"] = _memory(pipeline, memory_s)
            values = (_answers if options.accuracy else _measured)(pipeline, library, recorder, options)
        recorder.finish(values)
    return load_record(recorder.folder)


def note_clocks(recorder: Recorder, pipeline: Pipeline) -> None:
    """Note the clocks in force, and on a Jetson the mode that is held."""
    recorder.values["clocks"] = asdict(pipeline.clocks)
    in_force = getattr(pipeline.board, "in_force", None)
    if in_force is not None:
        recorder.values["power_mode"] = in_force.as_json()


def _memory(pipeline: Pipeline, measured_s: dict[str, float] | None) -> dict[str, Any]:
    """The kind of memory, how the samples lie in it, and what led to the kind where it was measured."""
    return {"kind": pipeline.plan.memory, "layouts": pipeline.samples.layouts, "measured_s": measured_s}


def _answers(pipeline: Pipeline, library: SampleLibrary, recorder: Recorder, options: Bench) -> dict[str, Any]:
    """Run LoadGen's accuracy mode; the answers are in its own log."""
    settings = ScenarioSettings(options.scenario, options.seconds, expected=1.0, accuracy=True)
    recorder.values["settings"] = asdict(settings)
    result = run_loadgen(pipeline, library, settings, recorder.folder / "loadgen", recorder.note)
    return {**finished(pipeline, result), "valid": None, "answers": "loadgen/mlperf_log_accuracy.json"}


def _measured(pipeline: Pipeline, library: SampleLibrary, recorder: Recorder, options: Bench) -> dict[str, Any]:
    """Idle, probe, run; speed, copies and power of the run alone."""
    with pipeline.board.meter(recorder.power_line) as meter:
        idle = _idle(options.idle_s)
        library.load(range(library.count))
        settings = settings_from_probe(pipeline, options.scenario, options.seconds, library.count, options.server_qps)
        recorder.values["settings"] = asdict(settings)
        recorder.values["prediction"] = prediction_of(pipeline, settings)
        copied = pipeline.copied_bytes
        result = run_loadgen(pipeline, library, settings, recorder.folder / "loadgen", recorder.note)
        copied = pipeline.copied_bytes - copied
        time.sleep(AFTER_S)
        values = finished(pipeline, result) | power_of(meter, result, idle)
    return {**values, "copied_bytes": copied, "pace": pipeline.board.keeps_pace()}


def loaded_samples(plan: Plan, built: Built, prepared: int) -> int:
    """Return how many samples are held in memory: whole GPU batches where there are enough, so that none is cut short
    where the set begins again."""
    count = min(built.qsl_samples, prepared)
    return count - count % plan.gpu_batch if plan.gpu_batch and count >= plan.gpu_batch else count


def _headline(plan: Plan, board: Board, options: Bench) -> str:
    used = " + ".join(name.upper() for name in plan.accelerators)
    return f"{plan.network} on {used} of {board.name} ({board.provenance}), {options.scenario}, {options.seconds:g} s"


def prediction_of(pipeline: Pipeline, settings: ScenarioSettings) -> dict[str, Any]:
    """Return what the virtual Orin expects of this run at the clocks in force and, in Server, at the rate offered."""
    offered = settings.expected if settings.scenario == "server" else None
    asked = Options(seconds=settings.seconds, server_qps=offered, clocks=pipeline.clocks)
    return predict(pipeline.plan, pipeline.board.soc, settings.scenario, _workloads(pipeline), asked).as_json()


def _workloads(pipeline: Pipeline) -> Workloads:
    """What the engines at hand hold; one that the plan does not use is taken for the other."""
    lanes = {lane.taker.accelerator == GPU: lane for lane in pipeline.lanes}
    gpu, dla = (lanes.get(is_gpu) or lanes[not is_gpu] for is_gpu in (True, False))
    tails = (lane.tail.manifest.workload if lane.tail is not None else None for lane in (gpu, dla))
    return Workloads(gpu.engine.manifest.workload, dla.engine.manifest.workload, dla.engine.manifest.gpu_layers, *tails)


def _idle(seconds: float) -> tuple[int, int] | None:
    """Let the loaded board idle and return the window in which the sensor has settled."""
    if seconds <= IDLE_SETTLE_S:
        return None
    begin = time.monotonic_ns()
    time.sleep(seconds)
    return begin + int(IDLE_SETTLE_S * 1e9), time.monotonic_ns()


def _before(plan: Plan, board: Board, built: Built, prepared: Prepared, options: Bench) -> dict[str, Any]:
    return {
        "provenance": board.provenance,
        "board": board.name,
        "soc": board.soc.name,
        "stack": plan.stack,
        "scenario": options.scenario,
        "mode": "accuracy" if options.accuracy else "performance",
        "seconds": options.seconds,
        "plan": plan.as_json(),
        "network": {
            "name": Path(plan.network).stem,
            "weights": built.weights,
            "macs": _any_engine(built).workload.macs,
            "engines": {name: engine.manifest.engine_sha256 for name, engine in built.engines.items()},
            "builders": {name: engine.manifest.builder for name, engine in built.engines.items()},
            "dla_gpu_layers": list(built.placement.gpu_layers) if built.placement else [],
        },
        "data": {
            "samples": len(prepared.samples),
            "sources": sorted(set(prepared.sources)),
            "skipped": [vars(skipped) for skipped in prepared.skipped],
        },
        "outputs": "computed" if board.computes_outputs else "none",
        "tail": plan.tail if board.computes_outputs or plan.tail == "gpu" else "none",  # the CPU's needs the outputs
        "environment": environment(),
    }


def _any_engine(built: Built) -> Any:
    return next(iter(built.engines.values())).manifest


def environment() -> dict[str, Any]:
    """What ran this: Python, system, module and JetPack of a Jetson, and the versions of the packages that matter."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    machine = Machine()
    return {
        **({"module": machine.number, "jetpack": jetpack(machine.l4t)} if machine.jetson else {}),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": versions,
        "command": " ".join(["orin", *sys.argv[1:]]),
    }


def finished(pipeline: Pipeline, result: LoadgenResult) -> dict[str, Any]:
    """Return what a record keeps of LoadGen's result."""
    return {
        "loadgen": {key: value for key, value in result.values.items() if key.startswith(("result", "early_stop"))},
        "valid": result.valid,
        "invalid_reasons": list(result.reasons),
        "window_ns": [result.begin_ns, result.end_ns],
        "sample_bytes": pipeline.samples.sample_bytes,
    }


def power_of(meter: Meter, result: LoadgenResult, idle: tuple[int, int] | None = None) -> dict[str, Any]:
    """Return what a record keeps of the power of a run, above that of an idle window where there was one."""
    from power.errors import PowerError

    try:
        energy: Energy = meter.energy(result.begin_ns, result.end_ns, idle=idle)
    except PowerError as error:  # a short run has no power figure; it still has its speed
        return {"power": None, "power_missing": str(error)}
    return {"power": energy.as_json()}


def check_seconds(seconds: float, option: str = "--seconds") -> float:
    """Refuse run lengths that measure nothing."""
    if not 1 <= seconds <= 36_000:
        raise OrinError(f"{option} is {seconds:g}, expected 1 to 36000")
    return seconds


def photos_in(folder: Path | None) -> Sequence[Path]:
    """Return the photos of a folder, or the library's where none is named."""
    from calibration.dataset import image_files
    from orin.photos import library_photos

    return image_files(folder) if folder is not None else library_photos()
