"""What the DLA asks of INT8 scales, and which of its layers run in FP16 and why.

A convolution in FP16 takes about 14 times as long as in INT8 on Orin's DLA: what runs in FP16 is said before the build.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dla.placement import Placement
from dla.rules_versions import STRONG_TYPES, rules_version
from engines.graph import Graph, Layer
from engines.importer import Imported
from engines.spec import INT8_MAX, Ranges
from engines.unchanged import spread

# A tensor between a convolution and a sum that has the scale 1.0 stays inside the DLA's operation: it is never rounded.
# Source: qdq-translator, README (Deep-Learning-Accelerator-SW): DLA software 3.13 or later. TensorRT 8.5 comes with
# 3.12, 8.6 with 3.13 or 3.14 (release notes of DRIVE OS 6.0.6 to 6.0.9 and JetPack 6.0).
UNARY_AMAX = 1.0 * INT8_MAX
UNARY_FROM = (8, 6)
UNARY_LIMIT = 127 / 128  # larger magnitudes saturate there; source: TensorRT issue 3599


@dataclass(frozen=True)
class Equal:
    """Tensors of a layer that must have one scale."""

    tensors: Callable[[Layer], tuple[str, ...]]
    why: str
    source: str


@dataclass(frozen=True)
class Upgrade:
    """Layers that TensorRT runs in FP16 although their tensors have ranges; `until` is the last such version."""

    ops: tuple[str, ...]
    why: str
    source: str
    until: tuple[int, int] | None = None
    condition: Callable[[Layer, Mapping[str, float]], bool] = lambda _, __: True


_POOL = Equal(
    lambda layer: (*layer.inputs[:1], *layer.outputs[:1]), "a pool reads and writes one scale", "TensorRT guide 8.4"
)
_PAIR = Equal(lambda layer: layer.inputs, "both inputs have one scale, the larger", "NvInfer.h 10.3, IElementWiseLayer")
_JOIN = Equal(lambda layer: (*layer.inputs, *layer.outputs), "inputs and output have one scale", "TensorRT guide 8.4")
_SAME = Equal(lambda layer: (*layer.inputs[:1], *layer.outputs[:1]), "one tensor under two names", "TensorRT's parser")

EQUAL: Mapping[str, Equal] = {
    **dict.fromkeys(("MaxPool", "AveragePool"), _POOL),
    **dict.fromkeys(("Add", "Sub", "Mul", "Max", "Min", "Sum"), _PAIR),
    "Concat": _JOIN,
}


def _narrows(layer: Layer, amax: Mapping[str, float]) -> bool:
    """Tell whether a linear Resize reads a wider range than it writes."""
    before, after = (amax.get(name, 0.0) for name in (layer.inputs[0], layer.outputs[0]))
    return layer.attributes.get("mode") == "linear" and before > after > 0


UPGRADES: tuple[Upgrade, ...] = (
    Upgrade(("Sigmoid", "Tanh", "LRN"), "TensorRT runs it in FP16 on the DLA", "TensorRT guide 8.4, DLA"),
    Upgrade(("Softmax",), "the DLA of TensorRT 8.4 takes it in FP16 alone", "TensorRT guide 8.4, DLA", (8, 4)),
    Upgrade(
        ("Resize",), "it interpolates and its input's range is the wider", "TensorRT guide 8.6, DLA", None, _narrows
    ),
)


@dataclass(frozen=True)
class Fp16Layer:
    """A layer of the DLA that runs in FP16; `missing` names the tensor whose range would let it run in INT8."""

    layer: str
    why: str
    missing: str | None = None


@dataclass(frozen=True)
class Changed:
    """A range that was changed, or filled in where `before` is None."""

    tensor: str
    before: float | None
    after: float
    why: str


@dataclass(frozen=True)
class Fitted:
    """Ranges that the DLA's layers can work with, what changed to get there, and which layers run in FP16.

    `unary` are tensors between a convolution and a sum with the scale 1.0: a GPU cannot use a cache that has them.
    """

    ranges: Ranges
    fp16: tuple[Fp16Layer, ...]
    changes: tuple[Changed, ...]
    unary: tuple[str, ...]

    @property
    def fp16_layers(self) -> tuple[str, ...]:
        """Names of the layers that run in FP16."""
        return tuple(entry.layer for entry in self.fp16)

    @property
    def warning(self) -> str | None:
        """One line on the layers that a missing range slows down; None where there is none."""
        slow = [entry for entry in self.fp16 if entry.missing]
        if not slow:
            return None
        first = f"{slow[0].layer!r} lacks that of {slow[0].missing!r}"
        return (
            f"for want of a range {len(slow)} DLA layers run in FP16, where a convolution takes about 14 times as long"
            f" ({first}); calibrate the network that is built"
        )


def constrain(graph: Graph, placement: Placement, ranges: Ranges) -> tuple[Ranges, tuple[str, ...]]:
    """Return ranges that the DLA's layers can work with, and the DLA's layers that run in FP16; see `fit`."""
    fitted = fit(graph, placement, ranges)
    return fitted.ranges, fitted.fp16_layers


def fit(graph: Graph, placement: Placement, ranges: Ranges, measured: Mapping[str, float] | None = None) -> Fitted:
    """Make ranges what the DLA needs, never smaller.

    A missing range follows from those beside it where values only move. Tensors that must share a scale, through one
    layer or a chain of them, all get the largest of their ranges. `measured` gives magnitudes that are known of tensors
    without a range: one between a convolution and a sum that reaches at most 127/128 gets the scale 1.0 (`UNARY_AMAX`),
    where the DLA's software knows it.
    """
    chain = _Chain(graph, placement)
    before = dict(ranges.amax_by_tensor)
    unary = tuple(chain.unary(before, measured or {}))
    amax = spread(graph, before | dict.fromkeys(unary, UNARY_AMAX))
    filled = [name for name, value in amax.items() if value != before.get(name)]
    reasons = dict.fromkeys(filled, "it follows from the tensors beside it")
    reasons |= dict.fromkeys(unary, "between a convolution and a sum: never rounded")
    for why, group in chain.groups(unary):
        largest = max(amax.get(name, 0.0) for name in group)
        for name in group:
            if name in amax and amax[name] < largest:
                amax[name] = largest
                reasons[name] = why
    changes = (
        Changed(name, before.get(name), after, reasons[name])
        for name, after in amax.items()
        if after != before.get(name)
    )
    return Fitted(Ranges(amax, ranges.method, ranges.images), tuple(chain.fp16(amax)), tuple(changes), unary)


class _Chain:
    """The layers that the DLA runs, and how their tensors hang together."""

    def __init__(self, graph: Graph, placement: Placement) -> None:
        self._version = rules_version(placement.tensorrt)
        self._network = Imported(graph, strong_types=self._version >= STRONG_TYPES)
        on_dla = {entry.node for entry in placement.layers if entry.final == "dla"}
        self._layers = [layer for layer in self._network.layers if layer.name in on_dla]
        self._names = on_dla
        self._readers: dict[str, list[Layer]] = {}
        for layer in self._network.layers:
            for name in layer.inputs:
                self._readers.setdefault(name, []).append(layer)

    def groups(self, unary: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
        """Yield the tensors that must have one scale, merged where they overlap, and why."""
        group_of: dict[str, dict[str, None]] = {}
        why: dict[int, str] = {}
        for layer in self._network.layers:
            rule = self._equal(layer)
            tensors = [name for name in rule.tensors(layer) if name not in unary] if rule else []
            merged = {inner: None for name in tensors for inner in group_of.get(name, {name: None})}
            group_of.update(dict.fromkeys(merged, merged))
            why[id(merged)] = rule.why if rule else ""
        for group in {id(group): group for group in group_of.values()}.values():
            yield why[id(group)], list(group)

    def _equal(self, layer: Layer) -> Equal | None:
        """Return what a layer asks for: one that leaves no TensorRT layer, that its two names have one scale."""
        if layer.name in self._names:
            return EQUAL.get(layer.op)
        return _SAME if self._network.folded.get(layer.name) == "" and layer.inputs else None

    def unary(self, amax: Mapping[str, float], measured: Mapping[str, float]) -> Iterator[str]:
        """Yield the tensors between a convolution and a sum that have the scale 1.0 already, or may get it."""
        if self._version < UNARY_FROM:
            return
        found: set[str] = set()
        for layer in self._layers:
            for name in layer.inputs if layer.op == "Add" and len(set(layer.inputs)) == 2 else ():
                given = amax.get(name) == UNARY_AMAX
                fits = not amax.get(name) and 0 < measured.get(name, 0.0) <= UNARY_LIMIT
                if (given or fits) and self._convolved(name, amax) and not found.intersection(layer.inputs):
                    found.add(name)
                    yield name

    def _convolved(self, tensor: str, amax: Mapping[str, float]) -> bool:
        """Tell whether a DLA convolution in INT8 makes a tensor for one reader."""
        maker, graph = self._network.maker(tensor), self._network.graph
        alone = len(self._network.readers(tensor)) == 1 and tensor not in graph.outputs
        if maker is None or maker.op != "Conv" or maker.name not in self._names or not alone:
            return False
        return bool(amax.get(maker.inputs[0]))

    def fp16(self, amax: Mapping[str, float]) -> Iterator[Fp16Layer]:
        """Yield the layers that run in FP16, in the graph's order."""
        for layer in self._layers:
            rule = next((rule for rule in UPGRADES if self._upgrades(rule, layer, amax)), None)
            missing = next((name for name in self._tensors(layer) if not amax.get(name)), None)
            if rule is not None:
                yield Fp16Layer(layer.name, rule.why)
            elif missing is not None:
                yield Fp16Layer(layer.name, f"tensor {missing!r} has no range", missing)

    def _upgrades(self, rule: Upgrade, layer: Layer, amax: Mapping[str, float]) -> bool:
        in_force = rule.until is None or self._version <= rule.until
        return layer.op in rule.ops and in_force and rule.condition(layer, amax)

    def _tensors(self, layer: Layer) -> Iterator[str]:
        """Yield what a layer reads and writes when the layers that are folded into it are gone."""
        yield from layer.inputs
        yield from (self._settled(layer, name) for name in layer.outputs)

    def _settled(self, layer: Layer, tensor: str) -> str:
        """Return the last of the tensors that layers folded into this one make of its output."""
        readers = self._readers.get(tensor, [])
        if len(readers) == 1 and self._network.folded.get(readers[0].name) == layer.name:
            return self._settled(layer, readers[0].outputs[0])
        return tensor
