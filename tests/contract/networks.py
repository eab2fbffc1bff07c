"""A small network that every accelerator takes whole, and what engines are built of it."""

import numpy as np
import onnx
from onnx import helper

from dla.io import pools_bytes
from engines.spec import EngineSpec
from tests.engines.models import AMAX, make, small, value

RANGES = {**AMAX, "y": 40.0}
STEP = 40.0 / 127  # of the DLA's INT8 outputs


def network():
    """Two convolutions, their sum, and another one, four axes throughout: 3x8x8 to 5x8x8."""
    model = small()
    nodes = [*model.graph.node[:4], helper.make_node("Conv", ["a", "w4"], ["y"], name="last")]
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name in ("w1", "b1", "w2")}
    weights["w4"] = np.random.default_rng(3).standard_normal((5, 6, 1, 1), dtype=np.float32)
    return make(nodes, [value("x", 1, 3, 8, 8)], [value("y", 1, 5, 8, 8)], weights)


def spec(device, batch):
    """An INT8 engine in the formats that the accelerator takes without a reformat."""
    formats = {"gpu": {"x": "CHW4"}, "dla": {"x": "DLA_HWC4", "y": "DLA_LINEAR"}}[device]
    pools = pools_bytes() if device == "dla" else {}
    return EngineSpec("net", device, batch, amax_by_tensor=RANGES, io_formats=formats, pools_bytes=pools)
