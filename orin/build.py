"""From a plan to its engines: where placement, calibration and the DLA's needs meet."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engines.engine import Engine
from engines.spec import EngineSpec, Ranges, TensorFormat
from orin.errors import OrinError
from orin.photos import library_photos
from orin.plan import Plan

if TYPE_CHECKING:
    import onnx

    from calibration.job import Job
    from dla.placement import Placement
    from engines.graph import Graph
    from engines.preprocess import Preprocess
    from engines.zoo import Network

CALIBRATION_IMAGES = 32

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]


def _quiet(*_: object) -> None:
    return None


@dataclass(frozen=True)
class Desk:
    """Where building happens: the cache folder, the photos, and who is told what."""

    cache: Path = field(default_factory=lambda: default_cache())
    photos: Sequence[Path] = ()
    say: Say = _quiet
    progress: Progress = _quiet


@dataclass(frozen=True)
class Built:
    """A plan's engines ("gpu", "dla"), the DLA's placement, how photos become samples, and what the weights are."""

    engines: dict[str, Engine]
    placement: Placement | None
    network: Network
    preprocess: Preprocess
    weights: str


def default_cache() -> Path:
    """Return the folder of built engines and collected ranges."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orin-toolkit"


def weights_of(network: str, checkpoint: Path | None) -> str:
    """Say what the weights of a zoo network are."""
    from engines.zoo import network as zoo_network

    return f"checkpoint {checkpoint.name}" if checkpoint else zoo_network(network).weights


def dla_network(plan: Plan, model: onnx.ModelProto) -> tuple[onnx.ModelProto, Graph, Placement]:
    """Return what the DLA engine is built from: the plan's rewrites applied, its graph and its placement."""
    from dla.placement import place
    from dla.rewrite import rewrite
    from engines.graph import read_graph

    rewritten, _ = rewrite(model, plan.rewrites)
    graph = read_graph(rewritten, plan.network)
    return rewritten, graph, place(graph)


def build_engines(plan: Plan, desk: Desk | None = None) -> Built:
    """Build (or find in the cache) the GPU and DLA engines of a plan.

    Without a desk, ranges that the plan does not name are collected on the library's photos.
    """
    from engines.build import build
    from engines.cache import EngineCache
    from engines.preprocess import PREPROCESS
    from engines.zoo import model as zoo_model
    from engines.zoo import network as zoo_network

    desk = desk or Desk(photos=library_photos())
    network = zoo_network(plan.network)
    preprocess = PREPROCESS[network.preprocess]  # a network without one is refused before anything is built
    checkpoint = Path(plan.weights) if plan.weights else None
    model = zoo_model(plan.network, checkpoint)
    weights = weights_of(plan.network, checkpoint)
    ranges = _ranges(plan, model, preprocess, desk)
    cache = EngineCache(desk.cache / "engines", desk.say)
    engines: dict[str, Engine] = {}
    placement = None
    if plan.gpu_batch:
        engines["gpu"] = build(model, _gpu_spec(plan, model, ranges), cache, weights)
    if plan.dla_cores:
        rewritten, graph, placement = dla_network(plan, model)
        engines["dla"] = build(rewritten, _dla_spec(plan, graph, placement, ranges, desk.say), cache, weights)
    return Built(engines, placement, network, preprocess, weights)


def _gpu_spec(plan: Plan, model: onnx.ModelProto, ranges: Ranges) -> EngineSpec:
    return EngineSpec(
        network=plan.network,
        device="gpu",
        batch=plan.gpu_batch,
        precision=plan.precision,
        amax_by_tensor=dict(ranges.amax_by_tensor),
        io_formats={item.name: plan.gpu_input_format for item in model.graph.input},
    )


def _dla_spec(plan: Plan, graph: Graph, placement: Placement, ranges: Ranges, say: Say) -> EngineSpec:
    from dla.io import io_formats, pools_bytes
    from dla.scales import fit

    fp16_layers: tuple[str, ...] = ()
    if plan.precision == "int8":
        fitted = fit(graph, placement, ranges)
        ranges, fp16_layers = fitted.ranges, fitted.fp16_layers
        if fitted.warning:
            say(fitted.warning)
    return EngineSpec(
        network=plan.network,
        device="dla",
        batch=plan.dla_batch,
        precision=plan.precision,
        device_by_layer=dict(placement.device_by_layer),
        amax_by_tensor=dict(ranges.amax_by_tensor),
        fp16_layers=fp16_layers,
        io_formats=io_formats(graph, TensorFormat(plan.dla_input_format), TensorFormat.DLA_LINEAR),
        pools_bytes=pools_bytes(),
    )


def _ranges(plan: Plan, model: onnx.ModelProto, preprocess: Preprocess, desk: Desk) -> Ranges:
    """Take the plan's calibration cache, or collect min-max ranges from the photos once and keep them.

    Other precisions need the input's range alone: samples are held as INT8 whatever the engine computes in.
    """
    from calibration.cache import CalibrationCache, read_cache
    from calibration.job import hashed_files
    from calibration.manifest import digest
    from orin.record import write_atomically

    if plan.precision != "int8":
        return Ranges({model.graph.input[0].name: preprocess.amax}, "input only", 0)
    if plan.calibration is not None:
        return read_cache(Path(plan.calibration)).to_ranges()
    photos = list(desk.photos)
    if not photos:
        raise OrinError("INT8 needs ranges: name a calibration cache in the plan, or give photos with --data FOLDER")
    job = _calibration(model, preprocess, photos)
    kept = desk.cache / "ranges" / f"{digest(job.recipe, hashed_files(job.source))[:32]}.cache"
    if kept.is_file():
        return read_cache(kept).to_ranges()
    ranges = _collect(job, desk)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, CalibrationCache.from_ranges(ranges).dumps())
    return read_cache(kept).to_ranges()  # as the cache rounds them, so that a second run is the same run


def _calibration(model: onnx.ModelProto, preprocess: Preprocess, photos: Sequence[Path]) -> Job:
    """Return the min-max calibration on the first photos: few of them give several crops each."""
    from calibration.dataset import Crops
    from calibration.images import Images
    from calibration.job import Job

    used = photos[:CALIBRATION_IMAGES]
    images = Images(used, preprocess, model.graph.input[0].name, Crops(-(-CALIBRATION_IMAGES // len(used))))
    return Job.of_images(model, images, "minmax")


def _collect(job: Job, desk: Desk) -> Ranges:
    from calibration.job import calibrate

    made = calibrate(job, progress=lambda done, total: desk.progress("calibrating", done, total))
    for skipped in made.manifest.skipped:
        desk.say(f"skipped {skipped.source}: {skipped.reason}")
    return made.ranges
