"""The CUDA kernels, compiled for the CPU, against float64 NumPy that adds window after window."""

from dataclasses import replace

import numpy as np
import pytest

from engines.errors import EngineError
from engines.volumes.kernels import Kernels
from engines.volumes.plan import plan_windows

from . import on_cpu
from .by_hand import merged_and_sure, merged_by_hand, padded_windows, weights_by_hand
from .on_cpu import aligned, buffers, run

pytestmark = pytest.mark.skipif(on_cpu.COMPILER is None, reason="g++ is not installed")

PLANS = {  # shape, window, overlap
    "half overlap": ((12, 16, 24), (8, 8, 16), 0.5),
    "flush ends": ((11, 13, 17), (4, 6, 5), 0.4),
    "volume below the window": ((3, 9, 5), (6, 4, 8), 0.5),
    "hardly any overlap": ((7, 5, 40), (4, 5, 16), 0.1),
    "six deep": ((9, 5, 16), (4, 3, 8), 0.8),
    "rows change last": ((8, 24, 16), (8, 8, 8), 0.5),
    "planes change last": ((24, 8, 16), (8, 8, 8), 0.5),
    "taller than a block": ((3, 90, 14), (2, 70, 9), 0.5),
    "wider than a block": ((2, 5, 401), (2, 3, 301), 0.5),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


def random_logits(plan, classes, dtype, seed=1):
    logits = aligned((len(plan), classes, *plan.window), dtype)
    logits[...] = np.random.default_rng(seed).normal(0, 4, logits.shape)
    return logits


def merge(library, kernels, logits, backwards=False):
    """Labels by the kernels, batch by batch, from accumulators full of rubbish."""
    labels = aligned(kernels.plan.shape, np.int8, 99)
    sums = aligned(kernels.sums_shape, kernels.sums, np.nan)
    weights = aligned((sum(kernels.plan.window),), np.float32)
    weights[...] = kernels.axis_weights()
    for windows in kernels.batches():
        batch = aligned((kernels.batch, *logits.shape[1:]), logits.dtype, np.nan)
        batch[: len(windows)] = logits[windows.start : windows.stop]
        at = buffers(logits=batch, weights=weights, sums=sums, labels=labels)
        run(library, kernels.merge(at, windows), backwards)
    return labels, sums


@pytest.mark.parametrize("batch", [1, 2, 5, 1000])
@pytest.mark.parametrize("name", PLANS)
def test_labels_are_the_arg_max_of_the_weighed_sum(folder, name, batch):
    plan = plan_windows(*PLANS[name])
    kernels = Kernels(plan, batch, logits="float32", sums="float32")
    library = on_cpu.compiled(folder, kernels.options)
    logits = random_logits(plan, 3, np.float32)
    labels, _ = merge(library, kernels, logits)
    expected, sure = merged_and_sure(kernels, logits, 1e-6)
    assert sure.mean() > 0.99
    assert np.array_equal(labels[sure], expected[sure])


@pytest.mark.parametrize(
    ("change", "margin"),
    [
        ({}, 4e-3),
        ({"weights": "monai"}, 4e-3),
        ({"weights": "monai", "sums": "float32"}, 1e-6),
        ({"classes": 5}, 4e-3),
    ],
    ids=str,
)
def test_half_precision_and_other_weights_and_classes(folder, change, margin):
    plan = plan_windows(*PLANS["half overlap"])
    kernels = Kernels(plan, 2, **change)
    assert kernels.vector == 8
    library = on_cpu.compiled(folder, kernels.options)
    logits = random_logits(plan, kernels.classes, np.float16)
    labels, _ = merge(library, kernels, logits)
    expected, sure = merged_and_sure(kernels, logits, margin)
    assert sure.mean() > 0.95
    assert np.array_equal(labels[sure], expected[sure])


@pytest.mark.parametrize(("sums", "tolerance"), [("float32", 1e-6), ("float16", 1e-3)])
def test_sums_are_kept_until_the_last_window_that_holds_a_voxel(folder, sums, tolerance):
    plan = plan_windows((8, 8, 32), (8, 8, 16), 0.5)  # three windows in a row, voxels 8 to 24 in two of them
    kernels = Kernels(plan, 2, logits="float32", sums=sums)
    library = on_cpu.compiled(folder, kernels.options)
    logits = random_logits(plan, 3, np.float32)
    kept = aligned(kernels.sums_shape, sums, np.nan)
    labels = aligned(plan.shape, np.int8, 99)
    weights = aligned((32,), np.float32)
    weights[...] = kernels.axis_weights()
    at = buffers(logits=logits, weights=weights, sums=kept, labels=labels)
    run(library, kernels.merge(at, range(0, 2)))
    expected = merged_by_hand(plan, logits, weights_by_hand("mlperf", plan.window))
    assert np.array_equal(labels[..., :16], expected.argmax(axis=0)[..., :16])
    assert (labels[..., 16:] == 99).all()
    first_two = merged_by_hand(plan, logits * [[[[[1]]]], [[[[1]]]], [[[[0]]]]], weights_by_hand("mlperf", plan.window))
    assert kernels.kept == (8, 8, 24)
    assert np.allclose(kept[..., 16:24], first_two[..., 16:24], rtol=tolerance, atol=tolerance)
    assert np.isnan(kept[..., :16]).all()  # neither read nor written


@pytest.mark.parametrize("name", PLANS)
def test_threads_in_any_order_give_the_same_bits(folder, name):
    plan = plan_windows(*PLANS[name])
    kernels = Kernels(plan, 3)
    library = on_cpu.compiled(folder, kernels.options)
    logits = random_logits(plan, 3, np.float16)
    forwards, sums = merge(library, kernels, logits)
    backwards, again = merge(library, kernels, logits, backwards=True)
    assert np.array_equal(forwards, backwards)
    assert sums.tobytes() == again.tobytes()


def test_accumulators_reach_no_further_than_the_windows_of_one_batch():
    deep = plan_windows((448, 320, 320))
    assert len(deep) == 6 * 4 * 4
    assert Kernels(deep, 1).sums_shape == (3, 128, 320, 320)
    assert Kernels(deep, 16).kept == (128, 320, 320)  # a batch is a layer of windows
    assert Kernels(deep, 3).kept == (192, 320, 320)  # and here one reaches into the next
    assert Kernels(deep, 1000).kept == (448, 320, 320)
    assert Kernels(plan_windows((128, 192, 320))).kept == (128, 192, 128)  # the last axis is the longest
    assert Kernels(plan_windows((100, 100, 100)), 8).kept == (100, 100, 100)


def test_equal_sums_go_to_the_first_class_and_nan_is_told(folder):
    plan = plan_windows((4, 4, 4), (4, 4, 4))
    kernels = Kernels(plan, logits="float32")
    library = on_cpu.compiled(folder, kernels.options)
    logits = aligned((1, 3, 4, 4, 4), np.float32)
    logits[0, :, 0, 0] = np.transpose([[2, 2, 2], [1, 2, 2], [0, np.nan, 1], [np.inf, 0, 0]])
    logits[0, :, 0, 1] = np.transpose([[np.nan, 1, 2], [3, 0, np.nan], [-np.inf, -np.inf, -5], [-1, -2, -3]])
    labels, _ = merge(library, kernels, logits)
    assert labels[0, :2].tolist() == [[0, 1, -1, 0], [-1, -1, 2, 0]]


@pytest.mark.parametrize("name", PLANS)
def test_windows_are_cut_with_what_lies_beyond_padded(folder, name):
    plan = plan_windows(*PLANS[name])
    kernels = Kernels(plan, 4, pad=-106)
    library = on_cpu.compiled(folder, kernels.options)
    volume = aligned(plan.shape, np.int8)
    volume[...] = np.random.default_rng(2).integers(-127, 128, plan.shape)
    expected = padded_windows(plan, volume, -106)
    linear, deep = aligned((4, *plan.window), np.int8), aligned((4, *plan.window, 32), np.int8)
    for windows in kernels.batches():
        linear[...], deep[...] = 99, 99
        run(library, kernels.cut(buffers(volume=volume, windows=linear), windows))
        run(library, replace(kernels, cdhw32=True).cut(buffers(volume=volume, windows=deep), windows))
        assert np.array_equal(linear[: len(windows)], expected[windows.start : windows.stop])
        assert np.array_equal(deep[: len(windows), ..., 0], expected[windows.start : windows.stop])
        assert not deep[: len(windows), ..., 1:].any()
        assert (linear[len(windows) :] == 99).all() and (deep[len(windows) :] == 99).all()


def sparse(path, shape, dtype):
    """An array in a file with holes: only what is touched takes space."""
    return np.memmap(path, dtype, "w+", shape=shape)


@pytest.mark.parametrize("width", [32_768, 32_770], ids=["vectors", "one by one"])
def test_offsets_beyond_two_gigabytes(folder, tmp_path, width):
    plan = plan_windows((2, 40_000, width), (2, 4, width), 0.5)
    kernels = Kernels(plan, batch=len(plan))  # so that accumulators are kept for the whole volume
    assert plan.shape[1] * width * 2 > 2**31 and kernels.kept == plan.shape
    library = on_cpu.compiled(folder, kernels.options)
    volume, labels = (sparse(tmp_path / name, plan.shape, np.int8) for name in ("volume", "labels"))
    windows = sparse(tmp_path / "windows", (len(plan), *plan.window), np.int8)
    logits = sparse(tmp_path / "logits", (len(plan), 3, *plan.window), np.float16)
    sums = sparse(tmp_path / "sums", kernels.sums_shape, np.float16)
    weights = aligned((sum(plan.window),), np.float32, 1)
    at = buffers(volume=volume, windows=windows, logits=logits, weights=weights, sums=sums, labels=labels)
    volume[1, -4:] = np.arange(4 * width).reshape(4, width) % 100
    run(library, kernels.cut(at, range(len(plan))), windows=1)
    assert np.array_equal(windows[-1, 1], volume[1, -4:])
    logits[-1, 2, 1, 3] = 1
    run(library, kernels.merge(at, range(len(plan))), windows=1)
    assert labels[1, -1].tolist() == [2] * width and not labels[1, -2].any()
    logits[0, 2, 1, 2] = 1  # of the second last window, in a row that the last one holds too
    run(library, kernels.merge(at, range(len(plan) - 2, len(plan) - 1)))
    assert sums[2, 1, -4].tolist() == [1] * width
    logits[0, 2, 1, 2], logits[0, 1, 1, 0], logits[0, 1, 1, 1] = 0, 0.5, 0.5
    run(library, kernels.merge(at, range(len(plan) - 1, len(plan))))
    assert labels[1, -4:].tolist() == [[label] * width for label in (2, 1, 0, 0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": "int8"}, "'int8': the kernels take float16 or float32"),
        ({"classes": 128}, "128 classes"),
        ({"batch": 0}, "0 windows a launch: expected 1 to 127 and 1 to 65535"),
    ],
)
def test_what_the_kernels_do_not_take_is_named(change, message):
    with pytest.raises(EngineError, match=message):
        Kernels(plan_windows((4, 4, 4), (4, 4, 4)), **change)
