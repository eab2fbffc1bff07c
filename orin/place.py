"""The question before anything is built: which layers does the DLA take, why not the others, what can be done."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orin.errors import OrinError
from orin.subject import light_network

if TYPE_CHECKING:
    import onnx

    from dla.log_placement import Confusion
    from dla.placement import LayerPlacement, Placement
    from engines.graph import Graph

POOL_OPTIONS = {"DLA_MANAGED_SRAM": "dlaSRAM", "DLA_LOCAL_DRAM": "dlaLocalDRAM", "DLA_GLOBAL_DRAM": "dlaGlobalDRAM"}
MIB = 1 << 20
_INSERTED = re.compile(r"^reshape_(?:before|after)_")  # what stands before the layer's name in that of a shuffle
SKIP_INFERENCE_SINCE = (8, 6)  # the name that trtexec gives to building without running; --buildOnly before
DEFAULT_TENSORRT = "10.3"  # JetPack 6.1 and 6.2


@dataclass(frozen=True)
class Question:
    """A network (an ONNX file, or a name of the zoo) and what it is placed for; `log` is what a build really said.

    Without `tensorrt` it is the log's version, else `DEFAULT_TENSORRT`.
    """

    model: str
    tensorrt: str | None = None
    precision: str = "int8"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    log: Path | None = None


@dataclass(frozen=True)
class Answer:
    """Where the layers run: as predicted, or as the log of a build says, then with how the prediction held up.

    `rewrites` names those that were tried on the network and change it.
    """

    question: Question
    graph: Graph
    placement: Placement
    confusion: Confusion | None = None
    rewrites: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reason:
    """Layers that fall back for the same reason; `rewrites` are those of the fix that change the network."""

    rule: str
    message: str
    fix: str | None
    confidence: str | None
    layers: tuple[str, ...]
    rewrites: tuple[str, ...]


def answer(question: Question) -> Answer:
    """Place a network; EngineError or DlaError where the network, the version or the log cannot be used."""
    from dla.log_placement import confusion, real_placement
    from dla.logs import read_log
    from dla.placement import place
    from engines.graph import read_graph, set_shapes

    log = read_log(question.log) if question.log else None
    model, name = _network(question)
    if question.shapes:
        set_shapes(model, question.shapes, name)
    graph = read_graph(model, name)
    version = question.tensorrt or (log and log.tensorrt) or DEFAULT_TENSORRT
    predicted = place(graph, version, precision=question.precision)
    rewrites = _rewrites_that_apply(model, predicted)
    if log is None:
        return Answer(question, graph, predicted, rewrites=rewrites)
    real = real_placement(log, graph, predicted)
    return Answer(question, graph, real, confusion(predicted, real), rewrites)


def _network(question: Question) -> tuple[onnx.ModelProto, str]:
    """Return the question's network without its large weights, and its name."""
    return light_network(question.model), Path(question.model).stem


def _rewrites_that_apply(model: onnx.ModelProto, placement: Placement) -> tuple[str, ...]:
    """Try the rewrites that the fixes name; one that the network refuses to take is no advice."""
    from dla.errors import DlaError
    from dla.rewrite import rewrite
    from engines.errors import EngineError

    named = _rewrites_named(" ".join({layer.fix for layer in placement.layers if layer.fix}))
    try:
        _, changes = rewrite(model, named)
    except (DlaError, EngineError):
        return ()
    return tuple(name for name in named if name in {change.rewrite for change in changes})


def _rewrites_named(text: str) -> tuple[str, ...]:
    from dla.rewrite import REWRITES

    words = set(re.findall(r"[\w-]+", text))
    return tuple(name for name in REWRITES if name in words)


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Return the input and the dimensions of "name=1x3x224x224"; OrinError where it has another form."""
    name, equals, dims = text.rpartition("=")
    sizes = dims.split("x")
    if not equals or not name or not all(size.isascii() and size.isdigit() and int(size) for size in sizes):
        raise OrinError(f"shape {text!r} cannot be read, expected the input's name and dimensions: input=1x3x224x224")
    return name, tuple(map(int, sizes))


def reasons(answer: Answer) -> tuple[Reason, ...]:
    """Group the layers that fall back by rule, TensorRT's message and fix; the largest group first."""
    groups: dict[tuple[str | None, ...], list[LayerPlacement]] = {}
    for layer in answer.placement.layers:
        if layer.final == "gpu":
            groups.setdefault((layer.rule, _unnamed(layer), layer.fix), []).append(layer)
    found = [_reason(layers, answer.rewrites) for layers in groups.values()]
    return tuple(sorted(found, key=lambda reason: -len(reason.layers)))


def _unnamed(layer: LayerPlacement) -> str | None:
    """Return the message without the layer that it is about; None where that is not this one."""
    if layer.message is None or layer.candidate == "dla":
        return None  # beyond the limit of loadables the message is about the loadable's first layer
    about = layer.node if layer.op else _INSERTED.sub("", layer.node)
    return layer.message.replace(about, "")


def _reason(layers: Sequence[LayerPlacement], rewrites: Sequence[str]) -> Reason:
    first = layers[0]
    return Reason(
        rule=first.rule or "shuffle inserted",
        message=first.message or "TensorRT inserts it around a layer whose tensors have less than four axes",
        fix=first.fix,
        confidence=first.confidence,
        layers=tuple(layer.node for layer in layers),
        rewrites=tuple(name for name in _rewrites_named(first.fix or "") if name in rewrites),
    )


def trtexec(answer: Answer) -> str:
    """Return the command that builds this engine on the board; formats and memory are those that the DLA takes."""
    from dla.rules_versions import STRONG_TYPES, rules_version

    question, placement = answer.question, answer.placement
    version = rules_version(placement.tensorrt)
    stem = Path(question.model).stem
    path = question.model if Path(question.model).suffix else f"{question.model}.onnx"
    words = ["trtexec", f"--onnx={path}", *_shapes(question)]
    if version < STRONG_TYPES:  # after that the network's own types say it
        words += ["--int8", "--fp16", f"--calib={stem}.cache"] if question.precision == "int8" else ["--fp16"]
    words += ["--useDLACore=0", *_formats(answer)]
    if placement.kept:
        words.append("--memPoolSize=" + ",".join(f"{name}:{mib}" for name, mib in _pools_mib(placement).items()))
    words.append("--skipInference" if version >= SKIP_INFERENCE_SINCE else "--buildOnly")
    return shlex.join([*words, f"--saveEngine={stem}.dla.engine", "--verbose"])


def _shapes(question: Question) -> list[str]:
    sizes = [f"{name}:{'x'.join(map(str, shape))}" for name, shape in question.shapes.items()]
    return [f"--shapes={','.join(sizes)}"] if sizes else []


def _formats(answer: Answer) -> list[str]:
    """Without a GPU layer no reformat may be left to the GPU: then the formats are the DLA's own."""
    from dla.errors import DlaError
    from dla.io import io_formats

    if not answer.placement.zero_gpu_layers:
        return ["--allowGPUFallback"]
    precision, graph = answer.question.precision, answer.graph
    try:
        formats = io_formats(graph, "DLA_HWC4", "DLA_LINEAR", precision)
    except DlaError:  # the input is no image that a convolution reads
        formats = io_formats(graph, "DLA_LINEAR", "DLA_LINEAR", precision)
    return [
        f"--{direction}IOFormats=" + ",".join(f"{precision}:{formats[name].lower()}" for name in names)
        for direction, names in (("input", graph.inputs), ("output", graph.outputs))
    ]


def _pools_mib(placement: Placement) -> dict[str, int]:
    """Return the memory that the hungriest loadable asks for, under trtexec's names."""
    needs = {
        option: max(loadable.pools_bytes.get(pool, 0) for loadable in placement.kept)
        for pool, option in POOL_OPTIONS.items()
    }
    return {option: max(1, -(-size // MIB)) for option, size in needs.items() if size}


def as_json(answer: Answer) -> dict[str, Any]:
    """Return an answer as plain values; `candidates` and `kept` count the loadables before and after the limit."""
    placement = answer.placement
    values: dict[str, Any] = {
        "layers": [asdict(layer) for layer in placement.layers],
        "loadables": [list(nodes) for nodes in placement.loadables],
        "candidates": len(placement.candidates),
        "kept": len(placement.kept),
        "gpu_layers": list(placement.gpu_layers),
        "reformats": [asdict(reformat) for reformat in placement.reformats],
    }
    if answer.confusion is not None:
        values["confusion"] = _confusion_json(answer.confusion)
    return values


def _confusion_json(found: Confusion) -> dict[str, Any]:
    tables = {"candidate": found.candidate, "final": found.final}
    counted = {
        name: [{"predicted": ours, "real": theirs, "nodes": count} for (ours, theirs), count in table.items()]
        for name, table in tables.items()
    }
    return {**counted, "misses": [asdict(miss) for miss in found.misses], "unsaid": list(found.unsaid)}
