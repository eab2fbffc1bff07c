"""Top-1, top-5, agreement and the ranking of layers: against counts by hand and references of their own."""

import math

import numpy as np
import pytest
from onnx import helper

from calibration.accuracy import Int8Network, LabelledBatch, Share, assess
from calibration.errors import CalibrationError
from calibration.sqnr import Runner
from engines.build import build
from engines.cache import EngineCache
from engines.numerics import OrtRunner
from engines.preprocess import quantise
from engines.spec import EngineSpec
from tests.engines.models import AMAX, fake, images, int8_by_hand, make, small, value


def chain(classes, ranges, *ops):
    """A network of elementwise layers on [N,classes], the tensors t0 (input), t1, ..., y."""
    names = ["t0", *(f"t{index}" for index in range(1, len(ops))), "y"]
    nodes = [
        helper.make_node(op, [source], [target], name=f"layer{index}")
        for index, (op, source, target) in enumerate(zip(ops, names, names[1:], strict=False))
    ]
    return Int8Network(make(nodes, [value("t0", 1, classes)], [value("y", 1, classes)], {}), ranges)


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (10, 10), (1, 7), (359, 360), (1793, 1797), (1, 1)])
def test_intervals_are_wilsons(hits, total):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert Share(hits, total).interval == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_an_interval_has_a_width_at_both_ends():
    assert Share(10, 10).interval == pytest.approx((0.7224672, 1.0), abs=1e-6)
    assert Share(0, 10).interval == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert Share(2, 4).as_json() == {
        "value": 0.5,
        "low": pytest.approx(0.1500390),
        "high": pytest.approx(0.8499610),
        "hits": 2,
        "total": 4,
    }
    assert Share(1, 2) + Share(3, 4) == Share(4, 6)


def test_answers_are_counted_as_by_hand():
    # Steps of 1: 3.4 and 3.0 fall together, and of equal scores the first class wins.
    scores = np.array([[3.0, 3.4, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5], [6, 5, 4, 3, 2, 1]], np.float32)
    network = chain(6, {"t0": 127.0}, "Relu")
    found = assess(network, [LabelledBatch(scores[:1], np.array([1])), LabelledBatch(scores[1:], np.array([0, 0]))])
    assert found.samples == 3
    assert (found.fp32.top1, found.fp32.top5, found.fp32.agreement) == (Share(2, 3), Share(2, 3), None)
    assert (found.int8.top1, found.int8.top5, found.int8.agreement) == (Share(1, 3), Share(2, 3), Share(2, 3))
    energy = np.square(scores.astype(np.float64)).sum()
    assert found.int8.sqnr_db == pytest.approx(10 * math.log10(energy / 0.4**2), abs=1e-4)
    assert found.fp32.sqnr_db == math.inf


def test_a_real_network_is_scored_as_its_float64_definition():
    x = images(40)
    expected = int8_by_hand(x, AMAX).argmax(1)
    labels = np.where(np.arange(40) % 4 == 0, (expected + 1) % 5, expected)
    found = assess(Int8Network(small(), AMAX), [LabelledBatch(x[:25], labels[:25]), LabelledBatch(x[25:], labels[25:])])
    assert found.int8.top1 == Share(30, 40)
    assert found.int8.top5 == Share(40, 40)


def test_int8_is_what_the_engine_computes(tmp_path):
    x = images(4)
    spec = EngineSpec("small", "gpu", 4, amax_by_tensor=AMAX)
    engine = build(small(), spec, EngineCache(tmp_path, print), "seeded")
    steps = quantise(x, AMAX["x"])
    theirs = OrtRunner(engine).run([steps.reshape(4, -1).view(np.uint8)])[0]
    ours = Runner(Int8Network(small(), AMAX).quantised(), ["y"]).run(steps * np.float32(AMAX["x"] / 127))["y"]
    assert np.allclose(ours, theirs, atol=1e-5)


def test_without_labels_agreement_and_noise_are_left():
    found = assess(Int8Network(small(), AMAX), [LabelledBatch(images(5))])
    assert (found.int8.top1, found.int8.top5, found.fp32.top1) == (None, None, None)
    assert found.int8.agreement.total == 5
    assert 20 < found.int8.sqnr_db < 60


def test_a_network_that_is_no_classifier_has_noise_alone():
    model = make([helper.make_node("Abs", ["x"], ["y"])], [value("x", 1, 3, 8, 8)], [value("y", 1, 3, 8, 8)], {})
    found = assess(Int8Network(model, {"x": 3.0}), [LabelledBatch(images(2), np.array([0, 1]))])
    assert (found.int8.agreement, found.int8.top1) == (None, None)
    assert math.isfinite(found.int8.sqnr_db)


def test_classes_may_come_as_maps_of_one_pixel():
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["y"], name="pool")]
    model = make(nodes, [value("x", 1, 3, 8, 8)], [value("y", 1, 3, 1, 1)], {})
    x = np.zeros((2, 3, 8, 8), np.float32)
    x[0, 1], x[1, 2] = 1, 1
    found = assess(Int8Network(model, {"x": 1.0}), [LabelledBatch(x, np.array([1, 2]))])
    assert found.int8.top1 == Share(2, 2)


@pytest.mark.parametrize("label", [6, -1])
def test_a_label_that_is_no_class_is_refused(label):
    batch = LabelledBatch(np.ones((1, 6), np.float32), np.array([label]))
    with pytest.raises(CalibrationError, match=f"label {label} is no class of the network: they are 0 to 5"):
        assess(chain(6, {"t0": 1.0}, "Relu"), [batch])


def test_no_sample_is_refused():
    with pytest.raises(CalibrationError, match="no sample"):
        assess(Int8Network(small(), AMAX), [])


def test_noise_is_charged_to_the_layer_that_adds_it():
    rng = np.random.default_rng(3)
    steps = rng.integers(0, 127, (50, 6)) + rng.uniform(-0.4, 0.4, (50, 6))  # no value lies between two
    x = np.abs(steps * 4 / 127).astype(np.float32)
    ranges = {"t0": 4.0, "t1": 37.3, "t2": 4.0}
    found = assess(chain(6, ranges, "Abs", "Abs", "Abs"), [LabelledBatch(x)])
    wide = x.astype(np.float64)
    first = fake(wide, 4.0)
    coarse = fake(first, 37.3)
    energy = np.square(wide).sum()
    shares = [np.square(each - wide).sum() / energy for each in (first, coarse, fake(coarse, 4.0))]
    assert [layer.layers for layer in found.layers] == [("layer0",), ("layer1",), ("layer2",)]
    assert found.layers[0].sqnr_db == pytest.approx(-10 * math.log10(shares[1]), abs=1e-3)
    assert found.layers[0].added == pytest.approx(shares[1] - shares[0], rel=1e-3)
    assert found.layers[1].added == pytest.approx(max(0.0, shares[2] - shares[1]), abs=1e-6)


def test_a_sum_brings_the_noise_of_both_inputs_and_sets_the_scale_of_what_it_reads():
    nodes = [
        helper.make_node("Abs", ["x"], ["large"], name="large"),
        helper.make_node("Mul", ["x", "tenth"], ["little"], name="little"),
        helper.make_node("Add", ["large", "little"], ["y"], name="sum"),
    ]
    model = make(nodes, [value("x", 1, 8)], [value("y", 1, 8)], {"tenth": np.array(0.1, np.float32)})
    x = np.random.default_rng(5).uniform(0, 1, (200, 8)).astype(np.float32)
    found = {each.op: each for each in assess(Int8Network(model, {"little": 1.0}), [LabelledBatch(x)]).layers}
    wide = x.astype(np.float64)
    noise = np.square(fake(0.1 * wide, 1.0) - 0.1 * wide).sum()
    assert found["Mul"].added == pytest.approx(noise / np.square(1.1 * wide).sum(), rel=1e-3)
    assert found["Mul"].sqnr_db == pytest.approx(10 * math.log10(np.square(0.1 * wide).sum() / noise), abs=0.01)
    assert found["Abs+Add"].added == pytest.approx(0, abs=1e-9)


def test_a_tensor_that_is_always_zero_adds_nothing():
    x = -np.random.default_rng(6).uniform(1, 2, (20, 6)).astype(np.float32)
    layers = assess(chain(6, {"t0": 2.0, "t1": 2.0}, "Relu", "Abs"), [LabelledBatch(x)]).layers
    assert [(layer.added, layer.sqnr_db) for layer in layers] == [(0.0, math.inf)] * 2


def test_layers_that_run_as_one_count_once():
    found = assess(Int8Network(small(), AMAX), [LabelledBatch(images(5))])
    runs = {layer.op: layer.layers for layer in found.layers}
    assert runs["Conv+Relu"] == ("conv1", "relu1")
    assert len(found.layers) == 6
    assert [layer.added for layer in found.layers] == sorted((layer.added for layer in found.layers), reverse=True)


def test_fp16_wins_what_a_network_with_that_layer_in_fp16_has():
    batches = [LabelledBatch(images(8))]
    coarse = {**AMAX, "f": 400.0}  # what the classifier reads is rounded to five levels or so
    found = assess(Int8Network(small(), coarse), batches, worst=6)
    assert [gain.layer for gain in found.gains] == list(found.layers)
    for gain in found.gains:
        again = assess(Int8Network(small(), coarse, gain.layer.layers), batches)
        assert again.int8.agreement == gain.score.agreement
        assert again.int8.sqnr_db == pytest.approx(gain.score.sqnr_db, rel=1e-4)
    gained = {gain.layer.op: gain.score.sqnr_db - found.int8.sqnr_db for gain in found.gains}
    assert max(gained, key=gained.get) == "Gemm"
    assert gained["Gemm"] > 10


def test_progress_runs_through_both_passes():
    seen = []
    batches = [LabelledBatch(images(2)), LabelledBatch(images(3))]
    assess(Int8Network(small(), AMAX), batches, worst=1, progress=seen.append)
    assert seen == [2, 5, 7, 10]
