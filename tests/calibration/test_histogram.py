"""Growing histograms and the ranges read off them, against plain float64 references."""

import math

import numpy as np
import pytest

from calibration.histogram import BINS, FINE, KEPT, LEVELS, Histogram, entropy_range, percentile_range


def filled(*batches):
    histogram = Histogram()
    for batch in batches:
        histogram.add(np.asarray(batch, np.float32))
    return histogram


def magnitudes(values):
    """Everything but zeros, in float64."""
    kept = np.abs(np.asarray(values, np.float64).ravel())
    return kept[kept > 0]


def counted(values):
    """The published histogram, made at once: 2048 bins (k, k + 1] over [0, largest], without zeros."""
    kept = magnitudes(values)
    bins = np.ceil(kept / kept.max() * BINS).astype(int)
    return np.bincount(np.minimum(bins, BINS) - 1, minlength=BINS)


def divergence(counts, bins):
    """KL(P || Q) of the published algorithm for one number of bins: P and Q built bin by bin, then compared."""
    inside = counts[:bins].astype(np.float64)
    p = inside.copy()
    p[-1] += counts[bins:].sum()
    level = np.arange(bins) * LEVELS // bins
    mean = np.bincount(level, inside) / np.maximum(np.bincount(level, inside > 0), 1)
    q = np.where(inside > 0, mean[level], 0.0)
    if np.any((p > 0) & (q == 0)):
        return math.inf
    held = p > 0
    p, q = p[held] / p.sum(), q[held] / q.sum()
    return float(np.sum(p * np.log(p / q)))


def divergences(values):
    """KL of every number of bins from 128 on, the published way: one after another."""
    counts = counted(values)
    return np.array([divergence(counts, bins) for bins in range(LEVELS, BINS + 1)])


def candidates(values):
    """The range of each number of bins from 128 on."""
    return (np.arange(LEVELS, BINS + 1) + 0.5) * magnitudes(values).max() / BINS


def draws(kind, seed=0, size=20000):
    rng = np.random.default_rng(seed)
    made = {
        "normal": lambda: rng.normal(0, 1, size),
        "relu": lambda: np.maximum(rng.normal(0, 3, size), 0),
        "sparse": lambda: rng.normal(0, 1, size) * (rng.random(size) < 0.02),
        "laplace": lambda: rng.laplace(0, 0.02, size),
        "heavy": lambda: rng.standard_t(2, size),
        "uniform": lambda: rng.uniform(-1, 1, size),
        "pixels": lambda: rng.integers(0, 256, size) - 123.675,
        "tiny": lambda: rng.normal(0, 1e-37, size),
        "huge": lambda: rng.normal(0, 1e37, size),
    }[kind]()
    return made.astype(np.float32)


KINDS = ("normal", "relu", "sparse", "laplace", "heavy", "uniform", "pixels", "tiny", "huge")
FEW, MANY = KEPT // 4, 3 * KEPT  # kept themselves; counted


@pytest.mark.parametrize("kind", KINDS)
def test_few_magnitudes_are_dealt_out_exactly(kind):
    values = draws(kind, size=FEW)
    histogram = filled(*np.array_split(values, 7))
    edges = np.arange(BINS + 1) * (histogram.largest / BINS)
    assert histogram.zeros == np.count_nonzero(values == 0)
    assert np.array_equal(histogram.below(edges), [np.count_nonzero(magnitudes(values) <= edge) for edge in edges])


@pytest.mark.parametrize("kind", KINDS)
def test_many_magnitudes_move_by_less_than_a_fine_bin(kind):
    values = draws(kind, size=MANY)
    histogram = filled(*np.array_split(values * np.linspace(1e-4, 1, values.size, dtype=np.float32), 7), values)
    everything = np.sort(magnitudes(np.concatenate([values, values * np.linspace(1e-4, 1, MANY, dtype=np.float32)])))
    fine = 2.0 ** math.ceil(math.log2(everything[-1])) / FINE
    edges = np.linspace(0, everything[-1], 777)
    below = histogram.below(edges)
    assert np.all(np.searchsorted(everything, edges - fine, side="right") <= below)
    assert np.all(below <= np.searchsorted(everything, edges + fine, side="right"))
    assert below[-1] == everything.size
    assert len(histogram) == 2 * MANY
    assert histogram.zeros == 2 * np.count_nonzero(values == 0)
    assert histogram.largest == everything[-1]


@pytest.mark.parametrize("size", [FEW, MANY])
def test_batches_and_their_order_do_not_matter(size):
    values = draws("heavy", size=size) * np.linspace(1e-4, 1, size, dtype=np.float32)
    forwards, backwards = (filled(*np.array_split(part, pieces)) for part, pieces in ((values, 13), (values[::-1], 2)))
    edges = np.linspace(0, forwards.largest, BINS + 1)
    assert np.array_equal(forwards.below(edges), backwards.below(edges))
    assert entropy_range(forwards) == entropy_range(backwards)
    assert percentile_range(forwards, 99.9) == percentile_range(backwards, 99.9)


def test_edges_belong_to_the_bin_below_and_zeros_to_none():
    few = [0.0, -0.0, 1.0, -1.0, 1 / BINS, 2 / BINS, np.nextafter(np.float32(1 / BINS), np.float32(1))]
    for repeats in (1, KEPT):
        histogram = filled(np.repeat(np.float32(few), repeats))
        assert list(histogram.below(np.array([0.0, 1 / BINS, 2 / BINS, 1.0])) // repeats) == [0, 1, 3, 5]
        assert histogram.zeros == 2 * repeats


@pytest.mark.parametrize("repeats", [1, KEPT])
def test_a_range_that_grows_by_more_than_all_bins_keeps_every_value(repeats):
    batches = [np.float32([1e-30, -3e-30] * repeats), np.float32([1e30]), np.float32([0.0, 1e-30, 3e38])]
    for histogram in (filled(*batches), filled(*batches[::-1])):
        assert histogram.largest == np.float32(3e38)
        assert histogram.zeros == 1
        assert len(histogram) == 2 * repeats + 4
        small = 2 * repeats + 1
        assert list(histogram.below(np.array([2.0**112, 2e30, histogram.largest]))) == [small + 1, small + 1, small + 2]
        assert list(histogram.below(np.array([0.0, 1e30 / 2**30]))) == [0, small]


@pytest.mark.parametrize("size", [1, 2, 1001, FEW, MANY])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percent", [50.0, 99.0, 99.99, 100.0])
def test_percentiles_are_within_a_bin_of_numpy(kind, size, percent):
    values = draws(kind, size=size)
    histogram = filled(*np.array_split(values, 7))
    expected = float(np.percentile(np.abs(values.astype(np.float64)), percent))
    assert abs(percentile_range(histogram, percent) - expected) <= histogram.largest / BINS
    if size <= FEW:
        assert percentile_range(histogram, percent) == pytest.approx(expected, rel=1e-12)


def test_a_percentile_among_zeros_is_zero():
    histogram = filled([0, 0, 0, 1.0])
    assert percentile_range(histogram, 50.0) == 0.0
    assert percentile_range(histogram, 100.0) == 1.0
    assert percentile_range(filled([0.0]), 99.99) == 0.0
    assert percentile_range(Histogram(), 99.99) == 0.0


@pytest.mark.parametrize("size", [1, 2, 3000, FEW])
@pytest.mark.parametrize("kind", KINDS)
def test_entropy_of_few_values_is_that_of_the_plain_reference(kind, size):
    values = draws(kind, seed=1, size=size)
    if not np.any(values):
        values[0] = 1.0
    expected = candidates(values)[np.argmin(divergences(values))]
    assert entropy_range(filled(*np.array_split(values, 5))) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", [1, 3])
def test_entropy_of_many_values_is_within_a_bin_of_the_plain_reference_or_loses_the_same(seed):
    """The least of 1921 divergences can have a rival far off that a few counts decide between."""
    within = 0
    for kind in KINDS:
        values = draws(kind, seed, MANY)
        ranges, lost = candidates(values), divergences(values)
        chosen = int(np.argmin(np.abs(ranges - entropy_range(filled(*np.array_split(values, 5))))))
        within += abs(chosen - int(np.argmin(lost))) <= 1
        assert lost[chosen] <= lost.min() * 1.002
    assert within >= len(KINDS) - 1


def test_the_reference_gives_what_was_worked_out_by_hand():
    """Levels of two bins: (1, 3) becomes (2, 2), (0, 4) stays, so only the first level loses information."""
    counts = np.zeros(2 * LEVELS, np.int64)
    counts[[0, 1, 3]] = 1, 3, 4
    by_hand = (1 * math.log(1 / 2) + 3 * math.log(3 / 2)) / 8
    assert divergence(counts, 2 * LEVELS) == pytest.approx(by_hand, rel=1e-12)


def test_an_outlier_is_cut_off_and_one_value_is_kept():
    values = np.append(draws("normal", size=200000), np.float32(60.0))
    assert 2.5 < entropy_range(filled(values)) < 8
    # the half bin beyond 1 is in NVIDIA's own caches: a softmax output has the range 1.00024 = 2048.5 / 2048
    assert entropy_range(filled([1.0, 1.0])) == 2048.5 / 2048
    assert entropy_range(filled(np.full(2 * KEPT, 3.0))) == 3 * 2048.5 / 2048
    assert entropy_range(filled([0.0])) == 0.0
    assert entropy_range(Histogram()) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_kept_as_the_largest(bad):
    histogram = filled([1.0, bad], [2.0])
    assert not math.isfinite(histogram.largest)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8])
def test_other_types_count_as_float32_does(dtype):
    values = np.random.default_rng(0).integers(0, 200, MANY).astype(dtype)
    histogram = Histogram()
    histogram.add(values.reshape(-1, 3).T)
    expected = filled(values)
    edges = np.linspace(0, 199, 100)
    assert np.array_equal(histogram.below(edges), expected.below(edges))
    assert (histogram.zeros, histogram.largest) == (expected.zeros, 199.0)
