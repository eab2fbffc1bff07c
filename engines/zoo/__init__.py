"""The networks that the toolkit knows by name: facts, graph and model of each."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import EngineError
from engines.graph import Graph, read_graph
from engines.onnx_model import load_model, model_inputs, opset_of, raise_opset, shape_of, with_batch
from engines.zoo.networks import NETWORKS, Network
from engines.zoo.store import ExternalFile, in_memory

if TYPE_CHECKING:
    import onnx

__all__ = ["NETWORKS", "Counts", "Network", "backbone", "counts", "graph", "model", "network", "save"]

USUAL_OPSET = 13


@dataclass(frozen=True)
class Counts:
    """Parameters (batch normalisation folded) and multiply-accumulates of one sample."""

    params: int
    macs: int


def network(name: str) -> Network:
    """Return a network of the zoo by name; EngineError names the known ones and the nearest."""
    if name in NETWORKS:
        return NETWORKS[name]
    near = difflib.get_close_matches(name, NETWORKS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise EngineError(f"network {name!r} is not in the zoo, which has {', '.join(NETWORKS)}{hint}")


def model(name: str, weights: Path | None = None, with_weights: bool = True) -> onnx.ModelProto:
    """Return a network at batch 1: with its own weights, with none at all, or the ONNX checkpoint at `weights`.

    Without weights a checkpoint's external data are not read.
    """
    entry = network(name)
    if weights is not None:
        return _checkpoint(weights, entry, with_weights)
    return entry.build(in_memory if with_weights else None)


def save(name: str, folder: Path) -> Path:
    """Write a network with its own weights as `name`.onnx and `name`.data; returns the first.

    One weight at a time is in memory. EngineError where the folder cannot be written.
    """
    import onnx

    entry, path = network(name), folder / f"{name}.onnx"
    data = path.with_suffix(".data")
    try:
        with data.open("wb") as file:
            made = entry.build(ExternalFile(file, data.name))
        onnx.save(made, path)
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {error.strerror}; name a folder that can") from None
    return path


def graph(name: str) -> Graph:
    """Return the graph of a network, without making its weights."""
    return read_graph(model(name, with_weights=False), name)


def backbone(name: str, with_weights: bool = True) -> onnx.ModelProto:
    """Return a network up to its `backbone_outputs`."""
    from onnx import TensorProto
    from onnx.helper import make_tensor_value_info

    made = model(name, with_weights=with_weights)
    tensors = read_graph(made, name).tensors
    ends = network(name).backbone_outputs
    needed, kept = set(ends), []
    for node in reversed(made.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    weights = [tensor for tensor in made.graph.initializer if tensor.name in needed]
    for field, entries in (("node", kept[::-1]), ("initializer", weights), ("output", [])):
        made.graph.ClearField(field)
        getattr(made.graph, field).extend(entries)
    made.graph.output.extend(make_tensor_value_info(end, TensorProto.FLOAT, tensors[end].shape) for end in ends)
    return made


def counts(network_graph: Graph) -> Counts:
    """Count a graph: each float weight once; scalars and the scales of Resize are no parameters."""
    weights = {name for layer in network_graph.layers if layer.op != "Resize" for name in layer.weights}
    tensors = [network_graph.tensors[name] for name in weights]
    params = sum(tensor.elements for tensor in tensors if tensor.dtype.startswith("float") and tensor.shape)
    return Counts(params, network_graph.workload.macs)


def _checkpoint(path: Path, entry: Network, with_weights: bool) -> onnx.ModelProto:
    loaded = load_model(path, external_data=with_weights)
    values = model_inputs(loaded)
    shapes = [shape_of(value) for value in values]
    if len(shapes) != entry.inputs or any((shape or ())[1:] != entry.input_shape for shape in shapes):
        seen = ", ".join(f"{value.name}{list(shape or ())}" for value, shape in zip(values, shapes, strict=True))
        wanted = f"[N,{','.join(map(str, entry.input_shape))}] for {entry.name}"
        kind = "one image input" if entry.inputs == 1 else f"{entry.inputs} inputs"
        raise EngineError(f"{path} has inputs {seen or 'none'}, expected {kind} {wanted}")
    if opset_of(loaded) < USUAL_OPSET:
        loaded = raise_opset(loaded, USUAL_OPSET)
    return with_batch(loaded, 1)
