"""CT scans in NIfTI files, brought to KiTS19's axes and back."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.files import replace_file
from engines.volumes.dice import LABELS
from engines.volumes.plan import Triple

# KiTS19's arrays: from above down the body, front to back, the patient's right to left.
AXES = ("I", "P", "L")
LOWEST_HU, HIGHEST_HU = -4096, 32767  # of any scanner; beyond that a slope or an intercept is missing
SPACINGS_MM = (0.05, 50.0)
SILENT = logging.CRITICAL + 1


@dataclass(frozen=True)
class Scan:
    """A volume [D,H,W] along KiTS19's axes with its spacing, and the image that it came from."""

    volume: NDArray[Any]
    spacing_mm: tuple[float, float, float]
    image: Any


def as_scan(volume: NDArray[Any], spacing_mm: tuple[float, float, float]) -> Scan:
    """Wrap a volume [D,H,W] along KiTS19's axes that came from no file, as integers or float32."""
    import nibabel as nib

    depth, height, width = spacing_mm
    affine = np.array([[0, 0, -width, 0], [0, -height, 0, 0], [-depth, 0, 0, 0], [0, 0, 0, 1]], float)
    return Scan(volume, spacing_mm, nib.Nifti1Image(volume, affine))


def write_scan(path: Path, scan: Scan) -> None:
    """Write a scan of `as_scan`; OSError where it cannot be written."""
    _write(path, scan.image)


def is_nifti(path: Path) -> bool:
    """Tell by its name whether a file is NIfTI."""
    return path.name.endswith((".nii", ".nii.gz"))


def read_geometry(path: Path) -> tuple[Triple, tuple[float, float, float]]:
    """Return a scan's shape [D,H,W] and spacing in millimetres, of its header alone; EngineError as `read_scan`."""
    import nibabel as nib

    image = _open(path)
    sides = dict(zip(map(_line, nib.aff2axcodes(image.affine)), image.shape))
    depth, height, width = (sides[_line(axis)] for axis in AXES)
    return (depth, height, width), _spacing(image)


def read_scan(path: Path) -> Scan:
    """Read a CT volume in Hounsfield units, float32; EngineError says what is wrong with file, header or values."""
    scan = _read(path)
    low, high = float(scan.volume.min()), float(scan.volume.max())
    if not np.isfinite((low, high)).all():
        wrong = np.argwhere(~np.isfinite(scan.volume))
        raise EngineError(
            f"{path}: {len(wrong):,} voxels are NaN or infinite, the first at {wrong[0].tolist()}; "
            f"expected Hounsfield units; fill them with air, -1024"
        )
    if low < LOWEST_HU or high > HIGHEST_HU:
        raise EngineError(
            f"{path}: values from {low:g} to {high:g}, expected Hounsfield units (air -1000, water 0); "
            f"set slope and intercept in the header"
        )
    return scan


def read_labels(path: Path) -> Scan:
    """Read labels, int8: 0, kidney 1, tumour 2; EngineError where there are others, or no kidney and no tumour."""
    scan = _read(path)
    found = np.unique(scan.volume)
    if not np.isin(found, LABELS).all():
        others = ", ".join(f"{value:g}" for value in found[~np.isin(found, LABELS)][:4])
        raise EngineError(f"{path}: labels {others}, expected 0, 1 (kidney) and 2 (tumour); map them to these")
    if found.tolist() == [0]:
        raise EngineError(
            f"{path}: every label is 0, there is nothing to compare with; expected 1 (kidney), 2 (tumour)"
        )
    return Scan(scan.volume.astype(np.int8), scan.spacing_mm, scan.image)


def check_same_grid(labels: Scan, scan: Scan, path: Path) -> None:
    """Refuse labels that lie elsewhere than the scan: in shape, or by more than a hundredth of a millimetre."""
    if labels.volume.shape != scan.volume.shape or not np.allclose(labels.image.affine, scan.image.affine, atol=0.01):
        raise EngineError(
            f"{path}: labels {list(labels.volume.shape)} lie on another grid than the scan "
            f"{list(scan.volume.shape)}; resample them to it"
        )


def write_labels(path: Path, labels: NDArray[Any], scan: Scan) -> None:
    """Write labels int8 [D,H,W] with the axes, geometry and units of the scan's own file; OSError where it cannot."""
    import nibabel as nib

    own = nib.orientations.apply_orientation(labels, _turn(AXES, nib.aff2axcodes(scan.image.affine)))
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int8)
    header.set_xyzt_units(*scan.image.header.get_xyzt_units())
    made = nib.Nifti1Image(np.ascontiguousarray(own, np.int8), scan.image.affine, header)
    codes = {name: int(scan.image.header[f"{name}_code"]) for name in ("sform", "qform")}
    if any(codes.values()):
        made.set_sform(scan.image.affine, codes["sform"])
        made.set_qform(scan.image.affine, codes["qform"])
    _write(path, made)


def _write(path: Path, image: Any) -> None:
    data = image.to_bytes()
    packed = gzip.compress(data, 1, mtime=0) if path.name.endswith(".gz") else data
    replace_file(path, lambda file: file.write(packed))


def _read(path: Path) -> Scan:
    """Read an image of three axes and turn it to KiTS19's."""
    import nibabel as nib

    image = _open(path)
    with _readable(path):
        values = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(image.shape[:3])
    turned = nib.orientations.apply_orientation(values, _turn(nib.aff2axcodes(image.affine), AXES))
    return Scan(turned, _spacing(image), image)


def _open(path: Path) -> Any:
    """Read the header of an image of three axes."""
    import nibabel as nib

    if not path.is_file():
        raise EngineError(f"{path} is no file, expected a NIfTI volume (.nii, .nii.gz)")
    with _readable(path):
        image: Any = nib.Nifti1Image.from_filename(path)
    if image.shape[3:] not in ((), (1,)) or len(image.shape) < 3 or 0 in image.shape:
        raise EngineError(f"{path} has the axes {list(image.shape)}, expected three: one volume a file")
    _check_affine(path, image.affine)
    return image


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say in one line that a file cannot be read: nibabel, gzip and struct have no exception in common."""
    from nibabel.imageglobals import logger

    level = logger.level
    logger.setLevel(SILENT)  # what nibabel says of a header that it mends, or cannot, is no line of a command's own
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise EngineError(f"{path} is no NIfTI volume that can be read: {reason}; copy it again") from None
    finally:
        logger.setLevel(level)


def _spacing(image: Any) -> tuple[float, float, float]:
    """Return the millimetres between voxels along KiTS19's axes."""
    import nibabel as nib
    from nibabel.affines import voxel_sizes

    spacing = dict(zip(map(_line, nib.aff2axcodes(image.affine)), voxel_sizes(image.affine).tolist()))
    depth, height, width = (spacing[_line(axis)] for axis in AXES)
    return depth, height, width


def _check_affine(path: Path, affine: NDArray[Any]) -> None:
    """Refuse a header that puts no axis along the body, or gives voxels a size that no scanner has."""
    import nibabel as nib
    from nibabel.affines import voxel_sizes

    low, high = SPACINGS_MM
    spacing = voxel_sizes(affine)
    if not all(low <= side <= high for side in spacing) or None in nib.aff2axcodes(affine):
        sizes = " x ".join(f"{side:g}" for side in spacing)
        raise EngineError(
            f"{path}: its header gives voxels of {sizes} mm, expected three axes with {low:g} to {high:g} mm each; "
            f"convert it from DICOM again"
        )


def _turn(have: tuple[Any, ...], wanted: tuple[Any, ...]) -> NDArray[Any]:
    import nibabel.orientations as orientations

    turn: NDArray[Any] = orientations.ornt_transform(orientations.axcodes2ornt(have), orientations.axcodes2ornt(wanted))
    return turn


def _line(axis: str) -> str:
    """Return the line that an axis runs along, whichever way."""
    return {"R": "L", "A": "P", "S": "I"}.get(axis, axis)
