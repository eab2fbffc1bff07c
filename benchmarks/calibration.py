"""Calibration beside ONNX Runtime's own calibrators: same network, same batches, each side in a process of its own.

Ranges against a plain float64 reference, time, peak memory, then the digits classifier and TensorRT's cache files.
"""

from __future__ import annotations

import contextlib
import io
import resource
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from common import SHARED, arguments, emit, median
from numpy.typing import NDArray

NETWORK = "resnet50"
QUICK_LAYERS, QUICK_IMAGES = 7, 12
METHODS = ("minmax", "entropy", "percentile")
RUNS = {"minmax": 3, "entropy": 1, "percentile": 1}  # in full; the long ones hardly vary
BINS = 2048  # of magnitudes; theirs are over [-largest, largest], so twice as wide
PERCENT = 99.99
MEMORY_SHARE = 0.6  # of what is available, filled with the activations that theirs keep
MUTATED = 200
NOTES = (
    "Theirs keep every activation of every image until the end; images: as many as fit 60 % of the memory available.",
    "Min-max: theirs with graph optimisations off, ours with basic ones; both reduce inside the network.",
    f"Entropy, theirs: {BINS} bins over [-largest, largest], so half as many for magnitudes; exact zeros are counted; "
    "levels are whole numbers of bins, the rest falls into the last one; empty bins are smoothed.",
    f"Percentile ({PERCENT} of magnitudes), theirs: the lower edge of a bin, no interpolation.",
    "Entropy, ours: where a range is more than a bin away, the divergence has nearly equal minima apart; the last "
    "column says by how much more the chosen one loses.",
)


@dataclass(frozen=True)
class Job:
    """One calibration: on so many seeded images, one at a time, as theirs are fed too."""

    images: int
    method: str = ""


@dataclass(frozen=True)
class Outcome:
    """What one calibration took and gave; the peak is the whole process's."""

    seconds: float
    peak_bytes: int
    amax: Mapping[str, float]


def batches(job: Job, shape: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    """Yield images [1,C,H,W] of seeded patches with noise, in the range of photos less their mean."""
    channels, height, width = shape
    for index in range(job.images):
        rng = np.random.default_rng(index)
        patches = rng.normal(0, 50, (1, channels, -(-height // 16), -(-width // 16)))
        image = patches.repeat(16, axis=2).repeat(16, axis=3)[:, :, :height, :width]
        yield np.clip(image + rng.normal(0, 15, image.shape), -128, 127).astype(np.float32)


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """Call a function in a fresh process, so that memory and what it leaves behind are its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def ours(job: Job, path: Path, shape: tuple[int, ...]) -> Outcome:
    """Calibrate as `orin calibrate` does."""
    import onnxruntime  # noqa: F401  # loading it is no part of calibrating; theirs have loaded it too

    from calibration.collect import collect_ranges
    from calibration.observers import OBSERVERS
    from engines.onnx_model import load_model

    start = time.perf_counter()
    ranges = collect_ranges(load_model(path), batches(job, shape), OBSERVERS[job.method]())
    return _outcome(start, ranges.amax_by_tensor)


def theirs(job: Job, path: Path, shape: tuple[int, ...]) -> Outcome:
    """Calibrate as `onnxruntime.quantization` does, symmetric."""
    from onnxruntime.quantization import calibrate

    images = batches(job, shape)

    class Reader(calibrate.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NDArray[Any]] | None:
            batch = next(images, None)
            return None if batch is None else {made.infer_session.get_inputs()[0].name: batch}

    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        kind, settings = {
            "minmax": (calibrate.MinMaxCalibrater, {}),
            "entropy": (calibrate.EntropyCalibrater, {"num_bins": BINS, "num_quantized_bins": 128}),
            "percentile": (calibrate.PercentileCalibrater, {"num_bins": BINS, "percentile": PERCENT}),
        }[job.method]
        made = kind(path, augmented_model_path=str(Path(folder) / "augmented.onnx"), symmetric=True, **settings)
        made.augment_graph()
        made.create_inference_session()
        made.collect_data(Reader())
        found = made.compute_data().data
    return _outcome(start, {name: float(np.max(np.abs(seen.range_value))) for name, seen in found.items()})


def _outcome(start: float, amax: Mapping[str, float]) -> Outcome:
    taken = time.perf_counter() - start
    return Outcome(taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, dict(amax))


def against_reference(job: Job, path: Path, shape: tuple[int, ...], found: Mapping[str, Mapping[str, Outcome]]) -> Any:
    """Return, by method and side, each tensor's distance from the float64 reference in bins, and what it loses more."""
    from tests.calibration.test_histogram import candidates, divergences

    apart_by: dict[str, dict[str, list[tuple[float, float]]]] = {
        method: {side: [] for side in sides} for method, sides in found.items()
    }
    for name, values in _activations(job, path, shape, list(found["entropy"]["ours"].amax)):
        magnitudes = np.abs(values)
        width = float(magnitudes.max()) / BINS
        if not width:
            continue
        expected = float(np.percentile(magnitudes.astype(np.float64), PERCENT))
        for side, outcome in found["percentile"].items():
            apart_by["percentile"][side].append((abs(outcome.amax[name] - expected) / width, 0.0))
        lost = divergences(magnitudes)
        ranges, lost = candidates(magnitudes)[np.isfinite(lost)], lost[np.isfinite(lost)]
        expected, least = float(ranges[np.argmin(lost)]), float(lost.min())
        for side, outcome in found["entropy"].items():
            chosen = float(lost[np.argmin(np.abs(ranges - outcome.amax[name]))])
            excess = chosen / least - 1 if least else 0.0
            apart_by["entropy"][side].append((abs(outcome.amax[name] - expected) / width, excess))
    return apart_by


def _activations(job: Job, path: Path, shape: tuple[int, ...], names: list[str]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield each tensor but the input with its values on all images, nothing optimised."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    image = model.graph.input[0].name
    names.remove(image)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    runs = [session.run(names, {image: batch}) for batch in batches(job, shape)]
    for index, name in enumerate(names):
        yield name, np.concatenate([run[index].ravel() for run in runs])
        for run in runs:
            run[index] = None


def summary(pairs: list[tuple[float, float]]) -> dict[str, object]:
    """Return how many tensors are within a bin, the median and largest distance, and the most that is lost more."""
    bins = [pair[0] for pair in pairs]
    return {
        "tensors": len(bins),
        "within_one_bin": sum(value <= 1 + 1e-6 for value in bins),
        "median_bins": statistics.median(bins),
        "largest_bins": max(bins),
        "largest_excess_divergence": max(pair[1] for pair in pairs),
    }


def ranges_and_cost(job: Job, path: Path, shape: tuple[int, ...], runs_of: Mapping[str, int]) -> dict[str, Any]:
    """Run both sides so many times by every method and set them side by side."""
    sides = {"ours": ours, "onnxruntime": theirs}
    results: dict[str, Any] = {"network": NETWORK, "images": job.images}
    found: dict[str, dict[str, Outcome]] = {}
    for method in METHODS:
        runs = {side: [] for side in sides}
        for _ in range(runs_of[method]):
            for side, work in sides.items():
                runs[side].append(apart(work, replace(job, method=method), path, shape))
        found[method] = {side: outcomes[0] for side, outcomes in runs.items()}
        seconds = {side: median([outcome.seconds for outcome in outcomes]) for side, outcomes in runs.items()}
        results[method] = {
            "seconds": seconds,
            "time_ratio": seconds["ours"] / seconds["onnxruntime"],
            "peak_bytes": {side: max(outcome.peak_bytes for outcome in outcomes) for side, outcomes in runs.items()},
        }
    pairs = [[outcome.amax[name] for outcome in found["minmax"].values()] for name in found["minmax"]["ours"].amax]
    equal = sum(bool(np.float32(first) == np.float32(second)) for first, second in pairs)
    results["minmax"].update(tensors=len(pairs), equal_to_the_last_digit=equal)
    compared = {method: found[method] for method in ("entropy", "percentile")}
    for method, by_side in apart(against_reference, job, path, shape, compared).items():
        results[method]["against_float64"] = {side: summary(pairs) for side, pairs in by_side.items()}
    return results


def flatness(job: Job, path: Path, shape: tuple[int, ...], counts: tuple[int, int]) -> dict[str, Any]:
    """Return our time and peak memory at two numbers of images, by method."""
    found = {}
    for method in ("minmax", "entropy"):
        runs = [apart(ours, replace(job, method=method, images=count), path, shape) for count in counts]
        found[method] = {
            "images": counts,
            "seconds": [run.seconds for run in runs],
            "peak_bytes": [run.peak_bytes for run in runs],
            "peak_ratio": runs[1].peak_bytes / runs[0].peak_bytes,
        }
    return found


def caches() -> dict[str, Any]:
    """Return how many real caches are written back as they were, and what became of the mutated ones."""
    from calibration.cache import read_cache
    from tests.calibration.test_mutated_caches import mutated, outcome

    paths = sorted((SHARED / "calibration_caches").glob("*.cache"))
    identical = 0
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            copy = Path(folder) / path.name
            copy.write_bytes(read_cache(path).dumps().encode())
            identical += copy.read_bytes() == path.read_bytes() and read_cache(copy) == read_cache(path)
        became = Counter(outcome(data, Path(folder) / "damaged.cache") for data in mutated(MUTATED))
    return {"real": len(paths), "identical": identical, "mutated": became}


def digits(quick: bool) -> dict[str, Any] | None:
    """Return the digits classifier's accuracy; None where scikit-learn, which holds the images, is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        return None
    from digits import digits_accuracy

    return digits_accuracy(quick)


def prepare(name: str, layers: int | None, path: Path) -> tuple[tuple[int, ...], int]:
    """Write a network, or its first layers, for any batch; return an image's shape and the bytes theirs hold for it."""
    import onnx

    from engines.graph import read_graph
    from engines.onnx_model import with_batch
    from engines.zoo import model, network

    made = model(name)
    tensors = read_graph(made).tensors
    nodes = list(made.graph.node)[:layers]
    used = {name for node in nodes for name in node.input}
    weights = [weight for weight in made.graph.initializer if weight.name in used]
    last = tensors[nodes[-1].output[0]]
    output = onnx.helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, last.shape)
    for field, entries in (("node", nodes), ("initializer", weights), ("output", [output])):
        made.graph.ClearField(field)
        getattr(made.graph, field).extend(entries)
    onnx.save(with_batch(made, "batch"), path)
    sizes = [tensors[name].elements * 4 for node in nodes for name in node.output]
    return network(name).input_shape, sum(sizes) + 4 * max(sizes)  # theirs copy one tensor a few times at the end


def available_bytes() -> int:
    """Return the memory that Linux calls available."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return what was seen and wanted, line by line."""
    cost, flat, files = results["calibration"], results["flatness"], results["caches"]
    minmax = cost["minmax"]
    lines = [
        ("images, network", f"{cost['images']}, {cost['network']}", ""),
        ("min-max, ranges equal", f"{minmax['equal_to_the_last_digit']}/{minmax['tensors']}", "all"),
    ]
    for method in METHODS:
        seen = cost[method]
        lines.append(
            (f"{method}, time over theirs", f"{seen['time_ratio']:.2f}", f"at most {1 if method == 'minmax' else 0.5}")
        )
        peaks = " / ".join(f"{seen['peak_bytes'][side] / 1e9:.2f}" for side in ("ours", "onnxruntime"))
        lines.append((f"{method}, peak GB, ours / theirs", peaks, ""))
        for side, far in seen.get("against_float64", {}).items():
            within = f"{far['within_one_bin']}/{far['tensors']}"
            worst = f"{within}, {far['largest_bins']:.1f}, {far['largest_excess_divergence']:.2%}"
            lines.append((f"{method}, {side}: within a bin, farthest, loses more", worst, "all"))
    for method, seen in flat.items():
        counts = " to ".join(map(str, seen["images"]))
        lines.append((f"{method}, peak memory grows from {counts} images", f"{seen['peak_ratio']:.3f}", "1"))
    lines.append(("real caches written back identical", f"{files['identical']}/{files['real']}", "all"))
    lines.append((f"{MUTATED} mutated caches", ", ".join(f"{k} {v}" for k, v in files["mutated"].items()), "no other"))
    for method, seen in (results["digits"] or {}).get("methods", {}).items():
        agreement = f"{seen['agreement']['value']:.4f}"
        lines.append((f"digits, {method}: INT8 agrees with FP32", agreement, ">= 0.995"))
    return lines


def main() -> None:
    """Compare, then print."""
    options = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        shape, bytes_per_image = apart(prepare, NETWORK, QUICK_LAYERS if options.quick else None, path)
        images = QUICK_IMAGES if options.quick else int(MEMORY_SHARE * available_bytes() / bytes_per_image)
        job = Job(images)
        results = {
            "calibration": ranges_and_cost(job, path, shape, dict.fromkeys(METHODS, 1) if options.quick else RUNS),
            "flatness": flatness(job, path, shape, (4, 40) if options.quick else (100, 1000)),
            "caches": apart(caches),
            "digits": apart(digits, options.quick),
            "notes": NOTES,
        }
    emit(results, rows(results), options)


if __name__ == "__main__":
    main()
