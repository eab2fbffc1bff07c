"""What a layer costs on a DLA in INT8 and in FP16, as the virtual Orin's model expects it: simulated, for one sample.

A layer takes the share of its engine's time that the model's prior gives its own work; FP16 is slower by the factor
that the model has from a measured ResNet-50 (`dla_fp16_factor` in `orin/virtual/parameters.yaml`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from engines.engine import Workload
from engines.graph import Graph
from orin.plan import DEFAULT_STACK
from orin.soc import soc
from orin.virtual.model import RESTING_MODE, CostModel, EngineShape

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
        self._graph = graph
        self._model = CostModel(facts, facts.clocks(RESTING_MODE), DEFAULT_STACK)
        self._engine_ms = self._time_ms(graph.name, graph.workload, "int8")
        prior_ms = self._time_ms("", graph.workload, "int8")
        self._scale = self._engine_ms / prior_ms if prior_ms else 1.0  # what was measured over the prior

    def of(self, layers: Collection[str]) -> LayerCost:
        """Return the cost of layers that run as one, by name."""
        work = self._workload(layers)
        int8_ms, fp16_ms = (self._scale * self._time_ms("", work, precision) for precision in ("int8", "fp16"))
        return LayerCost(int8_ms, fp16_ms, self._engine_ms)

    def _time_ms(self, network: str, work: Workload, precision: str) -> float:
        shape = EngineShape(network, "dla", BATCH, precision, work)
        return self._model.cost(shape, BATCH).solo_ns / BATCH * 1e-6

    def _workload(self, names: Collection[str]) -> Workload:
        """Return the work of some layers: what they read from and write to others counts once each, as bytes."""
        graph, layers = self._graph, [layer for layer in self._graph.layers if layer.name in names]
        batch = graph.tensors[graph.inputs[0]].shape[0]
        made = {name for layer in layers for name in layer.outputs}
        read = {name for layer in layers for name in layer.inputs}
        inside = made & read
        moved = sum(graph.tensors[name].elements for name in (made | read) - inside)
        weights = {name for layer in layers for name in layer.weights}
        return Workload(
            macs=sum(layer.macs for layer in layers) // batch,
            weight_bytes=sum(graph.tensors[name].elements for name in weights),
            activation_bytes=moved // batch,
        )
