"""Four axes kept as far as they go: [N,C,1,1] in place of [N,C], which ends a loadable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dla.edit import Edit, shape_of

if TYPE_CHECKING:
    import onnx_ir as ir

POINTWISE = (
    *("Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish"),
    *("Elu", "Softplus", "Identity", "Dropout"),
)


def settle_readers(edit: Edit, value: ir.Value) -> None:
    """Let readers that work value by value take [N,C,1,1] as it is, and give [N,C] to each of the others."""
    waiting = [value]
    while waiting:
        wide = waiting.pop()
        for node, index in tuple(wide.uses()):
            if node.op_type in POINTWISE and index == 0 and len(node.outputs) == 1:
                node.outputs[0].shape = wide.shape
                waiting.append(node.outputs[0])
            else:
                node.replace_input_with(index, edit.add(node, "Flatten", [wide], shape_of(wide)[:2]))
