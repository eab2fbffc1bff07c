"""What one build is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.engine import Binding
from engines.graph import Graph
from engines.spec import EngineSpec

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Job:
    """A model with the batch to build for, its spec, its graph at batch 1, and what its engine's ends shall be."""

    model: onnx.ModelProto
    spec: EngineSpec
    graph: Graph
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]

    @property
    def name(self) -> str:
        """What messages call it, such as "resnet50 (dla)"."""
        return f"{self.spec.network} ({self.spec.device})"
