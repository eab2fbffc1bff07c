"""The constants of a Q/DQ network as they were: float weights in place of integers, pairs and what lies between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.quantiser import DEQUANTISE, QUANTISE, Quantiser, quantiser
from engines.spec import INT8_MAX

if TYPE_CHECKING:
    import onnx

STEP = 1 / INT8_MAX  # share of the largest weight: a scale that differs by less moves no weight by a whole step
STORED = "_quantized"  # what ONNX Runtime puts behind a weight's name


class Weights:
    """The constants of a graph; `take` removes nodes that only restore one, `values` holds what then stands for it.

    `renamed` maps the output of a node that was taken to the constant to read in its place; `notes` says where a weight
    is not the one that the network was trained with.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.renamed: dict[str, str] = {}
        self.notes: list[str] = []
        self.values: dict[str, NDArray[Any]] = {}
        self._pending: dict[str, Quantiser] = {}
        self._restored: dict[tuple[str, ...], str] = {}
        self._made = {name for node in graph.node for name in node.output}.union(value.name for value in graph.input)
        for tensor in graph.initializer:
            self._load(tensor.name, tensor)
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute:
                self._load_value(node.output[0], node.attribute[0])

    def _load(self, name: str, tensor: onnx.TensorProto) -> None:
        from onnx.numpy_helper import to_array

        if tensor.data_location == tensor.EXTERNAL and not tensor.raw_data:
            raise CalibrationError(f"weight {name!r} is not loaded; load the network with its weights")
        self.values[name] = to_array(tensor)

    def _load_value(self, name: str, value: onnx.AttributeProto) -> None:
        """Take the value of a Constant node: a tensor, a number or numbers."""
        if value.name == "value":
            self._load(name, value.t)
        elif value.name in ("value_float", "value_int"):
            self.values[name] = np.array(value.f, np.float32) if value.name == "value_float" else np.array(value.i)
        elif value.name in ("value_floats", "value_ints"):
            self.values[name] = np.array(value.floats, np.float32) if value.floats else np.array(value.ints, np.int64)

    def take(self, node: onnx.NodeProto) -> bool:
        """Tell whether a node only restores a constant: the constant is then in `values`."""
        data = self.renamed.get(node.input[0], node.input[0]) if node.input else ""
        if node.op_type == QUANTISE and data in self.values:
            self._pending[node.output[0]] = self._of(node, data)
        elif node.op_type == DEQUANTISE and data in self._pending:
            self._reconnect(node, self._pending[data])
        elif node.op_type == DEQUANTISE and data in self.values:
            self._dequantise(node, data)
        elif node.op_type in _FOLDED and data in self.renamed.values() and self._constant(node):
            self._fold(node, data)
        else:
            return False
        return True

    def _constant(self, node: onnx.NodeProto) -> bool:
        return all(name in self.values for name in node.input[1:])

    def _of(self, node: onnx.NodeProto, data: str) -> Quantiser:
        found = quantiser(node, self.values, data)
        shape = self.values[data].shape
        fits = found.scale.ndim == 0 or (
            len(shape) > found.axis >= -len(shape) and shape[found.axis] == found.scale.size
        )
        if not fits:
            raise CalibrationError(
                f"weight {data!r} has {found.scale.size} scales for axis {found.axis} of {list(shape)}"
            )
        return Quantiser(data, found.scale, found.axis, found.kind)

    def _reconnect(self, node: onnx.NodeProto, rounding: Quantiser) -> None:
        """Read the float weight again, or what it was rounded to where the scale is not that of its largest value."""
        name = rounding.tensor
        if not quantiser(node, self.values, name, rounding.kind).agrees(rounding):
            raise CalibrationError(
                f"weight {name!r} is quantised and dequantised with different scales; export it again"
            )
        if _is_largest(rounding, self.values[name]):
            self.renamed[node.output[0]] = name
            return
        self.notes.append(
            f"weight {name!r} has a scale other than its largest value / 127: its rounded values are kept"
        )
        self._put(node, node.output[0], rounding.rounded(self.values[name]))

    def _dequantise(self, node: onnx.NodeProto, data: str) -> None:
        """Restore a weight from its integers, once for all nodes that do the same."""
        known = self._restored.get(tuple(node.input))
        if known is not None:
            self.renamed[node.output[0]] = known
            return
        name = data.removesuffix(STORED)
        if name in self.values or name in self._made:
            name = node.output[0]
        self._restored[tuple(node.input)] = name
        self._put(node, name, self._of(node, data).dequantised(self.values[data]))

    def _fold(self, node: onnx.NodeProto, data: str) -> None:
        """Apply a node that only moves values to a restored constant."""
        attributes = {entry.name: entry for entry in node.attribute}
        operands = [self.values[name] for name in node.input[1:]]
        self._put(node, node.output[0], _FOLDED[node.op_type](self.values[data], operands, attributes))

    def _put(self, node: onnx.NodeProto, name: str, values: NDArray[Any]) -> None:
        self.values[name] = values
        self.renamed[node.output[0]] = name


def _is_largest(rounding: Quantiser, weight: NDArray[Any]) -> bool:
    """Tell whether each scale is that of its channel's largest magnitude, to less than a step."""
    axes = tuple(
        index for index in range(weight.ndim) if rounding.scale.ndim == 0 or index != rounding.axis % weight.ndim
    )
    largest = np.abs(weight.astype(np.float64)).max(axis=axes)
    reach = rounding.scale.astype(np.float64) * INT8_MAX
    return bool(np.all((largest == 0) | (np.abs(reach - largest) < STEP * largest)))


_Fold = Callable[[NDArray[Any], list[NDArray[Any]], Mapping[str, "onnx.AttributeProto"]], NDArray[Any]]


def _axes(operands: list[NDArray[Any]], attributes: Mapping[str, onnx.AttributeProto]) -> tuple[int, ...] | None:
    """Return the axes that a Squeeze or Unsqueeze names, by input or, before opset 13, by attribute."""
    if operands:
        return tuple(int(axis) for axis in operands[0])
    return tuple(attributes["axes"].ints) if "axes" in attributes else None


def _reshape(values: NDArray[Any], operands: list[NDArray[Any]], _: Mapping[str, onnx.AttributeProto]) -> NDArray[Any]:
    sizes = [values.shape[index] if size == 0 else int(size) for index, size in enumerate(operands[0])]
    return values.reshape(sizes)


_FOLDED: Mapping[str, _Fold] = {
    "Reshape": _reshape,
    "Transpose": lambda values, _, kept: values.transpose(tuple(kept["perm"].ints) if "perm" in kept else None),
    "Squeeze": lambda values, operands, kept: values.squeeze(_axes(operands, kept)),
    "Unsqueeze": lambda values, operands, kept: np.expand_dims(values, _axes(operands, kept) or ()),
    "Identity": lambda values, _, __: values,
}
