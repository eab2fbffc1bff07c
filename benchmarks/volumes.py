"""Sliding windows beside MONAI's `sliding_window_inference`: same volume, same network, each side in its own process.

First a network of no cost, which answers every window with the same noise: all that is timed is cutting, weighing,
adding and arg-max. Then the trained small 3D-UNet, its labels in MLPerf's order of operations, and its DICE in INT8.
MONAI and PyTorch are not among the extras: `pip install monai torch` beside the toolkit; without them their side is
left out and the page says so.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, emit, median
from numpy.typing import NDArray

from engines.volumes.adding import compiled
from engines.volumes.dice import dice, mean_dice
from engines.volumes.phantom import phantom
from engines.volumes.preprocess import GRIDS, prepare, prepare_labels
from engines.volumes.run import Sliding, logits, segment
from engines.volumes.split import Split
from engines.volumes.weights import patches, window_weights

SHAPES, QUICK_SHAPES = ((192, 256, 256), (320, 448, 448)), ((192, 256, 256),)
SMALL_UNET_SHAPES, QUICK_SMALL_UNET_SHAPES = ((192, 256, 256), (192, 256, 320)), ((64, 128, 128),)
ROUNDS, QUICK_ROUNDS = 3, 2
SMALL_UNET_ROUNDS = 2  # of minutes each
CASES, QUICK_CASES = 16, 3
CALIBRATED_ON = 4  # phantoms that the network was trained on
SMALL_UNET = "unet3d-small"
PHANTOM_SHAPE = (128, 192, 320)  # the smallest of KiTS19
MOST_COMPARED = 1 << 24  # voxels, of which logits are kept and compared, not the labels alone
ULP_TIE = 1e-5  # of the largest logit: closer than that, float32 sums in another order may tie
OURS, PLAIN, THEIRS = "ours", "ours_with_numpy_alone", "monai"  # ours: compiled where Numba is installed
Network = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Job:
    """One measurement: who, which volume, which network ("" for the one of no cost), where its logits go, if asked."""

    side: str
    shape: tuple[int, ...]
    network: str = ""
    logits: Path | None = None

    @property
    def window(self) -> tuple[int, int, int]:
        """The side of a window: MLPerf's, or the small network's."""
        return (64, 64, 64) if self.network else (128, 128, 128)


@dataclass(frozen=True)
class Round:
    """One run: its seconds, and how many of them the network took."""

    seconds: float
    network_s: float


@dataclass(frozen=True)
class Measured:
    """All rounds, memory in use before them, the peak above that, and labels."""

    rounds: list[Round]
    before_bytes: int
    peak_bytes: int
    labels: NDArray[Any]

    def as_json(self) -> dict[str, Any]:
        """Return what is reported."""
        return {
            "seconds": [each.seconds for each in self.rounds],
            "median_s": median([each.seconds for each in self.rounds]),
            "median_outside_network_s": median([each.seconds - each.network_s for each in self.rounds]),
            "before_mb": self.before_bytes / 1e6,
            "peak_mb": self.peak_bytes / 1e6,
        }


class Bench:
    """One side in a process of its own, its volume and network at hand."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_prepare, initargs=(job,))
        self._rounds: list[Round] = []

    def run(self) -> None:
        """Run one round."""
        self._rounds.append(self._pool.submit(_round).result())

    def finish(self) -> Measured:
        """Return all rounds, and keep the logits if they are asked for."""
        with self._pool:
            before, peak, labels = self._pool.submit(_finish, self._job.logits).result()
        return Measured(self._rounds, before, peak, labels)


def measure(jobs: list[Job], rounds: int) -> dict[str, Measured]:
    """Run jobs in turn, round by round, so that what else the machine does meets all of them."""
    benches = {job.side: Bench(job) for job in jobs}
    for _ in range(rounds):
        for bench in benches.values():
            bench.run()
    return {side: bench.finish() for side, bench in benches.items()}


class _Worker:
    """What a process of its own holds."""

    def __init__(self, job: Job) -> None:
        self._network, self._network_s = _network(job), 0.0
        self.run = {OURS: _ours, PLAIN: _ours, THEIRS: _theirs}[job.side](job, _volume(job.shape), self._predict)
        self.before = _reset_peak()
        self.labels: Any = None

    def _predict(self, windows: NDArray[Any]) -> NDArray[Any]:
        began = time.perf_counter()
        answer = self._network(windows)
        self._network_s += time.perf_counter() - began
        return answer

    def round(self) -> Round:
        self.labels, self._network_s = None, 0.0
        began = time.perf_counter()
        self.labels = self.run(False)
        return Round(time.perf_counter() - began, self._network_s)


_workers: list[_Worker] = []


def _prepare(job: Job) -> None:
    _workers.append(_Worker(job))


def _round() -> Round:
    return _workers[0].round()


def _finish(kept: Path | None) -> tuple[int, int, NDArray[Any]]:
    worker = _workers[0]
    peak = _memory("VmHWM") - worker.before
    if kept:
        np.save(kept, worker.run(True))
    return worker.before, peak, worker.labels


def _volume(shape: tuple[int, ...]) -> NDArray[Any]:
    """A pre-processed phantom of exactly this shape."""
    from engines.volumes.preprocess import normalise

    return normalise(phantom(0, shape).hounsfield)


def _network(job: Job) -> Network:
    if job.network:
        from orin.volumes.segment import Asked, open_predict

        return open_predict(job.network, Asked())
    answers = np.random.default_rng(1).standard_normal((1, 3, *job.window), np.float32)
    room = answers.copy()

    def answer(windows: NDArray[Any]) -> NDArray[Any]:
        np.copyto(room, answers)  # anew each time: MONAI weighs the answer in place
        return room

    return answer


def _ours(job: Job, volume: NDArray[Any], network: Network) -> Callable[[bool], NDArray[Any]]:
    sliding = Sliding(job.window, weights="monai", compiled=job.side == OURS and has_numba())
    window_weights("monai", job.window)
    if sliding.compiled:
        _compile()
    split = Split(volume, sliding.plan(job.shape))
    return lambda whole: (logits if whole else segment)(split, network, sliding)


def has_numba() -> bool:
    """Whether sums can be compiled."""
    return importlib.util.find_spec("numba") is not None


def _compile() -> None:
    """Compile what is compiled now: what PyTorch takes to start is counted neither."""
    one = np.zeros((1, 1, 1, 1), np.float32)
    compiled()(one, one, window_weights("monai", (1, 1, 1)), (0, 0, 0), False)


def _theirs(job: Job, volume: NDArray[Any], network: Network) -> Callable[[bool], NDArray[Any]]:
    import torch
    from monai.inferers import sliding_window_inference

    torch.set_num_threads(os.cpu_count() or 1)
    batch = torch.from_numpy(volume)[None, None]

    def predict(windows: Any) -> Any:
        return torch.from_numpy(network(windows.contiguous().numpy()))

    def run(whole: bool) -> NDArray[Any]:
        with torch.inference_mode():
            found = sliding_window_inference(
                batch, job.window, 1, predict, overlap=0.5, mode="gaussian", sigma_scale=0.125
            )
            made: NDArray[Any] = (found if whole else found.argmax(1).to(torch.int8))[0].numpy()
        return made

    return run


def _reset_peak() -> int:
    """Forget the peak so far and return the memory in use, what was freed before given back."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def beside(shape: tuple[int, ...], network: str, rounds: int) -> dict[str, Any]:
    """Measure both sides of one volume in turn; theirs only where MONAI is."""
    with tempfile.TemporaryDirectory() as folder:
        kept = math.prod(shape) <= MOST_COMPARED
        sides = [side for side in _sides() if not (network and side == PLAIN)]
        jobs = [Job(side, shape, network, Path(folder) / f"{side}.npy" if kept else None) for side in sides]
        found = measure(jobs, rounds)
        said: dict[str, Any] = {"shape": list(shape), "network": network or "of no cost"}
        said |= {side: each.as_json() for side, each in found.items()}
        if THEIRS in found:
            said |= _ratios(said[OURS], said[THEIRS])
            said |= _compared(found, [Path(folder) / f"{side}.npy" for side in (OURS, THEIRS) if kept])
            if PLAIN in found:
                said[PLAIN] |= _ratios(said[PLAIN], said[THEIRS])
    return said


def _ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    return {
        "times_faster": theirs["median_s"] / ours["median_s"],
        "times_faster_outside_network": theirs["median_outside_network_s"] / ours["median_outside_network_s"],
        "memory_share": ours["peak_mb"] / theirs["peak_mb"],
    }


def _compared(found: dict[str, Measured], files: list[Path]) -> dict[str, Any]:
    differ = found[OURS].labels != found[THEIRS].labels
    said: dict[str, Any] = {"labels_differ": int(differ.sum())}
    if len(files) == 2:
        mine, other = (np.load(path) for path in files)
        largest = np.abs(other).max()
        ranked = np.sort(other, axis=0)
        said["logits_relative"] = float(np.abs(mine - other).max() / largest)
        said["differ_but_for_ties"] = int((differ & (ranked[-1] - ranked[-2] > ULP_TIE * largest)).sum())
    return said


def _sides() -> list[str]:
    there = all(importlib.util.find_spec(name) for name in ("monai", "torch"))
    return [OURS, *([PLAIN] if has_numba() else []), *([THEIRS] if there else [])]


def in_mlperfs_order(volume: NDArray[Any], network: Network, window: tuple[int, int, int]) -> NDArray[Any]:
    """Label a volume as NVIDIA's harness does: width fastest, 27 pre-divided FP16 patches, FP16 sums of it all."""
    sliding = Sliding(window)
    plan = sliding.plan(volume.shape)
    divided = {place: patch.astype(np.float16) for place, patch in patches("mlperf", window).items()}
    sums = np.zeros((3, *volume.shape), np.float16)
    for start in itertools.product(*plan.starts):
        z, y, x = plan.inside(start)
        places = [
            0 if at == 0 else 2 if at >= size - side else 1 for at, size, side in zip(start, volume.shape, window)
        ]
        answer = network(np.ascontiguousarray(volume[z, y, x])[None, None])[0].astype(np.float16)
        sums[:, z, y, x] += answer * divided[(places[0], places[1], places[2])]
    return sums.argmax(axis=0).astype(np.int8)


def small_unet(cases: int) -> dict[str, Any]:
    """DICE of the small network on phantoms it has not seen: FP32, INT8 (min-max), and FP32 in MLPerf's order."""
    from engines.zoo.unet3d_small import TRAINING_SEEDS
    from orin.volumes.segment import Asked, open_network, open_predict

    sliding, plain = open_network(SMALL_UNET, Asked()).sliding, open_predict(SMALL_UNET, Asked())
    with tempfile.TemporaryDirectory() as folder:
        quantised = open_predict(SMALL_UNET, Asked(calibration=_calibrated(Path(folder))))
    scores: dict[str, list[Any]] = {"fp32": [], "int8": []}
    same = []
    for seed in range(TRAINING_SEEDS, TRAINING_SEEDS + cases):
        volume, truth = _phantom(seed)
        split = Split(volume, sliding.plan(volume.shape))
        for name, predict in (("fp32", plain), ("int8", quantised)):
            labels = segment(split, predict, sliding)
            scores[name].append(dice(labels, truth))
            if name == "fp32":
                same.append(float((labels == in_mlperfs_order(volume, plain, sliding.window)).mean()))
    means = {name: mean_dice(each) for name, each in scores.items()}
    return {
        "cases": cases,
        "dice": {name: {"kidney": m.kidney, "tumour": m.tumour, "mean": m.mean} for name, m in means.items()},
        "int8_of_fp32": means["int8"].mean / means["fp32"].mean,
        "same_labels_in_mlperfs_order": min(same),
    }


def _phantom(seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    made, grid = phantom(seed, PHANTOM_SHAPE), GRIDS["kits19-half"]
    return prepare(made.hounsfield, made.spacing_mm, grid), prepare_labels(made.labels, made.spacing_mm, grid)


def _calibrated(folder: Path) -> Path:
    """Write a min-max calibration cache of the small network, on phantoms that it was trained on."""
    from calibration.job import Job as Calibration
    from calibration.job import calibrate_to
    from calibration.volumes import Volumes, array_volumes
    from engines import zoo
    from engines.volumes.split import Windows

    for seed in range(CALIBRATED_ON):
        np.save(folder / f"{seed}.npy", _phantom(seed)[0])
    model = zoo.model(SMALL_UNET)
    volumes = Volumes(array_volumes(sorted(folder.glob("*.npy"))), Windows((64, 64, 64)), model.graph.input[0].name)
    cache = folder / "unet.cache"
    calibrate_to(cache, Calibration(model, volumes, "minmax"), say=lambda line: None)
    return cache


def _rows(found: list[dict[str, Any]], small: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for each in found:
        what = f"{'x'.join(map(str, each['shape']))}, network {each['network']}"
        ours = each[OURS]
        rows.append((f"{what}: time, peak", f"{ours['median_s']:.2f} s {ours['peak_mb']:.0f} MB", ""))
        if THEIRS not in each:
            rows.append((f"{what}: MONAI", "not installed", "pip install monai torch"))
            continue
        theirs, costly = each[THEIRS], each["network"] == SMALL_UNET
        rows.append((f"{what}: MONAI", f"{theirs['median_s']:.2f} s {theirs['peak_mb']:.0f} MB", ""))
        rows.append(("  times faster", f"{each['times_faster']:.2f}", "1 or more" if costly else ""))
        outside = f"{each['times_faster_outside_network']:.1f}"
        rows.append(("  times faster outside the network", outside, "5 or more"))
        if PLAIN in each:
            plain = f"{each[PLAIN]['times_faster_outside_network']:.1f}"
            rows.append(("  times faster outside the network, with NumPy alone", plain, ""))
        rows.append(("  memory", f"{each['memory_share']:.2f}", "" if costly else "0.33 or less"))
        rows.append(("  labels that differ", str(each["labels_differ"]), "0 but for ties"))
        if "logits_relative" in each:
            rows.append(("  of these no ties", str(each["differ_but_for_ties"]), "0"))
            rows.append(("  logits, largest relative difference", f"{each['logits_relative']:.1e}", "1e-5 or less"))
    both = small["dice"]
    rows.append((f"DICE of {SMALL_UNET}, {small['cases']} phantoms", f"{both['fp32']['mean']:.4f}", "0.80 to 0.93"))
    rows.append(("  INT8 of FP32", f"{small['int8_of_fp32']:.4%}", "99.9 % or more"))
    same = small["same_labels_in_mlperfs_order"]
    rows.append(("  labels as in MLPerf's order, worst case", f"{same:.4%}", "99.99 % or more"))
    return rows


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "")
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    found = [beside(shape, "", rounds) for shape in (QUICK_SHAPES if options.quick else SHAPES)]
    shapes = QUICK_SMALL_UNET_SHAPES if options.quick else SMALL_UNET_SHAPES
    found += [beside(shape, SMALL_UNET, SMALL_UNET_ROUNDS) for shape in shapes]
    small = small_unet(QUICK_CASES if options.quick else CASES)
    libraries = {"monai": THEIRS in _sides(), "numba": has_numba()}
    emit({"beside": found, SMALL_UNET: small, **libraries}, _rows(found, small), options)


if __name__ == "__main__":
    main()
