"""`orin segment`, with a network that looks at one voxel at a time, so that the answer is known without windows."""

import argparse
import base64
import json
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.cache import CalibrationCache
from calibration.volumes import Volumes, array_volumes
from engines.errors import EngineError
from engines.spec import Ranges
from engines.volumes.nifti import as_scan, read_labels, write_scan
from engines.volumes.phantom import phantom
from engines.volumes.preprocess import AMAX, prepare, prepare_labels
from engines.volumes.split import Windows
from orin.cli import segment as command
from orin.cli.errors import one_line
from orin.errors import OrinError
from power.errors import PowerError

SLOPES, OFFSETS = np.array([0.0, 1.0, 0.5]), np.array([0.2, -0.35, -0.05])
SHAPE = (40, 64, 72)
SPACING_MM = (5.0, 2.4, 2.4)


def pointwise(side):
    nodes = [helper.make_node("Conv", ["input", "w", "b"], ["output"], name="head")]
    sides = [side] * 3
    values = {"w": SLOPES.reshape(3, 1, 1, 1, 1), "b": OFFSETS}
    graph = helper.make_graph(
        nodes,
        "pointwise",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, *sides])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3, *sides])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def answer_of(volume):
    """The labels of the pointwise network, without windows."""
    return (volume[None] * SLOPES.reshape(3, 1, 1, 1) + OFFSETS.reshape(3, 1, 1, 1)).argmax(axis=0)


def dice_of(found, truth, label):
    sizes = (found == label).sum() + (truth == label).sum()
    return 2 * ((found == label) & (truth == label)).sum() / sizes if sizes else 1.0


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """For whole scans: eight windows on the smallest."""
    path = tmp_path_factory.mktemp("network") / "pointwise.onnx"
    onnx.save(pointwise(96), path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """For arrays, which can be of any size."""
    path = tmp_path_factory.mktemp("small") / "pointwise.onnx"
    onnx.save(pointwise(32), path)
    return path


def part_of_a_case():
    """Pre-processed values and labels around a kidney."""
    made = phantom(2, (64, 96, 96))
    whole = prepare(made.hounsfield, made.spacing_mm), prepare_labels(made.labels, made.spacing_mm)
    return (values[48:88, 60:100, 20:70] for values in whole)


def segment(*words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    options = parser.parse_args([*map(str, words), "--quiet"])
    return options.handler(options)


def answer(capsys, *words):
    assert segment(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def close(labels, volume):
    """Whether labels are the expected ones but where float32 sees a tie."""
    return (labels == answer_of(volume)).mean() > 0.9999


@pytest.mark.parametrize("weights", ["mlperf", "monai"])
def test_a_phantom_is_segmented_scored_and_drawn(network, weights, tmp_path, capsys):
    out = tmp_path / "out"
    said = answer(capsys, "phantom:3:64x96x100", "--network", network, "--weights", weights, "-o", out)
    made = phantom(3, (64, 96, 100))
    volume, truth = prepare(made.hounsfield, made.spacing_mm), prepare_labels(made.labels, made.spacing_mm)
    (case,) = said["cases"]
    labels = np.load(case["labels"])
    assert labels.dtype == np.int8 and close(labels, volume)
    assert (case["shape"], case["windows"]) == ([128, 128, 128], 8)
    assert case["voxels"] == {"kidney": (labels == 1).sum(), "tumour": (labels == 2).sum()}
    assert case["dice"]["kidney"] == pytest.approx(dice_of(labels, truth, 1))
    assert case["dice"]["tumour"] == pytest.approx(dice_of(labels, truth, 2))
    assert said["dice"]["mean"] == pytest.approx(case["dice"]["mean"])
    assert (said["network"], said["precision"], said["window_weights"]) == ("pointwise", "fp32", weights)
    assert case["expected"]["provenance"] == "simulated" and case["expected"]["latency_ms"]["value"] > 0
    page = (out / "report.html").read_text()
    pictures = [base64.b64decode(found) for found in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    assert [picture[:4] for picture in pictures] == [b"\x89PNG"]
    assert "SIMULATED" in page and "http" not in page
    assert json.loads((out / "result.json").read_text())["cases"][0]["name"] == "phantom-3"


def kits_folder(place, seed=1):
    made = phantom(seed, SHAPE, SPACING_MM)
    folder = place / f"case_{seed:05d}"
    folder.mkdir()
    write_scan(folder / "imaging.nii.gz", as_scan(made.hounsfield, SPACING_MM))
    write_scan(folder / "segmentation.nii.gz", as_scan(made.labels, SPACING_MM))
    return folder, made


def test_a_folder_of_kits19_gets_a_label_map_with_its_own_geometry(network, tmp_path, capsys):
    nib = pytest.importorskip("nibabel")
    folder, made = kits_folder(tmp_path)
    said = answer(capsys, folder, "--network", network, "-o", tmp_path / "out")
    (case,) = said["cases"]
    assert case["labels"].endswith("case_00001.nii.gz")
    scan, labels = nib.load(folder / "imaging.nii.gz"), nib.load(case["labels"])
    assert labels.shape == scan.shape == SHAPE
    np.testing.assert_allclose(labels.affine, scan.affine)
    volume = prepare(made.hounsfield, SPACING_MM)
    truth = prepare_labels(made.labels, SPACING_MM)
    assert case["dice"]["kidney"] == pytest.approx(dice_of(answer_of(volume), truth, 1), abs=1e-3)
    found = read_labels(tmp_path / "out" / "case_00001.nii.gz").volume
    assert ((found == 1) & (made.hounsfield > 150)).sum() > 0.5 * (found == 1).sum()


def test_arrays_of_mlperfs_pre_processing_are_taken_as_they_are(small, tmp_path, capsys):
    volume, labels = part_of_a_case()
    int8 = np.rint(volume / AMAX * 127).clip(-127, 127).astype(np.int8)
    np.save(tmp_path / "floats.npy", volume)
    np.save(tmp_path / "bytes.npy", int8[None])
    np.save(tmp_path / "truth.npy", labels)
    words = (tmp_path / "floats.npy", tmp_path / "bytes.npy", "--network", small, "-o", tmp_path / "out")
    truth = ("--labels", tmp_path / "truth.npy", "--labels", tmp_path / "truth.npy")
    floats, integers = answer(capsys, *words, *truth)["cases"]
    assert close(np.load(floats["labels"]), volume)
    assert close(np.load(integers["labels"]), int8 * np.float32(AMAX / 127))
    assert floats["dice"]["mean"] == pytest.approx(integers["dice"]["mean"], abs=0.01)
    without = answer(capsys, *words)
    assert without["dice"] is None and without["cases"][0]["dice"] is None


def test_int8_runs_on_the_ranges_of_a_calibration_cache(small, tmp_path, capsys):
    volume, _ = part_of_a_case()
    np.save(tmp_path / "a.npy", volume)
    amax = {"input": float(AMAX), "output": 3.0}
    cache = tmp_path / "net.cache"
    cache.write_text(CalibrationCache.from_ranges(Ranges(amax, "minmax", 1)).dumps())
    words = (tmp_path / "a.npy", "--network", small, "--calibration", cache, "-o", tmp_path / "out")
    said = answer(capsys, *words)
    steps = np.clip(np.rint(volume * 127 / AMAX), -127, 127) * AMAX / 127
    assert said["precision"] == "int8"
    assert (np.load(said["cases"][0]["labels"]) == answer_of(steps)).mean() > 0.97
    windows = Volumes(array_volumes([tmp_path / "a.npy"]), Windows((32, 32, 32)), "input")
    assert windows.total == said["cases"][0]["windows"]


def test_the_cases_run_under_loadgen_on_the_virtual_board(small, tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.zeros((32, 64, 32), np.float32))
    words = ("--network", small, "-o", tmp_path / "out", "--scenario", "offline", "--seconds", 1)
    said = answer(capsys, tmp_path / "a.npy", *words, "--runs", tmp_path / "runs", "--stack", "mlperf-v3.0")
    assert said["run"]["provenance"] == "simulated" and said["run"]["scenario"] == "offline"
    assert said["run"]["samples_per_s"] > 0 and len(list((tmp_path / "runs").glob("*/report.html"))) == 1


def test_the_table_fits_and_says_what_is_simulated(small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, values in zip(("a", "truth"), part_of_a_case()):
        np.save(f"{name}.npy", values)
    assert segment("a.npy", "--labels", "truth.npy", "--network", small, "-o", "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any("SIMULATED" in line for line in lines) and not any(line.startswith("DICE of") for line in lines)
    np.save("b.npy", np.load("a.npy"))
    truth = ("--labels", "truth.npy")
    assert segment("a.npy", "b.npy", *truth, *truth, "--network", small, "-o", "out") == 0
    assert any(line.startswith("DICE of 2 cases: mean") for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    "words,said",
    [
        (["gone.nii.gz"], "gone.nii.gz is no file; expected .nii, .nii.gz, .npy, a folder of KiTS19, or phantom:SEED"),
        (["photo.png"], "photo.png is no volume by its name"),
        (["phantom:x"], "'phantom:x': expected phantom:SEED or phantom:SEED:DxHxW"),
        (["phantom:1:8x8"], "'phantom:1:8x8': expected"),
        (["phantom:1:8x8x8"], r"phantom of shape \(8, 8, 8\)"),
        (["flat.npy"], r"shape \[4, 4\], expected \[D,H,W\]"),
        (["wide.npy"], "holds float64"),
        (["text.npy"], "cannot be read"),
        (["phantom:1:9999x9999x9999"], "expected 1,073,741,824 voxels or fewer"),
        (["folder"], "folder folder has no imaging.nii.gz"),
        (["thin.nii"], r"thin.nii has \[4, 32, 32\] voxels, expected 8 or more"),
        (["phantom:1", "phantom:1:64x64x64"], "two volumes are called 'phantom-1'"),
        (["ok.npy", "--labels", "gone.npy"], "gone.npy is no file"),
        (["ok.npy", "--labels", "small.npy"], "small.npy holds"),
        (["ok.npy", "--labels", "seven.npy"], "seven.npy holds values from 7 to 7, expected 0, 1"),
        (["ok.npy", "--labels", "thin.nii"], "thin.nii are labels for ok.npy, expected both as NIfTI or both as .npy"),
        (["ok.npy", "ok2.npy", "--labels", "small.npy"], "2 volumes and 1 labels"),
        (["ok.npy", "--network", "resnet50"], "network resnet50 takes no volumes; expected .*unet3d"),
        (["ok.npy", "--network", "two.onnx"], r"\[1, 1, 8, 8, 8\] and \[1, 2, 8, 8, 8\], expected windows"),
        (["ok.npy", "--batch", "0"], "--batch is 0"),
        (["ok.npy", "--overlap", "1"], "overlap 1.0 of windows"),
        (["ok.npy", "--mode", "99W"], "99W"),
        (["ok.npy", "--board", "jetson", "--mode", "30W"], "this machine is no Jetson"),
        (["ok.npy", "--calibration", "other.cache"], "has no range for the input 'input'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_line(small, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes(b"png")
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "other.cache").write_text("TRT-100300-MinMaxCalibration\nx: 3c010a14\n")
    sizes = {"flat": (4, 4), "ok": (32, 32, 32), "ok2": (32, 32, 32), "small": (8, 8, 8)}
    for name, size in sizes.items():
        np.save(f"{name}.npy", np.zeros(size, np.float32))
    np.save("wide.npy", np.zeros((64, 64, 64)))
    np.save("seven.npy", np.full((32, 32, 32), 7, np.int8))
    (tmp_path / "folder").mkdir()
    write_scan(tmp_path / "thin.nii", as_scan(np.zeros((4, 32, 32), np.int16), (5.0, 2.0, 2.0)))
    two = pointwise(8)
    two.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
    two.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((2, 1, 1, 1, 1), np.float32), "w"))
    two.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones(2, np.float32), "b"))
    onnx.save(two, "two.onnx")
    more = [] if "--network" in words else ["--network", small]
    with pytest.raises((OrinError, EngineError, PowerError), match=said) as raised:
        segment(*words, *more, "-o", tmp_path / "out")
    assert one_line(raised.value)
