"""`orin calibrate` and `orin cache`: what they write, print and refuse."""

import argparse
import json
import shutil
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from calibration.cache import read_cache
from calibration.dataset import image_files
from calibration.errors import CalibrationError
from calibration.images import Images
from calibration.job import Job
from calibration.job import calibrate as calibrate_job
from calibration.resume import Checkpoint
from engines.errors import EngineError
from engines.preprocess import PREPROCESS, prepare, read_image
from orin.cli import cache as cache_command
from orin.cli import calibrate as calibrate_command
from orin.errors import OrinError
from tests.dla.networks import conv, model, node

CACHES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "calibration_caches"
TEXT = (
    "TRT-100300-EntropyCalibration2\ninput_1:0: 3f810204\n(Unnamed Layer* 4) [Shuffle]_output: 0\ngr\u00fcn: 3c010204\n"
)


def run(command, *words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    options = parser.parse_args([*map(str, words)])
    return options.handler(options)


def calibrate(*words):
    return run(calibrate_command, *words, "--quiet")


def small(side):
    nodes = [conv("x", "a", "w"), node("Relu", "a", "y")]
    return model(nodes, {"x": (1, 3, side, side)}, {"y": None}, {"w": (2, 3, 1, 1)})


@pytest.fixture
def place(tmp_path):
    """Five photos of noise, one broken, and a network of one convolution."""
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for name in "abcde":
        cv2.imwrite(str(photos / f"{name}.png"), rng.integers(0, 256, (230, 240, 3), dtype=np.uint8))
    (photos / "f.jpg").write_bytes(b"not an image")
    onnx.save(small(224), tmp_path / "net.onnx")
    return tmp_path


def activations(place, names, preprocess):
    """Largest magnitudes of the convolution and the ReLU on photos as INT8 holds them, in float64."""
    weight = onnx.numpy_helper.to_array(onnx.load(place / "net.onnx").graph.initializer[0])[:, :, 0, 0]
    amax = PREPROCESS[preprocess].amax
    floats = [prepare(read_image(place / "photos" / f"{name}.png"), PREPROCESS[preprocess]) for name in names]
    images = [np.clip(np.rint(each * 127.0 / amax), -127, 127) * amax / 127 for each in floats]
    made = [np.einsum("oc,chw->ohw", weight.astype(np.float64), image.astype(np.float64)) for image in images]
    return {"a": max(np.abs(each).max() for each in made), "y": max(each.max() for each in made)}


def test_min_max_ranges_of_every_photo_are_written(place, capsys):
    out = place / "net.cache"
    words = (place / "net.onnx", "--data", place / "photos", "--method", "minmax", "-o", out)
    assert calibrate(*words, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["images"], said["tensors"], said["method"], said["preprocess"]) == (5, 3, "minmax", "imagenet")
    assert [Path(entry["source"]).name for entry in said["skipped"]] == ["f.jpg"]
    assert out.read_text().startswith("TRT-100300-EntropyCalibration2\nx: 3f810204\n")
    amax = read_cache(out).to_ranges().amax_by_tensor
    expected = activations(place, "abcde", "imagenet")
    assert {name: amax[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert sorted(path.name for path in place.iterdir()) == [
        "net.cache",
        "net.cache.manifest.json",
        "net.onnx",
        "photos",
    ]
    manifest = json.loads((place / "net.cache.manifest.json").read_text())
    assert said["digest"] == manifest["digest"]
    assert manifest["cache_sha256"] == sha256(out.read_bytes()).hexdigest()
    photos = sorted((place / "photos").iterdir())
    assert manifest["files"] == [[photo.name, sha256(photo.read_bytes()).hexdigest()] for photo in photos]


def answer(capsys, *words):
    assert calibrate(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_a_second_run_does_nothing_unless_something_changed(place, capsys):
    out = place / "net.cache"
    words = (place / "net.onnx", "--data", place / "photos", "--method", "minmax", "-o", out)
    first = answer(capsys, *words)
    written, inode = out.read_bytes(), out.stat().st_ino
    again = answer(capsys, *words)
    assert out.stat().st_ino == inode  # not written
    assert (first["unchanged"], again["unchanged"]) == (False, True)
    assert {**again, "unchanged": False} == first
    forced = answer(capsys, *words, "--force")
    assert not forced["unchanged"] and out.read_bytes() == written and out.stat().st_ino != inode
    assert not answer(capsys, *words, "--method", "percentile")["unchanged"]
    assert not answer(capsys, *words)["unchanged"]
    out.write_bytes(written.replace(b"x: 3f810204", b"x: 3f810205"))
    assert not answer(capsys, *words)["unchanged"] and out.read_bytes() == written
    (place / "photos" / "a.png").write_bytes((place / "photos" / "b.png").read_bytes())
    changed = answer(capsys, *words)
    assert not changed["unchanged"] and changed["digest"] != first["digest"]


def test_the_same_photos_elsewhere_have_the_same_digest(place, capsys):
    words = (place / "net.onnx", "--method", "minmax", "--data")
    here = answer(capsys, *words, place / "photos", "-o", place / "a.cache")
    shutil.copytree(place / "photos", place / "moved" / "sub")
    there = answer(capsys, *words, place / "moved", "-o", place / "b.cache")
    assert here["digest"] == there["digest"]
    assert (place / "a.cache").read_bytes() == (place / "b.cache").read_bytes()


def test_progress_notes_and_skips_go_to_stderr(place, capsys):
    words = (place / "net.onnx", "--data", place / "photos", "-o", place / "net.cache", "--json")
    assert run(calibrate_command, *words) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["images"] == 5
    assert "/s, " in said.err and "used: 6" in said.err and "skipped" in said.err and "f.jpg" in said.err
    assert run(calibrate_command, *words) == 0
    assert "nothing to do" in capsys.readouterr().err


def test_a_list_gives_files_and_their_order(place, capsys):
    (place / "list.txt").write_text("d.png 7\n\nb.png 65\n")
    words = (place / "net.onnx", "--data", place / "photos", "--method", "minmax", "-o", place / "net.cache")
    said = answer(capsys, *words, "--list", place / "list.txt")
    assert said["images"] == 2
    assert [name for name, _ in json.loads(Path(said["manifest"]).read_text())["files"]] == ["d.png", "b.png"]
    amax = read_cache(place / "net.cache").to_ranges().amax_by_tensor
    assert {name: amax[name] for name in "ay"} == pytest.approx(activations(place, "bd", "imagenet"), rel=1e-5)


def test_arrays_of_one_input_are_taken_as_they_are(place, capsys):
    values = np.random.default_rng(1).normal(0, 3, (5, 3, 224, 224))  # float64: what the network takes is float32
    np.save(place / "five.npy", values)
    words = (place / "net.onnx", "--method", "minmax", "-o", place / "net.cache", "--data", place / "five.npy")
    said = answer(capsys, *words, "--images", "4")
    assert (said["images"], said["preprocess"]) == (4, "none")
    weight = onnx.numpy_helper.to_array(onnx.load(place / "net.onnx").graph.initializer[0])[:, :, 0, 0]
    made = np.einsum("oc,nchw->nohw", weight.astype(np.float64), values[:4])
    expected = {"x": np.abs(values[:4]).max(), "a": np.abs(made).max(), "y": made.max()}
    assert dict(read_cache(place / "net.cache").to_ranges().amax_by_tensor) == pytest.approx(expected, rel=1e-5)


def test_several_inputs_calibrate_from_arrays_named_after_them(place, capsys):
    """Token indices and a float mask, as of a transformer: a table look-up times the mask."""
    nodes = [node("Gather", "table ids", "looked"), node("Mul", "looked mask", "y")]
    table = np.random.default_rng(0).normal(0, 2, (10, 4)).astype(np.float32)
    inputs = [
        onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n", 6]),
        onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, ["n", 6, 1]),
    ]
    outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 6, 4])]
    graph = onnx.helper.make_graph(nodes, "text", inputs, outputs, [onnx.numpy_helper.from_array(table, "table")])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)]), place / "text.onnx")
    ids = np.random.default_rng(1).integers(0, 10, (7, 6)).astype(np.int32)
    mask = np.random.default_rng(2).uniform(0, 1, (7, 6, 1)).astype(np.float32)
    np.savez_compressed(place / "text.npz", ids=ids, mask=mask, labels=np.arange(7))
    words = (place / "text.onnx", "--method", "minmax", "-o", place / "text.cache", "--data", place / "text.npz")
    assert answer(capsys, *words)["images"] == 7
    expected = {"mask": mask.max(), "looked": np.abs(table[ids]).max(), "y": np.abs(table[ids] * mask).max()}
    assert dict(read_cache(place / "text.cache").to_ranges().amax_by_tensor) == pytest.approx(expected, rel=1e-6)


def test_an_interrupted_run_goes_on(place, capsys):
    words = (place / "net.onnx", "--data", place / "photos", "--method", "entropy", "-o", place / "net.cache")
    answer(capsys, *words)
    whole = (place / "net.cache").read_bytes()
    (place / "net.cache").unlink()
    images = Images(image_files(place / "photos"), PREPROCESS["imagenet"], "x")
    job = Job.of_images(onnx.load(place / "net.onnx"), images, "entropy")

    def stop(done, total):
        if done == total:  # the last batch is done, but no state is kept with nothing left to do
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate_job(job, Checkpoint(place / "net.cache.partial", print, every_s=0, clock=lambda: 0.0), stop)
    assert answer(capsys, *words)["resumed"] == 4
    assert (place / "net.cache").read_bytes() == whole
    assert not (place / "net.cache.partial").exists()


def test_the_int8_network_is_written_with_the_scales_of_the_cache(place, capsys):
    words = (place / "net.onnx", "--data", place / "photos", "--method", "minmax", "-o", place / "net.cache")
    assert answer(capsys, *words, "--qdq", place / "int8.onnx")["qdq"] == str(place / "int8.onnx")
    model_ = onnx.load(place / "int8.onnx")
    onnx.checker.check_model(model_)
    values = {entry.name: onnx.numpy_helper.to_array(entry) for entry in model_.graph.initializer}
    scales = read_cache(place / "net.cache").scales
    rounded = {part.input[0]: values[part.input[1]] for part in model_.graph.node if part.op_type == "QuantizeLinear"}
    assert rounded == {"x": np.float32(scales["x"]), "y": np.float32(scales["y"])}
    before = (place / "int8.onnx").read_bytes()
    (place / "int8.onnx").unlink()
    assert answer(capsys, *words, "--qdq", place / "int8.onnx")["unchanged"]
    assert (place / "int8.onnx").read_bytes() == before


def test_first_photos_and_another_preprocessing(place, capsys):
    out = place / "net.cache"
    words = ("--data", place / "photos", "--images", 2, "--preprocess", "torchvision", "--method", "percentile")
    assert calibrate(place / "net.onnx", *words, "-o", out) == 0
    printed = capsys.readouterr().out
    assert "percentile" in printed
    assert "torchvision" in printed
    amax = read_cache(out).to_ranges().amax_by_tensor
    assert amax["x"] == pytest.approx(PREPROCESS["torchvision"].amax, rel=1e-6)
    largest = activations(place, "ab", "torchvision")
    for name, bound in largest.items():
        assert 0.5 * bound < amax[name] <= bound * (1 + 1e-5)


def test_entropy_is_the_default_and_never_much_beyond_min_max(place):
    assert calibrate(place / "net.onnx", "--data", place / "photos", "-o", place / "net.cache") == 0
    amax = read_cache(place / "net.cache").to_ranges().amax_by_tensor
    for name, bound in activations(place, "abcde", "imagenet").items():
        assert 0.06 * bound < amax[name] <= bound * (1 + 1 / 1024)


@pytest.mark.parametrize("sizes", [("n", 3, "h", "w"), ("n", 3, 224, 224), (8, 3, 224, 224)])
def test_any_batch_and_axes_without_a_size_are_taken(place, sizes):
    words = ("--data", place / "photos", "--method", "minmax")
    assert calibrate(place / "net.onnx", *words, "-o", place / "static.cache") == 0
    made = onnx.load(place / "net.onnx")
    made.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, sizes))
    middle = (sizes[0], 2, *sizes[2:])
    made.graph.value_info.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, middle))
    onnx.save(made, place / "dynamic.onnx")
    assert calibrate(place / "dynamic.onnx", *words, "-o", place / "dynamic.cache") == 0
    assert (place / "dynamic.cache").read_bytes() == (place / "static.cache").read_bytes()


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        (("net.onnx", "--data", "photos", "--images", "0"), OrinError, "--images 0"),
        (("net.onnx", "--data", "none"), CalibrationError, "is not a folder"),
        (("net.onnx", "--data", "photos", "--preprocess", "ssd-mobilenet"), OrinError, r"x\[1, 3, 224, 224\]"),
        (("net.onnx", "--data", "photos", "--weights", "w.onnx"), OrinError, "weights of its own"),
        (("none.onnx", "--data", "photos"), EngineError, "none.onnx"),
        (("resnet51", "--data", "photos"), EngineError, "did you mean 'resnet50'"),
        (("bert-large", "--data", "photos"), EngineError, "pre-processing"),
        (("net.onnx", "--data", "photos", "-o", "nowhere/net.cache"), OrinError, "cannot be written"),
        (("net.onnx", "--data", "photos", "--qdq", "nowhere/int8.onnx"), OrinError, "cannot be written"),
        (("net.onnx", "--data", "photos", "--qdq", "net.onnx"), OrinError, "would replace another file"),
        (("net.onnx", "--data", "photos", "--list", "none.txt"), CalibrationError, "none.txt cannot be read"),
        (("net.onnx", "--data", "net.onnx"), CalibrationError, "holds .onnx, expected .jpg"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(place, monkeypatch, words, error, text):
    monkeypatch.chdir(place)
    with pytest.raises(error, match=text) as caught:
        calibrate("-o", "out.cache", *words)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in place.iterdir()) == ["net.onnx", "photos"]


def shown(path, capsys):
    assert run(cache_command, "show", path, "--json", "--quiet") == 0
    return capsys.readouterr().out


def test_show_as_json_and_write_back(tmp_path, capsys):
    (tmp_path / "a.cache").write_text(TEXT, encoding="utf-8")
    said = json.loads(shown(tmp_path / "a.cache", capsys))
    assert said == {
        "version": 100300,
        "algorithm": "EntropyCalibration2",
        "scales": {
            "input_1:0": float(np.float32(128 / 127)),
            "(Unnamed Layer* 4) [Shuffle]_output": 0.0,
            "gr\u00fcn": float(np.float32(1 / 127)),
        },
        "warnings": [],
    }
    (tmp_path / "a.json").write_text(json.dumps(said))
    assert run(cache_command, "write", tmp_path / "a.json", "-o", tmp_path / "b.cache", "--json") == 0
    assert json.loads(capsys.readouterr().out)["tensors"] == 3
    assert (tmp_path / "b.cache").read_bytes() == TEXT.encode()


def test_show_as_a_table_warns_of_repeats(tmp_path, capsys):
    (tmp_path / "a.cache").write_text("TRT-8001-MinMaxCalibration\na: 3f800000\na: 40000000\n")
    assert run(cache_command, "show", tmp_path / "a.cache") == 0
    printed = capsys.readouterr()
    assert "TensorRT 8001, MinMaxCalibration, 1 tensors" in printed.out
    assert "254" in printed.out
    assert "more than once" in printed.err


def test_a_cut_cache_is_one_line(tmp_path):
    (tmp_path / "cut.cache").write_text("TRT-100300-EntropyCalibration2\ninput: 3c01\nconv: zzz\n")
    with pytest.raises(CalibrationError, match="line 3 is"):
        run(cache_command, "show", tmp_path / "cut.cache")


GOOD = {"version": 100300, "algorithm": "EntropyCalibration2", "scales": {"x": 1.0}}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "is no JSON"),
        ("[]", "lacks version, algorithm, scales"),
        (json.dumps({**GOOD, "version": "10.3"}), "has version '10.3'"),
        (json.dumps({**GOOD, "version": True}), "has version 'True'"),
        (json.dumps({**GOOD, "version": -1}), "line 1"),
        (json.dumps({**GOOD, "algorithm": "Entropy 2"}), "line 1"),
        (json.dumps({**GOOD, "scales": [1.0]}), "expected {tensor: scale}"),
        (json.dumps({**GOOD, "scales": {"x": None}}), "gives 'x' the scale None"),
        (json.dumps({**GOOD, "scales": {"x": -1.0}}), "gives 'x' the scale -1.0"),
        (json.dumps({**GOOD, "scales": {"x": -0.0}}), "'x' the scale -0.0"),
        (json.dumps({**GOOD, "scales": {"x": float("nan")}}), "gives 'x' the scale nan"),
        (json.dumps({**GOOD, "scales": {"x": 10**400}}), "gives 'x' the scale 1000"),
        (json.dumps({**GOOD, "scales": {"x\ny": 1.0}}), "one line a tensor"),
    ],
)
def test_json_that_no_cache_can_hold_is_refused(tmp_path, text, match):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises((OrinError, CalibrationError), match=match) as caught:
        run(cache_command, "write", tmp_path / "a.json", "-o", tmp_path / "b.cache")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b.cache").exists()


@pytest.mark.skipif(not CACHES.is_dir(), reason="real calibration caches are not here")
def test_real_caches_go_through_json_and_back(tmp_path, capsys):
    whole = 0
    for path in sorted(CACHES.glob("*.cache")):
        cache = read_cache(path)
        (tmp_path / "a.json").write_text(shown(path, capsys))
        assert run(cache_command, "write", tmp_path / "a.json", "-o", tmp_path / "b.cache", "--json") == 0
        capsys.readouterr()
        again = read_cache(tmp_path / "b.cache")
        assert (again.version, again.algorithm, dict(again.scales)) == (
            cache.version,
            cache.algorithm,
            dict(cache.scales),
        )
        if not cache.repeats and cache.final_newline:
            whole += 1
            assert (tmp_path / "b.cache").read_bytes() == path.read_bytes()
    assert whole
