"""Observers: ranges of many tensors in one streaming pass, whatever the batches."""

import io
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


def saved(observer):
    """The state of an observer, written to a file's bytes and read back without pickle."""
    file = io.BytesIO()
    np.savez(file, **observer.state())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def streams():
    """Batches by tensor: a few values, many that grow, one value, none, zeros, a NaN after a while."""
    rng = np.random.default_rng(3)
    many = [rng.standard_t(3, (2, 40000)) * 2.0**index for index in range(8)]
    few = [rng.normal(0, 1, (3, 50)) for _ in range(8)]
    late = [np.where(rng.random(9) < 0.1 * index, np.nan, 1.0) for index in range(8)]
    fixed = {"/one": np.full(1, 0.3), "none": np.zeros((0, 3)), "zeros": np.zeros(7)}
    for index in range(8):
        yield {"many: 1": many[index], "few": few[index], "größe": late[index], **fixed}


def observe(observer, batches):
    for batch in batches:
        for name, values in batch.items():
            observer.update(name, values.astype(np.float32))


@pytest.mark.parametrize("done", [0, 1, 5])
@pytest.mark.parametrize("method", OBSERVERS)
def test_a_pass_resumed_from_its_state_is_bit_identical(method, done):
    uninterrupted, killed, resumed = (OBSERVERS[method]() for _ in range(3))
    all_batches = list(streams())
    observe(uninterrupted, all_batches)
    observe(killed, all_batches[:done])
    state = saved(killed)
    observe(killed, all_batches[done:6])  # what it does afterwards is not in the state
    resumed.restore(state)
    observe(resumed, all_batches[done:])
    assert list(resumed.amax) == list(uninterrupted.amax)
    assert np.array_equal(list(resumed.amax.values()), list(uninterrupted.amax.values()), equal_nan=True)
    assert math.isnan(resumed.amax["größe"])
    assert resumed.amax["many: 1"] > 0
    first, second = resumed.state(), uninterrupted.state()
    assert first.keys() == second.keys()


def test_a_state_of_another_observer_is_refused():
    largest, histograms = MinMax(), Entropy()
    for observer in (largest, histograms):
        observe(observer, list(streams())[:1])
    with pytest.raises(CalibrationError, match="minmax pass differ"):
        largest.restore(saved(histograms))
    for state in (saved(largest), {}):
        with pytest.raises(CalibrationError, match="entropy pass differ"):
            histograms.restore(state)


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
