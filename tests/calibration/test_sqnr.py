"""Signal to quantisation noise: against values by hand and the INT8 network written out in float64."""

import math

import numpy as np
import pytest
from onnx import helper, numpy_helper

from calibration.errors import CalibrationError
from calibration.sqnr import Noise, Runner, measure_noise, rounded_forms
from engines.onnx_model import with_batch
from engines.qdq import insert_qdq
from tests.engines.models import AMAX, fake, images, int8_by_hand, make, small, value


def sqnr(expected, seen):
    return 10 * np.log10(np.square(expected).sum() / np.square(expected - seen).sum())


def in_float64(x):
    """The small network's first convolution behind its ReLU, and its output."""
    w = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in small().graph.initializer}
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    r1 = np.maximum(np.einsum("nchwij,ocij->nohw", windows, w["w1"]) + w["b1"].reshape(1, -1, 1, 1), 0)
    summed = np.einsum("nchw,oc->nohw", r1, w["w2"][..., 0, 0]) + r1
    return r1, summed.mean(axis=(2, 3)) @ w["w3"].T + w["b3"]


def test_noise_is_a_ratio_of_energies():
    noise = Noise()
    noise.add(np.array([3.0, 0.0], np.float32), np.array([3.0, 0.0], np.float32))
    assert (noise.share, noise.sqnr_db) == (0.0, math.inf)
    noise.add(np.array([4.0], np.float32), np.array([3.5], np.float32))
    assert noise.share == 0.25 / 25
    assert noise.sqnr_db == pytest.approx(20.0)


def test_noise_without_a_signal_is_infinite():
    noise = Noise()
    noise.add(np.zeros(3, np.float32), np.ones(3, np.float32))
    assert (noise.share, noise.sqnr_db) == (math.inf, -math.inf)
    assert Noise().sqnr_db == math.inf


def test_tensors_are_compared_in_the_form_that_the_next_layer_reads():
    x = images(6)
    noise = measure_noise(small(), insert_qdq(small(), AMAX), [x])
    assert list(noise) == ["x", "c1", "r1", "c2", "a", "p", "f", "y"]
    _, y = in_float64(x)
    assert noise["x"].sqnr_db == pytest.approx(sqnr(x.astype(np.float64), fake(x.astype(np.float64), AMAX["x"])), 1e-5)
    assert noise["y"].sqnr_db == pytest.approx(sqnr(y, int8_by_hand(x, AMAX)), abs=1.5)  # one rounding may flip
    assert noise["p"].share < noise["a"].share  # a mean over 64 places averages their rounding out


def test_a_rounded_tensor_alone_differs_by_its_rounding():
    x = images(4)
    r1, _ = in_float64(x)
    noise = measure_noise(small(), insert_qdq(small(), {"r1": 6.0}), [x])
    assert noise["c1"].share < 1e-12
    assert noise["r1"].sqnr_db == pytest.approx(sqnr(r1, fake(r1, 6.0)), abs=0.01)


def test_batches_of_any_size_give_the_same_noise():
    quantised = insert_qdq(small(), AMAX)
    x = images(6)
    whole = measure_noise(small(), quantised, [x])
    parts = measure_noise(small(), quantised, (x[index : index + size] for index, size in ((0, 1), (1, 3), (4, 2))))
    for name, noise in whole.items():
        assert parts[name].signal == pytest.approx(noise.signal, rel=1e-6)
        assert parts[name].noise == pytest.approx(noise.noise, rel=1e-3)


def test_a_network_that_fixes_its_batch_runs_sample_by_sample():
    shape = numpy_helper.from_array(np.array([1, 192]), "shape")
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["f"]), helper.make_node("Relu", ["f"], ["y"])]
    model = make(nodes, [value("x", 1, 3, 8, 8)], [value("y", 1, 192)], {})
    model.graph.initializer.append(shape)
    x = images(3)
    made = Runner(model, ["y"]).run(x)["y"]
    assert np.array_equal(made, np.maximum(x, 0).reshape(3, 192))


def test_each_pair_is_found_whatever_its_name():
    forms = rounded_forms(insert_qdq(small(), AMAX))
    assert set(forms) == set(AMAX) - {"c1"}  # the ReLU behind it is fused
    assert len(set(forms.values())) == len(forms)


def test_a_batch_of_another_shape_is_one_line():
    with pytest.raises(CalibrationError, match=r"does not run on a batch \[2, 3, 9, 8\]: .*") as caught:
        Runner(with_batch(small(), 2), ["y"]).run(np.zeros((2, 3, 9, 8), np.float32))
    assert "\n" not in str(caught.value)
