"""From Hounsfield units to what the network reads, and labels back to the scan's own grid.

Source: MLPerf Inference, `vision/medical_imaging/3d-unet-kits19`; NVIDIA's MLPerf code, `3d-unet/tensorrt`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.spec import INT8_MAX

SPACING_MM = (1.6, 1.2, 1.2)
LOWEST_HU, HIGHEST_HU = -79.0, 304.0
MEAN_HU, STD_HU = 101.0, 76.9
PAD = -2.2  # about (-79 - 101) / 76.9 = -2.34, the darkest that a voxel gets
# NVIDIA's calibration cache of 3d-unet (v3.0): the input's scale; the range is that of the brightest voxel.
AMAX = struct.unpack(">f", bytes.fromhex("3caa46e8"))[0] * INT8_MAX
LARGEST_VOXELS = 2**33  # a wrong header asks for more


@dataclass(frozen=True)
class Grid:
    """The voxels that a network was trained on: their size, of what each axis is a multiple, and how short it gets."""

    spacing_mm: tuple[float, float, float] = SPACING_MM
    multiple: int = 64
    shortest: int = 128


KITS19 = Grid()
# By the names that networks of the zoo have for their pre-processing.
GRIDS = {"kits19": KITS19, "kits19-half": Grid((3.2, 2.4, 2.4), multiple=32, shortest=64)}


@dataclass(frozen=True)
class Fit:
    """How one axis changes: from `voxels` to `resampled`, of which `kept` from `cut` on end up at `pad` of `size`."""

    voxels: int
    resampled: int
    cut: int
    kept: int
    pad: int
    size: int

    @property
    def source(self) -> slice:
        """What of the resampled axis is kept."""
        return slice(self.cut, self.cut + self.kept)

    @property
    def target(self) -> slice:
        """Where it lies in the fitted axis."""
        return slice(self.pad, self.pad + self.kept)


def fit_axis(voxels: int, spacing_mm: float, target_mm: float, grid: Grid = KITS19) -> Fit:
    """Fit one axis: a remainder below half of the multiple is cropped, a larger one padded."""
    resampled = max(1, round(voxels * spacing_mm / target_mm))
    rest = resampled % grid.multiple
    size = max(grid.shortest, resampled - rest + (grid.multiple if 2 * rest >= grid.multiple else 0))
    kept = min(size, resampled)
    return Fit(voxels, resampled, (resampled - kept) // 2, kept, (size - kept) // 2, size)


def fits(shape: Sequence[int], spacing_mm: Sequence[float], grid: Grid = KITS19) -> tuple[Fit, Fit, Fit]:
    """Fit each axis of a volume [D,H,W]; EngineError where that gives more than a header can mean."""
    first, second, third = (
        fit_axis(voxels, own_mm, target_mm, grid)
        for voxels, own_mm, target_mm in zip(shape, spacing_mm, grid.spacing_mm)
    )
    if math.prod((first.resampled, second.resampled, third.resampled)) > LARGEST_VOXELS:
        raise EngineError(
            f"{tuple(shape)} voxels of {tuple(spacing_mm)} mm are {first.resampled} x {second.resampled} x "
            f"{third.resampled} at {grid.spacing_mm} mm, more than {LARGEST_VOXELS:,}; correct the spacing"
        )
    return first, second, third


def prepare(hounsfield: NDArray[Any], spacing_mm: Sequence[float], grid: Grid = KITS19) -> NDArray[Any]:
    """Turn Hounsfield units [D,H,W] into the network's float32 [D',H',W']: resampled, normalised, fitted."""
    found = fits(hounsfield.shape, spacing_mm, grid)
    resampled = resample(hounsfield.astype(np.float32, copy=False), [fit.resampled for fit in found])
    return place(normalise(resampled), found, np.float32(PAD))


def prepare_labels(labels: NDArray[Any], spacing_mm: Sequence[float], grid: Grid = KITS19) -> NDArray[Any]:
    """Turn labels [D,H,W] into int8 [D',H',W'] beside `prepare`'s volume: nearest neighbours, padded with 0."""
    found = fits(labels.shape, spacing_mm, grid)
    return place(nearest(labels, [fit.resampled for fit in found]).astype(np.int8), found, np.int8(0))


def restore_labels(
    labels: NDArray[Any], shape: Sequence[int], spacing_mm: Sequence[float], grid: Grid = KITS19
) -> NDArray[Any]:
    """Bring labels [D',H',W'] back to the scan's grid [D,H,W]; what was cropped away is background."""
    found = fits(shape, spacing_mm, grid)
    whole = np.zeros([fit.resampled for fit in found], labels.dtype)
    whole[tuple(fit.source for fit in found)] = labels[tuple(fit.target for fit in found)]
    return nearest(whole, shape)


def normalise(hounsfield: NDArray[Any]) -> NDArray[Any]:
    """Clip to [-79, 304], subtract 101, divide by 76.9; float32."""
    clipped: NDArray[Any] = np.clip(hounsfield, LOWEST_HU, HIGHEST_HU, dtype=np.float32)
    clipped -= np.float32(MEAN_HU)
    clipped /= np.float32(STD_HU)
    return clipped


def place(volume: NDArray[Any], found: Sequence[Fit], pad: Any) -> NDArray[Any]:
    """Crop and pad each axis as `found` says; the volume itself where nothing changes."""
    sizes = tuple(fit.size for fit in found)
    if volume.shape == sizes:
        return volume
    placed = np.full(sizes, pad, volume.dtype)
    placed[tuple(fit.target for fit in found)] = volume[tuple(fit.source for fit in found)]
    return placed


def resample(volume: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Interpolate linearly to another shape, axis by axis; the first and last voxels stay where they are."""
    for axis, size in enumerate(shape):
        if volume.shape[axis] != size:
            volume = _resample_axis(volume, axis, size)
    return volume


def nearest(volume: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Resample by nearest neighbours on the same grid as `resample`."""
    for axis, size in enumerate(shape):
        if volume.shape[axis] != size:
            volume = volume.take(np.floor(_grid(volume.shape[axis], size) + 0.5).astype(np.intp), axis)
    return volume


def _grid(voxels: int, size: int) -> NDArray[Any]:
    """Positions in an axis of so many voxels, first and last included."""
    return np.linspace(0, voxels - 1, size)


def _resample_axis(volume: NDArray[Any], axis: int, size: int) -> NDArray[Any]:
    at = _grid(volume.shape[axis], size)
    low = np.minimum(at.astype(np.intp), max(volume.shape[axis] - 2, 0))
    high = np.minimum(low + 1, volume.shape[axis] - 1)
    share = (at - low).astype(np.float32).reshape([-1 if k == axis else 1 for k in range(volume.ndim)])
    first = volume.take(low, axis)
    step = volume.take(high, axis)
    step -= first
    step *= share
    first += step
    return first
