"""What an engine's inputs and outputs are: type, layout and scale of each, decided before anything is built."""

from __future__ import annotations

from collections.abc import Mapping

from engines.engine import Binding
from engines.errors import EngineError
from engines.formats import sample_bytes
from engines.graph import Graph
from engines.importer import LEAST_RANK, Imported
from engines.spec import INT8_MAX, EngineSpec, TensorFormat

FLOATS = ("float32", "float64", "float16")
ITEMSIZE: Mapping[str, int] = {"int64": 8, "float64": 8, "float16": 2, "int8": 1, "uint8": 1, "bool": 1}
LINEAR = TensorFormat.LINEAR.value


def input_bindings(graph: Graph, spec: EngineSpec) -> tuple[Binding, ...]:
    """Return the inputs: INT8 in their I/O format where they have a range, else of the network's own type."""
    return tuple(_input(graph, name, spec) for name in graph.inputs)


def float_outputs(graph: Graph) -> tuple[Binding, ...]:
    """Return the outputs as they are in the network, LINEAR."""
    return tuple(_binding(graph, name, LINEAR, graph.tensors[name].dtype) for name in graph.outputs)


def native_outputs(graph: Graph, spec: EngineSpec) -> tuple[Binding, ...]:
    """Return the outputs of a TensorRT engine: those that a DLA makes stay in its own type and format.

    INT8 where they have a range, else FP16: a reformat to float32 would be a layer on the GPU.
    """
    if spec.device != "dla":
        return float_outputs(graph)
    network = Imported(graph)
    return tuple(_output(network, name, spec) for name in graph.outputs)


def check_dla_precision(inputs: tuple[Binding, ...], spec: EngineSpec) -> None:
    """Refuse what a DLA engine cannot compute in: FP32, and FP16 on INT8 samples.

    Source: NVIDIA Deep-Learning-Accelerator-SW, FAQ: a DLA_HWC4 input feeds convolutions of its own precision alone.
    """
    if spec.device != "dla" or spec.precision == "int8":
        return
    if spec.precision == "fp32":
        raise EngineError(f"{spec.network}: a DLA computes in int8 or fp16, precision is fp32; or set dla_cores to 0")
    mixed = [binding.name for binding in inputs if binding.dtype == "int8"]
    if mixed:
        raise EngineError(
            f"{spec.network}: the DLA engine computes in {spec.precision} and its input {mixed[0]!r} is int8, which a "
            f"DLA's convolutions do not mix; set precision to int8, or dla_cores to 0"
        )


def _input(graph: Graph, name: str, spec: EngineSpec) -> Binding:
    amax = spec.amax_by_tensor.get(name)
    layout = spec.io_formats.get(name, LINEAR)
    return _binding(graph, name, layout, "int8" if amax else graph.tensors[name].dtype, amax)


def _output(network: Imported, name: str, spec: EngineSpec) -> Binding:
    graph, maker = network.graph, network.maker(name)
    kept = maker is not None and spec.device_by_layer.get(maker.name) != "gpu"
    if not kept or network.rank(network.origin(name)) < LEAST_RANK or graph.tensors[name].dtype not in FLOATS:
        return _binding(graph, name, LINEAR, graph.tensors[name].dtype)
    assert maker is not None
    layout = spec.io_formats.get(name, TensorFormat.DLA_LINEAR.value)
    amax = spec.amax_by_tensor.get(name)
    if amax and spec.precision == "int8" and maker.name not in spec.fp16_layers:
        return _binding(graph, name, layout, "int8", amax)
    return _binding(graph, name, layout, "float16")


def _binding(graph: Graph, name: str, layout: str, dtype: str, amax: float | None = None) -> Binding:
    shape = graph.tensors[name].shape[1:]
    size = sample_bytes(layout, shape, ITEMSIZE.get(dtype, 4))
    return Binding(name, shape, dtype, TensorFormat(layout).value, amax / INT8_MAX if amax else None, size)
