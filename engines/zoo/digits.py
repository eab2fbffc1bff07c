"""A small residual classifier of handwritten digits, really trained.

Trained by `scripts/train_digits.py` on scikit-learn's digits, in five folds: the weights of each fold have not seen
its images. `digits.npz` beside this file holds them, batch normalisation folded, as float16 [fold, ...], and under
"fold" in which fold each image is held out. The network's own weights are those of fold 0. Each layer has a form that
the DLA takes: a pool with its window in place of a global one, a 1x1 convolution as the classifier.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.zoo.builder import NetworkBuilder, Window
from engines.zoo.residual import Stage, basic
from engines.zoo.store import in_memory

if TYPE_CHECKING:
    import onnx

    from engines.zoo.store import Store

WEIGHTS = Path(__file__).with_suffix(".npz")
FOLDS = 5
SIDE = 16
CLASSES = 10
CHANNELS = (16, 32)
BACKBONE = ("layer2.relu2_output",)


def build(store: Store | None, fold: int = 0) -> onnx.ModelProto:
    """Return the network with the weights of a fold, `input` [1,3,16,16] to `logits` [1,10,1,1]."""
    return _network(None if store is None else _trained(store, fold))


def trained(fold: int) -> onnx.ModelProto:
    """Return the network with the weights that have not seen a fold's images."""
    return build(in_memory, fold)


def held_out(fold: int) -> NDArray[Any]:
    """Return which of scikit-learn's 1,797 images a fold holds out, as bool [1797]."""
    mask: NDArray[Any] = _arrays()["fold"] == fold
    return mask


def _network(store: Store | None) -> onnx.ModelProto:
    net = NetworkBuilder(0, store)
    x = net.input("input", (1, 3, SIDE, SIDE))
    for number, channels in enumerate(CHANNELS, start=1):
        x = net.relu(net.conv(x, f"conv{number}", channels, Window(3, 1, 1)), f"relu{number}")
        x = basic(net, x, f"layer{number}", Stage(channels, channels, 1), 1)
        if number < len(CHANNELS):
            x = net.max_pool(x, f"pool{number}", Window(2, 2))
    side = net.shape(x)[-1]
    x = net.node("AveragePool", [x], "avgpool", (1, CHANNELS[-1], 1, 1), kernel_shape=[side, side], strides=[1, 1])
    net.output(net.conv(x, "classifier", CLASSES, Window(1)), "logits")
    return net.model("digits")


def _trained(store: Store, fold: int) -> Store:
    """Return a store that keeps the trained weight of a name in place of the seeded one that the builder offers."""
    return lambda name, _: store(name, _arrays()[name][fold].astype(np.float32))


@lru_cache(maxsize=1)
def _arrays() -> dict[str, NDArray[Any]]:
    with np.load(WEIGHTS) as arrays:
        return dict(arrays)
