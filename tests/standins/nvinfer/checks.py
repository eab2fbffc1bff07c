"""What a builder refuses before it builds: flags that do not go together, shapes that cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.standins.nvinfer.bridge import Refused, trt
from tests.standins.nvinfer.network import NetworkDefinition

if TYPE_CHECKING:
    from tests.standins.nvinfer.config import BuilderConfig

WEAK_FLAGS = ("INT8", "FP16", "BF16", "FP8", "PREFER_PRECISION_CONSTRAINTS", "OBEY_PRECISION_CONSTRAINTS")
FLAG_OF_TYPE = {"HALF": "FP16", "INT8": "INT8"}
MAX_ELEMENTS = (1 << 31) - 1  # of a tensor: INT32 indices (NvInfer.h, ITensor)


def check(network: NetworkDefinition, config: BuilderConfig) -> None:
    """Refuse what does not go together, before anything is built."""
    if not network.outputs:
        raise Refused("Network must have at least one output", 4, "Internal Error")
    _check_flags(network, config)
    _check_precisions(network, config)
    _check_capability(config)
    _check_shapes(network, config)


def _check_flags(network: NetworkDefinition, config: BuilderConfig) -> None:
    """Strong types leave no precision to choose (NvInfer.h, NetworkDefinitionCreationFlag::kSTRONGLY_TYPED)."""
    flags = [name for name in WEAK_FLAGS if config.has(name)]
    if network.is_typed and flags:
        raise Refused(f"strongly typed networks do not go with BuilderFlag::k{flags[0]}", 4)


def _check_precisions(network: NetworkDefinition, config: BuilderConfig) -> None:
    """A layer's precision needs the builder's flag of that type (TensorRT's own message)."""
    for layer in network.layers:
        for dtype in (layer.precision, *layer.output_types.values()):
            flag = FLAG_OF_TYPE.get(getattr(dtype, "name", ""))
            if flag and not config.has(flag):
                what = f"{flag.lower()} precision has been set for a layer or layer output"
                why = f"but {flag.lower()} is not configured in the builder"
                raise Refused(f"{layer.name}: {what}, {why}", 4, "Internal Error")


def _check_capability(config: BuilderConfig) -> None:
    """A loadable for the DLA alone leaves nothing to the GPU (NvInfer.h, EngineCapability::kDLA_STANDALONE)."""
    if config.settings["EngineCapability"] != trt().EngineCapability.DLA_STANDALONE:
        return
    if config.settings["DefaultDeviceType"] != trt().DeviceType.DLA or config.has("GPU_FALLBACK"):
        raise Refused("EngineCapability::kDLA_STANDALONE needs the DLA as default device and no kGPU_FALLBACK", 4)
    raise Refused("DLA loadables are not built by this stand-in", 10, "Internal Error")


def _check_shapes(network: NetworkDefinition, config: BuilderConfig) -> None:
    """Dynamic shapes need a profile (NvInfer.h, IBuilderConfig::addOptimizationProfile)."""
    dynamic = [tensor for tensor in network.inputs if -1 in tensor.dims]
    if dynamic and not config.profiles:
        raise Refused(
            "Network has dynamic or shape inputs, but no optimization profile has been defined.", 4, "API Usage Error"
        )
    for tensor in network.tensors.values():
        if -1 not in tensor.dims and int(np.prod(tensor.dims, dtype=np.int64)) > MAX_ELEMENTS:
            raise Refused(f"tensor {tensor.name} {list(tensor.dims)} has more than 2^31-1 elements", 4)
        if any(size == 0 for size in tensor.dims) and tensor in network.inputs:
            raise Refused(f"input {tensor.name} {list(tensor.dims)} is empty", 4)
