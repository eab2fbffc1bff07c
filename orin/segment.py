"""Segmenting volumes with a network that sees one window at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.volumes.dice import Dice, dice
from engines.volumes.plan import OVERLAP, Triple
from engines.volumes.preprocess import AMAX, GRIDS, KITS19, Grid
from engines.volumes.run import Sliding, segment
from engines.volumes.split import Split
from orin.cases import Case, Source, read_case, write_case_labels
from orin.errors import OrinError
from orin.subject import Found, find_network, is_file

if TYPE_CHECKING:
    import onnx

    from engines.engine import Workload

CLASSES = 3  # background, kidney, tumour
KIDNEY, TUMOUR = 1, 2


@dataclass(frozen=True)
class Asked:
    """How to segment: whose window weights, windows a call, a calibration cache for INT8, threads (None: cores)."""

    weights: str = "mlperf"
    overlap: float = OVERLAP
    batch: int = 1
    calibration: Path | None = None
    threads: int | None = None


@dataclass(frozen=True)
class WindowNetwork:
    """A network over windows: the grid that it was trained on, how it slides, and what it computes."""

    name: str
    weights: str
    precision: str
    grid: Grid
    amax: float
    sliding: Sliding
    workload: Workload
    predict: Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Segmented:
    """One case: shape on the network's grid, windows, voxels of each label, seconds, DICE where the truth is known.

    `seconds` are this machine's, not a board's.
    """

    name: str
    shape: Triple
    windows: int
    voxels: Mapping[str, int]
    seconds: float
    path: Path
    dice: Dice | None

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


def open_network(network: str, asked: Asked) -> WindowNetwork:
    """Load a network of the zoo or an ONNX file, to run on this machine's CPU.

    OrinError where it does not turn windows into logits of three classes.
    """
    from engines import zoo
    from engines.graph import read_graph
    from engines.onnx_model import with_batch

    found = find_network(network)
    grid = KITS19 if is_file(network) else GRIDS.get(zoo.network(network).preprocess)
    if grid is None:
        known = [name for name, entry in zoo.NETWORKS.items() if entry.preprocess in GRIDS]
        raise OrinError(f"network {network} takes no volumes; expected {', '.join(known)} or an ONNX file that does")
    graph = read_graph(with_batch(found.model, 1), found.name)
    window = _window(network, [graph.tensors[name].shape for name in (*graph.inputs, *graph.outputs)])
    model, amax = _quantised(with_batch(found.model, asked.batch), asked.calibration)
    return WindowNetwork(
        name=found.name,
        weights=found.weights,
        precision="int8" if asked.calibration else "fp32",
        grid=grid,
        amax=amax,
        sliding=Sliding(window, asked.overlap, asked.weights, CLASSES, asked.batch, asked.threads),
        workload=graph.workload,
        predict=_predictor(found, model, asked.threads),
    )


def _window(network: str, shapes: list[tuple[int, ...]]) -> Triple:
    """Return the window of a network whose input and output have these shapes."""
    fits = len(shapes) == 2 and shapes[0][:2] == (1, 1) and len(shapes[0]) == 5
    if not fits or shapes[1] != (1, CLASSES, *shapes[0][2:]):
        seen = " and ".join(str(list(shape)) for shape in shapes)
        raise OrinError(f"network {network} has {seen}, expected windows [N,1,D,H,W] in and logits [N,3,D,H,W] out")
    depth, height, width = shapes[0][2:]
    return depth, height, width


def _quantised(model: onnx.ModelProto, calibration: Path | None) -> tuple[onnx.ModelProto, float]:
    """Return the network in INT8 where there is a calibration cache, and the range of its input, MLPerf's without."""
    from calibration.cache import read_cache
    from engines.onnx_model import model_inputs
    from engines.qdq import insert_qdq

    if calibration is None:
        return model, AMAX
    ranges = read_cache(calibration).to_ranges().amax_by_tensor
    name = model_inputs(model)[0].name
    if name not in ranges:
        raise OrinError(f"calibration cache {calibration} has no range for the input {name!r}; calibrate this network")
    return insert_qdq(model, ranges), float(ranges[name])


def _predictor(found: Found, model: onnx.ModelProto, threads: int | None) -> Callable[[NDArray[Any]], NDArray[Any]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
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
    plan = network.sliding.plan(case.volume.shape)
    began_s = time.monotonic()
    labels = segment(
        Split(case.volume, plan, case.scale),
        network.predict,
        network.sliding,
        lambda done, total: progress(f"{source.name}, windows", done, total),
    )
    seconds = time.monotonic() - began_s
    path = write_case_labels(case, labels, folder, network.grid)
    if seen:
        seen(case, labels)
    counts = np.bincount(labels.ravel(), minlength=CLASSES)
    score = None if case.truth is None else dice(labels, case.truth)
    voxels = {"kidney": int(counts[KIDNEY]), "tumour": int(counts[TUMOUR])}
    return Segmented(source.name, plan.shape, len(plan), voxels, seconds, path, score)
