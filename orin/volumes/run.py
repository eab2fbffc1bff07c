"""Volumes under LoadGen: cases of unequal size, each one work item of many enqueues.

What `orin.volumes.cost` expects of the cases stands beside what is seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engines.engine import Binding, Engine, Manifest, Workload
from engines.spec import INT8_MAX, EngineSpec
from engines.volumes.plan import Triple, WindowPlan
from engines.volumes.split import Split
from orin.bench import AFTER_S, environment, finished, note_clocks, power_of
from orin.board import Board
from orin.errors import OrinError
from orin.loadgen import run_loadgen
from orin.plan import DEFAULT_STACK, Plan
from orin.record import Recorder, RunRecord, load_record
from orin.scenario import ScenarioSettings
from orin.soc import GPU, Clocks
from orin.volumes.cost import VolumeCost, volume_cost
from orin.volumes.pipeline import VolumeLibrary, VolumePipeline

SCENARIOS = ("offline", "singlestream")  # those of MLPerf's 3D-UNet
ROOM = 1.5  # LoadGen issues 2 x seconds over the latency it is told, every one: the run lasts a third longer than asked


@dataclass(frozen=True)
class VolumeRun:
    """What to run: the plan, cases as window plans by name, the network's work a window, the range of its input.

    A board that computes also needs the `engine` of the windows, and `read`, which gives a case's voxels.
    """

    plan: Plan
    cases: Mapping[str, WindowPlan]
    workload: Workload
    amax: float
    network_weights: str = ""
    window_weights: str = "mlperf"
    scenario: str = "singlestream"
    seconds: float = 10.0
    runs: Path = Path("runs")
    engine: Engine | None = None
    read: Callable[[str], Split] | None = None

    @property
    def window(self) -> Triple:
        """The window that all cases share."""
        return next(iter(self.cases.values())).window


def volume_plan(network: str, batch: int = 1, mode: str | None = None, stack: str = DEFAULT_STACK) -> Plan:
    """Return the plan for windows of a network: INT8 on the GPU alone, since no DLA takes 3-D convolutions."""
    return Plan(network=network, gpu_batch=batch, dla_cores=0, gpu_input_format="LINEAR", mode=mode, stack=stack)


def expected_costs(run: VolumeRun, board: Board, clocks: Clocks | None = None) -> dict[str, VolumeCost]:
    """Return what each case should take on a board's SoC, at its clocks in force where the plan names no mode."""
    plan = run.plan if run.plan.mode or clocks is None else replace(run.plan, clocks_mhz=clocks.as_mhz())
    return {name: volume_cost(plan, board.soc, run.workload, case) for name, case in run.cases.items()}


def run_volumes(run: VolumeRun, board: Board) -> RunRecord:
    """Run the cases under LoadGen and return the record; OrinError where board or scenario is none for this."""
    if run.scenario not in SCENARIOS:
        raise OrinError(f"--scenario is {run.scenario!r}, expected one of {', '.join(SCENARIOS)}: MLPerf's for 3D-UNet")
    run.runs.mkdir(parents=True, exist_ok=True)
    engine = run.engine or described_engine(run)
    with Recorder(run.runs, _before(run, board, engine)) as recorder:
        (recorder.folder / "plan.yaml").write_text(run.plan.dumps(), encoding="utf-8")
        pipeline = VolumePipeline(run.plan, board, engine, list(run.cases.values()), run.window_weights)
        with pipeline:
            note_clocks(recorder, pipeline)
            _note_expected(recorder, run, pipeline)
            with board.meter(recorder.power_line) as meter:
                library: Any = _library(run, pipeline)
                settings = _settings(run, pipeline)
                recorder.values["settings"] = asdict(settings)
                result = run_loadgen(pipeline, library, settings, recorder.folder / "loadgen", recorder.note)
                time.sleep(AFTER_S)
                values = finished(pipeline, result) | power_of(meter, result)
            copied = pipeline.copied_bytes
        recorder.finish({**values, "copied_bytes": copied, "pace": board.keeps_pace()})
    return load_record(recorder.folder)


def _note_expected(recorder: Recorder, run: VolumeRun, pipeline: VolumePipeline) -> None:
    """Note what the clocks in force let expect of each case."""
    costs = expected_costs(run, pipeline.board, pipeline.clocks)
    for case in recorder.values["cases"]:
        case["expected"] = costs[case["name"]].as_json()


def _library(run: VolumeRun, pipeline: VolumePipeline) -> VolumeLibrary:
    """Return the cases, their voxels in memory where the board computes."""
    names, read = list(run.cases), run.read
    library = VolumeLibrary(pipeline, None if read is None else lambda number: read(names[number]))
    library.load(range(library.count))
    return library


def described_engine(run: VolumeRun) -> Engine:
    """Return the window's engine as a paced board has to know it; nothing is built, since nothing is computed."""
    spec = EngineSpec(run.plan.network, GPU, run.plan.gpu_batch)
    shape = (1, *run.window)
    voxels = int(np.prod(shape))
    window = Binding("input", shape, "int8", "LINEAR", run.amax / INT8_MAX, voxels)
    logits = Binding("output", (3, *run.window), "float16", "LINEAR", None, 6 * voxels)
    digest = spec.digest()
    manifest = Manifest(spec, "none: paced", run.network_weights, digest, digest, (window,), (logits,), run.workload)
    return Engine(Path(run.plan.network), manifest)


def _settings(run: VolumeRun, pipeline: VolumePipeline) -> ScenarioSettings:
    """Time the smallest case once, as warm-up, and tell LoadGen what to expect of all."""
    windows = [len(case) for case in run.cases.values()]
    least = int(np.argmin(windows))
    item, _ = pipeline.run_now([0], least)
    window_s = (item.end_ns - item.begin_ns) * 1e-9 / windows[least]
    if run.scenario == "singlestream":
        expected = ROOM * float(np.mean(windows)) * window_s
    else:
        expected = 1 / (float(np.mean(windows)) * window_s)
    return ScenarioSettings(run.scenario, run.seconds, expected, in_turn=True)


def _before(run: VolumeRun, board: Board, engine: Engine) -> dict[str, Any]:
    return {
        "provenance": board.provenance,
        "board": board.name,
        "soc": board.soc.name,
        "stack": run.plan.stack,
        "scenario": run.scenario,
        "mode": "performance",
        "seconds": run.seconds,
        "plan": run.plan.as_json(),
        "network": {
            "name": run.plan.network,
            "weights": run.network_weights,
            "macs": round(run.workload.macs * float(np.mean([len(case) for case in run.cases.values()]))),
            "engines": {GPU: engine.manifest.engine_sha256},
            "builders": {GPU: engine.manifest.builder},
            "dla_gpu_layers": [],
        },
        "cases": [{"name": name, "shape": list(case.shape), "windows": len(case)} for name, case in run.cases.items()],
        "outputs": "computed" if board.computes_outputs else "none",
        "environment": environment(),
    }
