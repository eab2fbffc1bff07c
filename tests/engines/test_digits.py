"""The trained network of the zoo: its weights, its folds, its place on the DLA, and what it knows."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.sqnr import Runner
from dla.placement import place
from engines import zoo
from engines.graph import read_graph
from engines.preprocess import PREPROCESS
from engines.zoo import digits
from engines.zoo.store import in_memory


def weights(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_the_whole_network_runs_on_the_dla_as_one_loadable():
    placement = place(zoo.graph("digits"))
    assert placement.zero_gpu_layers
    assert len(placement.loadables) == 1
    ops = [layer.op for layer in zoo.graph("digits").layers]
    assert [ops.count(op) for op in ("Add", "MaxPool", "AveragePool")] == [2, 1, 1]


def test_the_zoo_has_the_weights_of_the_first_fold():
    ours, first, second = (weights(model) for model in (zoo.model("digits"), digits.trained(0), digits.trained(1)))
    assert all(np.array_equal(ours[name], first[name]) for name in ours)
    assert not np.array_equal(ours["conv1.weight"], second["conv1.weight"])
    onnx.checker.check_model(zoo.model("digits"), full_check=True)
    assert "trained" in zoo.network("digits").weights
    assert {name for name, entry in zoo.NETWORKS.items() if entry.weights != "untrained (seeded)"} == {
        "digits",
        "unet3d-small",
    }


def test_weights_are_small_and_each_is_used():
    assert digits.WEIGHTS.stat().st_size < 1_000_000
    with np.load(digits.WEIGHTS) as arrays:
        shapes = {name: array.shape for name, array in arrays.items() if name != "fold"}
    assert {name: (digits.FOLDS, *values.shape) for name, values in weights(digits.build(in_memory)).items()} == shapes


def test_folds_divide_the_images():
    masks = np.stack([digits.held_out(fold) for fold in range(digits.FOLDS)])
    assert masks.sum(axis=0).tolist() == [1] * 1797
    assert sorted(masks.sum(axis=1).tolist()) == [359, 359, 359, 360, 360]


@pytest.mark.parametrize("fold", range(digits.FOLDS))
def test_images_that_it_was_not_trained_on_are_answered(fold):
    pytest.importorskip("sklearn")
    from calibration.digits import load_digits

    held = load_digits().part(digits.held_out(fold))
    logits = Runner(digits.trained(fold), ["logits"]).run(held.inputs)["logits"].reshape(-1, digits.CLASSES)
    assert (logits.argmax(axis=1) == held.labels).mean() >= 0.99
    share = np.bincount(held.labels, minlength=10) / len(held.labels)
    assert np.allclose(share, 0.1, atol=0.01)  # stratified


def test_ink_is_one_and_paper_minus_one():
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits as raw

    from calibration.digits import load_digits

    grey, inputs = raw().images, load_digits().inputs
    assert inputs.shape == (1797, *zoo.network("digits").input_shape)
    assert np.abs(inputs).max() == PREPROCESS["digits"].amax
    assert np.array_equal(inputs[:, 0], inputs[:, 2])
    corners = inputs[:, 0, 0, 0]  # bilinear at twice the size: a corner pixel is the corner itself
    assert np.allclose(corners, np.minimum(16 * grey[:, 0, 0], 255) / 127.5 - 1, atol=1e-6)


def test_rounded_inputs_are_those_of_int8_samples():
    pytest.importorskip("sklearn")
    from calibration.digits import load_digits

    data = load_digits().part(np.arange(20))
    steps = np.rint(data.inputs.astype(np.float64) * 127)
    assert np.allclose(data.rounded, steps / 127, atol=1e-6)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    import sys

    from calibration.digits import load_digits
    from calibration.errors import CalibrationError

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(CalibrationError, match="install scikit-learn"):
        load_digits()


def test_counts_are_those_of_its_layers():
    counted = zoo.counts(read_graph(zoo.model("digits")))
    # 3x3 convolutions 3-16, 16-16, 16-16 on 16x16; 16-32, 32-32, 32-32 on 8x8; the classifier 32-10
    assert counted.macs == 9 * (3 * 16 + 2 * 16 * 16) * 256 + 9 * (16 * 32 + 2 * 32 * 32) * 64 + 320
    assert counted.params == 9 * (3 * 16 + 2 * 16 * 16 + 16 * 32 + 2 * 32 * 32) + 320 + 3 * 16 + 3 * 32 + 10
