"""One streaming pass over calibration images: the dynamic range of every activation of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.observers import Observer
from engines.graph import Graph, read_graph
from engines.onnx_model import with_batch
from engines.spec import Ranges

if TYPE_CHECKING:
    import onnx

FLOATS = ("float32", "float64")


def collect_ranges(
    model: onnx.ModelProto,
    batches: Iterable[NDArray[Any]],
    observer: Observer,
    progress: Callable[[int], None] | None = None,
    fixed: Mapping[str, float] | None = None,
) -> Ranges:
    """Run float32 batches [B,...] of a network's one input through it and return what the observer made of them.

    `progress` is called with the number of images done; `fixed` gives ranges that are known beforehand, such as
    that of the input. Any batch size works, whatever the model's. CalibrationError where there is no image, the
    network does not run, or a tensor reaches NaN or infinity.
    """
    graph = read_graph(model)
    _check_weights(model, graph.name)
    image = _input(graph)
    made = _made(graph)
    _check_fixed(fixed or {}, graph)
    session = _session(_observed(with_batch(model, "batch"), made, observer.extremes_only))
    images = 0
    for batch in batches:
        observer.update(image, batch)
        for name, values in zip(made, _run(session, image, batch), strict=True):
            observer.update(name, values)
        images += len(batch)
        if progress is not None:
            progress(images)
    if not images:
        raise CalibrationError(f"no image to calibrate {graph.name} with, expected one at least")
    return Ranges(_finite({**observer.amax, **(fixed or {})}), observer.method, images)


def _check_weights(model: onnx.ModelProto, name: str) -> None:
    missing = [weight.name for weight in model.graph.initializer if weight.data_location == weight.EXTERNAL]
    if missing:
        raise CalibrationError(f"weight {missing[0]!r} of {name} is not loaded; load the network with its weights")


def _input(graph: Graph) -> str:
    floats = [name for name in graph.inputs if graph.tensors[name].dtype in FLOATS]
    if len(graph.inputs) != 1 or not floats:
        seen = ", ".join(f"{name} ({graph.tensors[name].dtype})" for name in graph.inputs)
        raise CalibrationError(f"{graph.name} has the inputs {seen}; calibration expects one of type float32")
    return floats[0]


def _made(graph: Graph) -> list[str]:
    """Return the floating-point activations that layers make, in graph order."""
    outputs = (name for layer in graph.layers if layer.inputs for name in layer.outputs)
    return [name for name in outputs if graph.tensors[name].dtype in FLOATS]


def _check_fixed(fixed: Mapping[str, float], graph: Graph) -> None:
    unknown = sorted(set(fixed) - set(graph.tensors))
    if unknown:
        raise CalibrationError(f"a range is fixed for {unknown[0]!r}, which {graph.name} does not have; name a tensor")


def _observed(model: onnx.ModelProto, tensors: Sequence[str], extremes_only: bool) -> onnx.ModelProto:
    """Return the model with these tensors as its outputs, or with max |x| of each: then only scalars come out."""
    from onnx import ValueInfoProto
    from onnx.helper import make_node

    del model.graph.output[:]
    for index, tensor in enumerate(tensors):
        name = tensor
        if extremes_only:
            name, magnitude = f"orin.amax.{index}", f"orin.abs.{index}"
            model.graph.node.append(make_node("Abs", [tensor], [magnitude]))
            model.graph.node.append(make_node("ReduceMax", [magnitude], [name], keepdims=0))
        model.graph.output.append(ValueInfoProto(name=name))
    return model


def _session(model: onnx.ModelProto) -> Any:
    """Open a session with basic optimisations: higher levels change the order of sums from one set of outputs to
    another, so that a range would depend on what else is observed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4  # what it logs comes back as the exception
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no base class of their own
        raise CalibrationError(f"ONNX Runtime cannot load the network: {_line(error)}") from error


def _run(session: Any, image: str, batch: NDArray[Any]) -> list[NDArray[Any]]:
    try:
        return list(session.run(None, {image: batch}))
    except Exception as error:  # as above
        raise CalibrationError(f"the network does not run on a batch {list(batch.shape)}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _finite(amax: Mapping[str, float]) -> Mapping[str, float]:
    for name, value in amax.items():
        if not math.isfinite(value):
            raise CalibrationError(f"tensor {name!r} reaches {value} on the calibration images; check the weights")
    return amax
