"""QuantizeLinear and DequantizeLinear as their node states them, and what a DLA can take of that: symmetric INT8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from engines.spec import INT8_MAX

if TYPE_CHECKING:
    import onnx

QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"
CENTRE = {"int8": 0, "uint8": 128, "int32": 0}  # the zero point of each type that makes it symmetric

Constants = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Quantiser:
    """One of the two nodes: the tensor that it reads, its scale ([] or [channels]), axis, and type of integers."""

    tensor: str
    scale: NDArray[Any]
    axis: int
    kind: str

    def agrees(self, other: Quantiser) -> bool:
        """Tell whether both round to the same steps."""
        return self.kind == other.kind and bool(np.array_equal(self.scale, other.scale))

    def along(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the scale in a shape that fits a tensor's."""
        if self.scale.ndim == 0:
            return self.scale
        return self.scale.reshape([-1 if index == self.axis % values.ndim else 1 for index in range(values.ndim)])

    def dequantised(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return what stored integers stand for, in the scale's type."""
        steps: NDArray[Any] = stored.astype(self.scale.dtype) - self.scale.dtype.type(CENTRE[self.kind])
        return np.asarray(steps * self.along(stored))

    def rounded(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return real values rounded to the steps, INT8's full width."""
        scale = self.along(values)
        steps: NDArray[Any] = np.clip(np.rint(values / scale), -INT8_MAX - 1, INT8_MAX)
        return np.asarray((steps * scale).astype(values.dtype))


def quantiser(node: onnx.NodeProto, constants: Constants, about: str, kind: str | None = None) -> Quantiser:
    """Read one of the two nodes; CalibrationError names the tensor `about` where it is not symmetric INT8.

    INT32 is taken as well: biases are stored so. `kind` is the type of the integers where the node does not say it.
    """
    if len(node.input) < 2 or node.input[1] not in constants:
        raise CalibrationError(
            f"tensor {about!r} has a scale that is computed, expected a constant one; quantise it again"
        )
    attributes = {entry.name: int(entry.i) for entry in node.attribute}
    if attributes.get("block_size"):
        raise CalibrationError(f"tensor {about!r} is quantised in blocks, expected one scale a tensor or a channel")
    scale = constants[node.input[1]]
    scale = scale.reshape(()) if scale.size == 1 else scale
    if not np.all(np.isfinite(scale)) or not np.all(scale > 0):
        raise CalibrationError(
            f"tensor {about!r} has the scale {scale.min()}, expected a finite one over 0; calibrate again"
        )
    kind, zeros = _integers(node, constants, about, kind)
    _check_symmetric(kind, zeros, about)
    return Quantiser(str(node.input[0]), scale, attributes.get("axis", 1), kind)


def _check_symmetric(kind: str, zeros: NDArray[Any], about: str) -> None:
    if kind not in CENTRE:
        raise CalibrationError(f"tensor {about!r} is quantised to {kind}, expected int8; quantise it again")
    other = zeros[zeros != CENTRE[kind]]
    if other.size:
        raise CalibrationError(
            f"tensor {about!r} has the zero point {other[0]} in {kind}, expected {CENTRE[kind]}: the DLA takes"
            " symmetric scales alone; quantise it again, symmetric"
        )


def _integers(node: onnx.NodeProto, constants: Constants, about: str, kind: str | None) -> tuple[str, NDArray[Any]]:
    """Return the type of the integers that a node makes or reads, and its zero points."""
    if len(node.input) > 2 and node.input[2]:
        zeros = constants.get(node.input[2])
        if zeros is None:
            raise CalibrationError(f"tensor {about!r} has a zero point that is computed, expected a constant one")
        return zeros.dtype.name, np.atleast_1d(zeros)
    stored = constants.get(node.input[0]) if node.op_type == DEQUANTISE else None
    return kind or (_output_type(node) if stored is None else stored.dtype.name), np.zeros(1, np.int64)


def _output_type(node: onnx.NodeProto) -> str:
    """Return the type that a node without a zero point makes: `output_dtype`, UINT8 without."""
    from onnx import TensorProto
    from onnx.helper import tensor_dtype_to_np_dtype

    types = [entry.i for entry in node.attribute if entry.name == "output_dtype" and entry.i]
    return str(tensor_dtype_to_np_dtype(types[0] if types else TensorProto.UINT8).name)
