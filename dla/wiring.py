"""How the layers of an imported network hang together: sites for the rules, steps for the partition."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dla.partition import Step
from dla.rules import Site
from engines.graph import Layer
from engines.importer import CONVOLUTION, LEAST_RANK, SHUFFLE, Imported


def site_of(network: Imported, layer: Layer, precision: str) -> Site:
    """Return what the rules see of a layer: constants folded, the operators before and after it."""
    before = [maker.op for name in layer.inputs if (maker := network.maker(name)) is not None]
    after = [reader.op for name in layer.outputs for reader in network.readers(name)]
    return Site(network.graph, layer, precision, tuple(before), tuple(after))


def batch_of(network: Imported, layer: Layer) -> int:
    """Return the batch of a layer on the DLA: all axes but the last three, or the rows of a 1x1 convolution."""
    shape = network.graph.tensors[layer.outputs[0]].shape
    if network.kinds[layer.name] == CONVOLUTION and len(shape) < LEAST_RANK:
        return math.prod(shape[:-1])
    return math.prod(shape[:-3]) if len(shape) >= LEAST_RANK else shape[0] if shape else 1


def step_of(network: Imported, layer: Layer, on_dla: bool) -> Step:
    """Return a layer as a step of the partition; a tensor of less than four axes goes through a shuffle."""
    makers: dict[bool, list[str]] = {True: [], False: []}
    for name in layer.inputs:
        maker = network.maker(name)
        if maker is not None:
            makers[network.rank(network.origin(name)) < LEAST_RANK].append(maker.name)
    return Step(layer.name, tuple(makers[False]), tuple(makers[True]), batch_of(network, layer) if on_dla else None)


def beside_gpu_shuffle(network: Imported, on_gpu: Mapping[str, bool]) -> set[str]:
    """Return the shuffles that TensorRT fuses with one of the GPU's, directly or through others.

    Two shuffles become one where nothing else reads the tensor between them. Source: verbose log of TensorRT 10.3,
    DETR. `on_gpu` has an entry for each layer that is not folded.
    """
    shuffles = [layer for layer in network.layers if network.kinds[layer.name] == SHUFFLE and layer.name in on_gpu]
    near: dict[str, list[str]] = {layer.name: [] for layer in shuffles}
    for layer in shuffles:
        for reader in _only_reader(network, layer):
            if reader.name in near:
                near[layer.name].append(reader.name)
                near[reader.name].append(layer.name)
    waiting = [name for name in near if on_gpu[name]]
    reached = set(waiting)
    while waiting:
        for name in near[waiting.pop()]:
            if name not in reached:
                reached.add(name)
                waiting.append(name)
    return {name for name in reached if not on_gpu[name]}


def _only_reader(network: Imported, layer: Layer) -> tuple[Layer, ...]:
    readers = network.readers(layer.outputs[0])
    return readers if len(readers) == 1 and layer.outputs[0] not in network.graph.outputs else ()
