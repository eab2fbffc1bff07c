"""Which layers the DLA takes, why the others fall back to the GPU, and into how many loadables they fall."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from dla.errors import DlaError
from dla.io import native_format
from dla.loadable import Loadable, describe
from dla.partition import Groups, Step, keep_largest, partition
from dla.rules import Rule, Site
from dla.rules_table import LOADABLE_LIMIT, RANK_BELOW_4, SHUFFLE_FUSED, rules_for
from dla.rules_versions import STRONG_TYPES, rules_version
from dla.wiring import beside_gpu_shuffle, site_of, step_of
from engines.graph import Graph, Layer
from engines.importer import LEAST_RANK, SHUFFLE, Imported
from engines.spec import TensorFormat

Device = Literal["dla", "gpu", "folded"]

DEFAULT_LIMIT = 16  # loadables per DLA core, TensorRT 8.4.1 and later

# TensorRT's name of an operation in its messages, where that is not the operator's own in capitals.
OPERATIONS: Mapping[str, str] = {
    "Add": "SUM",
    "Mul": "PROD",
    "GlobalAveragePool": "AVG",
    "ReduceMean": "AVG",
    "ReduceSum": "SUM",
    "GlobalMaxPool": "MAX",
    "ReduceMax": "MAX",
    "ReduceMin": "MIN",
    "ReduceProd": "PROD",
}


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
class Reformat:
    """A tensor that changes its memory layout between two devices, and why that costs a copy on the GPU."""

    tensor: str
    source: str
    target: str
    why: str


@dataclass(frozen=True)
class Placement:
    """Where each layer of a network runs; `kept` are the loadables after the limit, `candidates` those before it."""

    tensorrt: str
    precision: str
    layers: tuple[LayerPlacement, ...]
    candidates: Groups
    kept: tuple[Loadable, ...]
    reformats: tuple[Reformat, ...]

    @property
    def loadables(self) -> Groups:
        """The nodes of each loadable that the DLA runs, in the graph's order."""
        return tuple(loadable.nodes for loadable in self.kept)

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


def place(graph: Graph, tensorrt: str = "10.3", limit: int = DEFAULT_LIMIT, precision: str = "int8") -> Placement:
    """Place each layer of a network on the DLA or the GPU; `limit` is how many loadables a core holds.

    `precision` is "int8" (FP16 allowed beside it) or "fp16". DlaError where that TensorRT has no DLA.
    """
    version = rules_version(tensorrt)
    native = native_format("input", precision)
    network = Imported(graph, strong_types=version >= STRONG_TYPES)
    placed = _judge_all(network, version, precision)
    candidates = partition(_steps(network, placed))
    kept = keep_largest(candidates, limit)
    for group in set(candidates) - set(kept):
        # TensorRT names the first layer of the group that it drops.
        dropped = {"limit": limit, "layer": group[0]}
        placed.update({name: _refused(placed[name], LOADABLE_LIMIT, **dropped) for name in group})
    by_name = {layer.name: layer for layer in network.layers}
    return Placement(
        tensorrt=tensorrt,
        precision=precision,
        layers=tuple(entry for layer in network.layers for entry in _with_shuffles(network, layer, placed[layer.name])),
        candidates=candidates,
        kept=tuple(describe(network, group, by_name, precision) for group in kept),
        reformats=tuple(_reformats(network, placed, native)),
    )


def _judge_all(network: Imported, version: tuple[int, int], precision: str) -> dict[str, LayerPlacement]:
    placed = {}
    for layer in network.layers:
        kind = network.kinds[layer.name]
        if layer.name in network.folded:
            carrier = network.folded[layer.name]
            kind = network.kinds[carrier] if carrier else kind
            placed[layer.name] = LayerPlacement(layer.name, layer.op, kind, "folded", "folded")
        else:
            placed[layer.name] = _judge(site_of(network, layer, precision), kind, version)
    on_gpu = {name: entry.candidate == "gpu" for name, entry in placed.items() if entry.candidate != "folded"}
    for name in beside_gpu_shuffle(network, on_gpu):
        placed[name] = replace(_refused(placed[name], SHUFFLE_FUSED), candidate="gpu")
    return placed


def _judge(site: Site, kind: str, version: tuple[int, int]) -> LayerPlacement:
    """Hold a layer against the rules of its type; the first one that it breaks sends it to the GPU."""
    layer = site.layer
    placed = LayerPlacement(layer.name, layer.op, kind, "dla", "dla")
    try:
        broken = next((rule for rule in rules_for(kind, layer.op, version) if not rule.condition(site)), None)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        raise DlaError(
            f"{layer.op} {layer.name!r} has attributes, inputs or weights that do not fit its operator; export it again"
        ) from None
    return placed if broken is None else replace(_refused(placed, broken), candidate="gpu")


def _refused(placed: LayerPlacement, rule: Rule, **words: object) -> LayerPlacement:
    operation = OPERATIONS.get(placed.op, placed.op.upper())
    known = {"layer": placed.node, "kind": placed.trt_layer, "operation": operation}
    return replace(
        placed,
        final="gpu",
        rule=rule.id,
        message=rule.message.format(**{**known, **words}),
        fix=rule.fix,
        confidence=rule.confidence,
    )


def _steps(network: Imported, placed: Mapping[str, LayerPlacement]) -> list[Step]:
    left = [layer for layer in network.layers if layer.name not in network.folded]
    return [step_of(network, layer, placed[layer.name].candidate == "dla") for layer in left]


def _with_shuffles(network: Imported, layer: Layer, placed: LayerPlacement) -> list[LayerPlacement]:
    """Put the shuffles around a DLA layer that TensorRT inserts where a tensor has less than four axes."""
    if placed.final != "dla":
        return [placed]
    shuffle = _refused(LayerPlacement(layer.name, "", SHUFFLE, "gpu", "gpu"), RANK_BELOW_4)
    entries = [placed]
    if network.needs_shuffle_before(layer):
        entries.insert(0, replace(shuffle, node=f"reshape_before_{layer.name}"))
    if network.needs_shuffle_after(layer):
        entries.append(replace(shuffle, node=f"reshape_after_{layer.name}"))
    return entries


def _reformats(network: Imported, placed: Mapping[str, LayerPlacement], native: TensorFormat) -> Iterator[Reformat]:
    """Yield the tensors that change their layout on the way into a loadable, and those that leave the network."""
    linear, seen = TensorFormat.LINEAR.value, set()
    for layer in network.layers:
        for name in map(network.origin, layer.inputs if placed[layer.name].final == "dla" else ()):
            maker = network.maker(name)
            if name in seen or (maker is not None and placed[maker.name].final == "dla"):
                continue
            seen.add(name)
            why = "input of the network" if maker is None else f"the GPU makes it in {maker.name}"
            yield Reformat(name, linear, native.value, f"{why}: give it as {native.value}, or keep it on the DLA")
    for name in network.graph.outputs:
        maker = network.maker(name)
        shuffled = network.rank(network.origin(name)) < LEAST_RANK  # that shuffle writes the layout of the output
        if maker is not None and placed[maker.name].final == "dla" and not shuffled:
            yield Reformat(name, native.value, linear, f"output of the network: take it as {native.value}")
