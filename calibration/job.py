"""A whole calibration: a network, its data and a method in, ranges and their manifest out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from calibration.cache import CalibrationCache, read_cache
from calibration.collect import collect_ranges, open_shapes
from calibration.dataset import check_some
from calibration.errors import CalibrationError
from calibration.images import Images
from calibration.manifest import Manifest, Recipe, read_manifest
from calibration.names import with_parser_names
from calibration.observers import OBSERVERS, Observer
from calibration.resume import Checkpoint, Tally
from calibration.source import Batch, Source
from engines.cache import model_sha256
from engines.files import replace_file
from engines.graph import read_graph
from engines.spec import Ranges

if TYPE_CHECKING:
    import onnx

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """What to calibrate: `fixed` gives ranges that are known beforehand."""

    model: onnx.ModelProto
    source: Source
    method: str
    fixed: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_images(cls, model: onnx.ModelProto, images: Images, method: str) -> Job:
        """Return the calibration on photos: the range of the input is that of the pre-processing."""
        return cls(model, images, method, {images.name: images.preprocess.amax})

    @cached_property
    def recipe(self) -> Recipe:
        """What decides the ranges beside the files."""
        return Recipe(model_sha256(self.model), self.method, self.source.settings, self.fixed)


@dataclass(frozen=True)
class Calibrated:
    """Ranges and what they were made from.

    `resumed` samples come from an earlier pass that was interrupted; `unchanged`: all was there already.
    """

    ranges: Ranges
    manifest: Manifest
    resumed: int = 0
    unchanged: bool = False


def calibrate(job: Job, checkpoint: Checkpoint | None = None, progress: Progress | None = None) -> Calibrated:
    """Stream the data through the network once; tensors that TensorRT's parser makes get their range too.

    With a checkpoint, an interrupted pass with the same recipe and the same files so far goes on where it was, to the
    ranges of an uninterrupted one, bit for bit. `progress` is called with the items done and their number, from the
    start. CalibrationError as from `collect_ranges`.
    """
    observer = OBSERVERS[job.method]()
    started = _resumed(job, checkpoint, observer) if checkpoint else None
    tally, batches = started or (Tally(), job.source.batches())
    resumed = tally.samples
    progress = progress or (lambda done, total: None)
    shapes: dict[str, tuple[int, ...]] | None = None

    def watched() -> Iterator[Mapping[str, NDArray[Any]]]:
        """Yield what there is to run; control comes back when the observer has seen it."""
        nonlocal shapes
        progress(tally.items, job.source.total)
        for batch in batches:
            if batch.arrays:
                if checkpoint and tally.samples > resumed:
                    checkpoint.save_if_due(job.recipe, tally, observer)  # so that some batch is always left to run
                shapes = open_shapes(job.model, batch.arrays)
                yield batch.arrays
            tally.add(batch)
            progress(tally.items, job.source.total)
        check_some(tally.samples, tally.skipped)

    ranges = collect_ranges(job.model, watched(), observer, fixed=job.fixed)
    manifest = Manifest(job.recipe, tally.samples, tally.files, tuple(tally.skipped))
    named = with_parser_names(read_graph(job.model, shapes=shapes), ranges)
    return Calibrated(replace(named, images=tally.samples), manifest, resumed)


def _resumed(job: Job, checkpoint: Checkpoint, observer: Observer) -> tuple[Tally, Iterator[Batch]] | None:
    """Return an interrupted pass and the batches that it lacks, its state in the observer."""
    found = checkpoint.load(job.recipe)
    if found is None:
        return None
    tally, state = found
    batches = job.source.batches(first=tally.batches)
    files = {name: sha256 for batch in islice(batches, tally.batches) for name, sha256 in batch.files.items()}
    if list(files.values()) != list(tally.files.values()):
        checkpoint.drop("its files are others")
        return None
    try:
        observer.restore(state)
    except CalibrationError as error:
        checkpoint.drop(str(error))
        return None
    return tally, batches


def hashed_files(source: Source) -> dict[str, str]:
    """Return the SHA-256 of each file of a source, by name in order of use, without making samples."""
    batches = source.batches(first=source.total)
    return {name: sha256 for batch in batches for name, sha256 in batch.files.items()}


def calibrate_to(
    path: Path, job: Job, say: Callable[[str], None], progress: Progress | None = None, force: bool = False
) -> Calibrated:
    """Calibrate and write the cache, with its manifest in `path` + ".manifest.json"; ranges are as the cache has them.

    Where both are there and come of the same recipe and files nothing is done, unless `force`. The state of an
    interrupted pass is in `path` + ".partial" until the next one is done; `force` starts afresh.
    """
    checkpoint = Checkpoint(_beside(path, "partial"), say)
    if force:
        checkpoint.remove()
    manifest = None if force else _made_before(path, job)
    if manifest is not None:
        return Calibrated(_ranges(path, job, manifest), manifest, unchanged=True)
    made = calibrate(job, checkpoint, progress)
    text = CalibrationCache.from_ranges(made.ranges).dumps().encode()
    manifest = replace(made.manifest, cache_sha256=hashlib.sha256(text).hexdigest())
    replace_file(path, lambda file: file.write(text))
    replace_file(manifest_path(path), lambda file: file.write(manifest.dumps().encode()))
    checkpoint.remove()
    return Calibrated(_ranges(path, job, manifest), manifest, made.resumed)


def manifest_path(cache: Path) -> Path:
    """Return where the manifest of a cache is."""
    return _beside(cache, "manifest.json")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _ranges(path: Path, job: Job, manifest: Manifest) -> Ranges:
    return replace(read_cache(path).to_ranges(), method=job.method, images=manifest.samples)


def _made_before(path: Path, job: Job) -> Manifest | None:
    """Return the manifest of a cache that is there and that this very job would write again."""
    try:
        manifest = read_manifest(manifest_path(path).read_text(encoding="utf-8"))
        intact = hashlib.sha256(path.read_bytes()).hexdigest() == manifest.cache_sha256
    except (OSError, UnicodeDecodeError, CalibrationError):
        return None
    if not intact or manifest.recipe.differs(job.recipe):
        return None
    return manifest if list(hashed_files(job.source).values()) == list(manifest.files.values()) else None
