"""How much each voxel of a window counts where windows overlap."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.volumes.plan import WINDOW, Triple, plan_windows

SIGMA = 0.125  # of a window's side, in MLPerf and MONAI's default
MONAI_LEAST = 1e-3
KINDS = ("mlperf", "monai")


@cache
def window_weights(kind: str, window: Triple) -> NDArray[Any]:
    """Return the weights of a window, float32 [d,h,w], made once and read-only.

    `mlperf`: the cube root of the product of three Gaussians, largest 1 (NVIDIA's MLPerf code,
    `3d-unet/tensorrt/preprocess_data.py`). `monai`: the product, not below its least value or 0.001, whichever is more
    (MONAI 1.6, `monai.data.utils.compute_importance_map`).
    """
    if kind not in KINDS:
        raise EngineError(f"weights {kind!r} of windows are not known, expected one of {', '.join(KINDS)}")
    made = (_mlperf if kind == "mlperf" else _monai)(window)
    made.flags.writeable = False
    return made


def _mlperf(window: Triple) -> NDArray[Any]:
    weights = np.cbrt(_product(window))
    scaled: NDArray[Any] = (weights / weights.max()).astype(np.float32)
    return scaled


def _monai(window: Triple) -> NDArray[Any]:
    weights = _product(window).astype(np.float32)
    clamped: NDArray[Any] = np.maximum(weights, max(weights.min(), np.float32(MONAI_LEAST)))
    return clamped


def _product(window: Triple) -> NDArray[Any]:
    """Return the product of a Gaussian along each axis, 1 at the centre, float64."""
    z, y, x = (np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / (SIGMA * side)) ** 2) for side in window)
    made: NDArray[Any] = z[:, None, None] * y[:, None] * x
    return made


def patches(kind: str, window: Triple = WINDOW) -> Mapping[Triple, NDArray[Any]]:
    """Return the 27 pre-divided weights of windows at half overlap, float32, by position (0 first, 1 inner, 2 last).

    Summed over overlapping windows they are 1 everywhere, so that nothing is left to divide. All three places are met
    on a volume of two windows a side (MLPerf: 256 for 128). EngineError where a side is odd.
    """
    if any(side % 2 for side in window):
        raise EngineError(f"window {window} has no half overlap in whole voxels; expected even sides")
    weights = window_weights(kind, window)
    plan = plan_windows([2 * side for side in window], window, 0.5)
    total = np.zeros(plan.shape, np.float32)
    for start in plan:
        total[plan.inside(start)] += weights
    d, h, w = (side // 2 for side in window)
    return {(z, y, x): weights / total[plan.inside((z * d, y * h, x * w))] for z, y, x in product(range(3), repeat=3)}
