"""Operators that work value by value, in the few forms that the DLA has: Clip, Add and Mul."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dla.edit import Edit, attribute, input_of, is_constant, is_float, numbers, shape_of
from dla.rewrites.change import Made, RefusedError

if TYPE_CHECKING:
    import onnx_ir as ir


ALPHA = float(np.float32(0.2))  # of HardSigmoid where it names none; attributes of ONNX are float32


class _Chain:
    """Operators that follow each other in front of a node, each on the result of the last and one number."""

    def __init__(self, edit: Edit, node: ir.Node, source: ir.Value) -> None:
        self.value = source
        self._edit, self._node, self._shape = edit, node, shape_of(node.outputs[0])

    def then(self, op: str, operand: float | ir.Value) -> _Chain:
        """Add or multiply by a number or by a tensor of the same shape."""
        if isinstance(operand, float):
            operand = self._edit.scalar(f"{self._name}_{op.lower()}_by", operand, self.value, len(self._shape))
        self.value = self._edit.add(self._node, op, [self.value, operand], self._shape)
        return self

    def clip(self, low: float, high: float) -> _Chain:
        """Clip to a range."""
        bounds = [self._edit.scalar(f"{self._name}_clip", bound, self.value) for bound in (low, high)]
        self.value = self._edit.add(self._node, "Clip", [self.value, *bounds], self._shape)
        return self

    @property
    def _name(self) -> str:
        return str(self._node.outputs[0].name)


def hard_swish(edit: Edit, node: ir.Node) -> Made | None:
    """Write HardSigmoid as Clip(a x + b, 0, 1), and HardSwish as x Clip(x + 3, 0, 6) / 6."""
    source = input_of(node, 0)
    if node.op_type not in ("HardSigmoid", "HardSwish") or source is None or not is_float(node.outputs[0]):
        return None
    chain = _Chain(edit, node, source)
    if node.op_type == "HardSigmoid":
        chain.then("Mul", float(attribute(node, "alpha", ALPHA)))
        chain.then("Add", float(attribute(node, "beta", 0.5))).clip(0.0, 1.0)
        detail = "Mul, Add, Clip(0, 1)"
    else:
        chain.then("Add", 3.0).clip(0.0, 6.0).then("Mul", source).then("Mul", 1 / 6)
        detail = "Add, Clip(0, 6), Mul, Mul"
    edit.replace(node.outputs[0], chain.value)
    return Made(str(chain.value.name), f"{node.op_type} is now {detail}")


def constant_arithmetic(edit: Edit, node: ir.Node) -> Made | None:
    """Write Neg, and Div and Sub with a constant, as Mul and Add; a constant divided by a tensor stays."""
    source, operand = input_of(node, 0), input_of(node, 1)
    if node.op_type not in ("Neg", "Div", "Sub") or source is None or not is_float(node.outputs[0]):
        return None
    if node.op_type == "Neg":
        value, detail = _Chain(edit, node, source).then("Mul", -1.0).value, "Mul by -1"
    elif operand is None or is_constant(source) == is_constant(operand):
        return None
    elif node.op_type == "Div":
        if is_constant(source):
            return None
        value, detail = _with(edit, node, "Mul", source, _inverse(edit, operand)), "Mul by the inverse"
    elif is_constant(operand):
        negative = edit.derived(operand, shape_of(operand), np.negative)
        value, detail = _with(edit, node, "Add", source, negative), "Add of the negative"
    else:
        minus_one = edit.scalar(f"{operand.name}_minus", -1.0, operand, len(shape_of(operand)))
        flipped = edit.add(node, "Mul", [operand, minus_one], shape_of(operand))
        value, detail = _with(edit, node, "Add", flipped, source), "Mul by -1, Add"
    edit.replace(node.outputs[0], value)
    return Made(str(value.name), f"{node.op_type} is now {detail}")


def _with(edit: Edit, node: ir.Node, op: str, left: ir.Value, right: ir.Value) -> ir.Value:
    return edit.add(node, op, [left, right], shape_of(node.outputs[0]))


def _inverse(edit: Edit, divisor: ir.Value) -> ir.Value:
    """Add 1 / divisor as a weight; refused where that is no finite number."""
    known = numbers(divisor)
    if known is not None and not np.isfinite(_invert(known)).all():
        raise RefusedError(f"the divisor {divisor.name!r} holds values whose inverse is not finite")
    return edit.derived(divisor, shape_of(divisor), _invert)


def _invert(values: NDArray[Any]) -> Any:
    with np.errstate(divide="ignore", over="ignore"):
        return values.dtype.type(1) / values
