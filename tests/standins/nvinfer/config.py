"""Builder configuration: flags, devices, memory pools, optimisation profiles, timing cache."""

from __future__ import annotations

import ctypes
import json
from typing import Any

from tests.standins.nvinfer.bridge import Native, Refused, trt
from tests.standins.nvinfer.network import Layer

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SELECTORS = ("min", "opt", "max")  # nvinfer1::OptProfileSelector
# Defaults of TensorRT 10.3 (NvInfer.h, setMemoryPoolLimit; the managed SRAM of the DLA documentation).
POOLS_BYTES = {
    "WORKSPACE": 64 * GIB,
    "DLA_MANAGED_SRAM": MIB,
    "DLA_LOCAL_DRAM": GIB,
    "DLA_GLOBAL_DRAM": 512 * MIB,
    "TACTIC_DRAM": 64 * GIB,
    "TACTIC_SHARED_MEMORY": 48 * KIB,
}
LEAST_DLA_POOL_BYTES = 4 * KIB
TACTIC_SOURCES_DEFAULT = 24  # EDGE_MASK_CONVOLUTIONS | JIT_CONVOLUTIONS, on by default in 10.x
TIMING_MAGIC = "standin timing cache 10.3"


class HostMemory(Native):
    """Bytes that the user reads through the buffer protocol."""

    kind = "HostMemory"

    def __init__(self, logger: int, content: bytes) -> None:
        super().__init__(logger)
        self._buffer = ctypes.create_string_buffer(content, len(content))

    def dispose(self) -> None:
        self._buffer = ctypes.create_string_buffer(1)
        super().dispose()

    def data(self) -> int:
        return ctypes.addressof(self._buffer)

    def size(self) -> int:
        return len(self._buffer)

    def type(self) -> Any:
        return trt().DataType.UINT8


class TimingCache(Native):
    """Tactics by layer: what a build timed is not timed again."""

    kind = "TimingCache"

    def __init__(self, logger: int, entries: dict[str, int]) -> None:
        super().__init__(logger)
        self.entries = entries

    def serialize(self) -> HostMemory:
        content = json.dumps({"magic": TIMING_MAGIC, "entries": self.entries}, sort_keys=True)
        return HostMemory(self.logger, content.encode())

    def combine(self, other: TimingCache, ignore_mismatch: bool) -> bool:
        if other is self:
            raise Refused("Parameter check failed, condition: a timing cache is not combined with itself")
        self.entries |= other.entries
        return True

    def reset(self) -> bool:
        self.entries = {}
        return True


class OptimizationProfile(Native):
    """Least, best and largest shape of each dynamic input."""

    kind = "OptimizationProfile"

    def __init__(self, logger: int) -> None:
        super().__init__(logger, ExtraMemoryTarget=1.0)
        self.shapes: dict[str, dict[int, tuple[int, ...]]] = {}

    def setDimensions(self, name: str, selector: int, dims: tuple[int, ...]) -> bool:
        """A maximum below the minimum is refused (NvInferRuntime.h, IOptimizationProfile::setDimensions)."""
        shapes = self.shapes.setdefault(name, {})
        shapes[selector] = dims
        ordered = [shapes[key] for key in sorted(shapes)]
        if min(dims, default=0) < 0 or len({len(shape) for shape in ordered}) > 1 or not _is_rising(ordered):
            del shapes[selector]
            raise Refused(
                f"Parameter check failed, condition: {SELECTORS[selector]} {list(dims)} of {name} is in order"
            )
        return True

    def getDimensions(self, name: str, selector: int) -> tuple[int, ...]:
        return self.shapes.get(name, {}).get(selector, ())

    def getNbShapeValues(self, name: str) -> int:
        return -1  # none are set

    def getShapeValues(self, name: str, selector: int) -> None:
        return None

    def isValid(self) -> bool:
        return all(len(shapes) == len(SELECTORS) for shapes in self.shapes.values())


def _is_rising(shapes: list[tuple[int, ...]]) -> bool:
    return all(small <= large for before, after in zip(shapes, shapes[1:]) for small, large in zip(before, after))


class BuilderConfig(Native):
    """`IBuilderConfig`: what to build for."""

    kind = "BuilderConfig"

    def __init__(self, logger: int, placements: Any) -> None:
        super().__init__(logger)
        self.placements = placements
        self.reset()

    def reset(self) -> None:
        names = trt()
        flag = 1 << int(names.BuilderFlag.TF32)
        self.settings = {
            "Flags": flag,
            "AvgTimingIterations": 1,
            "EngineCapability": names.EngineCapability.STANDARD,
            "Int8Calibrator": None,
            "DLACore": 0,
            "DefaultDeviceType": names.DeviceType.GPU,
            "ProfileStream": 0,
            "ProfilingVerbosity": names.ProfilingVerbosity.LAYER_NAMES_ONLY,
            "CalibrationProfile": None,
            "QuantizationFlags": 0,
            "TacticSources": TACTIC_SOURCES_DEFAULT,
            "BuilderOptimizationLevel": 3,
            "HardwareCompatibilityLevel": names.HardwareCompatibilityLevel.NONE,
            "MaxAuxStreams": -1,
            "ProgressMonitor": None,
            "RuntimePlatform": names.RuntimePlatform.SAME_AS_BUILD,
            "TimingCache": None,
            "AlgorithmSelector": None,
        }
        self.devices: dict[int, Any] = {}  # by address of the layer
        self.pools = dict(POOLS_BYTES)
        self.profiles: list[OptimizationProfile] = []
        self.previews: dict[int, bool] = {}

    def has(self, name: str) -> bool:
        """Tell whether a `BuilderFlag` is set, by its name."""
        return self.getFlag(getattr(trt().BuilderFlag, name))

    def device_of(self, layer: Layer) -> Any:
        """Return the `DeviceType` that a layer is asked to run on."""
        return self.devices.get(layer.address, self.settings["DefaultDeviceType"])

    def setFlag(self, flag: Any) -> None:
        self.settings["Flags"] |= 1 << int(flag)

    def clearFlag(self, flag: Any) -> None:
        self.settings["Flags"] &= ~(1 << int(flag))

    def getFlag(self, flag: Any) -> bool:
        return bool(self.settings["Flags"] >> int(flag) & 1)

    def setQuantizationFlag(self, flag: Any) -> None:
        self.settings["QuantizationFlags"] |= 1 << int(flag)

    def clearQuantizationFlag(self, flag: Any) -> None:
        self.settings["QuantizationFlags"] &= ~(1 << int(flag))

    def getQuantizationFlag(self, flag: Any) -> bool:
        return bool(self.settings["QuantizationFlags"] >> int(flag) & 1)

    def setDeviceType(self, layer: Layer, device: Any) -> None:
        self.devices[layer.address] = device

    def getDeviceType(self, layer: Layer) -> Any:
        return self.device_of(layer)

    def isDeviceTypeSet(self, layer: Layer) -> bool:
        return layer.address in self.devices

    def resetDeviceType(self, layer: Layer) -> None:
        self.devices.pop(layer.address, None)

    def canRunOnDLA(self, layer: Layer) -> bool:
        network = next(iter((*layer.wires.outputs, *layer.wires.inputs))).network
        return bool(self.placements.takes(network, layer, "int8" if self.has("INT8") else "fp16"))

    def setDLACore(self, core: int) -> None:
        """A core that is not there is refused (NvInfer.h, IBuilderConfig::setDLACore)."""
        if not 0 <= core < max(self.placements.dla_cores, 1):
            raise Refused(f"Parameter check failed, condition: dlaCore >= 0 && dlaCore < {self.placements.dla_cores}")
        self.settings["DLACore"] = core

    def setDefaultDeviceType(self, device: Any) -> None:
        if device == trt().DeviceType.DLA and not self.placements.dla_cores:
            raise Refused("DLA is not available on this platform", 3, "API Usage Error")
        self.settings["DefaultDeviceType"] = device

    def setMemoryPoolLimit(self, pool: Any, size: int) -> None:
        """Pools of the DLA are powers of two, at least 4 KiB (NvInfer.h, IBuilderConfig::setMemoryPoolLimit)."""
        if pool.name.startswith("DLA_") and (size < LEAST_DLA_POOL_BYTES or size & size - 1):
            raise Refused(
                f"Parameter check failed, condition: {pool.name} of {size} is a power of two of at least 4096"
            )
        if pool.name == "DLA_MANAGED_SRAM" and size > GIB:
            raise Refused(f"Parameter check failed, condition: {pool.name} of {size} is at most 1 GiB")
        self.pools[pool.name] = size

    def getMemoryPoolLimit(self, pool: Any) -> int:
        return self.pools[pool.name]

    def setPreviewFeature(self, feature: Any, enable: bool) -> None:
        self.previews[int(feature)] = enable

    def getPreviewFeature(self, feature: Any) -> bool:
        is_default = str(feature.name) == "PROFILE_SHARING_0806"  # on since 10.0
        return self.previews.get(int(feature), is_default)

    def setBuilderOptimizationLevel(self, level: int) -> None:
        if not 0 <= level <= 5:
            raise Refused(f"Parameter check failed, condition: builder optimization level {level} is in [0, 5]")
        self.settings["BuilderOptimizationLevel"] = level

    def setAvgTimingIterations(self, count: int) -> None:
        if count < 1:
            raise Refused(f"Parameter check failed, condition: average timing iterations {count} > 0")
        self.settings["AvgTimingIterations"] = count

    def addOptimizationProfile(self, profile: OptimizationProfile) -> int:
        """An invalid profile is answered with -1 (NvInfer.h, IBuilderConfig::addOptimizationProfile)."""
        if not profile.isValid():
            self.log(trt().ILogger.ERROR, "IBuilderConfig::addOptimizationProfile: the profile is not valid")
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def getNbOptimizationProfiles(self) -> int:
        return len(self.profiles)

    def createTimingCache(self, address: int, size: int) -> TimingCache:
        if not size:
            return TimingCache(self.logger, {})
        try:
            content = json.loads(ctypes.string_at(address, size))
            entries = content["entries"] if content["magic"] == TIMING_MAGIC else None
        except (ValueError, KeyError, TypeError):
            entries = None
        if entries is None:
            raise Refused("the timing cache is not one of this version", 1, "Serialization")
        return TimingCache(self.logger, dict(entries))

    def setTimingCache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        self.settings["TimingCache"] = cache
        return True

    def getNbPluginsToSerialize(self) -> int:
        return 0

    def setPluginsToSerialize(self, paths: int, count: int) -> None:
        if count:
            raise Refused("this stand-in has no plugins to serialise")
