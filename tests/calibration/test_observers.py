"""Observers: ranges of many tensors in one streaming pass, whatever the batches."""

import math

import numpy as np
import pytest

from calibration.collect import collect_ranges
from calibration.errors import CalibrationError
from calibration.observers import OBSERVERS, Entropy, MinMax, Percentile
from tests.calibration.test_collect import batches, network


def test_each_method_is_known_by_its_name():
    assert {name: make().method for name, make in OBSERVERS.items()} == {name: name for name in OBSERVERS}
    assert set(OBSERVERS) == {"minmax", "entropy", "percentile"}


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_batches_and_their_order_do_not_matter(method):
    values = np.random.default_rng(0).normal(0, 2, 5000).astype(np.float32)
    observers = [OBSERVERS[method](), OBSERVERS[method]()]
    for part in np.array_split(values, 9):
        observers[0].update("x", part)
        observers[0].update("y", -10 * part)
    for part in (values[4000:], values[:4000]):
        observers[1].update("y", 10 * part)
        observers[1].update("x", part)
    assert observers[0].amax == observers[1].amax
    assert observers[0].amax["y"] > 5 * observers[0].amax["x"]


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_the_values_are_left_as_they_were(method):
    values = np.random.default_rng(0).normal(0, 2, (3, 5)).astype(np.float32)
    before = values.copy()
    OBSERVERS[method]().update("x", values)
    assert np.array_equal(values, before)


@pytest.mark.parametrize("observer", [Entropy(), Percentile()])
def test_zeros_and_empty_batches_have_the_range_zero_and_nan_stays(observer):
    observer.update("zeros", np.zeros(5, np.float32))
    observer.update("none", np.zeros((0, 3), np.float32))
    observer.update("bad", np.array([1.0, np.nan], np.float32))
    observer.update("bad", np.ones(2, np.float32))
    assert (observer.amax["zeros"], observer.amax["none"]) == (0.0, 0.0)
    assert math.isnan(observer.amax["bad"])


def test_percentiles_outside_their_range_are_refused():
    assert Percentile(100).percent == 100
    for percent in (0.0, -1.0, 100.1, math.nan):
        with pytest.raises(CalibrationError, match=r"outside \(0, 100\]"):
            Percentile(percent)


def test_a_pass_over_a_network_observes_every_tensor():
    largest = collect_ranges(network(), batches(), MinMax()).amax_by_tensor
    all_of_it = collect_ranges(network(), batches(), Percentile(100)).amax_by_tensor
    entropy = collect_ranges(network(), batches(), Entropy())
    assert dict(all_of_it) == dict(largest)
    assert set(entropy.amax_by_tensor) == set(largest)
    assert (entropy.method, entropy.images) == ("entropy", 6)
    for name, amax in entropy.amax_by_tensor.items():
        assert 0 < amax <= largest[name] * (1 + 1 / 1024)  # half a bin above at most


def test_a_network_that_reaches_nan_is_named():
    with pytest.raises(CalibrationError, match="'x' reaches nan"):
        collect_ranges(network(), [np.full((1, 3, 8, 8), np.nan, np.float32)], Entropy())
