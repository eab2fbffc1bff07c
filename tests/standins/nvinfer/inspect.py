"""What the engine inspector tells of each layer, as TensorRT's JSON has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.standins.nvinfer.bindings import Reformat
from tests.standins.nvinfer.bridge import trt
from tests.standins.nvinfer.devices import Devices, Log
from tests.standins.nvinfer.network import Layer, NetworkDefinition, Tensor
from tests.standins.nvinfer.placements import Placements

DLA = "DLA"
REFORMAT = "Reformat"
# The inspector's names of layer types that it does not call as the network does.
TYPES: Mapping[str, str] = {
    "CONVOLUTION": "CaskConvolution",
    "DECONVOLUTION": "CaskDeconvolutionV2",
    "POOLING": "CaskPooling",
    "ELEMENTWISE": "PointWiseV2",
    "ACTIVATION": "PointWiseV2",
    "MATRIX_MULTIPLY": "CaskGemmMatrixMultiply",
    "SOFTMAX": "CaskSoftMaxV2",
    "TOPK": "TopK",
}
Entry = Mapping[str, Any]


def describe(
    network: NetworkDefinition, devices: Devices, copies: tuple[Reformat, ...], placements: Placements
) -> tuple[Entry, ...]:
    """Return the layers of the engine in their order: reformats, loadables, layers of the GPU."""
    by_node: dict[str, list[Layer]] = {}
    for layer in network.layers:
        by_node.setdefault(layer.node, []).append(layer)
    folded = placements.folded(network) if devices.uses_dla else frozenset()
    group_of = {node: group for group in devices.loadables for node in group}
    entries = [_reformat(copy, network) for copy in copies if copy.side == "Input"]
    done: set[tuple[str, ...]] = set()
    for node, layers in by_node.items():
        group = group_of.get(node)
        if group is None and node and node not in folded and layers[0].type_name != "CONSTANT":
            entries += map(_gpu, layers)
        elif group is not None and group not in done:
            done.add(group)
            entries += _around_loadable(group, by_node, devices)
    return (*entries, *(_reformat(copy, network) for copy in copies if copy.side == "Output"))


def _around_loadable(group: tuple[str, ...], by_node: Mapping[str, list[Layer]], devices: Devices) -> list[Entry]:
    """Return a loadable between the copies and shuffles on the GPU that its neighbours there ask for."""
    shuffles = [name for name in devices.shuffles if name.split("_", 2)[2] in group]
    entry, name = _loadable(group, by_node), foreign_node(group)
    gpu = [layer for layers in by_node.values() for layer in layers if layer.node and not devices.on_dla[layer.node]]
    made = {tensor["Name"] for layer in map(_gpu, gpu) for tensor in layer["Outputs"]}
    read = {tensor["Name"] for layer in map(_gpu, gpu) for tensor in layer["Inputs"]}
    before = [_copy(f"Input Tensor {i} to {name}", t) for i, t in enumerate(entry["Inputs"]) if t["Name"] in made]
    after = [_copy(f"Output Tensor {i} to {name}", t) for i, t in enumerate(entry["Outputs"]) if t["Name"] in read]
    shuffled = [_entry(shuffle, "SHUFFLE", [], []) for shuffle in shuffles]
    is_before = [shuffle["Name"].startswith("reshape_before_") for shuffle in shuffled]
    first = [shuffle for shuffle, early in zip(shuffled, is_before) if early]
    last = [shuffle for shuffle, early in zip(shuffled, is_before) if not early]
    return [*before, *first, entry, *last, *after]


def report(layers: tuple[Entry, ...], log: Log) -> None:
    """Log which layers run where, as TensorRT does where the DLA takes part."""
    loadables = [layer["Name"] for layer in layers if layer["LayerType"] == DLA]
    if not loadables:
        return
    info, verbose = trt().ILogger.INFO, trt().ILogger.VERBOSE
    log(info, "---------- Layers Running on DLA ----------")
    for name in loadables:
        log(info, f"[DlaLayer] {name}")
    log(info, "---------- Layers Running on GPU ----------")
    for layer in layers:
        if layer["LayerType"] not in (DLA, REFORMAT):
            log(info, f"[GpuLayer] {layer['ParameterType'].upper()}: {layer['Name']}")
    for name in loadables:
        log(verbose, f"Layer(DLA): {name}, Tactic: 0x0000000000000003")


def foreign_node(group: tuple[str, ...]) -> str:
    """Return TensorRT's name of a loadable: its first and last layer."""
    return f"{{ForeignNode[{group[0]}{f'...{group[-1]}' if len(group) > 1 else ''}]}}"


def _loadable(group: tuple[str, ...], by_node: Mapping[str, list[Layer]]) -> Entry:
    layers = [layer for node in group for layer in by_node[node]]
    made = [tensor for layer in layers for tensor in layer.wires.outputs]
    read = [tensor for layer in layers for tensor in layer.wires.inputs if tensor not in made]
    used = {tensor.address for layer in layers for tensor in layer.wires.inputs}
    left = [tensor for tensor in made if tensor.address not in used or tensor.isNetworkOutput()]
    return _entry(foreign_node(group), DLA, list({tensor.address: tensor for tensor in read}.values()), left)


def _gpu(layer: Layer) -> Entry:
    return _entry(layer.name, layer.type_name, layer.wires.inputs, layer.wires.outputs)


def _reformat(copy: Reformat, network: NetworkDefinition) -> Entry:
    tensor = next(found for found in (*network.inputs, *network.outputs) if found.name == copy.tensor)
    preposition = "to" if copy.side == "Input" else "from"
    return _copy(f"{copy.side} Tensor 0 {preposition} {copy.node}", _tensor(tensor))


def _copy(what: str, tensor: Entry) -> Entry:
    return {**_entry(f"Reformatting CopyNode for {what}", REFORMAT, [], []), "Inputs": [tensor], "Outputs": [tensor]}


def _entry(name: str, kind: str, inputs: list[Tensor], outputs: list[Tensor]) -> Entry:
    return {
        "Name": name,
        "LayerType": TYPES.get(kind, kind if kind == DLA else kind.title().replace("_", "")),
        "Inputs": list(map(_tensor, inputs)),
        "Outputs": list(map(_tensor, outputs)),
        "ParameterType": kind.title(),
        "TacticName": "",
        "StreamId": 0,
        "Metadata": "",
    }


def _tensor(tensor: Tensor) -> Entry:
    text = f"{tensor.dtype.name} {tensor.name}"
    return {"Name": tensor.name, "Location": "Device", "Dimensions": list(tensor.dims), "Format/Datatype": text}
