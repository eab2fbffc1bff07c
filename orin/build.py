"""From a plan to its engines: where placement, calibration and the DLA's needs meet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engines.engine import Engine
from engines.errors import EngineError
from engines.spec import EngineSpec, Ranges, TensorFormat
from orin.errors import OrinError
from orin.photos import library_photos
from orin.plan import Plan
from orin.subject import Subject, find_subject
from orin.tails import tail_name, tail_of

if TYPE_CHECKING:
    import onnx

    from calibration.job import Job
    from dla.placement import Placement
    from engines.build import Builder
    from engines.graph import Graph
    from engines.preprocess import Preprocess

CALIBRATION_IMAGES = 32

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]


def _quiet(*_: object) -> None:
    return None


@dataclass(frozen=True)
class Desk:
    """Where building happens: the cache folder, the photos, who is told what, and how to build.

    Without `allow_gpu_layers` a DLA engine that leaves work to the GPU is an error. `references` asks for ONNX
    Runtime's engine beside each other one.
    """

    cache: Path = field(default_factory=lambda: default_cache())
    photos: Sequence[Path] = ()
    say: Say = _quiet
    progress: Progress = _quiet
    allow_gpu_layers: bool = True
    verbose_log: bool = False
    sparse: bool = False
    references: bool = False


@dataclass(frozen=True)
class Built:
    """A plan's engines ("gpu", "dla"), the DLA's placement, how photos become samples, and what the weights are.

    Behind each engine whose plan has its tail on the GPU comes that one's ("gpu_tail", "dla_tail"). `references` are
    ONNX Runtime's engines of the same networks and ranges, where the desk asks for them; tails have none.
    """

    engines: dict[str, Engine]
    placement: Placement | None
    qsl_samples: int
    preprocess: Preprocess
    weights: str
    references: dict[str, Engine] = field(default_factory=dict)


def default_cache() -> Path:
    """Return the folder of built engines and collected ranges."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orin-toolkit"


def dla_network(plan: Plan, model: onnx.ModelProto) -> tuple[onnx.ModelProto, Graph, Placement]:
    """Return what the DLA engine is built from: the plan's rewrites applied, its graph and its placement."""
    from dla.placement import place
    from dla.rewrite import rewrite
    from engines.graph import read_graph

    rewritten, _ = rewrite(model, plan.rewrites)
    graph = read_graph(rewritten, Path(plan.network).stem)
    return rewritten, graph, place(graph)


def builder_for(board: str, desk: Desk) -> Builder:
    """Return what builds engines for a board by name: TensorRT on a Jetson, ONNX Runtime elsewhere.

    EngineError says what of TensorRT is missing.
    """
    from engines.build import OrtBuilder

    if board != "jetson":
        return OrtBuilder()
    from engines.tensorrt.builder import Options, TensorRtBuilder
    from engines.tensorrt.module import load_tensorrt

    options = Options(
        allow_gpu_layers=desk.allow_gpu_layers,
        verbose_log=desk.verbose_log,
        timing_cache=desk.cache / "engines" / "timing.cache",
        say=desk.say,
        progress=desk.progress,
    )
    return TensorRtBuilder(load_tensorrt(), options)


def build_engines(plan: Plan, desk: Desk | None = None, board: str = "virtual") -> Built:
    """Build (or find in the cache) the GPU and DLA engines of a plan for a board by name.

    Without a desk, ranges that the plan does not name are collected on the library's photos.
    """
    from engines.build import OrtBuilder, build
    from engines.cache import EngineCache

    desk = desk or Desk(photos=library_photos())
    builder = builder_for(board, desk)  # what is missing is said before the network is made
    subject = find_subject(plan.network, Path(plan.weights) if plan.weights else None, plan.preprocess)
    cache = EngineCache(desk.cache / "engines", desk.say)
    parts, placement = engine_parts(plan, subject, desk)
    engines: dict[str, Engine] = {}
    references: dict[str, Engine] = {}
    for name, (model, spec) in parts.items():
        engines[name] = build(model, spec, cache, subject.weights, builder)
        _check_gpu_layers(engines[name], desk)
        if desk.references:
            references[name] = build(model, spec, cache, subject.weights, OrtBuilder())
    for name, engine in list(engines.items()):
        if (part := tail_of(plan, engine)) is not None:
            with _or_on_the_cpu():
                engines[tail_name(name)] = build(*part, cache, subject.weights, builder)
    return Built(engines, placement, subject.qsl_samples, subject.preprocess, subject.weights, references)


@contextmanager
def _or_on_the_cpu() -> Iterator[None]:
    """Say what to do without a tail engine, where TensorRT lacks the plugin or refuses to build it."""
    try:
        yield
    except EngineError as error:
        raise EngineError(f"{error}; or set tail to cpu") from None


Part = tuple["onnx.ModelProto", EngineSpec]


def engine_parts(plan: Plan, subject: Subject, desk: Desk) -> tuple[dict[str, Part], Placement | None]:
    """Return the network and spec of each engine, and the DLA's placement."""
    placed = dla_network(plan, subject.model) if plan.dla_cores else None
    if placed is not None:
        _check_placement(placed[2], desk)  # before minutes go into calibration and building
    ranges = _ranges(plan, subject, desk)
    parts: dict[str, Part] = {}
    if plan.gpu_batch:
        parts["gpu"] = subject.model, _gpu_spec(plan, subject, ranges)
    if placed is not None:
        rewritten, graph, placement = placed
        parts["dla"] = rewritten, _dla_spec(plan, graph, placement, ranges, desk.say)
    parts = {name: (model, replace(spec, sparse=desk.sparse or plan.sparsity)) for name, (model, spec) in parts.items()}
    return parts, placed[2] if placed else None


def _check_placement(placement: Placement, desk: Desk) -> None:
    left = placement.gpu_layers
    if left and not desk.allow_gpu_layers:
        reason = next(layer.message for layer in placement.layers if layer.final == "gpu")
        raise OrinError(
            f"{len(left)} layers of the DLA's network fall back to the GPU, the first is {left[0]!r} ({reason}); "
            f"`orin place` says what to rewrite, --allow-gpu-layers allows it"
        )


def _check_gpu_layers(engine: Engine, desk: Desk) -> None:
    """Refuse, or tell, what of a DLA engine runs on the GPU; it may be from the cache."""
    left = engine.manifest.gpu_layers
    if left and not desk.allow_gpu_layers:
        raise OrinError(
            f"DLA engine {engine.path} holds {len(left)} layers that run on the GPU, the first is {left[0]!r}; "
            f"--allow-gpu-layers allows it"
        )
    if left:
        desk.say(
            f"the DLA engine leaves {len(left)} layers to the GPU: {', '.join(left[:4])}{', ...' * (len(left) > 4)}"
        )


def _gpu_spec(plan: Plan, subject: Subject, ranges: Ranges) -> EngineSpec:
    return EngineSpec(
        network=subject.name,
        device="gpu",
        batch=plan.gpu_batch,
        precision=plan.precision,
        amax_by_tensor=dict(ranges.amax_by_tensor),
        io_formats={subject.image: plan.gpu_input_format},
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
        network=graph.name,
        device="dla",
        batch=plan.dla_batch,
        precision=plan.precision,
        device_by_layer=dict(placement.device_by_layer),
        amax_by_tensor=dict(ranges.amax_by_tensor),
        fp16_layers=fp16_layers,
        io_formats=io_formats(graph, TensorFormat(plan.dla_input_format), TensorFormat.DLA_LINEAR),
        pools_bytes=pools_bytes(),
    )


def _ranges(plan: Plan, subject: Subject, desk: Desk) -> Ranges:
    """Take the plan's calibration cache, or collect min-max ranges from the photos once and keep them.

    Other precisions need the input's range alone: samples are held as INT8 whatever the engine computes in.
    """
    from calibration.cache import CalibrationCache, read_cache
    from calibration.job import hashed_files
    from calibration.manifest import digest
    from orin.record import write_atomically

    if plan.precision != "int8":
        return Ranges({subject.image: subject.preprocess.amax}, "input only", 0)
    if plan.calibration is not None:
        return read_cache(Path(plan.calibration)).to_ranges()
    photos = list(desk.photos)
    if not photos:
        raise OrinError("INT8 needs ranges: name a calibration cache in the plan, or give photos with --data FOLDER")
    job = _calibration(subject, photos)
    kept = desk.cache / "ranges" / f"{digest(job.recipe, hashed_files(job.source))[:32]}.cache"
    if kept.is_file():
        return read_cache(kept).to_ranges()
    ranges = _collect(job, desk)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, CalibrationCache.from_ranges(ranges).dumps())
    return read_cache(kept).to_ranges()  # as the cache rounds them, so that a second run is the same run


def _calibration(subject: Subject, photos: Sequence[Path]) -> Job:
    """Return the min-max calibration on the first photos: few of them give several crops each."""
    from calibration.dataset import Crops
    from calibration.images import Images
    from calibration.job import Job

    used = photos[:CALIBRATION_IMAGES]
    images = Images(used, subject.preprocess, subject.image, Crops(-(-CALIBRATION_IMAGES // len(used))))
    return Job.of_images(subject.model, images, "minmax")


def _collect(job: Job, desk: Desk) -> Ranges:
    from calibration.job import calibrate

    made = calibrate(job, progress=lambda done, total: desk.progress("calibrating", done, total))
    for skipped in made.manifest.skipped:
        desk.say(f"skipped {skipped.source}: {skipped.reason}")
    return made.ranges
