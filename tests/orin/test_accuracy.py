"""`orin accuracy`: what it answers, prints and refuses, and what FP16 costs."""

import argparse
import json

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from calibration.cache import CalibrationCache
from calibration.errors import CalibrationError
from engines import zoo
from engines.errors import EngineError
from engines.graph import read_graph
from engines.preprocess import PREPROCESS, prepare, read_image
from engines.spec import Ranges
from orin.accuracy import Question, answer
from orin.cli import accuracy as command
from orin.errors import OrinError
from orin.layer_cost import LayerCosts
from orin.virtual.parameters import load_parameters


def run(*words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    options = parser.parse_args([*map(str, words)])
    return options.handler(options)


@pytest.fixture
def photos(tmp_path):
    """Twelve pictures of noise in folders that say 0, 1 and 2, one of them broken."""
    rng = np.random.default_rng(0)
    for index in range(12):
        folder = tmp_path / "photos" / str(index % 3)
        folder.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{index:02}.png"), cv2.resize(noise, (20, 20)))
    (tmp_path / "photos" / "2" / "11.png").write_bytes(b"no image")
    return tmp_path / "photos"


def answers(paths, model=None):
    """Top-1 of photos in float32."""
    session = onnxruntime.InferenceSession((model or zoo.model("digits")).SerializeToString())
    inputs = [prepare(read_image(path), PREPROCESS["digits"])[None] for path in paths]
    return [int(session.run(None, {"input": each})[0].argmax()) for each in inputs]


def test_photos_in_numbered_folders_have_a_top1(photos, capsys):
    assert run("digits", "--data", photos, "--method", "minmax", "--worst", 2, "--json", "--quiet") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["samples"], said["top1_unknown"]) == (11, None)
    assert [entry["source"] for entry in said["skipped"]] == [str(photos / "2" / "11.png")]
    usable = sorted(path for path in photos.rglob("*.png") if path.name != "11.png")
    hits = sum(got == int(path.parent.name) for got, path in zip(answers(usable), usable, strict=True))
    assert (said["fp32"]["top1"]["hits"], said["fp32"]["top1"]["total"]) == (hits, 11)
    dla = said["int8_dla"]
    assert dla["agreement"]["total"] == said["int8_gpu"]["agreement"]["total"] == 11
    assert dla["gpu_layers"] == dla["fp16_layers"] == []
    assert [gain["layers"] for gain in dla["fp16_gains"]] == [layer["layers"] for layer in dla["layers"][:2]]
    assert {gain["cost"]["provenance"] for gain in dla["fp16_gains"]} == {"simulated"}
    assert {"relu1_output", "avgpool_output"} & {change["tensor"] for change in dla["changed_ranges"]}


def test_a_list_gives_labels_and_images_are_chosen_evenly(photos, tmp_path, capsys):
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    expected = answers([photos / name for name in names[::3]])  # 11.png is not among them
    (tmp_path / "labels.txt").write_text("".join(f"{n} {label}\n" for n, label in zip(names[::3], expected)))
    words = ("--data", photos, "--labels", tmp_path / "labels.txt", "--images", 4, "--worst", 0)
    assert run("digits", *words, "--json", "--quiet") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["fp32"]["top1"] == said["fp32"]["top5"]
    assert (said["fp32"]["top1"]["hits"], said["samples"]) == (4, 4)
    assert said["int8_dla"]["fp16_gains"] == []


def test_without_labels_top1_is_said_to_be_unknown(photos, capsys):
    flat = photos / "0"
    assert run("digits", "--data", flat, "--worst", 1) == 0
    shown = capsys.readouterr()
    assert "top-1 is unknown: no labels" in " ".join(shown.out.split())
    assert "SIMULATED" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 100
    assert "INT8 as DLA" in shown.err


def test_ranges_of_a_cache_are_used_and_missing_ones_mean_fp16(photos, tmp_path, capsys):
    model = zoo.model("digits")
    tensors = ["input", *(name for layer in read_graph(model).layers for name in layer.outputs)]
    missing = {"layer1.conv1_output", "layer1.relu1_output"}
    wide = {name: 1000.0 for name in tensors if name not in missing}
    path = tmp_path / "digits.cache"
    path.write_text(CalibrationCache.from_ranges(Ranges(wide, "minmax", 1)).dumps())
    assert run("digits", "--data", photos, "--calibration", path, "--worst", 0, "--json", "--quiet") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["calibrated"] == f"from {path}"
    assert said["int8_dla"]["sqnr_db"] < 5  # steps of 8 leave nothing
    slow = [layer["layer"] for layer in said["int8_dla"]["fp16_layers"]]
    assert {"layer1.relu1", "layer1.conv2"} <= set(slow)


def test_a_rewritten_network_has_ranges_for_what_is_new(photos, tmp_path):
    model = zoo.model("digits")
    pool = next(node for node in model.graph.node if node.op_type == "AveragePool")
    pool.op_type = "GlobalAveragePool"
    del pool.attribute[:]
    hard = onnx.helper.make_node("HardSwish", ["relu1_output"], ["swish"], name="swish")
    at = next(index for index, node in enumerate(model.graph.node) if node.name == "relu1")
    for node in model.graph.node:
        node.input[:] = ["swish" if name == "relu1_output" else name for name in node.input]
    model.graph.node.insert(at + 1, hard)
    model.opset_import[0].version = 14
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("input", 1, ("n", 3, "h", "w")))
    onnx.save(model, tmp_path / "mine.onnx")
    found = answer(Question(str(tmp_path / "mine.onnx"), data=photos, preprocess="digits", worst=0))
    assert found.form.placement.zero_gpu_layers
    assert found.form.fitted.fp16 == ()
    assert found.dla.fp32.top1 == found.gpu.fp32.top1
    assert found.gpu.int8.sqnr_db > 25
    assert found.dla.int8.sqnr_db > 12  # HardSwish becomes a product whose inputs share one range on the DLA
    assert found.weights == "those of mine.onnx"


def test_a_network_with_a_background_class_counts_labels_from_one(photos, tmp_path):
    rng = np.random.default_rng(1)
    weight = onnx.numpy_helper.from_array(rng.standard_normal((1001, 3, 1, 1)).astype(np.float32), "w")
    nodes = [
        onnx.helper.make_node("AveragePool", ["input"], ["p"], name="pool", kernel_shape=[8, 8], strides=[8, 8]),
        onnx.helper.make_node("Conv", ["p", "w"], ["c"], name="conv"),
        onnx.helper.make_node("MaxPool", ["c"], ["y"], name="top", kernel_shape=[2, 2]),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("input", (1, 3, 16, 16)), ("y", (1, 1001, 1, 1)))
    ]
    graph = onnx.helper.make_graph(nodes, "tf", ends[:1], ends[1:], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "tf.onnx")
    paths = sorted((photos / "0").iterdir())
    (tmp_path / "map.txt").write_text(
        "".join(f"{path.name} {label - 1}\n" for path, label in zip(paths, answers(paths, model), strict=True))
    )
    question = Question(str(tmp_path / "tf.onnx"), photos / "0", tmp_path / "map.txt", preprocess="digits", worst=0)
    assert answer(question).gpu.fp32.top1.hits == len(paths)


def test_the_digits_that_it_brings_are_held_out_and_right():
    pytest.importorskip("sklearn")
    found = answer(Question("digits", images=120, worst=0))
    assert found.dla.samples == 120
    assert found.gpu.fp32.top1.value >= 0.98
    assert found.dla.int8.agreement.value >= 0.98
    assert "held out" in found.samples


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        (("resnet50",), OrinError, "resnet50 needs photos: give --data DIR"),
        (("digits", "--labels", "x.txt"), OrinError, "--labels x.txt is for photos"),
        (("digits", "--images", "0"), OrinError, "--images 0"),
        (("digits", "--worst", "-1"), OrinError, "--worst -1"),
        (("digits", "--data", "none"), CalibrationError, "is not a folder"),
        (("digit", "--data", "photos"), EngineError, "did you mean 'digits'"),
        (("gone.onnx", "--data", "photos"), EngineError, "gone.onnx"),
        (("digits", "--data", "photos", "--preprocess", "retinanet"), OrinError, r"one image input \[N,3,800,800\]"),
        (("digits", "--data", "photos", "--labels", "none.txt"), CalibrationError, "none.txt cannot be read"),
        (("digits", "--data", "photos", "--calibration", "none.cache"), CalibrationError, "none.cache cannot be read"),
        (("unet3d", "--data", "photos"), EngineError, "pre-processing 'kits19' is not there yet"),
    ],
)
def test_mistakes_are_one_line(photos, monkeypatch, words, error, text):
    monkeypatch.chdir(photos.parent)
    with pytest.raises(error, match=text) as caught:
        run(*words, "--quiet")
    assert "\n" not in str(caught.value)


def test_a_label_beyond_the_classes_is_refused(photos):
    (photos / "2").rename(photos / "10")
    with pytest.raises(CalibrationError, match="label 10 is no class of the network: they are 0 to 9"):
        run("digits", "--data", photos, "--quiet", "--worst", 0)


def test_fp16_is_slower_by_the_measured_factor_and_layers_share_the_engines_time():
    graph = zoo.graph("resnet50")
    costs = LayerCosts(graph)
    engine = costs.of(["fc"]).engine_ms
    assert engine == pytest.approx(2e3 / 2037, rel=0.02)  # published: both cores at batch 2, 2037 images/s
    one = costs.of(["layer4.2.conv2", "layer4.2.relu2"])
    assert one.fp16_ms / one.int8_ms == pytest.approx(load_parameters().shared["dla_fp16_factor"])
    assert one.more_ms == one.fp16_ms - one.int8_ms
    each = sum(costs.of([layer.name]).int8_ms for layer in graph.layers)
    assert each == pytest.approx(engine, rel=0.1)
