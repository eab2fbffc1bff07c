"""CT volumes that nobody had to be scanned for: an abdomen with kidneys and tumours, labelled, noise and bystanders.

Anatomy is in millimetres, so that any shape and spacing can be had; a volume too small for an abdomen holds a smaller
one. Densities are those of the late arterial phase, in which KiTS19 was taken, from textbooks of radiology. Liver,
spleen, bowel and vessels are as bright as kidneys are, cysts grow where tumours do, and some tumours hardly differ from
the kidney that they grow in: neither place nor density alone tells what a voxel is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.volumes.dice import BACKGROUND, KIDNEY, TUMOUR
from engines.volumes.preprocess import SPACING_MM

SMALLEST = 16  # voxels of an axis
LARGEST_VOXELS = 2**30  # four times the largest scan of KiTS19
AIR_HU, FAT_HU, MUSCLE_HU, BONE_HU = -1000, -95, 55, 380
ABDOMEN_MM = (205.0, 230.0, 340.0)  # what a grown-up needs, along the body, front to back, side to side
KEEP = -1  # a blob's label where it changes none
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Phantom:
    """A volume int16 [D,H,W] in Hounsfield units, its labels int8 [D,H,W] (0, kidney 1, tumour 2), and its spacing."""

    hounsfield: NDArray[Any]
    labels: NDArray[Any]
    spacing_mm: Point = SPACING_MM


@dataclass(frozen=True)
class _Blob:
    """A lumpy ellipsoid: centre and radii in millimetres from the middle of the body, its density and its label."""

    centre_mm: NDArray[Any]
    radii_mm: NDArray[Any]
    density_hu: float
    label: int = KEEP
    lumps: float = 0.06


def phantom(seed: int, shape: Sequence[int], spacing_mm: Sequence[float] = SPACING_MM) -> Phantom:
    """Make the case of a seed on a grid [D,H,W]: the same case whatever the grid, as long as millimetres agree.

    The same arguments give the same bytes. Beside the result it takes the memory of one organ. EngineError where an
    axis is too short.
    """
    if len(shape) != 3 or min(shape) < SMALLEST or len(spacing_mm) != 3 or min(spacing_mm) <= 0:
        raise EngineError(
            f"phantom of shape {tuple(shape)} and spacing {tuple(spacing_mm)} mm: expected three axes of "
            f"{SMALLEST} voxels or more, and three spacings above 0"
        )
    if math.prod(shape) > LARGEST_VOXELS:
        raise EngineError(f"phantom of shape {tuple(shape)}: expected {LARGEST_VOXELS:,} voxels or fewer")
    rng = np.random.default_rng(seed)
    case = _Case(shape, spacing_mm)
    for blob in _anatomy(rng):
        case.draw(blob, rng)
    _add_noise(case.hounsfield, np.random.default_rng((seed, 1)), rng.uniform(14.0, 30.0))
    depth, height, width = map(float, spacing_mm)
    return Phantom(case.hounsfield, case.labels, (depth, height, width))


def _anatomy(rng: np.random.Generator) -> list[_Blob]:
    """Return what is drawn, in order: bystanders, then the kidneys with all that they hold; one tumour at least."""
    contrast_hu = rng.uniform(115.0, 205.0)
    tumours = rng.permutation((rng.integers(1, 3), rng.integers(0, 2)))
    kidneys = [part for side, count in zip((-1, 1), tumours) for part in _kidney(rng, side, contrast_hu, count)]
    return [*_bystanders(rng), *kidneys]


def _bystanders(rng: np.random.Generator) -> list[_Blob]:
    """Return liver, spleen, two great vessels and nine loops of bowel, with or without contrast in them."""
    liver = _Blob(_mm(-55, -15, -82), _mm(62, 55, 58), rng.uniform(90, 130), lumps=0.08)
    spleen = _Blob(_mm(-65, 20, 105), _mm(38, 28, 24), rng.uniform(100, 150))
    vessels = [_Blob(_mm(0, 24, side * 11), _mm(1e4, 10, 9), rng.uniform(110, 230)) for side in (-1, 1)]
    bowel = [
        _Blob(_mm(*rng.uniform((-80, -75, -90), (100, -10, 90))), rng.uniform(9, 22, 3), rng.uniform(-80, 190))
        for _ in range(9)
    ]
    return [liver, spleen, *vessels, *bowel]


def _kidney(rng: np.random.Generator, side: int, contrast_hu: float, tumours: int) -> list[_Blob]:
    """Return a kidney in its fat: parenchyma, sinus, tumours, and at times a cyst, which is none."""
    centre = _mm(rng.uniform(-18, 18), 32 + rng.uniform(-6, 6), side * 66 + rng.uniform(-5, 5))
    radii = rng.uniform((46, 22, 24), (60, 29, 31))
    sinus = centre - (0.0, 4.0, side * 0.55 * radii[2])
    parts = [
        _Blob(centre, radii + 8.0, FAT_HU),
        _Blob(centre, radii, contrast_hu, KIDNEY),
        _Blob(sinus, radii * (0.45, 0.4, 0.4), rng.uniform(-80, 10), BACKGROUND),
    ]
    for _ in range(tumours):
        size = min(9.0 + rng.exponential(9.0), 36.0) * rng.uniform(0.85, 1.15, 3)
        density_hu = rng.uniform(35.0, min(contrast_hu - 30.0, 140.0))
        parts.append(_Blob(_on_surface(rng, centre, radii), size, density_hu, TUMOUR, lumps=0.1))
    if rng.random() < 0.4:
        parts.append(_Blob(_on_surface(rng, centre, radii), rng.uniform(6, 14, 3), rng.uniform(0, 22), BACKGROUND))
    return parts


def _on_surface(rng: np.random.Generator, centre_mm: NDArray[Any], radii_mm: NDArray[Any]) -> NDArray[Any]:
    direction = rng.standard_normal(3)
    place: NDArray[Any] = centre_mm + radii_mm * direction / np.linalg.norm(direction) * rng.uniform(0.65, 1.0)
    return place


def _mm(along: float, back: float, across: float) -> NDArray[Any]:
    return np.array((along, back, across), float)


class _Case:
    """A volume under way: organs are drawn over one another, each in its own box."""

    def __init__(self, shape: Sequence[int], spacing_mm: Sequence[float]) -> None:
        sizes_mm = np.multiply(shape, spacing_mm)
        self._scale = min(1.0, *(sizes_mm / ABDOMEN_MM))
        self._edge_mm = 0.75 * float(np.mean(spacing_mm))  # half of the width over which two tissues share voxels
        self._axes_mm = [(np.arange(side) - (side - 1) / 2) * step for side, step in zip(shape, spacing_mm)]
        self.hounsfield = np.repeat(self._trunk()[None], shape[0], axis=0)
        self.labels = np.zeros(shape, np.int8)

    def draw(self, blob: _Blob, rng: np.random.Generator) -> None:
        """Draw a blob, blurred at its edge; its density varies slowly within, as perfusion does."""
        lengths, phases = rng.uniform(1.5, 4.0, (2, 3)), rng.uniform(0.0, 2 * np.pi, (2, 3))
        centre, radii = blob.centre_mm * self._scale, blob.radii_mm * self._scale
        box, offsets = self._box(centre, radii * (1 + 3 * blob.lumps) + 2 * self._edge_mm)
        wave, texture = (_waves(offsets, row * radii.min(), start) for row, start in zip(lengths, phases))
        radius = np.sqrt(sum((offset / r) ** 2 for offset, r in zip(offsets, radii.astype(np.float32))))
        inwards_mm = (1 - radius / (1 + np.float32(blob.lumps) * wave)) * np.float32(radii.min())
        share = np.clip(inwards_mm / np.float32(2 * self._edge_mm) + np.float32(0.5), 0, 1)
        self.hounsfield[box] += np.rint(share * (blob.density_hu + 4 * texture - self.hounsfield[box])).astype(np.int16)
        if blob.label != KEEP:
            self.labels[box][share > 0.5] = blob.label

    def _box(self, centre_mm: NDArray[Any], reach_mm: NDArray[Any]) -> tuple[tuple[slice, ...], list[NDArray[Any]]]:
        """Return the voxels within reach, and how far they lie from the centre: one open array an axis."""
        ends = zip(self._axes_mm, centre_mm - reach_mm, centre_mm + reach_mm)
        box = tuple(slice(*np.searchsorted(axis, (low, high)).tolist()) for axis, low, high in ends)
        offsets = [axis[part] - centre for axis, part, centre in zip(self._axes_mm, box, centre_mm)]
        return box, [np.asarray(offset, np.float32) for offset in np.ix_(*offsets)]

    def _trunk(self) -> NDArray[Any]:
        """Return a slice of air with skin fat, muscle, a cavity of fat and a spine in it: alike all along the body."""
        y, x = np.ix_(*(axis / self._scale for axis in self._axes_mm[1:]))
        slice_hu = np.full((y.size, x.size), AIR_HU, np.int16)
        for height, width, density_hu in ((108, 160, FAT_HU), (98, 148, MUSCLE_HU), (84, 132, FAT_HU)):
            slice_hu[(y / height) ** 2 + (x / width) ** 2 < 1] = density_hu
        slice_hu[((y - 56) / 30) ** 2 + (x / 54) ** 2 < 1] = MUSCLE_HU
        slice_hu[((y - 52) / 19) ** 2 + (x / 22) ** 2 < 1] = BONE_HU
        return slice_hu


def _waves(offsets: Sequence[NDArray[Any]], lengths_mm: NDArray[Any], phases: NDArray[Any]) -> NDArray[Any]:
    """Return one wave an axis, added up: three to a voxel, at the cost of three to an axis."""
    rates = (2 * np.pi / lengths_mm).astype(np.float32)
    waves: NDArray[Any] = sum(
        np.sin(rate * offset + np.float32(phase)) for rate, offset, phase in zip(rates, offsets, phases)
    )
    return waves


def _add_noise(hounsfield: NDArray[Any], rng: np.random.Generator, sigma_hu: float) -> None:
    """Add noise slice by slice, shared among neighbours as a reconstruction's smoothing leaves it."""
    height, width = hounsfield.shape[1:]
    for part in hounsfield:
        white = rng.standard_normal((height + 2, width + 2), np.float32)
        rows = white[:-2] + 2 * white[1:-1] + white[2:]
        smooth = rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]
        part += np.rint(smooth * np.float32(sigma_hu / 6)).astype(np.int16)  # 1, 2, 1 twice: sigma is 6
