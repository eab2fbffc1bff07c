"""The small 3D-UNet of the zoo: its form, its weights, and what it finds in phantoms that it has not seen."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from calibration.collect import collect_ranges
from calibration.observers import OBSERVERS
from engines import zoo
from engines.qdq import insert_qdq
from engines.volumes.dice import dice
from engines.volumes.phantom import phantom
from engines.volumes.preprocess import GRIDS, normalise
from engines.volumes.run import Sliding, segment
from engines.volumes.split import Split
from engines.zoo import unet3d_small

SHAPE = (64, 96, 160)
SLIDING = Sliding((64, 64, 64))
HELD_OUT = unet3d_small.TRAINING_SEEDS  # and every seed above


def case(seed):
    """A phantom as the network reads it, float32 [D,H,W], and its labels."""
    made = phantom(seed, SHAPE, GRIDS[zoo.network("unet3d-small").preprocess].spacing_mm)
    return normalise(made.hounsfield), made.labels


def split(volume):
    return Split(volume, SLIDING.plan(volume.shape))


def mean_dice(model, volume, labels):
    """DICE of kidneys and tumours, averaged over both."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # every tensor rounded, as an engine has it
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return dice(segment(split(volume), lambda part: session.run(None, {"input": part})[0], SLIDING), labels).mean


def windows(volume):
    """The windows of a volume, each as one batch of one."""
    for start in split(volume).plan:
        window = np.empty((1, 1, *SLIDING.window), np.float32)
        split(volume).cut_into(start, window[0, 0])
        yield window


def test_it_has_the_layers_of_its_big_brother():
    graph = zoo.graph("unet3d-small")
    ops = [layer.op for layer in graph.layers]
    assert [ops.count(op) for op in ("Conv", "InstanceNormalization", "ConvTranspose", "Concat")] == [11, 10, 2, 2]
    assert graph.tensors[graph.outputs[0]].shape == (1, 3, 64, 64, 64)
    pairs = [(1, 8), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32), (32, 16), (16, 16), (16, 8), (8, 8)]
    convolutions = 27 * sum(depth * channels for depth, channels in pairs)
    norms, ups, last = 2 * sum(channels for _, channels in pairs), (32 * 8 + 1) * 16 + (16 * 8 + 1) * 8, 8 * 3 + 3
    assert zoo.counts(graph).params == convolutions + norms + ups + last


def test_every_weight_is_a_trained_one():
    assert unet3d_small.WEIGHTS.stat().st_size < 1_000_000
    model = zoo.model("unet3d-small")
    onnx.checker.check_model(model, full_check=True)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    with np.load(unet3d_small.WEIGHTS) as trained:
        assert set(trained) == set(held)
        assert all(np.array_equal(held[name], trained[name].astype(np.float32)) for name in held)
    assert all(values.std() > 0 for values in held.values())


def test_a_phantom_that_it_has_not_seen_is_segmented_in_int8_as_in_float():
    model, seen = zoo.model("unet3d-small"), case(0)
    ranges = collect_ranges(model, windows(seen[0]), OBSERVERS["minmax"]())
    held_out = case(HELD_OUT)
    float32, int8 = mean_dice(model, *held_out), mean_dice(insert_qdq(model, ranges.amax_by_tensor), *held_out)
    assert 0.8 < float32 < 0.93
    assert int8 == pytest.approx(float32, rel=0.005)
