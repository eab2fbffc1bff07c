"""The builder: checks what TensorRT checks, decides on devices and formats, and leaves a plan."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.qdq import insert_qdq
from tests.standins.nvinfer.bindings import Reformat, Surroundings, bind, reformats
from tests.standins.nvinfer.bridge import LIBRARY, Native, Refused, trt
from tests.standins.nvinfer.calibrate import calibrated
from tests.standins.nvinfer.checks import check
from tests.standins.nvinfer.config import BuilderConfig, HostMemory, OptimizationProfile
from tests.standins.nvinfer.devices import FLOATING, Devices, Placing
from tests.standins.nvinfer.inspect import DLA, describe, report
from tests.standins.nvinfer.network import NetworkDefinition
from tests.standins.nvinfer.placements import MAX_DLA_BATCH, PLACEMENTS
from tests.standins.nvinfer.plan import Binding, Plan

if TYPE_CHECKING:
    import onnx

LIBRARY.standin_phase_start.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int32]
LIBRARY.standin_step_complete.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32]
LIBRARY.standin_step_complete.restype = ctypes.c_bool
LIBRARY.standin_phase_finish.argtypes = [ctypes.c_void_p, ctypes.c_char_p]

PHASE, STEPS = "Building Engine", 3
Q_DQ = ("QuantizeLinear", "DequantizeLinear")


class Builder(Native):
    """`IBuilder`."""

    kind = "Builder"

    def __init__(self, logger: int) -> None:
        super().__init__(logger, MaxThreads=1, ErrorRecorder=None)
        self.profiles: list[OptimizationProfile] = []

    def dispose(self) -> None:
        """End the profiles, which the builder owns."""
        for profile in self.profiles:
            profile.drop()
        super().dispose()

    def platformHasFastFp16(self) -> bool:
        return True

    def platformHasFastInt8(self) -> bool:
        return True

    def platformHasTf32(self) -> bool:
        return True

    def getMaxDLABatchSize(self) -> int:
        return MAX_DLA_BATCH

    def getNbDLACores(self) -> int:
        return PLACEMENTS.dla_cores

    def getLogger(self) -> int:
        return self.logger

    def reset(self) -> None:
        self.settings["MaxThreads"] = 1

    def createBuilderConfig(self) -> BuilderConfig:
        return BuilderConfig(self.logger, PLACEMENTS)

    def createNetworkV2(self, flags: int) -> NetworkDefinition:
        return NetworkDefinition(self, flags)

    def createOptimizationProfile(self) -> OptimizationProfile:
        self.profiles.append(OptimizationProfile(self.logger))
        return self.profiles[-1]

    def isNetworkSupported(self, network: NetworkDefinition, config: BuilderConfig) -> bool:
        try:
            check(network, config)
        except Refused:
            return False
        return True

    def buildSerializedNetwork(self, network: NetworkDefinition, config: BuilderConfig) -> HostMemory | None:
        plan = Build(network, config).run()
        return HostMemory(self.logger, plan.dumps()) if plan is not None else None


@dataclass
class Build:
    """One build."""

    network: NetworkDefinition
    config: BuilderConfig

    def run(self) -> Plan | None:
        """Return the plan; None where the progress monitor cancels."""
        check(self.network, self.config)
        with Progress(self.config.settings["ProgressMonitor"]) as progress:
            if not progress.step(0):
                return None
            model = self.network.to_onnx()
            amax = self._ranges(model)
            devices = Placing(self.network, self.config, PLACEMENTS, amax).decide()
            if not progress.step(1):
                return None
            around = Surroundings(devices.on_dla, amax, self.config.has("INT8") or _is_explicit(model))
            bound = bind(self.network, self.config, around)
            layers = describe(self.network, devices, self._copies(bound, around), PLACEMENTS)
            plan = self._plan(model, amax, devices, bound, layers)
            self._time(layers)
            report(layers, self.network.log)
            return plan if progress.step(2) else None

    def _copies(self, bound: tuple[Binding, ...], around: Surroundings) -> tuple[Reformat, ...]:
        """Return the reformats at inputs and outputs: none with DIRECT_IO (NvInfer.h, BuilderFlag::kDIRECT_IO)."""
        copies = tuple(reformats(self.network, bound, around))
        if copies and self.config.has("DIRECT_IO"):
            where = f"{copies[0].side.lower()} {copies[0].tensor}"
            raise Refused(f"kDIRECT_IO is set, but {where} needs a reformat: {copies[0].text}", 4)
        return copies

    def _ranges(self, model: onnx.ModelProto) -> Mapping[str, float]:
        """Return the amax of each tensor: what the user set, over what the calibrator finds."""
        if not self.config.has("INT8") or _is_explicit(model):
            return {}
        given = {tensor.symbol: tensor.amax for tensor in self.network.tensors.values() if tensor.amax is not None}
        calibrator = self.config.settings["Int8Calibrator"]
        found: dict[str, float] = {}
        if calibrator:
            found = calibrated(model, _batch_shapes(self.network, self.config), calibrator, self.network.logger)
        if not given and not found:
            raise Refused(
                "Calibration failure occurred with no scaling factors detected. This could be due to no int8 calibrator"
                " or insufficient custom scales for network layers. Please see int8 sample to setup calibration"
                " correctly.",
                4,
                "Internal Error",
            )
        amax = {**found, **given}
        self._warn_of_missing(amax)
        return amax

    def _warn_of_missing(self, amax: Mapping[str, float]) -> None:
        for tensor in self.network.tensors.values():
            if tensor.symbol not in amax and tensor.dtype.name in FLOATING:
                self.network.log(
                    trt().ILogger.WARNING,
                    f"Missing scale and zero-point for tensor {tensor.name}, expect fall back to non-int8"
                    " implementation for any layer consuming or producing given tensor",
                )

    def _plan(
        self,
        model: onnx.ModelProto,
        amax: Mapping[str, float],
        devices: Devices,
        bound: tuple[Binding, ...],
        layers: tuple[Mapping[str, Any], ...],
    ) -> Plan:
        fp16 = frozenset(_kept_in_float(self.network, self.config))
        computing = insert_qdq(model, amax, fp16) if amax else model
        return Plan(
            name=str(self.network.settings["Name"]),
            bindings=bound,
            layers=layers,
            uses_dla=devices.uses_dla,
            dla_core=self.config.settings["DLACore"],
            profiles=max(1, len(self.config.profiles)),
            verbosity=int(self.config.settings["ProfilingVerbosity"]),
            network=computing.SerializeToString(),
        )

    def _time(self, layers: tuple[Mapping[str, Any], ...]) -> None:
        """Enter the GPU's layers into the timing cache."""
        cache = self.config.settings["TimingCache"]
        if cache is not None:
            cache.entries |= {str(layer["Name"]): 0 for layer in layers if layer["LayerType"] != DLA}


@dataclass
class Progress:
    """The one phase of a build, told to the user's `IProgressMonitor` if there is one; its answer may cancel."""

    monitor: int | None

    def __enter__(self) -> Progress:
        if self.monitor:
            LIBRARY.standin_phase_start(self.monitor, PHASE.encode(), None, STEPS)
        return self

    def __exit__(self, *failure: object) -> None:
        if self.monitor:
            LIBRARY.standin_phase_finish(self.monitor, PHASE.encode())

    def step(self, index: int) -> bool:
        """Report a step; False cancels."""
        return not self.monitor or bool(LIBRARY.standin_step_complete(self.monitor, PHASE.encode(), index))


def _is_explicit(model: onnx.ModelProto) -> bool:
    return any(node.op_type in Q_DQ for node in model.graph.node)


def _batch_shapes(network: NetworkDefinition, config: BuilderConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a calibration batch: of the calibration profile where they are dynamic."""
    profile = config.settings["CalibrationProfile"] or next(iter(config.profiles), None)
    return {
        tensor.name: tensor.dims if -1 not in tensor.dims or profile is None else profile.shapes[tensor.name][1]
        for tensor in network.inputs
    }


def _kept_in_float(network: NetworkDefinition, config: BuilderConfig) -> list[str]:
    """Return the nodes that stay out of INT8; a layer's precision counts only with one of the two constraint flags."""
    if not (config.has("OBEY_PRECISION_CONSTRAINTS") or config.has("PREFER_PRECISION_CONSTRAINTS")):
        return []
    return [layer.node for layer in network.layers if getattr(layer.precision, "name", "") in FLOATING]
