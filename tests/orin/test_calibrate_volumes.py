"""`orin calibrate` on volumes: cut into the network's windows, min-max ranges checked against NumPy."""

import argparse
import json

import numpy as np
import onnx
import pytest

from calibration.cache import read_cache
from engines.errors import EngineError
from engines.volumes.nifti import as_scan, write_scan
from engines.volumes.phantom import phantom
from engines.volumes.plan import plan_windows
from engines.volumes.preprocess import AMAX, PAD, prepare
from orin.cli import calibrate as command
from orin.errors import OrinError
from tests.orin.test_segment import OFFSETS, SLOPES, SPACING_MM, kits_folder, pointwise
from tests.orin.test_segment import SHAPE as CASE_SHAPE

SHAPE = (20, 16, 24)


def calibrate(*words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    options = parser.parse_args([*map(str, words), "--method", "minmax", "--quiet", "--json"])
    return options.handler(options)


def ranges(path):
    return dict(read_cache(path).to_ranges().amax_by_tensor)


def logits(values):
    """The largest magnitude of the pointwise network's output on these voxels, in float64."""
    return np.abs(values.ravel()[None] * SLOPES[:, None] + OFFSETS[:, None]).max()


@pytest.fixture
def place(tmp_path):
    """Three volumes, one with a channel in front, and a network of windows of 16."""
    rng = np.random.default_rng(0)
    (tmp_path / "volumes").mkdir()
    for name, shape in (("a", SHAPE), ("b", (1, *SHAPE)), ("c", (16, 16, 16))):
        np.save(tmp_path / "volumes" / f"{name}.npy", rng.normal(0, 1, shape).astype(np.float32))
    onnx.save(pointwise(16), tmp_path / "net.onnx")
    return tmp_path


@pytest.mark.parametrize(("limit", "names", "windows"), [((), "abc", 9), (("--images", 1), "a", 4)])
def test_volumes_are_cut_into_the_networks_windows(place, capsys, limit, names, windows):
    out = place / "net.cache"
    assert calibrate(place / "net.onnx", "--data", place / "volumes", "-o", out, *limit) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["images"], said["preprocess"]) == (windows, "none")
    values = np.concatenate([np.load(place / "volumes" / f"{name}.npy").ravel() for name in names]).astype(np.float64)
    assert ranges(out) == pytest.approx({"input": np.abs(values).max(), "output": logits(values)}, rel=1e-6)
    manifest = json.loads((place / "net.cache.manifest.json").read_text())
    assert [name for name, _ in manifest["files"]] == [f"{name}.npy" for name in names]


def test_int8_volumes_have_the_range_of_mlperf_and_its_padding(place, capsys):
    stored = np.random.default_rng(1).integers(-20, 21, (12, 16, 16)).astype(np.int8)  # one window, padded
    np.save(place / "int8.npy", stored)
    assert calibrate(place / "net.onnx", "--data", place / "int8.npy", "-o", place / "net.cache") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 1
    values = np.append(stored.astype(np.float64) * AMAX / 127, PAD)
    assert ranges(place / "net.cache") == pytest.approx({"input": -PAD, "output": logits(values)}, rel=1e-6)


def test_samples_of_the_input_itself_stay_samples(place, capsys):
    samples = np.random.default_rng(2).normal(0, 1, (3, 1, 16, 16, 16)).astype(np.float32)
    np.save(place / "samples.npy", samples)
    assert calibrate(place / "net.onnx", "--data", place / "samples.npy", "-o", place / "net.cache") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 3
    assert ranges(place / "net.cache")["input"] == pytest.approx(np.abs(samples).max(), rel=1e-6)


@pytest.fixture
def scans(tmp_path):
    """A network of windows of 96, a folder of KiTS19 with one case, and a scan beside it."""
    pytest.importorskip("nibabel")
    onnx.save(pointwise(96), tmp_path / "net.onnx")
    folder, _ = kits_folder(tmp_path, seed=1)
    other = phantom(2, (60, 64, 72), (3.0, 2.4, 2.4))
    (tmp_path / "data").mkdir()
    folder.rename(tmp_path / "data" / folder.name)
    write_scan(tmp_path / "data" / "other.nii.gz", as_scan(other.hounsfield, other.spacing_mm))
    return tmp_path


def volumes_of_scans():
    """What MLPerf's pre-processing makes of both, read from no file."""
    first, second = phantom(1, CASE_SHAPE, SPACING_MM), phantom(2, (60, 64, 72), (3.0, 2.4, 2.4))
    return [prepare(made.hounsfield, made.spacing_mm) for made in (first, second)]


def test_scans_and_folders_of_kits19_are_pre_processed_as_for_segmentation(scans, capsys):
    out = scans / "net.cache"
    assert calibrate(scans / "net.onnx", "--data", scans / "data", "-o", out) == 0
    said = json.loads(capsys.readouterr().out)
    volumes = volumes_of_scans()
    assert said["images"] == sum(len(plan_windows(volume.shape, (96, 96, 96))) for volume in volumes)
    values = np.concatenate([volume.ravel() for volume in volumes]).astype(np.float64)
    assert ranges(out) == pytest.approx({"input": np.abs(values).max(), "output": logits(values)}, rel=1e-5)
    manifest = json.loads((scans / "net.cache.manifest.json").read_text())
    assert [name for name, _ in manifest["files"]] == ["case_00001/imaging.nii.gz", "other.nii.gz"]
    assert calibrate(scans / "net.onnx", "--data", scans / "data", "-o", out) == 0
    assert json.loads(capsys.readouterr().out)["unchanged"] is True


def test_phantoms_need_no_file_and_are_named_one_by_one(scans, capsys):
    words = ("--data", "phantom:3:64x96x100", "--data", "phantom:4:64x96x100", "-o", scans / "net.cache")
    assert calibrate(scans / "net.onnx", *words) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 16
    found = [phantom(seed, (64, 96, 100)) for seed in (3, 4)]
    values = np.concatenate([prepare(made.hounsfield, made.spacing_mm).ravel() for made in found]).astype(np.float64)
    assert ranges(scans / "net.cache") == pytest.approx(
        {"input": np.abs(values).max(), "output": logits(values)}, rel=1e-5
    )


def test_a_list_chooses_among_scans(scans, capsys):
    (scans / "list").write_text("other.nii.gz\n")
    words = ("--data", scans / "data", "--list", scans / "list", "-o", scans / "net.cache")
    assert calibrate(scans / "net.onnx", *words) == 0
    other = volumes_of_scans()[1]
    assert json.loads(capsys.readouterr().out)["images"] == len(plan_windows(other.shape, (96, 96, 96)))


def test_scans_that_cannot_be_used_are_told(scans):
    net, out = scans / "net.onnx", ("-o", scans / "net.cache")
    with pytest.raises(OrinError, match="--data is given 2 times, which is for scans alone"):
        calibrate(net, "--data", scans / "one.npy", "--data", scans / "two.npy", *out)
    (scans / "list").write_text("other.nii.gz\n")
    with pytest.raises(OrinError, match="--data is given 2 times, which is for scans alone, without --list"):
        calibrate(net, "--data", scans / "data", "--data", "phantom:1", "--list", scans / "list", *out)
    with pytest.raises(OrinError, match="expected phantom:SEED or phantom:SEED:DxHxW"):
        calibrate(net, "--data", "phantom:x", *out)
    with pytest.raises(OrinError, match=r"net\.onnx is no scan, as others of the data are"):
        calibrate(net, "--data", "phantom:1", "--data", net, *out)
    with pytest.raises(OrinError, match="the data are volumes, the network takes none"):
        calibrate("resnet50", "--data", "phantom:1", *out)
    with pytest.raises(OrinError, match="--preprocess imagenet is for photos"):
        calibrate(net, "--data", "phantom:1", "--preprocess", "imagenet", *out)
    broken = scans / "data" / "other.nii.gz"
    broken.write_bytes(broken.read_bytes()[:2000])
    with pytest.raises(EngineError, match=r"other\.nii\.gz is no NIfTI volume that can be read"):
        calibrate(net, "--data", scans / "data", *out)
    assert not (scans / "net.cache").exists()


@pytest.mark.parametrize(
    ("name", "array", "text"),
    [
        ("d", np.zeros(SHAPE, np.int8), r"d\.npy and .*a\.npy are of different types, expected float32 or int8"),
        ("d", np.zeros((2, *SHAPE), np.float32), r"d\.npy has the shape \[2, 20, 16, 24\], expected \[D,H,W\]"),
        ("a", np.zeros(SHAPE, np.float64), r"a\.npy holds float64 \[20, 16, 24\], expected a pre-processed volume"),
    ],
)
def test_a_file_that_is_no_such_volume_is_told(place, name, array, text):
    np.save(place / "volumes" / f"{name}.npy", array)
    with pytest.raises(OrinError, match=text):
        calibrate(place / "net.onnx", "--data", place / "volumes", "-o", place / "net.cache")
    assert not (place / "net.cache").exists()


def test_a_file_that_cannot_be_read_is_told(place):
    (place / "volumes" / "a.npy").write_bytes(b"no array")
    with pytest.raises(OrinError, match=r"a\.npy cannot be read: .*; write it with numpy\.save"):
        calibrate(place / "net.onnx", "--data", place / "volumes", "-o", place / "net.cache")
