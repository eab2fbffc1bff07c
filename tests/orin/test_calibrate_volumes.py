"""`orin calibrate` on volumes: cut into the network's windows, min-max ranges checked against NumPy."""

import argparse
import json

import numpy as np
import onnx
import pytest

from calibration.cache import read_cache
from engines.volumes.preprocess import AMAX, PAD
from orin.cli import calibrate as command
from orin.errors import OrinError
from tests.orin.test_segment import OFFSETS, SLOPES, pointwise

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
