"""scikit-learn's handwritten digits: 1,797 real labelled images that ship inside a library.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, the test part (8x8 pixels,
grey levels 0 to 16), as `sklearn.datasets.load_digits` holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.images import dequantised
from engines.preprocess import PREPROCESS, prepare, quantise

GREY_STEP = 16  # of the 0..16 that the data hold, on 0..255


@dataclass(frozen=True)
class Digits:
    """Images as the network reads them, float32 [N,3,16,16], and their labels, int64 [N]."""

    inputs: NDArray[Any]
    labels: NDArray[Any]

    @property
    def rounded(self) -> NDArray[Any]:
        """The inputs as the values that INT8 samples stand for: what reaches the first layer of an INT8 engine."""
        amax = PREPROCESS["digits"].amax
        return dequantised(quantise(self.inputs, amax), amax)

    def part(self, chosen: NDArray[Any]) -> Digits:
        """Return the images of a mask or of indices."""
        return Digits(self.inputs[chosen], self.labels[chosen])


def load_digits() -> Digits:
    """Return all digits, in scikit-learn's order; CalibrationError where scikit-learn is not installed."""
    try:
        from sklearn.datasets import load_digits as load
    except ModuleNotFoundError:
        raise CalibrationError(
            "no digits: install scikit-learn (pip install 'orin-toolkit[demo]'), or give images with --data DIR"
        ) from None
    grey, labels = load(return_X_y=True)
    inputs = np.stack([prepare(as_image(row.reshape(8, 8)), PREPROCESS["digits"]) for row in grey])
    return Digits(inputs, labels.astype(np.int64))


def as_image(grey: NDArray[Any]) -> NDArray[Any]:
    """Turn grey levels [8,8] of 0..16 into an image, uint8 [8,8,RGB]."""
    levels = np.minimum(grey * GREY_STEP, 255).astype(np.uint8)
    return np.repeat(levels[:, :, None], 3, axis=2)
