"""What a layer costs on a DLA in INT8 and in FP16, as the virtual Orin's model expects it: simulated, for one sample.

A layer takes what the model's law gives its kernel, times what its network was measured to take over that; FP16 is
slower by the factor that a measured ResNet-50 gave (`dla_fp16_factor` in `orin/virtual/parameters.yaml`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from engines.graph import Graph
from orin.plan import DEFAULT_STACK
from orin.soc import soc
from orin.virtual.model import CostModel, EngineShape

BOARD = "agx-orin-64gb"
BATCH = 2  # as plans have it


@dataclass(frozen=True)
class LayerCost:
    """Simulated time of layers that run as one, for one sample, beside that of the whole engine in INT8."""

    int8_ms: float
    fp16_ms: float
    engine_ms: float

    @property
    def more_ms(self) -> float:
        """What FP16 costs more."""
        return self.fp16_ms - self.int8_ms


class LayerCosts:
    """The costs of the layers of one network on one DLA core, all clocks at their highest."""

    def __init__(self, graph: Graph, board: str = BOARD) -> None:
        facts = soc(board)
        self._model = CostModel(facts, facts.clocks(facts.fullest_mode), DEFAULT_STACK)
        self._int8_ms, self._fp16_ms = (self._times_ms(graph, precision) for precision in ("int8", "fp16"))
        self._engine_ms = sum(self._int8_ms.values())

    def of(self, layers: Collection[str]) -> LayerCost:
        """Return the cost of layers that run as one, by name; one that is fused into another's kernel adds nothing."""
        int8_ms, fp16_ms = (sum(times.get(name, 0.0) for name in layers) for times in (self._int8_ms, self._fp16_ms))
        return LayerCost(int8_ms, fp16_ms, self._engine_ms)

    def _times_ms(self, graph: Graph, precision: str) -> dict[str, float]:
        shape = EngineShape(graph.name, "dla", BATCH, precision, graph.workload)
        return {layer.name: layer.solo_ns / BATCH * 1e-6 for layer in self._model.layers(shape, BATCH)}
