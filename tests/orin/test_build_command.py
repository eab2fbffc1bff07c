"""`orin build`: engines, manifests and plan in a folder; what is refused before anything is built."""

import argparse
import json
import math
from dataclasses import replace

import cv2
import numpy as np
import onnx
import pytest

from engines.engine import Manifest
from engines.errors import EngineError
from engines.numerics import OrtRunner
from engines.preprocess import PREPROCESS
from engines.tensorrt.check import check_numbers
from orin.boards import DEFAULT_VIRTUAL, open_board
from orin.build import Desk, build_engines, builder_for
from orin.check import SAMPLES, check_engines, device_runner, doubts
from orin.cli import build as command
from orin.errors import OrinError
from orin.plan import Plan
from orin.subject import find_subject
from tests.dla.networks import conv, model, node


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two photos, a network that the DLA takes and one that it does not take whole; a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        cv2.imwrite(str(tmp_path / "photos" / f"{name}.png"), rng.integers(0, 256, (230, 240, 3), dtype=np.uint8))
    weights = {"w": (2, 3, 1, 1), "v": (1, 2, 1, 1)}
    first = [conv("x", "a", "w"), node("Relu", "a", "b"), conv("b", "y", "v")]
    onnx.save(model(first, {"x": (1, 3, 224, 224)}, {"y": None}, weights), tmp_path / "net.onnx")
    second = [conv("x", "a", "w"), node("Softplus", "a", "b"), conv("b", "y", "v")]
    onnx.save(model(second, {"x": (1, 3, 224, 224)}, {"y": None}, weights), tmp_path / "mixed.onnx")
    return tmp_path


def orin_build(place, network, *words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    fixed = ["--data", place / "photos", "-o", place / "out", "--board", DEFAULT_VIRTUAL, "--gpu-batch", 4]
    return command.handle(parser.parse_args([*map(str, (place / network, *fixed, *words))]))


def test_engines_manifests_and_plan_are_written(place, capsys):
    assert orin_build(place, "net.onnx", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in (place / "out").iterdir()) == [
        "dla.engine",
        "dla.json",
        "gpu.engine",
        "gpu.json",
        "plan.yaml",
    ]
    manifest = Manifest.loads((place / "out" / "gpu.json").read_text())
    assert manifest.engine_sha256 == said["engines"]["gpu"]["sha256"]
    assert (manifest.spec.network, manifest.spec.batch) == ("net", 4)
    assert said["engines"]["dla"]["inputs"] == {"x": "int8 DLA_HWC4"}
    assert said["engines"]["dla"]["gpu_layers"] == []
    plan = Plan.load(place / "out" / "plan.yaml")
    assert (plan.network, plan.gpu_batch) == (str(place / "net.onnx"), 4)


def test_the_plan_keeps_how_photos_become_inputs(place, capsys):
    assert orin_build(place, "net.onnx", "--preprocess", "torchvision", "--quiet") == 0
    plan = Plan.load(place / "out" / "plan.yaml")
    photos = sorted((place / "photos").iterdir())
    assert build_engines(plan, Desk(place / "cache", photos)).preprocess == PREPROCESS["torchvision"]
    with pytest.raises(EngineError, match="pre-processing 'nope' is not"):
        orin_build(place, "net.onnx", "--preprocess", "nope")


def test_the_table_fits_100_columns(place, capsys):
    assert orin_build(place, "net.onnx", "--quiet") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "int8 DLA_HWC4" in printed.out
    assert max(map(len, printed.out.splitlines()[1:])) <= 100


def test_layers_on_the_gpu_are_refused_before_building_unless_allowed(place, capsys):
    with pytest.raises(OrinError, match=r"1 layers of the DLA's network fall back.*--allow-gpu-layers") as caught:
        orin_build(place, "mixed.onnx")
    assert "\n" not in str(caught.value)
    assert not (place / "cache").exists()
    assert orin_build(place, "mixed.onnx", "--allow-gpu-layers", "--json") == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["engines"]["dla"]["gpu_layers"]) == 1
    assert "leaves 1 layers to the GPU" in printed.err


def test_an_engine_from_the_cache_is_held_to_the_same_rule(place):
    plan = Plan(network=str(place / "mixed.onnx"), gpu_batch=0)
    photos = sorted((place / "photos").iterdir())
    build_engines(plan, Desk(cache=place / "cache", photos=photos))
    with pytest.raises(OrinError, match="fall back to the GPU"):
        build_engines(plan, Desk(cache=place / "cache", photos=photos, allow_gpu_layers=False))


def test_a_jetson_without_tensorrt_says_what_to_install(place):
    with pytest.raises(EngineError, match="apt install python3-libnvinfer"):
        builder_for("jetson", Desk())
    assert builder_for(DEFAULT_VIRTUAL, Desk()).name.startswith("onnxruntime")


def test_sparse_engines_are_others(place):
    plan = Plan(network=str(place / "net.onnx"), dla_cores=0, gpu_batch=2)
    photos = sorted((place / "photos").iterdir())
    dense, sparse = (
        build_engines(plan, Desk(cache=place / "cache", photos=photos, sparse=on)).engines["gpu"]
        for on in (False, True)
    )
    assert dense.path != sparse.path and sparse.manifest.spec.sparse
    asked = build_engines(replace(plan, sparsity=True), Desk(cache=place / "cache", photos=photos)).engines["gpu"]
    assert asked.path == sparse.path


def built_with_references(place, network="net.onnx"):
    plan = Plan(network=str(place / network), gpu_batch=3, dla_batch=2)
    photos = sorted((place / "photos").iterdir())
    return build_engines(plan, Desk(cache=place / "cache", photos=photos, references=True)), photos


def test_engines_are_checked_against_references_batch_by_batch(place):
    built, photos = built_with_references(place)
    board = open_board(DEFAULT_VIRTUAL, "results")
    checked = check_engines(built, board, photos)
    assert checked == {"gpu": {"y": math.inf}, "dla": {"y": math.inf}}
    assert check_engines(built, board, []) == checked
    engine = built.engines["gpu"]
    seen = []
    reference = OrtRunner(built.references["gpu"], threads=1).run
    check_numbers(
        engine, device_runner(board, engine), lambda packed: seen.append(packed[0].shape) or reference(packed)
    )
    assert seen == [(SAMPLES, 224 * 224 * 4)]  # in batches of three: 3, 3, 2


def test_a_board_without_outputs_cannot_be_checked(place):
    built, photos = built_with_references(place)
    with pytest.raises(OrinError, match="computes no outputs to check"):
        check_engines(built, open_board(DEFAULT_VIRTUAL, "speed"), photos)


def test_numbers_far_off_are_doubted():
    assert list(doubts({"gpu": {"y": 35.0, "z": math.inf}})) == []
    (line,) = doubts({"gpu": {"y": 35.0}, "dla": {"y": 3.25}})
    assert "output 'y' of the dla engine is 3.2 dB from ONNX Runtime's, expected 20 or more" in line


def test_a_file_takes_the_size_of_a_photo(place):
    made = onnx.load(place / "net.onnx")
    made.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ("n", 3, "h", "w")))
    onnx.save(made, place / "dynamic.onnx")
    subject = find_subject(str(place / "dynamic.onnx"))
    assert (subject.name, subject.image, subject.preprocess_name) == ("dynamic", "x", "imagenet")
    assert subject.preprocess == PREPROCESS["imagenet"]
    dims = [dim.dim_value for dim in subject.model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == [1, 3, 224, 224]
    with pytest.raises(OrinError, match="choose another with --preprocess"):
        find_subject(str(place / "net.onnx"), preprocess="ssd-mobilenet")
    with pytest.raises(OrinError, match="has weights of its own"):
        find_subject(str(place / "net.onnx"), checkpoint=place / "w.onnx")
