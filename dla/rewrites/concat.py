"""Concatenations along height or width, turned onto the channels: the only axis that the DLA joins on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dla.edit import Edit, attribute, shape_of
from dla.rewrites.change import Made, RefusedError

if TYPE_CHECKING:
    import onnx_ir as ir

CHANNELS = 1


def channel_concat(edit: Edit, node: ir.Node) -> Made | None:
    """Join on the channels: in front of the Transposes where all inputs have the same one, else between new ones."""
    inputs = [value for value in node.inputs if value is not None]
    if node.op_type != "Concat" or any(len(shape_of(value)) != 4 for value in inputs):
        return None
    axis = int(attribute(node, "axis", 0)) % 4
    if axis == CHANNELS:
        return None
    if axis == 0:
        raise RefusedError("it joins batches, which no layout makes channels; join what is made of them later")
    order = _common_order(inputs)
    if order is not None and order[axis] == CHANNELS:
        sources = [value.producer().inputs[0] for value in inputs]  # type: ignore[union-attr]
        detail = "Concat is now on the channels, in front of the Transposes that its inputs had"
    else:
        order = tuple({CHANNELS: axis, axis: CHANNELS}.get(place, place) for place in range(4))
        sources = [_transpose(edit, node, value, order) for value in inputs]
        detail = f"Concat is now on the channels, between {len(sources) + 1} Transposes"
    joined = edit.add(node, "Concat", sources, _joined_shape(sources), axis=CHANNELS)
    back = edit.add(node, "Transpose", [joined], shape_of(node.outputs[0]), perm=order)
    edit.replace(node.outputs[0], back)
    return Made(str(back.name), detail)


def _common_order(inputs: list[ir.Value]) -> tuple[int, ...] | None:
    """Return the permutation of the Transposes that make all inputs; None where they are not made alike."""
    makers = [value.producer() for value in inputs]
    orders = {None if maker is None or maker.op_type != "Transpose" else _order(maker) for maker in makers}
    return orders.pop() if len(orders) == 1 else None


def _order(node: ir.Node) -> tuple[int, ...]:
    order: tuple[int, ...] = attribute(node, "perm", (3, 2, 1, 0))
    return order


def _transpose(edit: Edit, node: ir.Node, value: ir.Value, order: tuple[int, ...]) -> ir.Value:
    shape = shape_of(value)
    return edit.add(node, "Transpose", [value], [shape[place] for place in order], perm=order)


def _joined_shape(sources: list[ir.Value | None]) -> tuple[int, ...]:
    batch, _, *size = shape_of(sources[0])
    return (batch, sum(shape_of(source)[CHANNELS] for source in sources), *size)
