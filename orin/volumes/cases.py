"""Volumes to segment: NIfTI scans, folders of KiTS19, pre-processed arrays and phantoms, one at a time in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.spec import INT8_MAX
from engines.volumes.dice import TUMOUR
from orin.errors import OrinError
from orin.subject import is_file

if TYPE_CHECKING:
    from engines.volumes.nifti import Scan
    from engines.volumes.preprocess import Grid

SCAN, TRUTH = "imaging.nii.gz", "segmentation.nii.gz"  # in each folder of KiTS19
PHANTOM = "phantom:"
PHANTOM_SHAPE = (128, 192, 320)  # the smallest of KiTS19
LEAST_AXIS = 8  # voxels; less is no volume
EXPECTED = ".nii, .nii.gz, .npy, a folder of KiTS19, or phantom:SEED"


@dataclass(frozen=True)
class Source:
    """Where a case comes from: a file, or a phantom's seed and shape; and its labels, where there are any."""

    name: str
    path: Path | None = None
    labels: Path | None = None
    seed: int = 0
    shape: tuple[int, int, int] = PHANTOM_SHAPE


@dataclass(frozen=True)
class Case:
    """A volume [D,H,W] as the network takes it (integers: times `scale`), its truth on the same voxels, if known.

    `scan` is the file's own image, to which labels go back; arrays and phantoms have none, their labels stay here.
    """

    source: Source
    volume: NDArray[Any]
    scale: float = 1.0
    truth: NDArray[Any] | None = None
    scan: Scan | None = None


def find_sources(words: Sequence[str], labels: Sequence[Path] = ()) -> list[Source]:
    """Say what a command's VOLUMEs are, before anything is read; OrinError names the first that is none.

    `labels` go with the volumes in order; a folder of KiTS19 brings its own.
    """
    if labels and len(labels) != len(words):
        raise OrinError(f"{len(words)} volumes and {len(labels)} labels; name one file of labels a volume, in order")
    sources = [find_source(word, truth) for word, truth in zip_longest(words, labels)]
    names = [source.name for source in sources]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise OrinError(f"two volumes are called {double!r}, and so would be their label maps; rename one")
    return sources


def find_source(word: str, labels: Path | None = None) -> Source:
    """Say what one VOLUME is; OrinError where it is none."""
    if word.startswith(PHANTOM):
        return _phantom(word, labels)
    path = Path(word)
    if path.is_dir() and (path / SCAN).is_file():
        own = path / TRUTH
        return Source(path.name, path / SCAN, labels or (own if own.is_file() else None))
    if path.is_dir():
        raise OrinError(f"folder {path} has no {SCAN}; expected {EXPECTED}")
    for missing in filter(None, (path, labels)):
        if not missing.is_file():
            raise OrinError(f"{missing} is no file; expected {EXPECTED}")
    if not word.endswith((".nii", ".nii.gz", ".npy")):
        raise OrinError(f"{path} is no volume by its name; expected {EXPECTED}")
    if labels and (labels.suffix == ".npy") != (path.suffix == ".npy"):
        raise OrinError(f"{labels} are labels for {path}, expected both as NIfTI or both as .npy")
    return Source(path.name.split(".")[0], path, labels)


def _phantom(word: str, labels: Path | None) -> Source:
    """Read `phantom:SEED` or `phantom:SEED:DxHxW`."""
    seed, _, shape = word.removeprefix(PHANTOM).partition(":")
    sides = shape.split("x") if shape else [str(side) for side in PHANTOM_SHAPE]
    if labels or not all(part.isdigit() for part in (seed, *sides)) or len(sides) != 3:
        raise OrinError(
            f"{word!r}: expected phantom:SEED or phantom:SEED:DxHxW such as phantom:7:128x192x256, no labels"
        )
    depth, height, width = map(int, sides)
    return Source(f"phantom-{seed}", seed=int(seed), shape=(depth, height, width))


def grid_of(network: str) -> Grid | None:
    """Return the voxels that a network of the zoo takes, or KiTS19's for a file; None where it takes no volumes."""
    from engines import zoo
    from engines.volumes.preprocess import GRIDS, KITS19

    return KITS19 if is_file(network) else GRIDS.get(zoo.network(network).preprocess)


def read_case(source: Source, grid: Grid, amax: float) -> Case:
    """Read and pre-process a case for a network's grid; an array is taken as it is, INT8 with the range `amax`.

    EngineError or OrinError says what is wrong with the data.
    """
    from engines.volumes.phantom import phantom
    from engines.volumes.preprocess import prepare, prepare_labels

    if source.path is None:
        made = phantom(source.seed, source.shape)
        truth = prepare_labels(made.labels, made.spacing_mm, grid)
        return Case(source, prepare(made.hounsfield, made.spacing_mm, grid), truth=truth)
    return _array(source, source.path, amax) if source.path.suffix == ".npy" else _scan(source, source.path, grid)


def _scan(source: Source, path: Path, grid: Grid) -> Case:
    from engines.volumes.nifti import check_same_grid, read_labels, read_scan
    from engines.volumes.preprocess import prepare, prepare_labels

    scan, truth = read_scan(path), None
    if min(scan.volume.shape) < LEAST_AXIS:
        raise OrinError(f"{path} has {list(scan.volume.shape)} voxels, expected {LEAST_AXIS} or more along each axis")
    if source.labels:
        labels = read_labels(source.labels)
        check_same_grid(labels, scan, source.labels)
        truth = prepare_labels(labels.volume, scan.spacing_mm, grid)
    return Case(source, prepare(scan.volume, scan.spacing_mm, grid), truth=truth, scan=scan)


def _array(source: Source, path: Path, amax: float) -> Case:
    """Map an array of MLPerf's pre-processing into memory: float32 or INT8, [D,H,W] or [1,D,H,W]."""
    volume = _mapped(path)
    if volume.dtype not in (np.float32, np.int8) or min(volume.shape) < LEAST_AXIS:
        raise OrinError(
            f"{path} holds {volume.dtype} {list(volume.shape)}, expected a pre-processed volume float32 or int8 [D,H,W]"
        )
    scale = amax / INT8_MAX if volume.dtype == np.int8 else 1.0
    truth = _mapped(source.labels) if source.labels else None
    if truth is not None and truth.shape != volume.shape:
        raise OrinError(f"{source.labels} holds {list(truth.shape)}, its volume {list(volume.shape)}; name a pair")
    if truth is not None and (truth.min() < 0 or truth.max() > TUMOUR):
        seen = f"{truth.min():g} to {truth.max():g}"
        raise OrinError(f"{source.labels} holds values from {seen}, expected 0, 1 (kidney) and 2 (tumour)")
    return Case(source, volume, scale, truth)


def _mapped(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise OrinError(f"{path} cannot be read: {reason}; write it with numpy.save") from None
    space = array[0] if array.ndim == 4 and len(array) == 1 else array
    if space.ndim != 3:
        raise OrinError(f"{path} has the shape {list(array.shape)}, expected [D,H,W] or [1,D,H,W]: one volume a file")
    return space


def write_case_labels(case: Case, labels: NDArray[Any], folder: Path, grid: Grid) -> Path:
    """Write a case's labels: NIfTI with the scan's own geometry, or .npy on the network's grid; returns the path."""
    from engines.files import replace_file
    from engines.volumes.nifti import write_labels
    from engines.volumes.preprocess import restore_labels

    if case.scan is None:
        path = folder / f"{case.source.name}.npy"
        replace_file(path, lambda file: np.save(file, labels))
        return path
    path = folder / f"{case.source.name}.nii.gz"
    write_labels(path, restore_labels(labels, case.scan.volume.shape, case.scan.spacing_mm, grid), case.scan)
    return path
