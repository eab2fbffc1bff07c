"""A small 3D-UNet, shaped as MLPerf's, trained on phantoms at half of KiTS19's resolution.

Trained by `scripts/train_unet3d.py`; `unet3d_small.npz` beside this file holds the weights as float16, each under the
name that it has in the graph. Seeds of phantoms below `TRAINING_SEEDS` are those that it has seen.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.zoo.unet3d import CLASSES, Form, build_form

if TYPE_CHECKING:
    import onnx

    from engines.zoo.store import Store

__all__ = ["BACKBONE", "CLASSES", "FORM", "TRAINING_SEEDS", "WEIGHTS", "build"]

WEIGHTS = Path(__file__).with_suffix(".npz")
FORM = Form("unet3d-small", side=64, widths=(8, 16), bottleneck=32)
TRAINING_SEEDS = 100
BACKBONE = ("Relu_5_output", "Relu_11_output", "Relu_17_output")


def build(store: Store | None) -> onnx.ModelProto:
    """Return the network with its trained weights, `input` [1,1,64,64,64] to logits `output` [1,3,64,64,64]."""
    return build_form(None if store is None else _trained(store), FORM)


def _trained(store: Store) -> Store:
    """Return a store that keeps the trained weight of a name in place of the seeded one that the builder offers."""
    return lambda name, _: store(name, _arrays()[name].astype(np.float32))


@lru_cache(maxsize=1)
def _arrays() -> dict[str, NDArray[Any]]:
    with np.load(WEIGHTS) as arrays:
        return dict(arrays)
