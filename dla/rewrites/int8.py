"""How much a rewrite changes a network in INT8: the algebra is the same, the tensors that are rounded are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dla.errors import DlaError
from engines.graph import read_graph
from engines.qdq import insert_qdq

if TYPE_CHECKING:
    import onnx

Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Int8Change:
    """Signal to quantisation noise of one output in INT8, before and after: against the original in float32."""

    output: str
    before_db: float
    after_db: float


def int8_change(before: onnx.ModelProto, after: onnx.ModelProto, feed: Feed) -> tuple[Int8Change, ...]:
    """Measure both networks in INT8 on one feed, for each output that both have; ranges are min-max over that feed.

    Runs in ONNX Runtime, where INT8 values are exact: for float32 networks small enough to run with every tensor kept.
    """
    names = [value.name for value in before.graph.output if value.name in {kept.name for kept in after.graph.output}]
    if not names:
        raise DlaError("the networks share no output, so that nothing can be compared; leave out cut-tail")
    real = _run(before, names, feed)
    noisy = [_run(insert_qdq(model, _amax(model, feed)), names, feed) for model in (before, after)]
    return tuple(
        Int8Change(name, *(_sqnr_db(real[index], outputs[index]) for outputs in noisy))
        for index, name in enumerate(names)
    )


def _amax(model: onnx.ModelProto, feed: Feed) -> dict[str, float]:
    """Return the largest magnitude of each float32 activation."""
    import onnx

    graph = read_graph(model)
    made = [name for layer in graph.layers if layer.inputs for name in layer.outputs]
    names = [name for name in made if graph.tensors[name].dtype == "float32"]
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    del observed.graph.output[:]
    observed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    values = dict(zip(names, _run(observed, names, feed), strict=True)) | dict(feed)
    return {name: float(np.abs(value).max()) for name, value in values.items()}


def _run(model: onnx.ModelProto, outputs: Sequence[str], feed: Feed) -> list[NDArray[Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # integer kernels of some CPUs saturate
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    made: list[NDArray[Any]] = session.run(list(outputs), dict(feed))
    return made


def _sqnr_db(real: NDArray[Any], noisy: NDArray[Any]) -> float:
    wanted = real.astype(np.float64)
    noise = float(((noisy.reshape(real.shape) - wanted) ** 2).sum())
    return float("inf") if noise == 0 else 10 * float(np.log10((wanted**2).sum() / noise))
