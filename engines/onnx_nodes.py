"""Writing an ONNX graph node by node, without naming what lies between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

FLOAT, INT32, HALF = 1, 6, 10  # onnx.TensorProto's numbers, so that it need not be imported


@dataclass
class OnnxNodes:
    """Nodes and constants under construction; each gets a name that starts with `prefix`."""

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, op: str, *inputs: Any, made: Sequence[str] = (), **attributes: Any) -> str:
        """Append a node and return its first output; inputs are names of tensors, or constants as numbers."""
        from onnx.helper import make_node

        outputs = list(made) or [f"{self.prefix}.{len(self.nodes)}"]
        read = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(make_node(op, read, outputs, name=f"{self.prefix}.{op}_{len(self.nodes)}", **attributes))
        return outputs[0]

    def constant(self, values: Any) -> str:
        """Append a constant: whole numbers are int64, others float32."""
        from onnx.numpy_helper import from_array

        array = np.asarray(values)
        name = f"{self.prefix}.constant_{len(self.constants)}"
        self.constants.append(from_array(array.astype(np.int64 if array.dtype.kind == "i" else np.float32), name))
        return name
