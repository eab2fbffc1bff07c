"""Windows, weights and merging, against sums over whole volumes in float64."""

import itertools
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from engines.errors import EngineError
from engines.volumes import adding
from engines.volumes.merge import Merge, into_labels
from engines.volumes.plan import WindowPlan, plan_windows
from engines.volumes.run import Sliding, logits, segment
from engines.volumes.split import Split
from engines.volumes.weights import patches, window_weights

CASES = [  # volume, window, overlap
    ((16, 16, 16), (16, 16, 16), 0.5),
    ((16, 24, 32), (16, 16, 16), 0.5),
    ((20, 17, 33), (8, 8, 8), 0.5),
    ((20, 17, 33), (8, 7, 9), 0.25),
    ((9, 7, 9), (5, 4, 6), 0.75),
    ((5, 30, 7), (8, 8, 8), 0.5),  # smaller than the window on two axes
    ((9, 9, 9), (4, 4, 4), 0.0),
    ((1, 1, 40), (3, 3, 8), 0.9),
]
ids = [f"{'x'.join(map(str, shape))} by {'x'.join(map(str, window))} at {overlap}" for shape, window, overlap in CASES]


def gaussian(side):
    at = np.arange(side) - (side - 1) / 2
    return np.exp(-(at**2) / (2 * (0.125 * side) ** 2))


def reference_weights(kind, window):
    """The formulas of both, in float64."""
    product = np.einsum("i,j,k->ijk", *map(gaussian, window))
    if kind == "monai":
        return np.maximum(product, max(product.min(), 1e-3))
    root = np.cbrt(product)
    return root / root.max()


def network(windows):
    """Three classes that depend on the place in the window too, so that no wrong window goes unseen."""
    place = np.cumsum(np.ones(windows.shape[2:]), axis=0) * 0.01
    return np.concatenate([windows, 0.6 * windows**2 + place, 0.3 - windows * place], axis=1).astype(np.float32)


def reference_logits(volume, plan, kind):
    """Pad, cut, predict, weigh, add and divide, all windows and the whole volume at once."""
    weights = reference_weights(kind, plan.window)
    margin = max(plan.window)
    padded = np.pad(volume.astype(np.float64), margin, constant_values=-2.2)
    total, count = np.zeros((3, *padded.shape)), np.zeros(padded.shape)
    for start in itertools.product(*plan.starts):
        box = tuple(slice(margin + s, margin + s + w) for s, w in zip(start, plan.window))
        total[(slice(None), *box)] += network(padded[box][None, None].astype(np.float32))[0] * weights
        count[box] += weights
    inner = tuple(slice(margin, margin + size) for size in volume.shape)
    return total[(slice(None), *inner)] / count[inner]


def volume_of(shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


@pytest.mark.parametrize("kind", ["mlperf", "monai"])
@pytest.mark.parametrize("shape,window,overlap", CASES, ids=ids)
def test_merged_logits_and_labels_are_those_of_the_whole_volume(shape, window, overlap, kind):
    volume, sliding = volume_of(shape), Sliding(window, overlap, kind, batch=2, threads=2)
    split = Split(volume, sliding.plan(shape))
    expected = reference_logits(volume, split.plan, kind)
    merged = logits(split, network, sliding)
    np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-5)
    ranked = np.sort(expected, axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-4  # elsewhere float32 may see a tie
    labels = segment(split, network, sliding)
    assert labels.dtype == np.int8 and clear.mean() > 0.99
    assert np.array_equal(labels[clear], expected.argmax(axis=0)[clear])


@pytest.mark.parametrize("shape,window,overlap", CASES, ids=ids)
def test_cells_are_cut_by_no_window_and_fill_the_volume(shape, window, overlap):
    plan = plan_windows(shape, window, overlap)
    seen = np.zeros(shape, int)
    counted = {}
    for start in plan:
        covered = np.zeros(shape, int)
        for cell in plan.cells(start):
            covered[cell] += 1
            corner = tuple(part.start for part in cell)
            counted[corner] = counted.get(corner, 0) + 1
            assert start in plan.windows_over(cell)
            assert counted[corner] <= len(plan.windows_over(cell))
        expected = np.zeros(shape, int)
        expected[plan.inside(start)] = 1
        assert np.array_equal(covered, expected)
        seen += covered
    assert seen.min() >= 1
    assert len(set(plan)) == len(plan) == len(list(plan))


def test_starts_are_even_and_the_last_window_ends_flush():
    plan = plan_windows((320, 448, 300), (128, 128, 128), 0.5)
    assert plan.starts[0] == (0, 64, 128, 192)
    assert plan.starts[1] == (0, 64, 128, 192, 256, 320)
    assert plan.starts[2] == (0, 64, 128, 172)
    assert len(plan_windows((320, 448, 448))) == 144  # (D/64 - 1) along each axis
    assert plan_windows((100, 128, 1), (128, 128, 128)).starts == ((-14,), (0,), (-63,))


def test_the_longest_axis_comes_last():
    plan = plan_windows((8, 32, 16), (8, 8, 8), 0.5)
    starts = list(plan)
    assert [start[1] for start in starts] == sorted(start[1] for start in starts)
    assert starts[:4] == [(0, 0, 0), (0, 0, 4), (0, 0, 8), (0, 4, 0)]


@pytest.mark.parametrize("kind", ["mlperf", "monai"])
@pytest.mark.parametrize("window", [(8, 8, 8), (7, 8, 5)], ids=str)
def test_weights_follow_their_formula_and_are_made_once(kind, window):
    weights = window_weights(kind, window)
    np.testing.assert_allclose(weights, reference_weights(kind, window), rtol=2e-6)
    assert weights is window_weights(kind, window) and not weights.flags.writeable
    assert weights.dtype == np.float32


def test_unknown_weights_are_named():
    with pytest.raises(EngineError, match="weights 'flat' of windows are not known, expected one of mlperf, monai"):
        window_weights("flat", (8, 8, 8))


@pytest.mark.parametrize("shape", [(32, 32, 32), (16, 48, 32), (16, 16, 64)], ids=str)
@pytest.mark.parametrize("kind", ["mlperf", "monai"])
def test_the_general_path_agrees_with_the_27_pre_divided_patches(shape, kind):
    window, volume = (16, 16, 16), volume_of(shape)
    sliding = Sliding(window, weights=kind)
    split = Split(volume, sliding.plan(shape))
    divided, total = patches(kind, window), np.zeros((3, *shape), np.float32)
    assert len(divided) == 27
    for start in itertools.product(*split.plan.starts):
        # an axis of one window is the first of two in the patches, and their sum is divided out again
        place = tuple(0 if s == 0 else 2 if s == size - 16 else 1 for s, size in zip(start, shape))
        z, y, x = split.plan.inside(start)
        total[:, z, y, x] += network(volume[z, y, x][None, None])[0] * divided[place]
    if min(shape) > 16:
        np.testing.assert_allclose(logits(split, network, sliding), total, rtol=1e-4, atol=1e-5)
    assert (segment(split, network, sliding) == total.argmax(axis=0)).mean() > 0.9999


def test_patches_sum_to_one_and_need_even_windows():
    divided, whole = patches("mlperf", (8, 8, 8)), np.zeros((24, 24, 24))
    for start in itertools.product((0, 4, 8, 12, 16), repeat=3):
        place = tuple(0 if s == 0 else 2 if s == 16 else 1 for s in start)
        whole[tuple(slice(s, s + 8) for s in start)] += divided[place]
    np.testing.assert_allclose(whole, 1.0, rtol=1e-6)
    with pytest.raises(EngineError, match="no half overlap"):
        patches("mlperf", (8, 7, 8))


def test_int8_volumes_are_read_in_place_at_their_scale():
    volume = np.random.default_rng(0).integers(-127, 128, (20, 20, 20), dtype=np.int8)
    sliding = Sliding((8, 8, 8))
    plan = sliding.plan(volume.shape)
    real = (volume * np.float32(0.02)).astype(np.float32)
    integers, floats = (
        segment(Split(volume, plan, 0.02), network, sliding),
        segment(Split(real, plan), network, sliding),
    )
    assert np.array_equal(integers, floats)
    assert not np.array_equal(integers, segment(Split(volume, plan, 0.03), network, sliding))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("batch", [1, 3])
def test_threads_and_batches_change_nothing(threads, batch):
    volume = volume_of((24, 40, 32))
    one, other = Sliding((16, 16, 16), threads=1), Sliding((16, 16, 16), threads=threads, batch=batch)
    split = Split(volume, one.plan(volume.shape))
    assert np.array_equal(logits(split, network, one), logits(split, network, other))


@pytest.fixture(params=["NumPy", "Numba"])
def add(request):
    """Each way to add."""
    if request.param == "Numba":
        pytest.importorskip("numba")
        return adding.compiled()
    return adding.add


def test_sums_take_what_of_a_window_lies_on_them(add):
    rng = np.random.default_rng(4)
    answer, weights = (rng.standard_normal(shape, np.float32) for shape in ((2, 9, 8, 11), (9, 8, 11)))
    before = rng.standard_normal((4, 2, 5, 7), np.float32)
    expected = (answer.astype(np.float64) * weights)[:, 3:7, 2:7, 1:8].swapaxes(0, 1)
    sums = before.copy()
    add(sums, answer, weights, (3, 2, 1), False)
    np.testing.assert_allclose(sums, before + expected, rtol=1e-6, atol=1e-6)
    add(sums, answer, weights, (3, 2, 1), True)
    np.testing.assert_allclose(sums, expected, rtol=1e-6)


def test_what_is_compiled_labels_as_numpy_does():
    pytest.importorskip("numba")
    volume, sliding = volume_of((20, 17, 33)), Sliding((8, 7, 9), 0.25)
    split = Split(volume, sliding.plan(volume.shape))
    plain = logits(split, network, sliding)
    sliding = replace(sliding, compiled=True)
    np.testing.assert_allclose(logits(split, network, sliding), plain, rtol=1e-6, atol=1e-6)
    assert (segment(split, network, sliding) == plain.argmax(axis=0)).mean() > 0.999


def test_numba_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    adding.compiled.cache_clear()
    split = Split(volume_of((8, 8, 8)), plan_windows((8, 8, 8), (8, 8, 8)))
    with pytest.raises(EngineError, match=r"compiled sums need Numba .*pip install 'orin-toolkit\[volumes\]'"):
        segment(split, network, Sliding((8, 8, 8), compiled=True))


def test_memory_stays_within_what_is_stated():
    shape, sliding = (64, 96, 160), Sliding((32, 32, 32), threads=1)
    volume = volume_of(shape)
    answers = np.zeros((1, 3, 32, 32, 32), np.float32)
    split = Split(volume, sliding.plan(shape))
    window_weights("mlperf", (32, 32, 32))
    tracemalloc.start()
    segment(split, lambda windows: answers, sliding)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    stated = sliding.peak_bytes(shape)
    assert peak <= stated
    assert stated < 12 * volume.size / 2  # three float32 accumulators for every voxel are twice that, at least


def test_progress_counts_windows():
    seen = []
    sliding = Sliding((8, 8, 8), batch=4)
    split = Split(volume_of((8, 16, 16)), sliding.plan((8, 16, 16)))
    segment(split, network, sliding, lambda done, total: seen.append((done, total)))
    assert seen == [(4, 9), (8, 9), (9, 9)]


def test_volumes_beyond_2_gib_are_addressed(tmp_path):
    """A window at the far end of a sparse file: its offsets do not fit in 32 bits."""
    shape = (2200, 1000, 1000)
    volume = np.memmap(tmp_path / "volume", np.int8, "w+", shape=shape)
    labels = np.memmap(tmp_path / "labels", np.int8, "w+", shape=shape)
    corner = np.random.default_rng(1).integers(-100, 100, (8, 8, 8), dtype=np.int8)
    volume[-8:, -8:, -8:] = corner
    plan = WindowPlan(shape, (8, 8, 8), ((2192,), (992,), (992,)))
    window = np.empty((8, 8, 8), np.float32)
    Split(volume, plan).cut_into((2192, 992, 992), window)
    assert np.array_equal(window, corner)

    merge = Merge(plan, window_weights("mlperf", (8, 8, 8)), 3, into_labels(labels))
    merge.add((2192, 992, 992), network(window[None, None])[0])
    assert np.array_equal(labels[-8:, -8:, -8:], network(window[None, None])[0].argmax(axis=0))
    assert not labels[:8].any() and volume.nbytes > 2**31


@pytest.mark.parametrize(
    "shape,window,overlap,words",
    [
        ((8, 8, 8), (4, 4, 4), 1.0, "overlap 1.0 of windows: expected 0 or more and less than 1"),
        ((8, 8, 8), (4, 4, 4), -0.1, "overlap -0.1"),
        ((8, 0, 8), (4, 4, 4), 0.5, r"volume \(8, 0, 8\), window \(4, 4, 4\): expected three axes each, none empty"),
        ((8, 8), (4, 4, 4), 0.5, "expected three axes"),
    ],
)
def test_plans_that_cannot_be_are_refused(shape, window, overlap, words):
    with pytest.raises(EngineError, match=words):
        plan_windows(shape, window, overlap)


def test_a_network_that_gives_something_else_is_named():
    sliding = Sliding((8, 8, 8))
    split = Split(volume_of((8, 8, 8)), sliding.plan((8, 8, 8)))
    with pytest.raises(EngineError, match=r"gave \[1, 1, 8, 8, 8\], expected logits \[1, 3, 8, 8, 8\]"):
        segment(split, lambda windows: windows, sliding)

    def broken(windows):
        answers = network(windows)
        answers[0, 1, 5, 5, 5] = np.nan
        return answers

    with pytest.raises(EngineError, match="the network gave NaN near voxel"):
        segment(split, broken, sliding)


def test_the_first_of_equal_classes_wins():
    sliding = Sliding((4, 4, 4))
    split = Split(np.zeros((4, 4, 4), np.float32), sliding.plan((4, 4, 4)))
    flat = np.zeros((1, 3, 4, 4, 4), np.float32)
    flat[0, 1:, :, :, 2:] = 1.0
    assert segment(split, lambda windows: flat, sliding)[0, 0].tolist() == [0, 0, 1, 1]
