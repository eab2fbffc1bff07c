"""Fully connected layers as convolutions on the map that was flattened for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dla.edit import Edit, attribute, input_of, is_constant, shape_of
from dla.rewrites.axes import settle_readers
from dla.rewrites.change import Made, RefusedError
from dla.rewrites.limits import MAX_CONV_KERNEL

if TYPE_CHECKING:
    import onnx_ir as ir

FLATTENING = ("Flatten", "Reshape", "Squeeze")


@dataclass(frozen=True)
class _Linear:
    """A fully connected layer: the nodes that make it up, and its operands as the last one's output sees them.

    The weight is [M,K] where `transposed`, [K,M] where not; `alpha` and `beta` scale product and bias.
    """

    nodes: tuple[ir.Node, ...]
    weight: ir.Value
    transposed: bool
    bias: ir.Value | None = None
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def features(self) -> int:
        """Number of outputs, M."""
        return shape_of(self.weight)[0 if self.transposed else 1]


def gemm_to_conv(edit: Edit, node: ir.Node) -> Made | None:
    """Turn a fully connected layer behind a flattening into a convolution on what was flattened.

    What comes out keeps its name and has the shape [N,M,1,1], as an output of the network too.
    """
    linear = _linear(node)
    flattening = None if linear is None or node.inputs[0] is None else node.inputs[0].producer()
    if linear is None or flattening is None or not _is_flattening(flattening):
        return None
    source, last = flattening.inputs[0], linear.nodes[-1]
    batch, channels, height, width = shape_of(source)
    if max(height, width) > MAX_CONV_KERNEL:
        raise RefusedError(f"it reads a map of {height}x{width}, over the largest kernel, {MAX_CONV_KERNEL}")
    kernel = _kernel(edit, linear, (linear.features, channels, height, width))
    operands = [source, kernel, *_bias(edit, linear)]
    made = edit.add(last, "Conv", operands, (batch, linear.features, 1, 1), kernel_shape=(height, width))
    edit.replace(last.outputs[0], made)
    settle_readers(edit, made)
    return Made(
        str(made.name), f"{node.op_type} is now Conv {height}x{width}, {channels} to {linear.features} channels"
    )


def _is_flattening(node: ir.Node) -> bool:
    before, after = shape_of(input_of(node, 0)), shape_of(node.outputs[0])
    return node.op_type in FLATTENING and len(before) == 4 and len(after) == 2 and before[0] == after[0]


def _linear(node: ir.Node) -> _Linear | None:
    """Read a Gemm, or a MatMul with the Add of a bias that may follow; None for any other node."""
    weight = input_of(node, 1) if node.op_type in ("Gemm", "MatMul") else None
    if weight is None or not is_constant(weight) or len(shape_of(weight)) != 2 or attribute(node, "transA", 0):
        return None
    if node.op_type == "MatMul":
        return _with_bias(_Linear((node,), weight, transposed=False))
    bias = input_of(node, 2)
    scales = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    linear = _Linear((node,), weight, bool(attribute(node, "transB", 0)), bias, *scales)
    return linear if bias is None or _is_bias(bias, linear.features) else None


def _with_bias(linear: _Linear) -> _Linear:
    product = linear.nodes[0].outputs[0]
    readers = product.consumers()
    if len(readers) != 1 or readers[0].op_type != "Add" or product.is_graph_output():
        return linear
    bias = next((value for value in readers[0].inputs if value is not None and value is not product), None)
    if bias is None or not _is_bias(bias, linear.features):
        return linear
    return replace(linear, nodes=(*linear.nodes, readers[0]), bias=bias)


def _is_bias(bias: ir.Value, features: int) -> bool:
    return is_constant(bias) and shape_of(bias) in ((features,), (1, features))


def _kernel(edit: Edit, linear: _Linear, kernel: tuple[int, ...]) -> ir.Value:
    """Add the weight as a convolution kernel [M,C,H,W]; without touching its data where its layout is that already."""
    if linear.transposed and linear.alpha == 1.0:
        return edit.derived(linear.weight, kernel)
    scale = _scale(linear.alpha)
    return edit.derived(linear.weight, kernel, lambda values: scale(values if linear.transposed else values.T))


def _bias(edit: Edit, linear: _Linear) -> list[ir.Value]:
    """Add the bias as [M]: empty where there is none."""
    if linear.bias is None:
        return []
    return [edit.derived(linear.bias, (linear.features,), None if linear.beta == 1.0 else _scale(linear.beta))]


def _scale(factor: float) -> Callable[[Any], Any]:
    return lambda values: values * values.dtype.type(factor)
