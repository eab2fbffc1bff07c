"""Volumes as what a network calibrates with: those that `orin segment` takes, cut into its windows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibration.files import listed_files
from calibration.source import Input, file_sha256, relative_names
from calibration.volumes import Volumes, array_volumes
from engines.volumes.nifti import is_nifti, read_geometry
from engines.volumes.preprocess import AMAX, KITS19, SPACING_MM, Grid, fits
from engines.volumes.split import Windows
from orin.errors import OrinError
from orin.volumes.cases import PHANTOM, SCAN, TRUTH, Source, find_source, read_case

if TYPE_CHECKING:
    from engines.volumes.plan import Triple


@dataclass(frozen=True)
class CaseVolume:
    """A scan or a phantom, pre-processed for a network's grid whenever it is read; a `calibration.volumes.Volume`."""

    source: Source
    grid: Grid
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape on the network's grid, of the scan's header alone."""
        shape, spacing_mm = (self.source.shape, SPACING_MM) if self.source.path is None else self._geometry()
        return tuple(fit.size for fit in fits(shape, spacing_mm, self.grid))

    def sha256(self) -> str:
        """Return that of the file, or of a phantom's voxels on the network's grid."""
        if self.source.path is not None:
            return file_sha256(self.source.path)
        return hashlib.sha256(self.read().tobytes()).hexdigest()

    def read(self) -> NDArray[Any]:
        """Read and pre-process it; EngineError says what is wrong with it."""
        return read_case(self.source, self.grid, AMAX).volume

    def _geometry(self) -> tuple[Triple, tuple[float, float, float]]:
        assert self.source.path is not None, "a phantom has no file"
        return read_geometry(self.source.path)


def scans_of(data: Sequence[str], listing: Path | None = None) -> list[Source]:
    """Return the scans, folders of KiTS19 and phantoms among calibration data; none where it is something else.

    A folder stands for all that is in it, `listing` for the files that it names there. OrinError where other data is
    among them.
    """
    words = [str(path) for path in listed_files(listing, Path(data[0]))] if listing else data
    found = [name for word in words for name in _scans(word)]
    if not any(map(_is_scan, found)):
        return []
    other = next((name for name in found if not _is_scan(name)), None)
    if other is not None:
        raise OrinError(f"{other} is no scan, as others of the data are; expected scans alone: choose with --list")
    return [find_source(name) for name in found]


def _scans(word: str) -> list[str]:
    """Return what a word of calibration data stands for: itself, or the scans in a folder; truths are none."""
    folder = Path(word)
    if word.startswith(PHANTOM) or not folder.is_dir() or _is_scan(word):
        return [word]
    files = sorted(path for path in folder.rglob("*.nii*") if is_nifti(path) and path.name != TRUTH)
    return [str(path) for path in files]


def _is_scan(word: str) -> bool:
    path = Path(word)
    return word.startswith(PHANTOM) or is_nifti(path) or (path / SCAN).is_file()


def scan_windows(inputs: Sequence[Input], scans: Sequence[Source], grid: Grid, batch: int = 1) -> Volumes:
    """Return the windows of scans and phantoms; OrinError where the network takes none."""
    window = _window(inputs)
    if window is None:
        raise OrinError("the data are volumes, the network takes none: expected one input, windows [N,1,d,h,w]")
    paths = [scan.path for scan in scans if scan.path]
    names = relative_names(paths) if paths else {}
    volumes = [CaseVolume(scan, grid, names[scan.path] if scan.path else scan.name) for scan in scans]
    return Volumes(volumes, Windows(window), inputs[0].name, batch, {"grid": asdict(grid)})


def array_windows(inputs: Sequence[Input], paths: Sequence[Path], batch: int = 1) -> Volumes | None:
    """Return the windows of volumes [D,H,W] or [1,D,H,W], float32 or INT8 in the range of MLPerf's pre-processing.

    None where the network takes no windows [N,1,d,h,w], or the first file holds samples [N,...] of its input;
    OrinError where a file is no such volume, or its type is not that of the others.
    """
    window = _window(inputs)
    if window is None or paths[0].suffix != ".npy" or _axes(paths[0]) > 4:
        return None
    scales = {path: read_case(Source(path.stem, path), KITS19, AMAX).scale for path in paths}
    scale = scales[paths[0]]
    for path, other in scales.items():
        if other != scale:
            raise OrinError(f"{path} and {paths[0]} are of different types, expected float32 or int8 in all of them")
    return Volumes(array_volumes(paths), Windows(window, scale=scale), inputs[0].name, batch)


def _window(inputs: Sequence[Input]) -> Triple | None:
    """Return the window of a network whose one input is [N,1,d,h,w]; None where it is not."""
    shape = inputs[0].shape
    if len(inputs) != 1 or len(shape) != 5 or shape[1] != 1:
        return None
    depth, height, width = shape[2:]
    if depth is None or height is None or width is None:
        raise OrinError(f"input {inputs[0].name!r} has windows of no fixed size; export the network with one")
    return depth, height, width


def _axes(path: Path) -> int:
    """Return how many axes an array has; one that cannot be read is told of as the volume that it should be."""
    try:
        return int(np.load(path, mmap_mode="r", allow_pickle=False).ndim)
    except (OSError, ValueError, EOFError):
        return 0
