"""DICE, against hand-computed overlaps."""

import numpy as np
import pytest

from engines.errors import EngineError
from engines.volumes.dice import Dice, dice, mean_dice


def labels(*kinds):
    return np.array(kinds, np.int8).reshape(1, 1, -1)


@pytest.mark.parametrize(
    "found,truth,kidney,tumour",
    [
        (labels(0, 1, 1, 2), labels(0, 1, 1, 2), 1.0, 1.0),
        (labels(1, 1, 0, 2), labels(0, 1, 1, 2), 0.5, 1.0),  # one of two and two: 2 x 1 / 4
        (labels(1, 1, 2, 2), labels(1, 2, 2, 2), 2 / 3, 0.8),
        (labels(0, 0, 0, 0), labels(1, 1, 0, 0), 0.0, 1.0),  # no tumour in either
        (labels(2, 2, 2, 0), labels(1, 1, 0, 0), 0.0, 0.0),
        (labels(0, 0), labels(0, 0), 1.0, 1.0),
    ],
)
def test_each_label_is_scored_by_itself(found, truth, kidney, tumour):
    score = dice(found, truth)
    assert (score.kidney, score.tumour) == pytest.approx((kidney, tumour))
    assert score.mean == pytest.approx((kidney + tumour) / 2)


def test_random_labels_against_sets_of_voxels():
    rng = np.random.default_rng(0)
    found, truth = rng.integers(0, 3, (2, 7, 8, 9), dtype=np.int8)
    score = dice(found, truth)
    for label, value in ((1, score.kidney), (2, score.tumour)):
        a, b = set(map(tuple, np.argwhere(found == label))), set(map(tuple, np.argwhere(truth == label)))
        assert value == pytest.approx(2 * len(a & b) / (len(a) + len(b)))


def test_cases_are_averaged():
    assert mean_dice([Dice(1.0, 0.5), Dice(0.5, 0.0)]) == Dice(0.75, 0.25)


def test_what_is_no_pair_is_refused():
    with pytest.raises(EngineError, match=r"labels \[1, 1, 2\] and truth \[1, 1, 3\] differ in shape"):
        dice(labels(0, 1), labels(0, 1, 2))
    with pytest.raises(EngineError, match="other values than 0, 1"):
        dice(labels(0, 3), labels(0, 1))
