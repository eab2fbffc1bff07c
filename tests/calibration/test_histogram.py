"""Growing histograms and the ranges read off them, against plain float64 references."""

import math

import numpy as np
import pytest

from calibration.histogram import BINS, LEVELS, Histogram, entropy_range, percentile_range


def filled(*batches):
    histogram = Histogram()
    for batch in batches:
        histogram.add(np.asarray(batch, np.float32))
    return histogram


def top_of(values):
    """The least power of two that no magnitude is above."""
    return 2.0 ** math.ceil(math.log2(float(np.abs(values).max())))


def counted(values):
    """The histogram made at once: bins (k, k + 1], in float64, without zeros."""
    magnitudes = np.abs(np.asarray(values, np.float64).ravel())
    magnitudes = magnitudes[magnitudes > 0]
    edges = np.linspace(0, top_of(values), BINS + 1)
    return np.bincount(np.searchsorted(edges, magnitudes, side="left") - 1, minlength=BINS)


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


def reference_entropy(values):
    """Bins of the least divergence, the published way: one number of bins after another."""
    counts = counted(values)
    last = int(np.flatnonzero(counts)[-1]) + 1
    return min((divergence(counts, bins), bins) for bins in range(LEVELS, last + 1))[1]


def draws(kind, seed=0, size=20000):
    rng = np.random.default_rng(seed)
    made = {
        "normal": lambda: rng.normal(0, 1, size),
        "relu": lambda: np.maximum(rng.normal(0, 3, size), 0),
        "laplace": lambda: rng.laplace(0, 0.02, size),
        "heavy": lambda: rng.standard_t(3, size),
        "uniform": lambda: rng.uniform(-1, 1, size),
    }[kind]()
    return made.astype(np.float32)


KINDS = ("normal", "relu", "laplace", "heavy", "uniform")


@pytest.mark.parametrize("kind", KINDS)
def test_growing_equals_a_histogram_made_at_once(kind):
    values = draws(kind)
    batches = np.array_split(values * np.linspace(1e-4, 1, values.size, dtype=np.float32), 13)
    histogram = filled(*batches)
    everything = np.concatenate(batches)
    assert np.array_equal(histogram.counts, counted(everything))
    assert histogram.zeros == np.count_nonzero(everything == 0)
    assert histogram.width == top_of(everything) / BINS
    assert histogram.largest == float(np.abs(everything).max())
    backwards = filled(*batches[::-1])
    assert np.array_equal(backwards.counts, histogram.counts)


def test_edges_belong_to_the_bin_below_and_zeros_to_none():
    histogram = filled([0.0, -0.0, 1.0, -1.0, 1 / BINS, 2 / BINS, np.nextafter(np.float32(1 / BINS), np.float32(1))])
    assert histogram.width == 1 / BINS
    assert histogram.zeros == 2
    assert dict(enumerate(histogram.counts[histogram.counts > 0])) == {0: 1, 1: 2, 2: 2}
    assert list(np.flatnonzero(histogram.counts)) == [0, 1, BINS - 1]


def test_a_range_that_grows_by_more_than_all_bins_keeps_every_value():
    histogram = filled([1e-30, 3e-30], [1e30], [3e38])
    assert histogram.counts.sum() == 4
    assert histogram.counts[0] == 3
    assert histogram.width == 2.0**128 / BINS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percent", [50.0, 99.0, 99.99, 100.0])
def test_percentiles_are_within_a_bin_of_numpy(kind, percent):
    values = draws(kind)
    histogram = filled(*np.array_split(values, 7))
    expected = float(np.percentile(np.abs(values.astype(np.float64)), percent, method="inverted_cdf"))
    assert 0 <= percentile_range(histogram, percent) - expected <= histogram.width


def test_a_percentile_reached_by_zeros_is_zero():
    histogram = filled([0, 0, 0, 1.0])
    assert percentile_range(histogram, 75.0) == 0.0
    assert percentile_range(histogram, 75.1) == 1.0


@pytest.mark.parametrize("size", [3000, 200000])
@pytest.mark.parametrize("kind", KINDS)
def test_entropy_is_within_a_bin_of_the_plain_reference(kind, size):
    values = draws(kind, seed=1, size=size)
    histogram = filled(*np.array_split(values, 5))
    expected = (reference_entropy(values) + 0.5) * top_of(values) / BINS
    assert abs(entropy_range(histogram) - expected) <= histogram.width


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
    assert entropy_range(filled([0.0])) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_kept_as_the_largest(bad):
    histogram = filled([1.0, bad], [2.0])
    assert not math.isfinite(histogram.largest)
