"""What an engine is built from: plain values, so that any package can write one and any builder read it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from types import MappingProxyType

INT8_MAX = 127


class TensorFormat(str, Enum):
    """Memory layouts of an engine's inputs and outputs, under TensorRT's own names."""

    LINEAR = "LINEAR"
    CHW4 = "CHW4"
    CHW16 = "CHW16"
    CHW32 = "CHW32"
    DLA_LINEAR = "DLA_LINEAR"
    DLA_HWC4 = "DLA_HWC4"


@dataclass(frozen=True)
class Ranges:
    """Dynamic range (amax, the largest magnitude) of each activation tensor, and where it came from."""

    amax_by_tensor: Mapping[str, float]
    method: str
    images: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "amax_by_tensor", MappingProxyType(dict(self.amax_by_tensor)))

    def scale(self, tensor: str) -> float:
        """Return the INT8 scale amax/127 of a tensor; KeyError where it has no range."""
        return self.amax_by_tensor[tensor] / INT8_MAX


@dataclass(frozen=True)
class EngineSpec:
    """Everything a builder needs beside the network itself.

    `device` is "gpu" or "dla"; `batch` is the static batch of a DLA engine and the largest batch of a
    GPU engine; `precision` is "int8", "fp16" or "fp32"; `device_by_layer` names the layers of a DLA
    engine that fall back to the GPU ("gpu"), the others run where `device` says; `io_formats` maps
    tensor names to `TensorFormat` values; `pools_bytes` maps TensorRT's memory pools to their size; `sparse`
    lets the builder use weights that are zero in 2 of 4.
    """

    network: str
    device: str
    batch: int
    precision: str = "int8"
    device_by_layer: Mapping[str, str] = field(default_factory=dict)
    amax_by_tensor: Mapping[str, float] = field(default_factory=dict)
    fp16_layers: tuple[str, ...] = ()
    io_formats: Mapping[str, str] = field(default_factory=dict)
    pools_bytes: Mapping[str, int] = field(default_factory=dict)
    sparse: bool = False

    def __post_init__(self) -> None:
        for name in ("device_by_layer", "io_formats", "pools_bytes"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        amax = {tensor: float(value) for tensor, value in self.amax_by_tensor.items()}
        object.__setattr__(self, "amax_by_tensor", amax)

    def as_json(self) -> dict[str, object]:
        """Return the spec as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> EngineSpec:
        """Rebuild a spec from `as_json`."""
        return cls(**{**values, "fp16_layers": tuple(values["fp16_layers"])})  # type: ignore[arg-type]

    def digest(self) -> str:
        """Return the SHA-256 of the spec's canonical JSON, in hex."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()
