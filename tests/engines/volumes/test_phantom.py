"""Phantoms: the same each time, on every grid, with what a segmentation needs."""

import numpy as np
import pytest

from engines.errors import EngineError
from engines.volumes.phantom import BACKGROUND, KIDNEY, TUMOUR, phantom

SHAPE = (64, 96, 128)
HALF_MM = (3.2, 2.4, 2.4)


def test_the_same_arguments_give_the_same_bytes_and_another_seed_another_case():
    one, same, other = phantom(5, SHAPE, HALF_MM), phantom(5, SHAPE, HALF_MM), phantom(6, SHAPE, HALF_MM)
    assert np.array_equal(one.hounsfield, same.hounsfield) and np.array_equal(one.labels, same.labels)
    assert not np.array_equal(one.labels, other.labels)
    assert (one.hounsfield.dtype, one.labels.dtype, one.spacing_mm) == (np.int16, np.int8, HALF_MM)


@pytest.mark.parametrize("seed", range(8))
def test_every_case_has_kidneys_and_a_tumour_that_differ_in_density(seed):
    case = phantom(seed, SHAPE, HALF_MM)
    assert set(np.unique(case.labels)) == {BACKGROUND, KIDNEY, TUMOUR}
    kidney, tumour = (np.median(case.hounsfield[case.labels == label]) for label in (KIDNEY, TUMOUR))
    assert 100 < kidney < 215 and 25 < tumour < kidney - 15
    share = (case.labels > 0).mean()
    assert 0.002 < share < 0.1
    left, right = case.labels[..., :64], case.labels[..., 64:]
    assert (left == KIDNEY).any() and (right == KIDNEY).any()


def test_anatomy_is_in_millimetres_whatever_the_grid():
    coarse, fine = phantom(3, SHAPE, HALF_MM), phantom(3, tuple(2 * side for side in SHAPE))
    volumes_ml = [np.bincount(c.labels.ravel(), minlength=3)[1:] * np.prod(c.spacing_mm) / 1e3 for c in (coarse, fine)]
    np.testing.assert_allclose(volumes_ml[0], volumes_ml[1], rtol=0.1)
    assert 100 < volumes_ml[1].sum() < 900  # two kidneys and what grows on them


def test_noise_is_that_of_a_scan_and_air_surrounds_the_body():
    case = phantom(0, SHAPE, HALF_MM)
    corner = case.hounsfield[:, :8, :8]
    assert abs(corner.mean() + 1000) < 2 and 13 < corner.std() < 31
    neighbours = np.corrcoef(corner[:, :, :-1].ravel(), corner[:, :, 1:].ravel())[0, 1]
    assert neighbours == pytest.approx(4 / 6, abs=0.08)  # of a 1, 2, 1 kernel


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 40, 23)], ids=str)
def test_small_volumes_hold_a_small_abdomen(shape):
    assert (phantom(1, shape).labels == KIDNEY).any()


@pytest.mark.parametrize("shape,spacing", [((15, 32, 32), HALF_MM), ((32, 32), HALF_MM), ((32, 32, 32), (1, 0, 1))])
def test_what_cannot_be_drawn_is_refused(shape, spacing):
    with pytest.raises(EngineError, match="expected three axes of 16 voxels or more, and three spacings above 0"):
        phantom(0, shape, spacing)
