"""One streaming pass over calibration data: the dynamic range of every activation of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.observers import Observer
from engines.files import is_large, write_model
from engines.graph import Graph, read_graph
from engines.onnx_model import model_inputs, shape_of, with_batch
from engines.spec import Ranges

if TYPE_CHECKING:
    import onnx

FLOATS = ("float32", "float64")
Feed = NDArray[Any] | Mapping[str, NDArray[Any]]


def collect_ranges(
    model: onnx.ModelProto,
    batches: Iterable[Feed],
    observer: Observer,
    progress: Callable[[int], None] | None = None,
    fixed: Mapping[str, float] | None = None,
) -> Ranges:
    """Run batches through a network and return what the observer made of its floating-point inputs and activations.

    A batch is a mapping of inputs to arrays, samples first, or the array of the one input. `progress` is called with
    the number of samples done; `fixed` gives ranges that are known beforehand, such as that of an INT8 input. Any
    batch size works where the network has no constant of its own, and axes without a size take that of the data.
    CalibrationError where there is no sample, the network does not run, or a tensor reaches NaN or infinity.
    """
    _check_weights(model)
    feeds = _Feeds(model, batches)
    graph = read_graph(model, shapes=feeds.open_shapes)
    floats = [name for name in graph.inputs if graph.tensors[name].dtype in FLOATS]
    made = _made(graph)
    _check_fixed(fixed or {}, graph)
    session = _session(_observed(with_batch(model, "batch"), made, observer.extremes_only))
    seen, samples = [*floats, *made], 0
    with ThreadPoolExecutor() as pool:
        each = map if observer.extremes_only else pool.map  # scalars are not worth a thread; counting frees the lock
        for feed in feeds:
            list(each(observer.update, seen, [*(feed[name] for name in floats), *_run(session, feed)]))
            samples += len(next(iter(feed.values())))
            if progress is not None:
                progress(samples)
    amax = observer.amax
    ordered = {name: amax[name] for name in seen}  # as the network is, whichever thread came first
    return Ranges(_finite({**ordered, **(fixed or {})}), observer.method, samples)


class _Feeds:
    """Batches by input name, for one pass; the first one says what the network leaves open."""

    def __init__(self, model: onnx.ModelProto, batches: Iterable[Feed]) -> None:
        self._name = model.graph.name
        self._inputs = model_inputs(model)
        named = map(self._named, batches)
        first = next(named, None)
        if first is None:
            raise CalibrationError(f"no sample to calibrate {self._name} with, expected one at least")
        self._batches = chain(iter([first]), named)
        self.open_shapes = open_shapes(model, first)

    def __iter__(self) -> Iterator[Mapping[str, NDArray[Any]]]:
        return self._batches

    def _named(self, batch: Feed) -> Mapping[str, NDArray[Any]]:
        names = [value.name for value in self._inputs]
        feed = batch if isinstance(batch, Mapping) else dict.fromkeys(names[:1], batch)
        if set(feed) != set(names):
            seen = ", ".join(feed) or "none"
            raise CalibrationError(f"{self._name} has the inputs {', '.join(names)}; the data has {seen}")
        return feed


def open_shapes(model: onnx.ModelProto, feed: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes that a batch gives the inputs of a network that leaves some open; None where none is."""
    declared = [shape_of(value) or (None,) for value in model_inputs(model)]
    if not any(None in shape for shape in declared):
        return None
    batch = next((shape[0] for shape in declared if shape[0]), 1)
    return {name: (batch, *values.shape[1:]) for name, values in feed.items()}


def _check_weights(model: onnx.ModelProto) -> None:
    missing = [weight.name for weight in model.graph.initializer if weight.data_location == weight.EXTERNAL]
    if missing:
        raise CalibrationError(
            f"weight {missing[0]!r} of {model.graph.name} is not loaded; load the network with its weights"
        )


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
        with _readable(model) as source:
            return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no base class of their own
        raise CalibrationError(f"ONNX Runtime cannot load the network: {_line(error)}") from error


@contextmanager
def _readable(model: onnx.ModelProto) -> Iterator[bytes | str]:
    """Give what ONNX Runtime reads a model from: its bytes, or a file where it is too large for that."""
    if not is_large(model):
        yield model.SerializeToString()
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        write_model(model, path)
        yield str(path)


def _run(session: Any, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    try:
        return list(session.run(None, dict(feed)))
    except Exception as error:  # as above
        shapes = ", ".join(str(list(values.shape)) for values in feed.values())
        raise CalibrationError(f"the network does not run on a batch {shapes}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _finite(amax: Mapping[str, float]) -> Mapping[str, float]:
    for name, value in amax.items():
        if not math.isfinite(value):
            raise CalibrationError(f"tensor {name!r} reaches {value} on the calibration data; check data and weights")
    return amax
