"""Tails as networks: what ONNX Runtime computes of them against the steps on the CPU, in every layout of a backbone."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from engines.build import build
from engines.cache import EngineCache
from engines.engine import Binding
from engines.errors import EngineError
from engines.formats import pack, sample_bytes
from engines.graph import read_graph
from engines.nms import DOMAIN, OPERATOR, OUTPUTS, EfficientNms, portable
from engines.numerics import OrtRunner
from engines.onnx_model import keeps_batch
from engines.tail_network import BEST, detections, tail_network, tail_spec, top1_network
from engines.tails import DETECTORS
from engines.zoo import graph
from tests.engines.test_tails import heads
from tests.orin.detector import DETECTOR, bindings, plain, same, values

FLOAT, INT32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32


def runner(network, outputs, folder):
    """ONNX Runtime's engine of a tail, as a function of a backbone's outputs as they are stored, by name."""
    engine = build(network, tail_spec("net", outputs, 4), EngineCache(folder, print), "none")
    layout = {binding.name: binding.format for binding in outputs}
    names = [binding.name for binding in engine.manifest.inputs]
    for binding in outputs:
        assert binding.sample_bytes == engine.manifest.inputs[names.index(binding.name)].sample_bytes
    return lambda stored: OrtRunner(engine).run([pack(stored[name], layout[name]) for name in names])


def equal(seen, wanted):
    assert len(seen) == len(wanted) > 3
    assert np.allclose(seen.scores, wanted.scores, atol=1e-5) and np.array_equal(seen.classes, wanted.classes)
    assert np.allclose(seen.boxes, wanted.boxes, atol=1e-5)


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_of_the_zoo_find_what_the_cpu_finds(name, tmp_path):
    whole, tensors = DETECTORS[name], graph(name).tensors
    detector = replace(whole, names=whole.names[1:], priors=lambda: whole.priors()[1:])  # but the largest map
    pairs = [tuple(head.format(level) for head in detector.heads) for level in detector.names]
    shapes = {name: tensors[name].shape[1:] for pair in pairs for name in pair}
    outputs = [Binding(n, s, "float32", "LINEAR", None, sample_bytes("LINEAR", s, 4)) for n, s in shapes.items()]
    sizes = {pair: (shapes[pair[0]][0], shapes[pair[1]][0], shapes[pair[0]][1]) for pair in pairs}
    stored = heads(name, sizes, np.random.default_rng(6))
    (seen,) = detections(runner(tail_network(detector, outputs), outputs, tmp_path)(stored))
    equal(seen, detector.detect(stored)[0])


@pytest.mark.parametrize("dtype,layout", [("float32", "LINEAR"), ("int8", "DLA_LINEAR"), ("float16", "DLA_LINEAR")])
def test_rows_are_read_as_an_accelerator_pads_them(dtype, layout, tmp_path):
    outputs, rng = bindings(dtype, layout), np.random.default_rng(5)
    stored = {binding.name: values(binding, rng) for binding in outputs}
    found = detections(runner(tail_network(DETECTOR, outputs), outputs, tmp_path)(stored))
    real = {b.name: stored[b.name].astype(np.float32) * np.float32(b.scale or 1) for b in outputs}
    for seen, wanted in zip(found, DETECTOR.detect(real), strict=True):
        assert len(wanted) > 3 and same(plain(seen), plain(wanted))


def test_the_background_and_what_nobody_asked_for_are_left_out():
    nms = EfficientNms(score=0.25, iou=0.5, best=3, background=0)
    boxes = np.array([[[0, 0, 1, 1], [0, 0, 1, 0.6], [0, 0, 1, 0.4], [2, 2, 3, 3]]], np.float32)
    scores = np.zeros((1, 4, 3), np.float32)
    scores[0, :, 0] = 0.9  # the background
    scores[0, :, 1] = 0.5, 0.4, 0.3, 0.2  # the second overlaps the first by 0.6, the third by 0.4, the last is unlikely
    scores[0, 1:, 2] = 0.35, 0.25, 0.6  # of these the second is not over the threshold
    ends = {"boxes": boxes, "scores": scores}
    inputs = [helper.make_tensor_value_info(name, FLOAT, array.shape) for name, array in ends.items()]
    kinds = (INT32, (1, 1)), (FLOAT, (1, 3, 4)), (FLOAT, (1, 3)), (INT32, (1, 3))
    outputs = [helper.make_tensor_value_info(name, *kind) for name, kind in zip(OUTPUTS, kinds)]
    network = helper.make_graph([nms.node("boxes", "scores")], "nms", inputs, outputs)
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(network, opset_imports=opsets, ir_version=8)
    plain = portable(model)
    onnx.checker.check_model(plain)
    count, kept, best, labels = ReferenceEvaluator(plain).run(None, ends)
    assert count.tolist() == [[3]] and labels.tolist() == [[2, 1, 2]]
    assert np.allclose(best, [[0.6, 0.5, 0.35]]) and kept[0].tolist() == boxes[0, [3, 0, 1]].tolist()
    assert EfficientNms.of(model.graph.node[0]) == replace(nms, score=np.float32(0.25), iou=np.float32(0.5))
    assert portable(plain) is plain


def test_nothing_found_counts_zero(tmp_path):
    outputs = bindings("float32", "LINEAR")
    stored = {b.name: np.full((2, *b.shape), -9.0 if "scores" in b.name else 0.0, np.float32) for b in outputs}
    found = detections(runner(tail_network(DETECTOR, outputs), outputs, tmp_path)(stored))
    assert [len(each) for each in found] == [0, 0]


def test_the_network_ends_in_the_plugin_and_takes_any_batch():
    network = tail_network(DETECTORS["retinanet"], retinanet())
    assert network.graph.node[-1].op_type == OPERATOR and [v.name for v in network.graph.output] == list(OUTPUTS)
    attributes = {a.name: helper.get_attribute_value(a) for a in network.graph.node[-1].attribute}
    assert attributes["score_activation"] == 1 and attributes["background_class"] == -1
    assert (attributes["max_output_boxes"], attributes["plugin_version"]) == (300, b"1")
    assert attributes["score_threshold"] == pytest.approx(0.05) and attributes["iou_threshold"] == 0.5
    assert keeps_batch(network, "N") and not keeps_batch(portable(network), "N")
    assert read_graph(network).tensors[OUTPUTS[1]].shape == (1, 300, 4)


def retinanet():
    tensors = graph("retinanet")
    shapes = {name: tensors.tensors[name].shape[1:] for name in tensors.outputs}
    return [Binding(n, s, "float32", "LINEAR", None, sample_bytes("LINEAR", s, 4)) for n, s in shapes.items()]


def test_only_the_heads_are_read():
    outputs = [*bindings("float32", "LINEAR"), Binding("other", (3, 2, 2), "float32", "LINEAR", None, 48)]
    assert [value.name for value in tail_network(DETECTOR, outputs).graph.input] == [b.name for b in outputs[:-1]]


@pytest.mark.parametrize("dtype,layout,shape", [("int8", "DLA_LINEAR", (10, 1, 1)), ("float32", "LINEAR", (10,))])
def test_a_classifiers_tail_is_its_best_class(dtype, layout, shape, tmp_path):
    size = sample_bytes(layout, shape, np.dtype(dtype).itemsize)
    scores = Binding("scores", shape, dtype, layout, 0.25 if dtype == "int8" else None, size)
    stored = np.random.default_rng(7).permutation(np.arange(-10, 10)).reshape(2, *shape).astype(dtype)
    network = top1_network(scores)
    assert [value.name for value in network.graph.output] == list(BEST)
    best, labels = runner(network, [scores], tmp_path)({"scores": stored})
    flat = stored.reshape(2, 10)
    assert labels.dtype == np.int32 and labels[:, 0].tolist() == flat.argmax(axis=1).tolist()
    assert np.array_equal(best[:, 0], flat.max(axis=1) * (scores.scale or 1))


def test_what_does_not_fit_is_named():
    outputs = bindings("int8", "DLA_LINEAR")
    with pytest.raises(EngineError, match="needs the output 'boxes_1', there are scores_0, boxes_0, scores_1"):
        tail_network(DETECTOR, outputs[:-1])
    with pytest.raises(EngineError, match=r"'scores_0' has the shape \[5, 14, 14\], its priors want \[10, 14, 14\]"):
        tail_network(DETECTOR, [replace(outputs[0], shape=(5, 14, 14)), *outputs[1:]])
    with pytest.raises(EngineError, match="'scores_0' is CHW32, a tail engine reads LINEAR or DLA_LINEAR"):
        tail_network(DETECTOR, [replace(outputs[0], format="CHW32"), *outputs[1:]])
