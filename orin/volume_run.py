"""Volumes under LoadGen on the virtual board: cases of unequal size, each one work item of many enqueues.

The board takes its time for every batch of windows and computes nothing, so that shapes are all that is needed of the
cases. What `orin.volume_cost` expects of them stands beside what is seen.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.engine import Binding, Engine, Manifest, Workload
from engines.spec import INT8_MAX, EngineSpec
from engines.volumes.plan import Triple, WindowPlan
from orin.bench import AFTER_S, environment
from orin.board import Board
from orin.errors import OrinError
from orin.loadgen import LoadgenResult, run_loadgen
from orin.pipeline import Lane, Pipeline
from orin.plan import DEFAULT_STACK, Plan
from orin.record import Recorder, RunRecord, load_record
from orin.samples import SampleSet
from orin.scenario import ScenarioSettings
from orin.soc import GPU
from orin.volume_cost import VolumeCost, volume_cost
from orin.work import Chunk, Enqueue, WorkItem

if TYPE_CHECKING:
    from power.meter import Meter

SCENARIOS = ("offline", "singlestream")  # those of MLPerf's 3D-UNet
ROOM = 1.5  # LoadGen issues 2 x seconds over the latency it is told, every one: the run lasts a third longer than asked


@dataclass(frozen=True)
class VolumeRun:
    """What to run: cases as window plans by name, the network's work a window, scenario, seconds, and where to."""

    cases: Mapping[str, WindowPlan]
    network: str
    workload: Workload
    amax: float
    weights: str = ""
    scenario: str = "singlestream"
    seconds: float = 10.0
    runs: Path = Path("runs")
    batch: int = 1
    mode: str | None = None
    stack: str = DEFAULT_STACK

    @property
    def plan(self) -> Plan:
        """The plan: windows in INT8 on the GPU alone, since no DLA takes 3-D convolutions."""
        return Plan(
            network=self.network,
            gpu_batch=self.batch,
            dla_cores=0,
            gpu_input_format="LINEAR",
            mode=self.mode,
            stack=self.stack,
        )

    @property
    def window(self) -> Triple:
        """The window that all cases share."""
        return next(iter(self.cases.values())).window


class VolumeLane(Lane):
    """The GPU's lane, taking one case at a time: its windows, batch by batch, on one slot."""

    def __init__(self, lane: Lane, windows: Sequence[int]) -> None:
        self.engine, self.loaded, self.depth = lane.engine, lane.loaded, lane.depth
        self.taker = replace(lane.taker, batch=1)
        self.copied_bytes = 0
        self._batch = lane.taker.batch
        self._windows = windows

    def item(self, chunks: Sequence[Chunk], slot: int, samples: SampleSet) -> WorkItem:
        """Bind one case; windows pass through their slot's room one batch after another."""
        ((chunk,), addresses) = chunks, samples.addresses(self.engine, slot * self._batch)
        count = self._windows[chunk.positions[0]]
        sizes = (min(self._batch, count - begin) for begin in range(0, count, self._batch))
        return WorkItem(GPU, slot, chunk.ids, [Enqueue(self.loaded, addresses, size) for size in sizes])

    def item_at(self, position: int, ids: Sequence[int], samples: SampleSet) -> WorkItem:
        """Bind the one case of a query."""
        return self.item([Chunk([position], ids)], 0, samples)


class VolumePipeline(Pipeline):
    """A pipeline whose samples are cases of `windows` windows each."""

    def __init__(self, plan: Plan, board: Board, engine: Engine, windows: Sequence[int]) -> None:
        super().__init__(plan, board, {GPU: engine}, capacity=plan.gpu_batch * plan.gpu_depth)
        self.lanes = [VolumeLane(lane, windows) for lane in self.lanes]


@dataclass
class VolumeLibrary:
    """LoadGen's QSL of cases by number; a board that computes nothing needs none of their voxels."""

    count: int
    position: Any = field(init=False)

    def __post_init__(self) -> None:
        self.position = np.arange(self.count)

    def load(self, indices: Sequence[int]) -> None:
        """Load nothing."""

    def unload(self, indices: Sequence[int]) -> None:
        """Unload nothing."""

    def place(self, indices: Sequence[int]) -> int:
        """Return the case of a query."""
        return indices[0]


def expected_costs(run: VolumeRun, board: Board) -> dict[str, VolumeCost]:
    """Return what each case should take on a board's SoC."""
    return {name: volume_cost(run.plan, board.soc, run.workload, plan) for name, plan in run.cases.items()}


def run_volumes(run: VolumeRun, board: Board) -> RunRecord:
    """Run the cases under LoadGen and return the record; OrinError where board or scenario is none for this."""
    if board.provenance != "simulated" or board.computes_outputs:
        raise OrinError(
            f"cases run under LoadGen on a paced virtual board alone, not on {board.name}; --board virtual:NAME"
        )
    if run.scenario not in SCENARIOS:
        raise OrinError(f"--scenario is {run.scenario!r}, expected one of {', '.join(SCENARIOS)}: MLPerf's for 3D-UNet")
    run.runs.mkdir(parents=True, exist_ok=True)
    plan, engine = run.plan, described_engine(run)
    windows = [len(case) for case in run.cases.values()]
    with Recorder(run.runs, _before(run, board, engine)) as recorder:
        (recorder.folder / "plan.yaml").write_text(plan.dumps(), encoding="utf-8")
        with VolumePipeline(plan, board, engine, windows) as pipeline:
            recorder.values["clocks"] = asdict(pipeline.clocks)
            with board.meter(recorder.power_line) as meter:
                settings = _settings(run, pipeline)
                recorder.values["settings"] = asdict(settings)
                library: Any = VolumeLibrary(len(windows))
                result = run_loadgen(pipeline, library, settings, recorder.folder / "loadgen", recorder.note)
                time.sleep(AFTER_S)
                values = _after(result, meter)
            values |= {"sample_bytes": pipeline.samples.sample_bytes, "pace": board.keeps_pace()}
        recorder.finish({**values, "copied_bytes": 0})
    return load_record(recorder.folder)


def described_engine(run: VolumeRun) -> Engine:
    """Return the window's engine as a paced board has to know it; nothing is built, since nothing is computed."""
    spec = EngineSpec(run.network, GPU, run.batch)
    shape = (1, *run.window)
    voxels = int(np.prod(shape))
    window = Binding("input", shape, "int8", "LINEAR", run.amax / INT8_MAX, voxels)
    logits = Binding("output", (3, *run.window), "float16", "LINEAR", None, 6 * voxels)
    digest = spec.digest()
    manifest = Manifest(spec, "none: paced", run.weights, digest, digest, (window,), (logits,), run.workload)
    return Engine(Path(run.network), manifest)


def _settings(run: VolumeRun, pipeline: Pipeline) -> ScenarioSettings:
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
    costs = expected_costs(run, board)
    return {
        "provenance": board.provenance,
        "board": board.name,
        "soc": board.soc.name,
        "stack": run.stack,
        "scenario": run.scenario,
        "mode": "performance",
        "seconds": run.seconds,
        "plan": run.plan.as_json(),
        "network": {
            "name": run.network,
            "weights": run.weights,
            "macs": run.workload.macs,
            "engines": {GPU: engine.manifest.engine_sha256},
            "builders": {GPU: engine.manifest.builder},
            "dla_gpu_layers": [],
        },
        "data": {"samples": len(run.cases), "sources": list(run.cases), "skipped": []},
        "cases": [
            {"name": name, "shape": list(plan.shape), "windows": len(plan), "expected": costs[name].as_json()}
            for name, plan in run.cases.items()
        ],
        "outputs": "none",
        "environment": environment(),
    }


def _after(result: LoadgenResult, meter: Meter) -> dict[str, Any]:
    from power.errors import PowerError

    values: dict[str, Any] = {
        "loadgen": {key: value for key, value in result.values.items() if key.startswith(("result", "early_stop"))},
        "valid": result.valid,
        "invalid_reasons": list(result.reasons),
        "window_ns": [result.begin_ns, result.end_ns],
    }
    try:
        return {**values, "power": meter.energy(result.begin_ns, result.end_ns).as_json()}
    except PowerError as error:  # a short run has no power figure; it still has its speed
        return {**values, "power": None, "power_missing": str(error)}
