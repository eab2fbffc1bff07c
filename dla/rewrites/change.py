"""What a rewrite says of its work: changes, refusals, and the walk over a network's nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dla.edit import Edit, label
from dla.errors import DlaError

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Change:
    """One node that a rewrite changed: `op` and `node` are those of the original, `detail` says what became of it.

    `tensor` is the tensor that was kept: the node's output, or for "cut-tail" what the step after the engine reads.
    """

    rewrite: str
    node: str
    op: str
    tensor: str
    detail: str


@dataclass(frozen=True)
class Refusal:
    """One node that a rewrite left as it is, because the result would not be identical or not fit the DLA."""

    rewrite: str
    node: str
    op: str
    reason: str


class RefusedError(Exception):
    """A rewrite's own way to say why it leaves a node alone; never leaves this package."""


class Made(NamedTuple):
    """A node that was changed: the tensor that was kept, and what became of the node."""

    tensor: str
    detail: str


Outcome = Change | Refusal
NodeRewrite = Callable[[Edit, "ir.Node"], Made | None]


def each_node(edit: Edit, name: str, apply: NodeRewrite) -> Iterator[Outcome]:
    """Try a rewrite on each node; yield what changed and what was refused, nothing where it does not apply.

    DlaError names a node that contradicts itself.
    """
    for node in edit.nodes:
        where, op = label(node), node.op_type
        try:
            made = apply(edit, node)
        except RefusedError as reason:
            yield Refusal(name, where, op, str(reason))
        except (IndexError, TypeError, ValueError) as error:  # shape inference lets through what ONNX does not allow
            seen = " ".join(str(error).split())
            raise DlaError(
                f"{op} {where!r} has attributes, inputs or weights that do not fit each other ({seen});"
                f" export the network again, or leave out {name}"
            ) from error
        else:
            if made is not None:
                yield Change(name, where, op, *made)
