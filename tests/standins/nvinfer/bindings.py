"""Inputs and outputs of an engine: the format that each gets, and whether that costs a reformat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dla.io import HWC4_CHANNELS, MAX_HWC4_GROUPS, NATIVE
from engines.importer import LEAST_RANK
from engines.spec import INT8_MAX, TensorFormat
from tests.standins.nvinfer.bridge import Refused, trt
from tests.standins.nvinfer.network import ALL_FORMATS, Layer, NetworkDefinition, Tensor
from tests.standins.nvinfer.plan import Binding

if TYPE_CHECKING:
    from tests.standins.nvinfer.config import BuilderConfig

# Types that a vectorised format is bound to. Source: TensorFormat, NvInferRuntimeBase.h of 10.3.
TYPES_BY_FORMAT: Mapping[str, tuple[str, ...]] = {
    "CHW4": ("INT8", "HALF"),
    "CHW16": ("HALF",),
    "CHW32": ("INT8", "HALF", "FLOAT"),
    "DLA_LINEAR": ("INT8", "HALF"),
    "DLA_HWC4": ("INT8", "HALF"),
}
DLA_ONLY = ("DLA_LINEAR", "DLA_HWC4")
GPU_INT8_FORMATS = ("CHW4", "CHW32")
PRECISIONS = {"INT8": "int8", "HALF": "fp16"}


@dataclass(frozen=True)
class Surroundings:
    """What decides on the format of an input or output: which nodes the DLA runs, ranges by symbol, INT8 or not."""

    on_dla: Mapping[str, bool]
    amax: Mapping[str, float]
    int8: bool


@dataclass(frozen=True)
class Reformat:
    """A copy on the GPU between a tensor's layout outside and the one inside: `side` is "Input" or "Output"."""

    tensor: str
    side: str
    node: str
    text: str


def bind(network: NetworkDefinition, config: BuilderConfig, around: Surroundings) -> tuple[Binding, ...]:
    """Return the engine's inputs, then its outputs; `Refused` where type, format or range do not fit."""
    tensors = [*network.inputs, *network.outputs]
    return tuple(_bind(tensor, config, around, index < len(network.inputs)) for index, tensor in enumerate(tensors))


def _bind(tensor: Tensor, config: BuilderConfig, around: Surroundings, is_input: bool) -> Binding:
    dtype = tensor.dtype.name
    format_ = _format(tensor, around, is_input)
    _check(tensor, format_, around, is_input)
    amax = around.amax.get(tensor.symbol)
    quantised = dtype == "INT8" and tensor.computed.name != "INT8"
    if quantised and not amax:
        # NvInfer.h, ITensor::setType: an INT8 input or output needs a dynamic range
        raise Refused(f"network {_side(is_input)} {tensor.name} has type INT8 but no dynamic range", 4)
    return Binding(
        name=tensor.name,
        symbol=tensor.symbol,
        is_input=is_input,
        dims=tensor.dims,
        dtype=np.dtype(trt().nptype(tensor.dtype)).name,
        computed=np.dtype(trt().nptype(tensor.computed)).name,
        format=format_,
        scale=amax / INT8_MAX if quantised and amax else None,
        shapes=tuple(_shapes(tensor, config, is_input)),
    )


def _shapes(tensor: Tensor, config: BuilderConfig, is_input: bool) -> Iterator[tuple[Any, Any, Any]]:
    if -1 not in tensor.dims or not is_input:
        yield (tensor.dims,) * 3
        return
    for profile in config.profiles:
        shapes = profile.shapes.get(tensor.name)
        if shapes is None:
            raise Refused(f"{tensor.name} has dynamic dimensions, but a profile says nothing of it", 4)
        fits = all(
            len(shape) == len(tensor.dims) and all(want in (-1, size) for want, size in zip(tensor.dims, shape))
            for shape in shapes.values()
        )
        if not fits:
            raise Refused(f"profile of {tensor.name} is {list(shapes.values())}, the tensor {list(tensor.dims)}", 4)
        yield shapes[0], shapes[1], shapes[2]


def _format(tensor: Tensor, around: Surroundings, is_input: bool) -> str:
    """Return the format that TensorRT takes of those allowed: one that needs no reformat where there is one."""
    mask = tensor.settings["AllowedFormats"]
    if mask & ALL_FORMATS == ALL_FORMATS:
        return TensorFormat.LINEAR.value
    allowed = [str(entry.name) for entry in trt().TensorFormat.__members__.values() if mask >> int(entry) & 1]
    known = [name for name in allowed if name in TensorFormat.__members__]
    if not known:
        raise Refused(f"formats {', '.join(allowed) or 'none'} of {tensor.name} are not ones that this stand-in packs")
    native = [name for name in known if not _cost(tensor, name, around, is_input)]
    return (native or known)[0]


def _check(tensor: Tensor, format_: str, around: Surroundings, is_input: bool) -> None:
    types = TYPES_BY_FORMAT.get(format_)
    if types is not None and tensor.dtype.name not in types:
        raise Refused(f"format {format_} of {tensor.name} is bound to {' or '.join(types)}, not {tensor.dtype.name}", 4)
    if types is not None and len(tensor.dims) != 4:
        raise Refused(f"format {format_} of {tensor.name} holds [N,C,H,W], not {list(tensor.dims)}", 4)
    devices = [around.on_dla.get(layer.node, False) for layer in _neighbours(tensor, is_input)]
    if format_ in DLA_ONLY and not all(devices):
        # NvInferRuntimeBase.h, TensorFormat::kDLA_LINEAR and kDLA_HWC4: DLA formats, for tensors of the DLA
        raise Refused(f"format {format_} of {tensor.name} is for the DLA alone, but the GPU works on that tensor", 4)
    if format_ == "DLA_HWC4" and is_input:
        _check_hwc4(tensor)


def _check_hwc4(tensor: Tensor) -> None:
    """An image in DLA_HWC4 has 1, 3 or 4 channels and goes to convolutions (NVIDIA's DLA guide, I/O formats)."""
    scales = [layer.wires.outputs[0].readers for layer in tensor.readers if layer.type_name == "DEQUANTIZE"]
    readers = [layer for layer in tensor.readers if layer.type_name != "DEQUANTIZE"] + sum(scales, [])
    convolutions = [layer for layer in readers if layer.type_name == "CONVOLUTION"]
    groups = [attribute.i for layer in convolutions for attribute in _group(tensor.network, layer)]
    alone = len(convolutions) == len(readers)
    if tensor.dims[1] not in HWC4_CHANNELS or not alone or max(groups, default=1) > MAX_HWC4_GROUPS:
        raise Refused(
            f"{tensor.name} {list(tensor.dims)}: DLA_HWC4 takes {HWC4_CHANNELS} channels into convolutions of at most"
            f" {MAX_HWC4_GROUPS} groups",
            4,
        )


def _group(network: NetworkDefinition, layer: Layer) -> list[Any]:
    node = network.node(layer)
    return [attribute for attribute in node.attribute if attribute.name == "group"] if node is not None else []


def reformats(network: NetworkDefinition, bound: tuple[Binding, ...], around: Surroundings) -> Iterator[Reformat]:
    """Yield the copies between an input or output as it is bound and the layers that read or make it."""
    for index, (tensor, binding) in enumerate(zip([*network.inputs, *network.outputs], bound)):
        is_input = index < len(network.inputs)
        text = _cost(tensor, binding.format, around, is_input)
        if text:
            neighbours = _neighbours(tensor, is_input)
            yield Reformat(tensor.name, _side(is_input).title(), neighbours[0].node if neighbours else "", text)


def _cost(tensor: Tensor, format_: str, around: Surroundings, is_input: bool) -> str:
    """Return what a reformat of an input or output turns into what, "" where none is needed."""
    neighbours = _neighbours(tensor, is_input)
    if not neighbours:
        return ""
    dtype = tensor.dtype.name
    here = f"{dtype} {format_}"
    shuffled = not is_input and len(tensor.dims) < LEAST_RANK  # the GPU's shuffle behind the DLA writes that output
    if not shuffled and any(around.on_dla.get(layer.node, False) for layer in neighbours):
        native = [entry.value for entry in NATIVE.get((_side(is_input), PRECISIONS.get(dtype, "")), ())]
        inside = "int8" if around.int8 else "fp16"
        fits = format_ in native and PRECISIONS.get(dtype) == inside
        return "" if fits else f"{here} to {inside} {NATIVE[_side(is_input), inside][-1].value}"
    if dtype == "INT8":
        fits = format_ in GPU_INT8_FORMATS or len(tensor.dims) < LEAST_RANK
        return "" if fits else f"{here} to INT8 CHW32"
    computes_int8 = is_input and around.int8 and bool(around.amax.get(tensor.symbol))
    return f"{here} to INT8 CHW4" if computes_int8 or format_ != "LINEAR" else ""


def _neighbours(tensor: Tensor, is_input: bool) -> list[Layer]:
    """Return the layers that read an input, or the one that makes an output."""
    return tensor.readers if is_input else tensor.makers


def _side(is_input: bool) -> str:
    return "input" if is_input else "output"
