"""How well labels agree with the truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError

BACKGROUND, KIDNEY, TUMOUR = LABELS = range(3)
CLASSES = len(LABELS)


@dataclass(frozen=True)
class Dice:
    """DICE of kidney and tumour: twice what both have over the sum of what each has, 1 where neither has any."""

    kidney: float
    tumour: float

    @property
    def mean(self) -> float:
        """MLPerf's figure for a case, which it averages over cases."""
        return (self.kidney + self.tumour) / 2


def dice(labels: NDArray[Any], truth: NDArray[Any]) -> Dice:
    """Score labels [D,H,W] (0, kidney 1, tumour 2) as MLPerf's `accuracy_kits.py` does, each label by itself.

    EngineError where shapes or values do not fit.
    """
    if labels.shape != truth.shape:
        raise EngineError(f"labels {list(labels.shape)} and truth {list(truth.shape)} differ in shape; name a pair")
    both = np.zeros((CLASSES, CLASSES), np.int64)
    for plane, true in zip(labels, truth):
        if not all(part.min() >= 0 and part.max() < CLASSES for part in (plane, true)):
            raise EngineError("labels hold other values than 0, 1 (kidney) and 2 (tumour); map them to these")
        pairs = CLASSES * true.astype(np.intp).ravel() + plane.ravel()
        both += np.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    return Dice(_dice(both, KIDNEY), _dice(both, TUMOUR))


def mean_dice(scores: Iterable[Dice]) -> Dice:
    """Average over cases; ValueError where there are none."""
    kidneys, tumours = zip(*((score.kidney, score.tumour) for score in scores))
    return Dice(float(np.mean(kidneys)), float(np.mean(tumours)))


def _dice(both: NDArray[Any], label: int) -> float:
    sizes = both[label].sum() + both[:, label].sum()
    return float(2 * both[label, label] / sizes) if sizes else 1.0
