"""What to expect of a loadable: the layers that run as one operation, what stays in SRAM, the memory to ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dla.io import SRAM_BYTES, pools_bytes
from engines.graph import Layer
from engines.importer import Imported

ATOM_BYTES = 32  # channels are stored in vectors of this size: CHW32 in INT8, CHW16 in FP16
BYTES_BY_PRECISION: Mapping[str, int] = {"int8": 1, "fp16": 2}
CONVOLUTIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SUMS = ("Add",)
ACTIVATIONS = ("Relu", "LeakyRelu", "PRelu", "Clip")
POOLS = ("MaxPool", "AveragePool")


@dataclass(frozen=True)
class Loadable:
    """One loadable that the DLA keeps: its nodes, and what to expect of it.

    `fusions` are the runs of nodes that become one DLA operation; `chained` are the tensors that fit in the core's
    SRAM from one operation to the next; `pools_bytes` are the memory pools to ask for, under TensorRT's names.
    """

    nodes: tuple[str, ...]
    fusions: tuple[tuple[str, ...], ...]
    chained: tuple[str, ...]
    pools_bytes: Mapping[str, int]


def describe(network: Imported, nodes: tuple[str, ...], by_name: Mapping[str, Layer], precision: str) -> Loadable:
    """Say what to expect of a loadable made of these nodes."""
    inside = frozenset(nodes)
    layers = [by_name[name] for name in nodes]
    fusions = _fusions(network, layers, inside)
    within_operation = {name for run in fusions for node in run[:-1] for name in by_name[node].outputs}
    made = [name for layer in layers for name in layer.outputs if name not in within_operation]
    itemsize = BYTES_BY_PRECISION[precision]
    sizes = {name: feature_bytes(network.graph.tensors[name].shape, itemsize) for name in made}
    chained = tuple(name for name in made if sizes[name] <= SRAM_BYTES and _stays(network, name, inside))
    weights = {name for layer in layers for name in layer.weights}
    weight_bytes = sum(network.graph.tensors[name].elements for name in weights) * itemsize
    return Loadable(nodes, fusions, chained, pools_bytes(weight_bytes, _peak_bytes(network, layers, sizes)))


def feature_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """Return the bytes of a tensor [N,C,H,W] as the DLA keeps it: channels padded to 32 bytes."""
    padded = (1,) * (4 - len(shape)) + shape
    channels = math.ceil(padded[-3] * itemsize / ATOM_BYTES) * ATOM_BYTES
    return math.prod(padded[:-3]) * channels * math.prod(padded[-2:])


def _peak_bytes(network: Imported, layers: list[Layer], sizes: Mapping[str, int]) -> int:
    """Return the most bytes that made tensors take at once, each kept until its last reader inside has run."""
    last_reader = {network.origin(name): index for index, layer in enumerate(layers) for name in layer.inputs}
    freed: dict[int, int] = {}
    peak = live = 0
    for index, layer in enumerate(layers):
        for name in layer.outputs:
            live += sizes.get(name, 0)
            end = last_reader.get(name, index)
            freed[end] = freed.get(end, 0) + sizes.get(name, 0)
        peak = max(peak, live)
        live -= freed.get(index, 0)
    return peak


def _stays(network: Imported, tensor: str, inside: frozenset[str]) -> bool:
    """Return whether a tensor is read inside the loadable and nowhere else."""
    readers = network.readers(tensor)
    return bool(readers) and tensor not in network.graph.outputs and all(reader.name in inside for reader in readers)


def _fusions(network: Imported, layers: list[Layer], inside: frozenset[str]) -> tuple[tuple[str, ...], ...]:
    """Return the runs that become one operation: a convolution, then a sum, an activation and a pool that follow it.

    Source: TensorRT developer guide, "Types of Fusions" (convolution with ReLU, with elementwise sum, with pooling),
    and the convolution, SDP and PDP units of the DLA that run one after the other.
    """
    taken: set[str] = set()
    runs = []
    for layer in layers:
        if layer.op in CONVOLUTIONS:
            run = _run(network, layer, inside, taken)
            taken.update(run)
            if len(run) > 1:
                runs.append(run)
    return tuple(runs)


def _run(network: Imported, first: Layer, inside: frozenset[str], taken: set[str]) -> tuple[str, ...]:
    run, last = [first.name], first
    for ops in (SUMS, ACTIVATIONS, POOLS):
        readers = network.readers(last.outputs[0])
        alone = len(readers) == 1 and last.outputs[0] not in network.graph.outputs
        if alone and readers[0].op in ops and readers[0].name in inside - taken:
            last = readers[0]
            run.append(last.name)
    return tuple(run)
