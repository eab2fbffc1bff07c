"""INT8 as TensorRT up to 10.x takes it: flags, a dynamic range for each tensor, precisions of single layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.engine import Binding
from engines.errors import EngineError
from engines.importer import NodeNames
from engines.tensorrt.job import Job
from engines.tensorrt.names import DATA_TYPES

if TYPE_CHECKING:
    import onnx


class ImplicitInt8:
    """The strategy for TensorRT up to 10.x; with a `calibrator` (TensorRT's object) it finds the ranges itself."""

    name = "implicit"
    network_flags = 0

    def __init__(self, trt: Any, calibrator: Any = None) -> None:
        self._trt = trt
        self._calibrator = calibrator

    def prepared(self, job: Job) -> onnx.ModelProto:
        """Return what is parsed: the network as it is."""
        return job.model

    def set_io(self, tensor: Any, binding: Binding) -> None:
        """Give an input or output its type and its one format."""
        tensor.dtype = getattr(self._trt.DataType, DATA_TYPES[binding.dtype])
        tensor.allowed_formats = 1 << int(getattr(self._trt.TensorFormat, binding.format))

    def apply(self, network: Any, config: Any, job: Job) -> None:
        """Set flags, ranges and precisions."""
        spec, flag = job.spec, self._trt.BuilderFlag
        calibrates = self._calibrator is not None and spec.precision == "int8"
        if self._ranges(job) or calibrates:
            config.set_flag(flag.INT8)
        if spec.precision != "fp32":
            config.set_flag(flag.FP16)
        if calibrates:
            config.int8_calibrator = self._calibrator
        else:
            self._set_ranges(network, job)
        if spec.precision == "int8" and spec.fp16_layers:
            # As trtexec does for a DLA (sampleEngines.cpp, release/10.3): a layer without an FP16 kernel still builds,
            # and TensorRT warns of it.
            config.set_flag(flag.PREFER_PRECISION_CONSTRAINTS)
            self._set_precisions(network, job)

    def _ranges(self, job: Job) -> dict[str, float]:
        """Return the ranges to set: all for INT8, else those of the inputs: samples are INT8 whatever computes."""
        amax = job.spec.amax_by_tensor
        int8 = job.spec.precision == "int8"
        return {name: value for name, value in amax.items() if value > 0 and (int8 or name in job.graph.inputs)}

    def _set_ranges(self, network: Any, job: Job) -> None:
        """Give each tensor its range; for INT8, those that ONNX does not name as well."""
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        amax = self._ranges(job)
        if job.spec.precision == "int8":
            self._complete(amax, layers, job.model)
        for tensor in _tensors(network, layers):
            value = amax.get(tensor.name, 0)
            if value > 0 and not tensor.set_dynamic_range(-value, value):
                raise EngineError(
                    f"{job.name}: TensorRT refuses the range {value:g} of tensor {tensor.name!r}; calibrate it again"
                )

    def _complete(self, amax: dict[str, float], layers: list[Any], model: onnx.ModelProto) -> None:
        """Add the tensors that the parser put in: a shuffle changes no value, a constant has its own range."""
        kinds = self._trt.LayerType
        _share([layer for layer in layers if layer.type == kinds.SHUFFLE], amax)
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        for layer in layers:
            if layer.type == kinds.CONSTANT and layer.name in weights:
                amax.setdefault(layer.get_output(0).name, _largest(weights[layer.name]))

    def _set_precisions(self, network: Any, job: Job) -> None:
        names = NodeNames(job.graph)
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            if names.node(layer.name) in job.spec.fp16_layers:
                layer.precision = self._trt.DataType.HALF


def _tensors(network: Any, layers: list[Any]) -> Iterator[Any]:
    yield from (network.get_input(index) for index in range(network.num_inputs))
    for layer in layers:
        yield from (layer.get_output(index) for index in range(layer.num_outputs))


def _share(shuffles: list[Any], amax: dict[str, float]) -> None:
    """Let ranges pass shuffles, which change no value: forward in the network's order, then backward."""
    ends = [(layer.get_input(0).name, layer.get_output(0).name) for layer in shuffles]
    for source, target in (*ends, *((target, source) for source, target in reversed(ends))):
        if source in amax:
            amax.setdefault(target, amax[source])


def _largest(tensor: onnx.TensorProto) -> float:
    """Return the largest magnitude of a constant; 0 for one that holds no numbers."""
    from onnx.numpy_helper import to_array

    values = to_array(tensor)
    return float(np.abs(values).max(initial=0)) if values.dtype.kind == "f" else 0.0
