"""Where a build log says that each ONNX node really ran, in the form of a placement, and how a prediction held up."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from dla.errors import DlaError
from dla.loadable import Loadable
from dla.logs import BuildLog, LoggedLayer
from dla.placement import Device, LayerPlacement, Placement
from dla.rules_table import LOADABLE_LIMIT, UNSUPPORTED
from engines.graph import Graph

POOLS = ("DLA_MANAGED_SRAM", "DLA_LOCAL_DRAM", "DLA_GLOBAL_DRAM")
UNPREDICTED = "log"  # the rule of a layer that no rule here would have sent to the GPU
SEEN = "seen in a log"
DEVICES: tuple[Device, ...] = ("dla", "gpu", "folded")

_INSERTED = re.compile(r"(?:copied_)?(?:reshape|squeeze|unsqueeze|shuffle)_(?:before|after|between)_.+")


@dataclass(frozen=True)
class Miss:
    """An ONNX node that did not run where it was expected to."""

    node: str
    op: str
    predicted: Device
    real: Device


@dataclass(frozen=True)
class Confusion:
    """Predicted against real: `candidate` and `final` count the nodes by (predicted, real), before and after the limit.

    `misses` are the nodes whose final place was not the predicted one; `unsaid` are those that the log is silent about.
    """

    candidate: Mapping[tuple[Device, Device], int]
    final: Mapping[tuple[Device, Device], int]
    misses: tuple[Miss, ...]
    unsaid: tuple[str, ...]


def real_placement(log: BuildLog, graph: Graph, predicted: Placement) -> Placement:
    """Return where the log says the layers ran; nodes that it is silent about are left out.

    A log that is not verbose names no folded node and none between the ends of a loadable: there the node is folded
    where the prediction folds it. DlaError where the log names nothing of the network.
    """
    reading = _Reading(log, graph, predicted)
    if not reading.says_anything:
        raise DlaError(
            f"the log names none of the {len(graph.layers)} nodes of {graph.name}; is it the log of another network?"
        )
    layers = tuple(entry for entry in map(reading.layer, predicted.layers) if entry is not None)
    kept = reading.kept()
    dropped = tuple((name,) for name in reading.dropped)
    return replace(
        predicted,
        tensorrt=log.tensorrt or predicted.tensorrt,
        layers=(*layers, *reading.inserted()),
        candidates=(*(loadable.nodes for loadable in kept), *dropped),
        kept=kept,
        reformats=(),
    )


def confusion(predicted: Placement, real: Placement) -> Confusion:
    """Set a prediction against what a log says, ONNX node by ONNX node."""
    found = {layer.node: layer for layer in real.layers if layer.op}
    nodes = [layer for layer in predicted.layers if layer.op]
    pairs = [(layer, found[layer.node]) for layer in nodes if layer.node in found]
    return Confusion(
        candidate=Counter((ours.candidate, theirs.candidate) for ours, theirs in pairs),
        final=Counter((ours.final, theirs.final) for ours, theirs in pairs),
        misses=tuple(Miss(o.node, o.op, o.final, t.final) for o, t in pairs if o.final != t.final),
        unsaid=tuple(layer.node for layer in nodes if layer.node not in found),
    )


class _Reading:
    """A log read with the network at hand, so that TensorRT's names become those of ONNX nodes."""

    def __init__(self, log: BuildLog, graph: Graph, predicted: Placement) -> None:
        self._log = log
        self._order = {layer.name: index for index, layer in enumerate(graph.layers)}
        # TensorRT's name of a node that has none of its own.
        self._aliases = {f"node_of_{name}": layer.name for layer in graph.layers for name in layer.outputs}
        self._folded = {layer.node for layer in predicted.layers if layer.candidate == "folded"}
        self._gpu = self._kinds(layer for layer in log.gpu if not layer.is_region and layer.kind != "CONSTANT")
        self._refused = {node: kind for name, kind in log.refused.items() if (node := self._node(name))}
        self._reasons = {node: words for name, words in log.reasons.items() if (node := self._node(name))}
        self._groups = [self._nodes(loadable.layers) for loadable in log.loadables]
        self._candidates = self._kinds(log.candidates) or {}
        self._expand()
        self._final = {node for group in self._groups for node in group}
        self.dropped = tuple(node for name in log.dropped if (node := self._node(name.split(" + ")[0])))

    @property
    def says_anything(self) -> bool:
        """Whether the log names a node of the network."""
        return bool(self._gpu or self._refused or self._final or self._candidates)

    def layer(self, predicted: LayerPlacement) -> LayerPlacement | None:
        """Return where a node ran; None for a shuffle of the prediction's, and where the log is silent."""
        candidate, final = self._devices(predicted.node)
        if not predicted.op or candidate is None or final is None:
            return None
        kind = self._gpu.get(predicted.node) or self._refused.get(predicted.node) or predicted.trt_layer
        found = LayerPlacement(predicted.node, predicted.op, kind, candidate, final)
        return self._explained(found, predicted) if final == "gpu" else found

    def inserted(self) -> list[LayerPlacement]:
        """Return the shuffles that TensorRT put in by itself and runs on the GPU."""
        parts = {part: layer.kind for layer in self._log.gpu for part in layer.parts if _INSERTED.fullmatch(part)}
        return [LayerPlacement(part, "", kind, "gpu", "gpu", confidence=SEEN) for part, kind in parts.items()]

    def kept(self) -> tuple[Loadable, ...]:
        """Return the loadables that were built, with the memory that each needs."""
        pairs = zip(self._groups, self._log.loadables, strict=True)
        return tuple(Loadable(group, (), (), dict(zip(POOLS, logged.pools_bytes))) for group, logged in pairs if group)

    def _explained(self, found: LayerPlacement, predicted: LayerPlacement) -> LayerPlacement:
        """Add TensorRT's words, and the rule and fix where the prediction knew them."""
        if found.candidate == "dla" and found.node not in self._reasons and self._log.limit is not None:
            message = LOADABLE_LIMIT.message.format(limit=self._log.limit, layer=found.node)
            return replace(found, rule=LOADABLE_LIMIT.id, message=message, fix=LOADABLE_LIMIT.fix, confidence=SEEN)
        known = predicted.candidate == found.candidate and predicted.final == "gpu"
        return replace(
            found,
            rule=predicted.rule if known else UNPREDICTED,
            message=self._reasons.get(found.node) or UNSUPPORTED.format(layer=found.node, kind=found.trt_layer),
            fix=predicted.fix if known else None,
            confidence=SEEN,
        )

    def _devices(self, node: str) -> tuple[Device | None, Device | None]:
        """Return where a node could run and where it did."""
        if node in self._gpu:  # one layer of several on the GPU is enough
            return "gpu", "gpu"
        if node in self._final:
            return "dla", "dla"
        if node in self._candidates or node in self.dropped:
            return "dla", "gpu"
        if node in self._refused or node in self._folded or self._log.lists_layers:
            return "folded", "folded"
        return None, None

    def _expand(self) -> None:
        """Fill the loadables and the GPU's Myelin regions of which only the ends are named; the shortest goes first."""
        spans = []
        for index, loadable in enumerate(self._log.loadables):
            if not loadable.layers:
                spans.append((self._span(loadable.region.ends), index))
        taken = {node for group in self._groups for node in group}
        names = list(self._order)
        for span, index in sorted(spans, key=lambda entry: len(entry[0])):
            inside = [names[place] for place in span if self._may_run(names[place]) and names[place] not in taken]
            self._groups[index] = tuple(inside)
            taken.update(inside)
        self._expand_myelin(taken)

    def _expand_myelin(self, taken: set[str]) -> None:
        if self._log.lists_layers:
            return
        names = list(self._order)
        for layer in self._log.gpu:
            if layer.is_region:
                span = self._span(layer.ends)
                inside = [names[place] for place in span if names[place] not in taken | self._folded]
                self._gpu.update({node: layer.kind for node in inside if node not in self._gpu})

    def _may_run(self, node: str) -> bool:
        """Return whether a node between the ends of a loadable belongs to it."""
        if self._candidates:
            return node in self._candidates
        return node not in self._gpu and node not in self._folded and node not in self._refused

    def _span(self, ends: tuple[LoggedLayer, LoggedLayer]) -> range:
        """Return the places in the graph's order from one end to the other; one end where the other has no node."""
        places = [[self._order[node] for node in self._nodes([end])] for end in ends]
        known = [place for end in places for place in end]
        return range(min(known), max(known) + 1) if known else range(0)

    def _kinds(self, layers: Iterable[LoggedLayer]) -> dict[str, str]:
        return {node: layer.kind for layer in layers for node in self._nodes([layer])}

    def _nodes(self, layers: Iterable[LoggedLayer]) -> tuple[str, ...]:
        found = (self._node(part) for layer in layers for part in layer.parts)
        return tuple(dict.fromkeys(node for node in found if node is not None))

    def _node(self, name: str) -> str | None:
        """Return the ONNX node of a layer; the second and further layers of a node carry a number behind its name."""
        for known in (name, self._aliases.get(name), re.sub(r"_\d+$", "", name)):
            if known in self._order:
                return known
        return None
