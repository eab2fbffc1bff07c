"""Segmenting volumes with a network that sees one window at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.volumes.dice import CLASSES, KIDNEY, TUMOUR, Dice, dice
from engines.volumes.plan import OVERLAP, Triple
from engines.volumes.preprocess import AMAX, GRIDS, Grid
from engines.volumes.run import Sliding, segment
from engines.volumes.split import Split
from orin.errors import OrinError
from orin.subject import Found, find_network
from orin.volumes.cases import Case, Source, grid_of, read_case, write_case_labels

if TYPE_CHECKING:
    import onnx

    from engines.engine import Engine, Workload
    from orin.jetson.board import JetsonBoard


@dataclass(frozen=True)
class Asked:
    """How to segment: whose window weights, windows a call, a calibration cache for INT8, threads (None: cores)."""

    weights: str = "mlperf"
    overlap: float = OVERLAP
    batch: int = 1
    calibration: Path | None = None
    threads: int | None = None


Predict = Callable[[NDArray[Any]], NDArray[Any]]
# Labels a volume, telling how many of its windows are done; int8 [D,H,W], and the seconds it took.
Label = Callable[[Split, Callable[[int, int], None]], tuple[NDArray[Any], float]]


@dataclass(frozen=True)
class Labeller:
    """What labels volumes; on a Jetson an engine, whose memory there `close` gives back."""

    label: Label
    engine: Engine | None = None
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class WindowNetwork:
    """A network over windows: the grid that it was trained on, how it slides, and what labels a volume."""

    name: str
    weights: str
    precision: str
    grid: Grid
    amax: float
    sliding: Sliding
    workload: Workload
    labeller: Labeller

    def split(self, case: Case) -> Split:
        """Return a case's volume as it is cut into windows."""
        return Split(case.volume, self.sliding.plan(case.volume.shape), case.scale)


@dataclass(frozen=True)
class Segmented:
    """One case: its shape on the network's grid, windows, voxels of each label, seconds, DICE where the truth is known.

    `seconds` are those of the machine that labels it: a virtual board's are in `orin.volumes.cost`.
    """

    source: Source
    shape: Triple
    windows: int
    voxels: Mapping[str, int]
    seconds: float
    path: Path
    dice: Dice | None

    @property
    def name(self) -> str:
        """What the case is called."""
        return self.source.name

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        score = self.dice
        return {
            "name": self.name,
            "shape": list(self.shape),
            "windows": self.windows,
            "voxels": dict(self.voxels),
            "dice": None if score is None else {"kidney": score.kidney, "tumour": score.tumour, "mean": score.mean},
            "seconds_here": self.seconds,
            "labels": str(self.path),
        }


def open_network(network: str, asked: Asked, board: JetsonBoard | None = None) -> WindowNetwork:
    """Load a network of the zoo or an ONNX file, to run on this machine's CPU or on the GPU of a Jetson.

    OrinError where it does not turn windows into logits of three classes.
    """
    from engines import zoo
    from engines.graph import read_graph
    from engines.onnx_model import with_batch

    found = find_network(network)
    grid = grid_of(network)
    if grid is None:
        known = [name for name, entry in zoo.NETWORKS.items() if entry.preprocess in GRIDS]
        raise OrinError(f"network {network} takes no volumes; expected {', '.join(known)} or an ONNX file that does")
    graph = read_graph(with_batch(found.model, 1), found.name)
    window = _window(network, [graph.tensors[name].shape for name in (*graph.inputs, *graph.outputs)])
    ranges = _ranges(found.model, asked.calibration)
    sliding = Sliding(window, asked.overlap, asked.weights, CLASSES, asked.batch, asked.threads)
    return WindowNetwork(
        name=found.name,
        weights=found.weights,
        precision="int8" if asked.calibration else "fp16" if board else "fp32",
        grid=grid,
        amax=ranges[graph.inputs[0]],
        sliding=sliding,
        workload=graph.workload,
        labeller=_on_gpu(found, ranges, asked, board) if board else _on_cpu(found, ranges, asked, sliding),
    )


def _window(network: str, shapes: list[tuple[int, ...]]) -> Triple:
    """Return the window of a network whose input and output have these shapes."""
    fits = len(shapes) == 2 and shapes[0][:2] == (1, 1) and len(shapes[0]) == 5
    if not fits or shapes[1] != (1, CLASSES, *shapes[0][2:]):
        seen = " and ".join(str(list(shape)) for shape in shapes)
        raise OrinError(f"network {network} has {seen}, expected windows [N,1,D,H,W] in and logits [N,3,D,H,W] out")
    depth, height, width = shapes[0][2:]
    return depth, height, width


def _ranges(model: onnx.ModelProto, calibration: Path | None) -> Mapping[str, float]:
    """Return the ranges of a calibration cache; without one that of the input alone, MLPerf's."""
    from calibration.cache import read_cache
    from engines.onnx_model import model_inputs

    name = model_inputs(model)[0].name
    if calibration is None:
        return {name: AMAX}
    ranges = read_cache(calibration).to_ranges().amax_by_tensor
    if name not in ranges:
        raise OrinError(f"calibration cache {calibration} has no range for the input {name!r}; calibrate this network")
    return ranges


def open_predict(network: str, asked: Asked) -> Predict:
    """Return what a network says of windows, float32 [N,1,d,h,w] to [N,C,d,h,w], on this machine's CPU."""
    found = find_network(network)
    return _predict(found, _ranges(found.model, asked.calibration), asked)


def _on_cpu(found: Found, ranges: Mapping[str, float], asked: Asked, sliding: Sliding) -> Labeller:
    """Return what labels a volume on this machine's CPU, through ONNX Runtime."""
    predict = _predict(found, ranges, asked)

    def label(split: Split, progress: Callable[[int, int], None]) -> tuple[NDArray[Any], float]:
        began_s = time.monotonic()
        labels = segment(split, predict, sliding, progress)
        return labels, time.monotonic() - began_s

    return Labeller(label)


def _on_gpu(found: Found, ranges: Mapping[str, float], asked: Asked, board: JetsonBoard) -> Labeller:
    """Build the network with TensorRT, its windows in INT8 whatever it computes in, and return what labels a volume."""
    from engines.build import build
    from engines.cache import EngineCache
    from engines.onnx_model import with_batch
    from engines.spec import EngineSpec
    from orin.build import Desk, builder_for

    desk, precision = Desk(), "int8" if asked.calibration else "fp16"
    spec = EngineSpec(found.name, "gpu", asked.batch, precision, amax_by_tensor=ranges)
    cache, builder = EngineCache(desk.cache / "engines", desk.say), builder_for("jetson", desk)
    engine = build(with_batch(found.model, 1), spec, cache, found.weights, builder)
    loaded = board.load_windows(engine)

    def label(split: Split, progress: Callable[[int, int], None]) -> tuple[NDArray[Any], float]:
        made = loaded.segment(split, asked.weights)
        progress(len(split.plan), len(split.plan))
        return made.labels, (made.end_ns - made.begin_ns) * 1e-9

    return Labeller(label, engine, loaded.close)


def _predict(found: Found, ranges: Mapping[str, float], asked: Asked) -> Predict:
    import onnxruntime as ort

    from engines.onnx_model import with_batch
    from engines.qdq import insert_qdq

    model = with_batch(found.model, asked.batch)
    if asked.calibration:
        model = insert_qdq(model, ranges)
    options = ort.SessionOptions()
    options.intra_op_num_threads = asked.threads or 0
    options.log_severity_level = 3
    # Integer kernels of x86 CPUs without VNNI saturate; float32 arithmetic on dequantised values does not.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        reason = " ".join(str(error).split())[:200]
        raise OrinError(f"network {found.name} does not load in ONNX Runtime: {reason}; mend the file") from None
    name = session.get_inputs()[0].name

    def predict(windows: NDArray[Any]) -> NDArray[Any]:
        logits: NDArray[Any] = session.run(None, {name: windows})[0]
        return logits

    return predict


Progress = Callable[[str, int, int], None]
Seen = Callable[[Case, NDArray[Any]], None]


def segment_source(
    source: Source, network: WindowNetwork, folder: Path, progress: Progress, seen: Seen | None = None
) -> Segmented:
    """Read, segment, score and write one case; `seen` gets the case and its labels while both are in memory."""
    case = read_case(source, network.grid, network.amax)
    split = network.split(case)
    labels, seconds = network.labeller.label(
        split, lambda done, total: progress(f"{source.name}, windows", done, total)
    )
    path = write_case_labels(case, labels, folder, network.grid)
    if seen:
        seen(case, labels)
    counts = np.bincount(labels.ravel(), minlength=CLASSES)
    score = None if case.truth is None else dice(labels, case.truth)
    voxels = {"kidney": int(counts[KIDNEY]), "tumour": int(counts[TUMOUR])}
    return Segmented(source, split.plan.shape, len(split.plan), voxels, seconds, path, score)
