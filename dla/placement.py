"""Which layers the DLA takes, why the others fall back to the GPU, and into how many loadables they fall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dla.partition import partition
from dla.rules import LOADABLE_LIMIT, NO_LAYER, RANK_BELOW_4, Rule, rules_by_op
from dla.wiring import Wiring
from engines.graph import Graph, Layer

Device = Literal["dla", "gpu", "folded"]

DEFAULT_LIMIT = 16  # loadables per DLA core, TensorRT 8.4.1 and later
SHUFFLE = "SHUFFLE"


@dataclass(frozen=True)
class LayerPlacement:
    """Where one layer runs: `candidate` before the limit of loadables, `final` after it.

    A layer that is not the DLA's has the rule that it broke, TensorRT's message, a fix and how sure that is. `op` is
    "" for a shuffle that TensorRT inserts by itself; `node` is then TensorRT's name for it.
    """

    node: str
    op: str
    trt_layer: str
    candidate: Device
    final: Device
    rule: str | None = None
    message: str | None = None
    fix: str | None = None
    confidence: str | None = None


@dataclass(frozen=True)
class Placement:
    """Where each layer of a network runs; `loadables` are the groups of layers that the DLA runs as one piece each."""

    layers: tuple[LayerPlacement, ...]
    loadables: tuple[tuple[str, ...], ...]
    tensorrt: str

    @property
    def gpu_layers(self) -> tuple[str, ...]:
        """Names of the layers that the GPU runs inside the DLA's engine, inserted shuffles included."""
        return tuple(layer.node for layer in self.layers if layer.final == "gpu")

    @property
    def device_by_layer(self) -> dict[str, str]:
        """Network layers that fall back, as `EngineSpec` wants them: name to "gpu"."""
        return {layer.node: "gpu" for layer in self.layers if layer.final == "gpu" and layer.op}

    @property
    def zero_gpu_layers(self) -> bool:
        """Whether the DLA's engine leaves the GPU alone."""
        return not self.gpu_layers


def place(graph: Graph, tensorrt: str = "10.3", limit: int = DEFAULT_LIMIT) -> Placement:
    """Place each layer of a network on the DLA or the GPU; `limit` is how many loadables a core holds.

    DlaError where there are no rules for that version of TensorRT.
    """
    rules = rules_by_op(tensorrt)
    wiring = Wiring(graph)
    placed: dict[str, LayerPlacement] = {}
    for layer in wiring.layers:
        kind = wiring.kinds[layer.name]
        if wiring.is_folded(layer):
            placed[layer.name] = LayerPlacement(layer.name, layer.op, kind, "folded", "folded")
        else:
            placed[layer.name] = _judge(graph, layer, kind, rules.get(layer.op))
    loadables = _loadables(wiring, placed)
    kept = _kept(loadables, limit)
    for group in loadables:
        if group not in kept:
            # TensorRT names the first layer of the group that it drops.
            dropped = {"limit": limit, "layer": group[0]}
            placed.update({name: _refused(placed[name], LOADABLE_LIMIT, **dropped) for name in group})
    entries = [entry for layer in wiring.layers for entry in _with_shuffles(wiring, layer, placed[layer.name])]
    return Placement(tuple(entries), kept, tensorrt)


def _judge(graph: Graph, layer: Layer, kind: str, rules: Sequence[Rule] | None) -> LayerPlacement:
    """Hold a layer against the rules of its operator; the first one that it breaks sends it to the GPU."""
    broken = next((rule for rule in rules if not rule.condition(graph, layer)), None) if rules else NO_LAYER
    placed = LayerPlacement(layer.name, layer.op, kind, "dla", "dla")
    return placed if broken is None else replace(_refused(placed, broken), candidate="gpu")


def _refused(placed: LayerPlacement, rule: Rule, **words: object) -> LayerPlacement:
    return replace(
        placed,
        final="gpu",
        rule=rule.id,
        message=rule.message.format(**{"layer": placed.node, "kind": placed.trt_layer, **words}),
        fix=rule.fix,
        confidence=rule.confidence,
    )


def _loadables(wiring: Wiring, placed: Mapping[str, LayerPlacement]) -> tuple[tuple[str, ...], ...]:
    def joins(layer: Layer) -> list[str]:
        return [name for name in wiring.neighbours(layer) if placed[name].candidate == "dla"]

    return partition(
        order=[layer.name for layer in wiring.layers],
        reads={layer.name: wiring.producers(layer) for layer in wiring.layers},
        joins={layer.name: joins(layer) for layer in wiring.layers if placed[layer.name].candidate == "dla"},
    )


def _kept(loadables: tuple[tuple[str, ...], ...], limit: int) -> tuple[tuple[str, ...], ...]:
    """Return the largest loadables up to the limit, the earlier one of two that are as large, in graph order."""
    largest = sorted(range(len(loadables)), key=lambda index: (-len(loadables[index]), index))[:limit]
    return tuple(loadables[index] for index in sorted(largest))


def _with_shuffles(wiring: Wiring, layer: Layer, placed: LayerPlacement) -> list[LayerPlacement]:
    """Put the shuffles around a DLA layer that TensorRT inserts where a tensor has less than four axes."""
    if placed.final != "dla":
        return [placed]
    shuffle = _refused(LayerPlacement(layer.name, "", SHUFFLE, "gpu", "gpu"), RANK_BELOW_4)
    entries = [placed]
    if any(wiring.rank(wiring.origin(name)) < 4 for name in layer.inputs):
        entries.insert(0, replace(shuffle, node=f"reshape_before_{layer.name}"))
    if any(wiring.rank(name) < 4 for name in layer.outputs):
        entries.append(replace(shuffle, node=f"reshape_after_{layer.name}"))
    return entries
