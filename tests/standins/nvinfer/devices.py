"""Where each node of a network runs, in what precision, and what TensorRT says about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dla.partition import Groups
from engines.importer import FLATTENING
from tests.standins.nvinfer.bridge import Refused, trt
from tests.standins.nvinfer.network import Layer, NetworkDefinition, Tensor
from tests.standins.nvinfer.placements import MAX_LOADABLES, Placements

if TYPE_CHECKING:
    from tests.standins.nvinfer.config import BuilderConfig

FLOATING = ("FLOAT", "HALF")
UPGRADED = ("Sigmoid", "Tanh", "LRN")  # computed in FP16 by the DLA though INT8 is asked for (DLA layer table)
# Between these and an activation or scale that alone reads them lies no tensor (developer guide, types of fusions).
FUSED_AHEAD = ("CONVOLUTION", "ELEMENTWISE", "MATRIX_MULTIPLY", "SCALE", "DECONVOLUTION")
FUSED_BEHIND = ("ACTIVATION", "SCALE")
Log = Callable[[Any, str], None]


@dataclass(frozen=True)
class Devices:
    """Which nodes the DLA runs, as its loadables, and the shuffles that TensorRT inserts around them on the GPU."""

    on_dla: Mapping[str, bool]
    loadables: Groups
    shuffles: tuple[str, ...]

    @property
    def uses_dla(self) -> bool:
        """Whether any loadable is left."""
        return bool(self.loadables)


class Placing:
    """One build's decision on devices."""

    def __init__(
        self, network: NetworkDefinition, config: BuilderConfig, placements: Placements, amax: Mapping[str, float]
    ) -> None:
        self.network, self.config, self.placements = network, config, placements
        self.amax = amax
        typed = network.is_typed and placements.strong_types  # no flag says what the network itself says
        self.int8, self.fp16 = typed or config.has("INT8"), typed or config.has("FP16")
        self.fallback = config.has("GPU_FALLBACK")

    def decide(self) -> Devices:
        """Return the devices; `Refused` where the DLA cannot take a layer and may not leave it to the GPU."""
        dla = trt().DeviceType.DLA
        wanted = [layer for layer in self.network.layers if self.config.device_of(layer) == dla]
        if not wanted:
            return Devices({}, (), ())
        self._check(wanted)
        on_dla = {layer.node: False for layer in self.network.layers if layer.node}
        for layer in wanted:
            reason = self._reason(layer)
            if reason:
                self._falls_back(layer, reason)
            elif layer.node:
                on_dla[layer.node] = True
        for layer in self.network.layers:
            if self.config.device_of(layer) != dla and layer.node:
                on_dla[layer.node] = False
        return self._partitioned(on_dla)

    def _check(self, wanted: list[Layer]) -> None:
        if not self.placements.dla_cores:
            raise Refused("DLA is not available on this platform", 2, "Internal Error")
        if not self.int8 and not self.fp16:  # NvInfer.h, DeviceType::kDLA, and the DLA guide: FP16 and INT8 alone
            raise Refused("DLA only supports FP16 and Int8 precision type: set BuilderFlag::kFP16 or kINT8", 4)
        if any(-1 in tensor.dims for tensor in self.network.inputs) and not self.fallback:
            # DLA guide, runtime configuration: dimensions are those of the build
            text = f"DLA Layer {wanted[0].name} does not support dynamic shapes in any dimension."
            raise Refused(text, 4, "Internal Error")

    def _reason(self, layer: Layer) -> str:
        precision = "int8" if self.int8 else "fp16"
        reason = self.placements.reason(self.network, layer, precision)
        if reason or self.fp16 or not self.int8 or not layer.node:
            return reason
        missing = [tensor for tensor in (*layer.wires.inputs, *layer.wires.outputs) if self._lacks_range(tensor)]
        if missing:
            # DLA without FP16 needs a range for each tensor: INT8 is all that is left
            return f"{layer.name}: missing scale of {missing[0].name}, and FP16 is not enabled to run the layer on DLA"
        if layer.answer("getPrecision")().name == "HALF" or self.network.operator(layer) in UPGRADED:
            return f"{layer.name}: runs in FP16 on DLA, and FP16 is not enabled"
        return ""

    def _lacks_range(self, tensor: Tensor) -> bool:
        """Tell whether an activation needs a range and has none: those fused away between two layers need none."""
        if tensor.dtype.name not in FLOATING or self.amax.get(tensor.symbol) is not None:
            return False
        makers, readers = tensor.makers, tensor.readers
        kinds = [layer.type_name for layer in makers]
        fused = len(readers) == 1 and readers[0].type_name in FUSED_BEHIND and kinds and kinds[0] in FUSED_AHEAD
        flattened = any(self.network.operator(layer) in FLATTENING for layer in (*makers, *readers))
        return kinds != ["CONSTANT"] and not fused and not flattened

    def _falls_back(self, layer: Layer, reason: str) -> None:
        """Leave a layer to the GPU; constants are folded later, so that they never stop a build."""
        harmless = layer.type_name == "CONSTANT" or not layer.node
        if not self.fallback and not harmless:
            raise Refused(f"{reason} (layer {layer.name} cannot run on DLA and GPU fallback is not enabled)", 4)
        log = self.network.log
        log(trt().ILogger.WARNING, reason)
        what = f"Layer '{layer.name}' ({layer.type_name})"
        log(trt().ILogger.WARNING, f"{what}: Unsupported on DLA. Switching this layer's device type to GPU.")

    def _partitioned(self, on_dla: dict[str, bool]) -> Devices:
        log = self.network.log
        if not any(on_dla.values()):
            log(trt().ILogger.WARNING, "setDefaultDeviceType was called but no layer in the network can run on DLA.")
            return Devices({}, (), ())
        groups, kept = self.placements.loadables(self.network, on_dla)
        for group in (group for group in groups if group not in kept):
            if not self.fallback:
                raise Refused(f"DLA supports only {MAX_LOADABLES} subgraphs per DLA core, not {len(groups)}", 4)
            text = f"DLA supports only {MAX_LOADABLES} subgraphs per DLA core. Switching to GPU for layer {group[0]}"
            log(trt().ILogger.WARNING, text)
            on_dla.update(dict.fromkeys(group, False))
        shuffles = self.placements.shuffles(self.network, on_dla)
        if shuffles and not self.fallback:
            text = f"Input tensor has less than 4 dimensions for {shuffles[0]}. At least one shuffle layer will be"
            raise Refused(f"{text} inserted which cannot run on DLA.", 4, "Internal Error")
        return Devices(on_dla, kept, shuffles)
