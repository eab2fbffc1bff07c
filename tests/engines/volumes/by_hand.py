"""Windows cut, weighed and merged by plain NumPy in float64, window after window."""

import numpy as np


def gaussian(side):
    """exp(-x^2 / 2 s^2) about the middle of a side, s an eighth of it, in float64."""
    offset = np.arange(side) - (side - 1) / 2
    return np.exp(-(offset**2) / (2 * (side / 8) ** 2))


def weights_by_hand(kind, window):
    product = np.einsum("z,y,x->zyx", *map(gaussian, window))
    return np.cbrt(product / product.max()) if kind == "mlperf" else np.maximum(product, max(product.min(), 1e-3))


def merged_by_hand(plan, logits, weights):
    """Sums [C,D,H,W] in float64, window after window."""
    sums = np.zeros((logits.shape[1], *plan.shape))
    for start, values in zip(plan, logits.astype(np.float64)):
        sums[(slice(None), *plan.inside(start))] += (values * weights)[(slice(None), *plan.covered(start))]
    return sums


def merged_and_sure(kernels, logits, margin):
    """Labels by hand, and where the largest class leads the second by more than a share of what is added up."""
    plan, weights = kernels.plan, weights_by_hand(kernels.weights, kernels.plan.window)
    sums = merged_by_hand(plan, logits, weights)
    ordered = np.sort(sums, axis=0)
    added = merged_by_hand(plan, np.abs(logits), weights).max(axis=0)
    return sums.argmax(axis=0), ordered[-1] - ordered[-2] > margin * added


def padded_windows(plan, volume, pad):
    """The windows of a volume [N,d,h,w], cut out of a copy with enough around it."""
    around = np.pad(volume, [(side, side) for side in plan.window], constant_values=pad)
    boxes = [tuple(slice(at + side, at + 2 * side) for at, side in zip(start, plan.window)) for start in plan]
    return np.stack([around[box] for box in boxes])
