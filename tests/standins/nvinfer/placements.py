"""Which layers the DLA takes: by the project's own rules, by what a board recorded, or by what a test injects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dla.partition import Groups, keep_largest, partition
from dla.placement import place
from dla.rules_versions import STRONG_TYPES, rules_version
from dla.wiring import step_of
from engines.graph import Graph, read_graph
from engines.importer import Imported

if TYPE_CHECKING:
    from tests.standins.nvinfer.network import Layer, NetworkDefinition

TENSORRT = "10.3"
DLA_CORES = 2  # of Orin
MAX_DLA_BATCH = 4096  # IBuilder::getMaxDLABatchSize on Orin
MAX_LOADABLES = 16
QUANTISING = ("QUANTIZE", "DEQUANTIZE")  # the DLA takes explicit quantisation from TensorRT 11.4 on
UNSUPPORTED = "DLA does not support this layer type."


@dataclass(frozen=True)
class Verdicts:
    """Why nodes of a network are not the DLA's, by name, and the graph behind."""

    graph: Graph
    reasons: Mapping[str, str]


@dataclass
class Placements:
    """Answers can-run-on-DLA by the rules of a release. `assigned` holds what a test says of layers by name: it wins
    over the rules."""

    dla_cores: int = DLA_CORES
    assigned: dict[str, bool] = field(default_factory=dict)
    release: str = TENSORRT

    def reset(self) -> None:
        """Forget what was assigned; two cores and the release of the bindings again."""
        self.dla_cores, self.assigned, self.release = DLA_CORES, {}, TENSORRT

    @property
    def strong_types(self) -> bool:
        """Whether the DLA takes strongly typed networks, whose Q/DQ are the scales of their neighbours."""
        return rules_version(self.release) >= STRONG_TYPES

    def takes(self, network: NetworkDefinition, layer: Layer, precision: str) -> bool:
        """Tell whether the DLA takes a layer."""
        return not self.reason(network, layer, precision)

    def reason(self, network: NetworkDefinition, layer: Layer, precision: str) -> str:
        """Return why the DLA does not take a layer, "" where it does."""
        if layer.name in self.assigned:
            return "" if self.assigned[layer.name] else f"{layer.name}: DLA validation failed for this layer."
        if layer.type_name in QUANTISING and self.strong_types:
            return ""
        if layer.type_name in ("CONSTANT", *QUANTISING) or not layer.node:
            return f"{layer.name}: {UNSUPPORTED}"
        if any(-1 in tensor.dims for tensor in (*layer.wires.inputs, *layer.wires.outputs)):
            return f"DLA Layer {layer.name} does not support dynamic shapes in any dimension."
        return self.verdicts(network, precision).reasons.get(layer.node, "")

    def verdicts(self, network: NetworkDefinition, precision: str) -> Verdicts:
        """Place a network by the project's rules, once; one with dynamic shapes has no layer on the DLA."""
        key = f"{self.release} {precision} {len(network.layers)} {[tensor.dims for tensor in network.inputs]}"
        if key not in network.verdicts:
            graph = read_graph(network.to_onnx(), str(network.settings["Name"]))
            placed = place(graph, self.release, MAX_LOADABLES, precision)
            refused = [entry for entry in placed.layers if entry.candidate == "gpu"]
            reasons = {entry.node: entry.message or f"{entry.node}: {UNSUPPORTED}" for entry in refused}
            network.verdicts[key] = Verdicts(graph, reasons)
        verdicts: Verdicts = network.verdicts[key]
        return verdicts

    def loadables(self, network: NetworkDefinition, on_dla: Mapping[str, bool]) -> tuple[Groups, Groups]:
        """Cut the nodes that run on the DLA into loadables: all of them, and the sixteen largest."""
        imported = self._imported(network)
        left = [layer for layer in imported.layers if layer.name not in imported.folded]
        groups = partition([step_of(imported, layer, on_dla.get(layer.name, False)) for layer in left])
        return groups, keep_largest(groups, MAX_LOADABLES)

    def shuffles(self, network: NetworkDefinition, on_dla: Mapping[str, bool]) -> tuple[str, ...]:
        """Return the shuffles that TensorRT puts around DLA layers whose tensors have under four axes."""
        imported, found = self._imported(network), []
        for layer in imported.layers:
            if on_dla.get(layer.name, False) and layer.name not in imported.folded:
                before, after = imported.needs_shuffle_before(layer), imported.needs_shuffle_after(layer)
                found += [f"reshape_before_{layer.name}"] * before + [f"reshape_after_{layer.name}"] * after
        return tuple(found)

    def folded(self, network: NetworkDefinition) -> frozenset[str]:
        """Return the nodes that leave no layer of their own."""
        return frozenset(self._imported(network).folded)

    def _imported(self, network: NetworkDefinition) -> Imported:
        return Imported(self.verdicts(network, "int8").graph, strong_types=self.strong_types)


PLACEMENTS = Placements()


def recorded_assignments(case: Mapping[str, Any]) -> dict[str, bool]:
    """Return a recorded case's verdicts as `assigned` takes them: node name to whether the DLA took it."""
    nodes = case["onnx_nodes"]
    known = {"DLA_CANDIDATE": True, "GPU": False}
    return {node["name"]: known[node["trt_assignment"]] for node in nodes if node["trt_assignment"] in known}
