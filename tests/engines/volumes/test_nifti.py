"""NIfTI in and out: axes, geometry, and what is wrong with a file in one line."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engines.errors import EngineError
from engines.volumes.nifti import (
    as_scan,
    check_same_grid,
    is_nifti,
    read_geometry,
    read_labels,
    read_scan,
    write_labels,
    write_scan,
)
from engines.volumes.phantom import phantom

nib = pytest.importorskip("nibabel")

SPACING_MM = (3.0, 0.8, 0.7)


@pytest.fixture(scope="module")
def case():
    return phantom(4, (20, 30, 40), SPACING_MM)


def save(path, values, affine, dtype=np.float32):
    nib.save(nib.Nifti1Image(np.asarray(values, dtype), affine), path)
    return path


def test_a_scan_of_kits19s_axes_is_read_as_it_lies(case, tmp_path):
    path = tmp_path / "a.nii.gz"
    write_scan(path, as_scan(case.hounsfield, SPACING_MM))
    scan = read_scan(path)
    assert np.array_equal(scan.volume, case.hounsfield)
    assert scan.spacing_mm == pytest.approx(SPACING_MM)
    assert nib.aff2axcodes(scan.image.affine) == ("I", "P", "L")


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "PIL", "ILP"])
def test_other_axes_are_turned_and_labels_go_back_the_same_way(case, axes, tmp_path):
    own = as_scan(case.hounsfield, SPACING_MM).image
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("IPL"), nib.orientations.axcodes2ornt(axes))
    turned = own.as_reoriented(turn)
    nib.save(turned, tmp_path / "a.nii.gz")
    scan = read_scan(tmp_path / "a.nii.gz")
    assert np.array_equal(scan.volume, case.hounsfield)
    assert scan.spacing_mm == pytest.approx(SPACING_MM)
    assert read_geometry(tmp_path / "a.nii.gz") == (case.hounsfield.shape, scan.spacing_mm)
    write_labels(tmp_path / "l.nii.gz", case.labels, scan)
    written = nib.load(tmp_path / "l.nii.gz")
    assert written.shape == turned.shape and written.get_data_dtype() == np.int8
    np.testing.assert_allclose(written.affine, turned.affine)
    assert written.header.get_xyzt_units() == turned.header.get_xyzt_units()
    expected = nib.Nifti1Image(case.labels, own.affine).as_reoriented(turn)
    assert np.array_equal(np.asanyarray(written.dataobj), np.asanyarray(expected.dataobj))
    assert np.array_equal(read_labels(tmp_path / "l.nii.gz").volume, case.labels)


@pytest.mark.parametrize("sform,qform", [(1, 0), (0, 1), (2, 1)])
def test_the_kind_of_geometry_is_kept(case, sform, qform, tmp_path):
    image = as_scan(case.hounsfield, SPACING_MM).image
    affine = image.affine
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    nib.save(image, tmp_path / "a.nii")
    write_labels(tmp_path / "l.nii", case.labels, read_scan(tmp_path / "a.nii"))
    header = nib.load(tmp_path / "l.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (sform, qform)
    np.testing.assert_allclose(nib.load(tmp_path / "l.nii").affine, affine, atol=1e-4)


def test_slope_and_intercept_are_applied_and_a_fourth_axis_of_one_is_none(tmp_path):
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4, 1)
    image = nib.Nifti1Image(stored, np.diag([1.0, 1, 1, 1]))
    image.header.set_slope_inter(2.0, -1024.0)
    nib.save(image, tmp_path / "a.nii")
    volume = read_scan(tmp_path / "a.nii").volume
    assert volume.shape == (4, 3, 2) and sorted(volume.ravel()) == [2.0 * k - 1024 for k in range(24)]


AFFINE = np.diag([0.8, 0.8, 3.0, 1.0])
ZEROS = np.full((4, 4, 4), -1000.0)


def truncated(path):
    whole = gzip.compress(nib.Nifti1Image(np.zeros((16, 16, 16), np.float32), AFFINE).to_bytes())
    path.write_bytes(whole[: len(whole) // 2])


def with_nans(path):
    values = ZEROS.copy()
    values[1, 2, 3] = values[2, 2, 2] = np.nan
    save(path, values, np.diag([-1.0, -1, -1, 1]))


def without_size(path):
    image = nib.Nifti1Image(ZEROS.astype(np.float32), AFFINE)
    image.set_sform(AFFINE, 1)
    header = bytearray(image.to_bytes())
    header[280:284] = np.float32(np.nan).tobytes()  # srow_x
    path.write_bytes(gzip.compress(bytes(header)))


BROKEN = [
    (lambda path: path.write_bytes(b"no volume"), "is no NIfTI volume that can be read"),
    (truncated, "is no NIfTI volume that can be read"),
    (with_nans, r"2 voxels are NaN or infinite, the first at \[2, 2, 2\]; expected Hounsfield units"),
    (lambda path: save(path, ZEROS + 1e6, AFFINE), "values from 999000 to 999000, expected Hounsfield units"),
    (
        lambda path: save(path, np.zeros((4, 4, 4, 5)), AFFINE),
        r"axes \[4, 4, 4, 5\], expected three: one volume a file",
    ),
    (lambda path: save(path, np.zeros((4, 4)), AFFINE), r"axes \[4, 4\], expected three"),
    (lambda path: save(path, ZEROS, np.diag([0.8, 0.8, 3000.0, 1])), "voxels of 0.8 x 0.8 x 3000 mm"),
    (without_size, "its header gives voxels of nan x 0.8 x 3 mm"),
]


@pytest.mark.parametrize("write,words", BROKEN, ids=[words[:30] for _, words in BROKEN])
def test_what_is_wrong_with_a_scan_is_one_line(write, words, tmp_path):
    path = tmp_path / "a.nii.gz"
    write(path)
    with pytest.raises(EngineError, match=words) as raised:
        read_scan(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_nibabel_keeps_its_own_words_to_itself(tmp_path):
    (tmp_path / "a.nii").write_bytes(bytes(range(256)) * 4)
    read = "from pathlib import Path; from engines.volumes.nifti import read_scan; read_scan(Path('a.nii'))"
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", read]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stderr.startswith("Traceback") and "is no NIfTI volume that can be read" in done.stderr


def test_a_scan_that_is_not_there(tmp_path):
    with pytest.raises(EngineError, match="gone.nii is no file, expected a NIfTI volume"):
        read_scan(tmp_path / "gone.nii")
    assert is_nifti(tmp_path / "a.nii.gz") and not is_nifti(tmp_path / "a.npy")


def test_labels_that_say_nothing_or_too_much(tmp_path):
    save(tmp_path / "none.nii", np.zeros((4, 4, 4)), AFFINE)
    with pytest.raises(EngineError, match="every label is 0"):
        read_labels(tmp_path / "none.nii")
    save(tmp_path / "many.nii", np.arange(64).reshape(4, 4, 4) % 5, AFFINE)
    with pytest.raises(EngineError, match=r"labels 3, 4, expected 0, 1 \(kidney\) and 2 \(tumour\)"):
        read_labels(tmp_path / "many.nii")


def test_labels_have_to_lie_on_the_scans_grid(case, tmp_path):
    scan, moved = as_scan(case.hounsfield, SPACING_MM), as_scan(case.labels, (3.0, 0.8, 0.8))
    check_same_grid(as_scan(case.labels, SPACING_MM), scan, tmp_path)
    with pytest.raises(EngineError, match="lie on another grid than the scan"):
        check_same_grid(moved, scan, tmp_path)
