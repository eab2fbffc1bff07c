"""Tails: what follows the last convolutions and matrix products, and is a step after the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dla.edit import Edit, input_of, is_constant, is_float, label, shape_of
from dla.rewrites.change import Change

if TYPE_CHECKING:
    import onnx_ir as ir

SELECTING = ("Softmax", "LogSoftmax", "TopK", "ArgMax", "ArgMin", "NonMaxSuppression")
LEAVING_MAPS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
MOVING = (*LEAVING_MAPS, "Transpose", "Identity", "Cast")
COMPUTING = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "Loop", "Scan", "If")


def cut_tail(edit: Edit) -> Iterator[Change]:
    """Cut decoding and selecting off the end: the tensors that they read become the network's outputs.

    A tail starts, behind the last layers with weights, at a softmax, a selection, or where a map stops being one
    (four axes to another number); all that depends on it belongs to it.
    """
    tail = _tail(edit)
    places = {value: None for node in edit.graph if node in tail for value in node.inputs if _enters(value, tail)}
    if not places:
        return
    for value in places:
        yield from (_change(value, node) for node in value.consumers() if node in tail)
    _end_at(edit, list(places), tail)


def _change(value: ir.Value, node: ir.Node) -> Change:
    more = ", with what follows it" if node.successors() else ""
    detail = f"{node.op_type} of {value.name!r} is cut off{more}: a tail step after the engine"
    return Change("cut-tail", label(node), node.op_type, str(value.name), detail)


def _end_at(edit: Edit, places: list[ir.Value], tail: set[ir.Node]) -> None:
    """Let the network end at these tensors and at those of its outputs that the tail does not make."""
    outputs: dict[ir.Value, None] = {}
    for value in edit.graph.outputs:
        outputs.update(dict.fromkeys(places if value.producer() in tail else [value]))
    edit.graph.outputs[:] = list(outputs)
    for node in [node for node in reversed(edit.graph) if node in tail]:
        edit.sweep(node)


def _tail(edit: Edit) -> set[ir.Node]:
    """Return the nodes of the tail: where it starts, what follows, then what only moves values into it."""
    free = _behind_computing(edit)
    tail: set[ir.Node] = set()
    for node in edit.graph:
        if node in free and (_starts(node) or any(parent in tail for parent in node.predecessors())):
            tail.add(node)
    for node in reversed(edit.graph):
        if node in free and _only_feeds(node, tail.__contains__):
            tail.add(node)
    return tail


def _behind_computing(edit: Edit) -> set[ir.Node]:
    """Return the nodes from which no layer with weights is reached."""
    busy: set[ir.Node] = set()
    for node in reversed(edit.graph):
        computes = node.op_type in COMPUTING and not _is_expectation(node)
        if computes or any(reader in busy for reader in node.successors()):
            busy.add(node)
    return set(edit.graph) - busy


def _is_expectation(node: ir.Node) -> bool:
    """Tell whether a Conv only weighs the probabilities of a Softmax: the box decoding of newer YOLO heads."""
    source = input_of(node, 0) if node.op_type == "Conv" else None
    while source is not None and (maker := source.producer()) is not None:
        if maker.op_type == "Softmax":
            return True
        source = input_of(maker, 0) if maker.op_type in MOVING else None
    return False


def _starts(node: ir.Node) -> bool:
    source = input_of(node, 0)
    if source is None or source.producer() is None or is_constant(source):
        return False
    leaves = len(shape_of(source)) == 4 and _rank(node) not in (0, 4)
    return node.op_type in SELECTING or (node.op_type in LEAVING_MAPS and leaves)


def _rank(node: ir.Node) -> int:
    """Return the number of axes that a node makes; 0 where that is not known."""
    known = len(shape_of(node.outputs[0]))
    computed = node.op_type == "Reshape" and not known  # to a shape that is worked out at run time
    return sum(shape_of(input_of(node, 1))) if computed else known


def _only_feeds(node: ir.Node, in_tail: Callable[[ir.Node], bool]) -> bool:
    """Tell whether a node moves values, or computes whole numbers, for the tail alone."""
    source = input_of(node, 0)
    if source is None or source.producer() is None or any(value.is_graph_output() for value in node.outputs):
        return False
    moves = node.op_type in MOVING or not any(map(is_float, node.outputs))
    return moves and bool(node.successors()) and all(map(in_tail, node.successors()))


def _enters(value: ir.Value | None, tail: set[ir.Node]) -> bool:
    """Tell whether a tensor of the tail is made in front of it, by the network."""
    if value is None or is_constant(value) or not is_float(value):
        return False
    maker = value.producer()
    return maker is not None and maker not in tail
