"""The seeded networks computed by ONNX Runtime: alive, bounded, telling inputs apart; BERT and the padding by hand."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from engines.zoo import bert, mobilenet_v2, retinanet, ssd_mobilenet, ssd_resnet34, unet3d, yolov5s
from engines.zoo.store import in_memory

ONE_TO_ONE = (127.5, 127.5)
IMAGENET = (116.0, 57.5)
ZERO_TO_ONE = (0.0, 255.0)


def photos(count, height, width, normal):
    """Smooth random colours with a little noise, normalised: an image's statistics, no image."""
    rng = np.random.default_rng(7)
    coarse = rng.uniform(0, 255, (count, 3, height // 25 + 1, width // 25 + 1)).repeat(25, axis=2).repeat(25, axis=3)
    images = coarse[:, :, :height, :width] + rng.normal(0, 10, (count, 3, height, width))
    return ((np.clip(images, 0, 255) - normal[0]) / normal[1]).astype(np.float32)


def volumes(count, side):
    rng = np.random.default_rng(3)
    coarse = rng.normal(0, 1, (count, 1, side // 8, side // 8, side // 8))
    smooth = coarse.repeat(8, axis=2).repeat(8, axis=3).repeat(8, axis=4)
    return (smooth + rng.normal(0, 0.1, smooth.shape)).astype(np.float32)


def watched(model, samples, watch):
    """Return {tensor: [sample, value]} of the outputs and of what these operators make."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    outputs = {value.name for value in probe.graph.output}
    inside = {name for node in probe.graph.node if node.op_type in watch for name in node.output} - outputs
    probe.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in sorted(inside))
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    runs = [session.run(None, {name: sample[None]}) for sample in samples]
    return {x.name: np.stack([run[i].ravel() for run in runs]) for i, x in enumerate(session.get_outputs())}


@pytest.mark.parametrize(
    ("model", "samples", "watch", "convolutions"),
    [
        (lambda: ssd_mobilenet.build(in_memory), photos(2, 300, 300, ONE_TO_ONE), "Clip", 35),
        (lambda: mobilenet_v2.build(in_memory), photos(2, 224, 224, IMAGENET), "Clip", 35),
        (lambda: yolov5s.build(in_memory, 320), photos(2, 320, 320, ZERO_TO_ONE), "Mul", 57),
        (lambda: ssd_resnet34.build(in_memory, 400), photos(2, 400, 400, IMAGENET), "Relu", 37),
        (lambda: retinanet.build(in_memory, 192), photos(2, 192, 192, IMAGENET), "Relu", 90),
        (lambda: retinanet.build_resnet34(in_memory, 192, 320), photos(2, 192, 320, IMAGENET), "Relu", 74),
        pytest.param(lambda: unet3d.build(in_memory, 64), volumes(2, 64), "Relu", 22, marks=pytest.mark.slow),
    ],
    ids=["ssd-mobilenet", "mobilenet-v2", "yolov5s", "ssd-resnet34", "retinanet", "retinanet-resnet34", "unet3d"],
)
def test_seeded_activations_are_alive_and_bounded_and_tell_inputs_apart(model, samples, watch, convolutions):
    made = model()
    outputs = [value.name for value in made.graph.output]
    found = watched(made, samples, {watch})
    inside = {name: values for name, values in found.items() if name not in outputs}
    assert len(inside) == convolutions
    for values in inside.values():
        assert np.isfinite(values).all()
        assert 0.02 < values.std() < 60
        assert 0.2 < (values > 0).mean() < 0.95
        assert (values >= 6).mean() < 0.05 or watch != "Clip"
    for name in outputs:
        assert 0.02 < found[name].std() < 60
        assert np.corrcoef(found[name])[0, 1] < 0.98


def test_same_padding_is_tensorflows():
    """An impulse at the last row of an even side is seen by the last window's middle tap, not by its last."""
    model = ssd_mobilenet.build(in_memory)
    weight = next(numpy_helper.to_array(x) for x in model.graph.initializer if x.name == "conv_0.weight")
    image = np.zeros((1, 3, 300, 300), np.float32)
    image[0, 0, 299, 299] = 1.0
    seen = watched(model, image, {"Conv"})["conv_0_output"].reshape(32, 150, 150)
    assert np.allclose(seen[:, 149, 149], weight[:, 0, 1, 1], atol=1e-6)
    assert not seen[:, :149, :149].any()


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)


def bert_by_hand(weights, ids, mask, segments):
    """One layer of BERT-large in float64; biases are zero and the affine parts of the normalisation one and zero."""
    table = {name: weights[f"embeddings.{name}.weight"] for name in ("words", "positions", "segments")}
    x = norm(table["words"][ids] + table["positions"][: len(ids)] + table["segments"][segments])
    heads = {
        name: (x @ weights[f"encoder.0.attention.{name}.weight"]).reshape(-1, 16, 64).swapaxes(0, 1)
        for name in ("query", "key", "value")
    }
    scores = heads["query"] @ heads["key"].swapaxes(1, 2) / 8 + (1 - mask) * -10_000.0
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (shares / shares.sum(-1, keepdims=True) @ heads["value"]).swapaxes(0, 1).reshape(-1, 1024)
    x = norm(x + mixed @ weights["encoder.0.attention.dense.weight"])
    inner = x @ weights["encoder.0.output.inner.weight"]
    inner = inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2))) / 2
    return norm(x + inner @ weights["encoder.0.output.dense.weight"]) @ weights["qa_outputs.weight"]


def test_berts_layer_is_that_of_the_paper():
    model = bert.build(in_memory, layers=1)
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 30_522, 384)
    mask, segments = (np.arange(384) < 300).astype(np.int64), (np.arange(384) >= 20).astype(np.int64)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"input_ids": ids[None], "input_mask": mask[None], "segment_ids": segments[None]}
    start, end = session.run(["output_start_logits", "output_end_logits"], feeds)
    weights = {x.name: numpy_helper.to_array(x).astype(np.float64) for x in model.graph.initializer}
    expected = bert_by_hand(weights, ids, mask, segments)
    assert expected.std() > 0.1
    assert np.allclose(np.stack([start[0], end[0]], axis=1), expected, atol=1e-4)
