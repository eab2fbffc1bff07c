"""`python -m orin.provision.first_engine`: one convolution built for the DLA, all of it, to see that a board can."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import EngineError

if TYPE_CHECKING:
    import onnx

CHANNELS, SIDE = 32, 32
AMAX = 4.0


def network() -> onnx.ModelProto:
    """Return a 3x3 convolution of 32 channels on 32x32, "x" to "y"."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    shape = [1, CHANNELS, SIDE, SIDE]
    ends = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")}
    weights = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / (3 * CHANNELS)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "first", [ends["x"]], [ends["y"]], [numpy_helper.from_array(weights, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def first_engine(folder: Path) -> str:
    """Build it in INT8 without any layer on the GPU; returns a line about it, EngineError says what is missing."""
    from engines.build import build
    from engines.cache import EngineCache
    from engines.spec import EngineSpec, TensorFormat
    from engines.tensorrt.builder import TensorRtBuilder
    from engines.tensorrt.module import load_tensorrt

    formats = {"x": TensorFormat.DLA_LINEAR.value, "y": TensorFormat.DLA_LINEAR.value}
    spec = EngineSpec("first", "dla", 1, amax_by_tensor={"x": AMAX, "y": AMAX}, io_formats=formats)
    builder = TensorRtBuilder(load_tensorrt())
    engine = build(network(), spec, EngineCache(folder, print), "seeded", builder)
    return f"one convolution on the DLA alone, {engine.path.stat().st_size} bytes, by {builder.name}"


def main() -> int:
    """Run it; exit code 1 with one line where the board cannot."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            print(first_engine(Path(folder)))
        except EngineError as error:
            print(f"Error: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
