"""MLPerf's pre-processing, against hand-computed sizes and scipy's zoom."""

import numpy as np
import pytest

from engines.errors import EngineError
from engines.volumes.preprocess import (
    AMAX,
    GRIDS,
    KITS19,
    PAD,
    Grid,
    fit_axis,
    fits,
    nearest,
    normalise,
    prepare,
    prepare_labels,
    resample,
    restore_labels,
)


@pytest.mark.parametrize(
    "voxels,spacing,target,resampled,cut,kept,pad,size",
    [
        (128, 1.6, 1.6, 128, 0, 128, 0, 128),
        (150, 1.6, 1.6, 150, 11, 128, 0, 128),  # remainder 22: cropped
        (160, 1.6, 1.6, 160, 0, 160, 16, 192),  # remainder 32: padded
        (180, 1.2, 1.2, 180, 0, 180, 6, 192),
        (60, 1.6, 1.6, 60, 0, 60, 34, 128),  # never below 128
        (100, 3.2, 1.6, 200, 4, 192, 0, 192),
        (512, 0.78125, 1.2, 333, 6, 320, 0, 320),  # 512 x 0.78125 / 1.2 = 333.3, remainder 13
    ],
)
def test_each_axis_is_cropped_or_padded_to_multiples_of_64(voxels, spacing, target, resampled, cut, kept, pad, size):
    fit = fit_axis(voxels, spacing, target)
    assert (fit.resampled, fit.cut, fit.kept, fit.pad, fit.size) == (resampled, cut, kept, pad, size)


def test_values_are_clipped_and_scaled():
    values = np.array([-1000, -79, 0, 101, 304, 3000], np.int16)
    expected = (np.array([-79, -79, 0, 101, 304, 304]) - 101) / 76.9
    np.testing.assert_allclose(normalise(values), expected, rtol=1e-6)
    assert expected.max() == pytest.approx(AMAX, rel=1e-3)  # the published range holds the brightest voxel


@pytest.mark.parametrize("shape", [(9, 14, 21), (24, 7, 10)], ids=str)
def test_resampling_is_scipys_zoom(shape):
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(0)
    volume, labels = rng.standard_normal((12, 10, 15), np.float32), rng.integers(0, 3, (12, 10, 15), dtype=np.int8)
    zoom = np.divide(shape, volume.shape)
    np.testing.assert_allclose(resample(volume, shape), ndimage.zoom(volume, zoom, order=1), atol=1e-5)
    assert np.array_equal(nearest(labels, shape), ndimage.zoom(labels, zoom, order=0))


def test_a_scan_is_prepared_and_its_labels_come_back():
    hounsfield = np.random.default_rng(1).integers(-1000, 400, (70, 120, 130)).astype(np.int16)
    labels = np.zeros(hounsfield.shape, np.int8)
    labels[20:50, 40:80, 40:90] = 1
    labels[30:40, 50:60, 50:70] = 2
    spacing = (3.2, 1.2, 1.2)
    ready, truth = prepare(hounsfield, spacing), prepare_labels(labels, spacing)
    assert ready.shape == truth.shape == (128, 128, 128)  # 70 x 2 = 140, remainder 12
    assert ready.dtype == np.float32 and truth.dtype == np.int8
    assert (ready[:, :4] == np.float32(PAD)).all()  # 120 of 128, four on each side
    back = restore_labels(truth, labels.shape, spacing)
    assert back.shape == labels.shape and (back == labels).mean() > 0.995


def test_a_volume_on_the_networks_grid_is_not_copied_about():
    hounsfield = np.random.default_rng(2).integers(-100, 300, (128, 192, 128)).astype(np.float32)
    assert np.array_equal(prepare(hounsfield, KITS19.spacing_mm), normalise(hounsfield))


def test_grids_go_by_the_names_of_the_zoos_pre_processing():
    assert GRIDS["kits19"] == KITS19 == Grid((1.6, 1.2, 1.2), 64, 128)
    half = GRIDS["kits19-half"]
    assert tuple(fit.size for fit in fits((128, 192, 256), KITS19.spacing_mm, half)) == (64, 96, 128)


def test_a_header_that_asks_for_too_much_is_refused():
    with pytest.raises(EngineError, match="correct the spacing"):
        prepare(np.zeros((500, 500, 500), np.int16), (40.0, 40.0, 40.0))
