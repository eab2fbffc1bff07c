"""A built engine: one file and the manifest that says what is in it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engines.costs import LayerWork
from engines.spec import EngineSpec

MANIFEST_VERSION = 2  # 1 had no layers in its workload


@dataclass(frozen=True)
class Binding:
    """One input or output of an engine: `shape` is that of one sample (no batch axis), `format` a `TensorFormat`.

    `scale` turns INT8 values into real ones (None for other types); `sample_bytes` is what one sample
    occupies in that format, padding included.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    format: str
    scale: float | None
    sample_bytes: int

    @property
    def elements(self) -> int:
        """Number of real elements of one sample."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Workload:
    """What one sample asks of an accelerator: multiply-accumulates, weight bytes, activation bytes (at one byte an
    element, each tensor written once and read once per consumer), bytes of its outputs, and all by fused layer."""

    macs: int
    weight_bytes: int
    activation_bytes: int
    output_bytes: int = 0
    layers: tuple[LayerWork, ...] = field(default=(), hash=False, repr=False)  # the sums above tell networks apart

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Workload:
        """Read a workload from plain JSON values; KeyError or TypeError where they are none."""
        return cls(**{**values, "layers": tuple(LayerWork(**layer) for layer in values["layers"])})


@dataclass(frozen=True)
class Manifest:
    """Everything about an engine that is not its bytes."""

    spec: EngineSpec
    builder: str
    weights: str
    model_sha256: str
    engine_sha256: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    workload: Workload
    gpu_layers: tuple[str, ...] = ()
    version: int = MANIFEST_VERSION

    def dumps(self) -> str:
        """Return the manifest as indented JSON."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def loads(cls, text: str) -> Manifest:
        """Parse `dumps`; ValueError, KeyError or TypeError where the text is not a manifest of this version."""
        values: dict[str, Any] = json.loads(text)
        if values.get("version") != MANIFEST_VERSION:
            raise ValueError(f"manifest version {values.get('version')!r}, expected {MANIFEST_VERSION}")
        values["spec"] = EngineSpec.from_json(values["spec"])
        values["workload"] = Workload.from_json(values["workload"])
        values["inputs"] = tuple(map(_binding, values["inputs"]))
        values["outputs"] = tuple(map(_binding, values["outputs"]))
        values["gpu_layers"] = tuple(values["gpu_layers"])
        return cls(**values)


def _binding(values: Mapping[str, Any]) -> Binding:
    return Binding(**{**values, "shape": tuple(values["shape"])})


@dataclass(frozen=True)
class Engine:
    """A serialized engine on disk and its manifest."""

    path: Path
    manifest: Manifest
