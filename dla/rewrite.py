"""Named rewrites that bring a network's layers into forms that the DLA takes; each is algebraically identical."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dla.edit import Edit
from dla.errors import DlaError

if TYPE_CHECKING:
    import onnx

MAX_POOL_WINDOW = 8
MAX_CONV_KERNEL = 32
SPATIAL_AXES = (2, 3)
MEANS = ("GlobalAveragePool", "ReduceMean")
FLATTENING = ("Flatten", "Reshape", "Squeeze")
TAILS = ("Softmax", "LogSoftmax", "TopK", "ArgMax", "ArgMin")


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


def rewrite(model: onnx.ModelProto, names: Sequence[str]) -> tuple[onnx.ModelProto, tuple[Change, ...]]:
    """Return a copy of a model with the named rewrites applied, and what changed: nothing where none applies.

    Rewrites run in the order of `REWRITES`, whatever the order of `names`. The names of tensors stay, so that a
    calibration cache still fits. DlaError where a name is unknown.
    """
    unknown = [name for name in names if name not in REWRITES]
    if unknown:
        raise DlaError(f"rewrite {unknown[0]!r} is not known; known: {', '.join(REWRITES)}")
    edit = Edit(model)
    changes = [change for name, apply in REWRITES.items() if name in names for change in apply(edit)]
    return edit.model, tuple(changes)


def _cut_tail(edit: Edit) -> list[Change]:
    """Cut sorting and softmax off the end, again and again until something else ends the network."""
    changes: list[Change] = []
    while (node := next((node for node in edit.nodes if _ends_network(edit, node)), None)) is not None:
        source = node.input[0]
        outputs = [source if name in node.output else name for name in edit.outputs]
        edit.set_outputs(list(dict.fromkeys(outputs)))
        edit.replace([node], [])
        detail = f"{node.op_type} of {source!r} is cut off: a tail step after the engine"
        changes.append(Change("cut-tail", _name(node), node.op_type, source, detail))
    return changes


def _ends_network(edit: Edit, node: onnx.NodeProto) -> bool:
    if node.op_type not in TAILS or edit.is_input(node.input[0]):
        return False
    return any(name in edit.outputs for name in node.output) and not any(map(edit.readers, node.output))


def _global_pool(edit: Edit) -> list[Change]:
    """Give means over height and width the form of an average pool with an explicit window."""
    return [_to_average_pool(edit, node) for node in edit.nodes if node.op_type in MEANS and _is_global(edit, node)]


def _is_global(edit: Edit, node: onnx.NodeProto) -> bool:
    shape = edit.shapes[node.input[0]]
    small = len(shape) == 4 and max(shape[2:]) <= MAX_POOL_WINDOW
    return small and (node.op_type == "GlobalAveragePool" or _axes(edit, node) == SPATIAL_AXES)


def _axes(edit: Edit, node: onnx.NodeProto) -> tuple[int, ...]:
    """Return the axes of a reduction over a 4-D tensor: an attribute before opset 18, a constant input after."""
    axes = _attribute(node, "axes", ())
    weight = edit.weight(node.input[1]) if len(node.input) > 1 else None
    if weight is not None:
        axes = edit.values(weight)
    return tuple(sorted(int(axis) % 4 for axis in axes))


def _to_average_pool(edit: Edit, node: onnx.NodeProto) -> Change:
    from onnx.helper import make_node

    source, output = node.input[0], node.output[0]
    window = edit.shapes[source][2:]
    keeps_axes = len(edit.shapes[output]) == 4
    pooled = output if keeps_axes else f"{output}_pooled"
    new = [make_node("AveragePool", [source], [pooled], name=node.name, kernel_shape=window)]
    if not keeps_axes:
        edit.shapes[pooled] = (*edit.shapes[output], 1, 1)
        new.append(make_node("Flatten", [pooled], [output], name=f"{_name(node)}_flatten"))
    edit.replace([node], new)
    detail = f"{node.op_type} is now AveragePool with the window {window[0]}x{window[1]}"
    return Change("global-pool", _name(node), node.op_type, output, detail)


@dataclass(frozen=True)
class _Linear:
    """A fully connected layer: the nodes that make it up, and its operands as the last one's output sees them.

    The weight is [M,K] where `transposed`, [K,M] where not; `alpha` and `beta` scale product and bias.
    """

    nodes: tuple[Any, ...]
    weight: Any
    transposed: bool
    bias: Any | None
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def output(self) -> str:
        """Name of the tensor that the layer makes."""
        return str(self.nodes[-1].output[0])

    @property
    def features(self) -> int:
        """Number of outputs, M."""
        return int(self.weight.dims[0 if self.transposed else 1])


def _gemm_to_conv(edit: Edit) -> list[Change]:
    """Turn fully connected layers behind a flattening into convolutions on what was flattened."""
    changes = []
    for node in edit.nodes:
        linear = _linear(edit, node)
        flattening = edit.maker(node.input[0]) if linear is not None else None
        if linear is not None and flattening is not None and _is_flattening(edit, flattening):
            changes.append(_to_conv(edit, linear, flattening))
    return changes


def _is_flattening(edit: Edit, node: onnx.NodeProto) -> bool:
    before, after = edit.shapes[node.input[0]], edit.shapes[node.output[0]]
    if node.op_type not in FLATTENING or len(before) != 4 or len(after) != 2:
        return False
    return before[0] == after[0] and max(before[2:]) <= MAX_CONV_KERNEL


def _linear(edit: Edit, node: onnx.NodeProto) -> _Linear | None:
    """Read a Gemm, or a MatMul with the Add of a bias that may follow; None for any other node."""
    weight = edit.weight(node.input[1]) if node.op_type in ("Gemm", "MatMul") else None
    if weight is None or len(weight.dims) != 2 or _attribute(node, "transA", 0):
        return None
    if node.op_type == "MatMul":
        return _with_bias(edit, _Linear((node,), weight, transposed=False, bias=None))
    bias = edit.weight(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    alpha, beta = _attribute(node, "alpha", 1.0), _attribute(node, "beta", 1.0)
    linear = _Linear((node,), weight, bool(_attribute(node, "transB", 0)), bias, alpha, beta)
    constant_bias = bias is not None or len(node.input) < 3 or not node.input[2]
    return linear if constant_bias and _is_bias(bias, linear.features) else None


def _with_bias(edit: Edit, linear: _Linear) -> _Linear:
    readers = edit.readers(linear.output)
    if len(readers) != 1 or readers[0].op_type != "Add" or linear.output in edit.outputs:
        return linear
    bias = next(filter(None, map(edit.weight, readers[0].input)), None)
    if bias is None or not _is_bias(bias, linear.features):
        return linear
    return _Linear((*linear.nodes, readers[0]), linear.weight, linear.transposed, bias)


def _is_bias(bias: onnx.TensorProto | None, features: int) -> bool:
    return bias is None or (list(bias.dims) in ([features], [1, features]))


def _to_conv(edit: Edit, linear: _Linear, flattening: onnx.NodeProto) -> Change:
    from onnx.helper import make_node

    first = linear.nodes[0]
    source, output = flattening.input[0], linear.output
    batch, channels, height, width = edit.shapes[source]
    kernel = (linear.features, channels, height, width)
    inputs = [source, _kernel(edit, linear, kernel), *_conv_bias(edit, linear)]
    in_between = bool(edit.readers(output))  # then its readers still want [N,M]
    made = f"{output}_conv" if in_between else output
    new = [make_node("Conv", inputs, [made], name=first.name, kernel_shape=kernel[2:])]
    if in_between:
        new.append(make_node("Flatten", [made], [output], name=f"{_name(first)}_flatten"))
    edit.shapes[made] = (batch, linear.features, 1, 1)
    only_reader = len(edit.readers(flattening.output[0])) == 1 and flattening.output[0] not in edit.outputs
    edit.replace([flattening, *linear.nodes] if only_reader else list(linear.nodes), new)
    if not in_between:
        edit.reshape_output(output, (batch, linear.features, 1, 1))
    detail = f"{first.op_type} is now Conv {height}x{width}, {channels} to {linear.features} channels"
    return Change("gemm-to-conv", _name(first), first.op_type, output, detail)


def _kernel(edit: Edit, linear: _Linear, kernel: tuple[int, ...]) -> str:
    """Add the weight as a convolution kernel [M,C,H,W]; without touching its data where its layout is that already."""
    if linear.transposed and linear.alpha == 1.0:
        return edit.add_weight_like(linear.weight, kernel)
    values = edit.values(linear.weight)
    rows = values if linear.transposed else values.T
    return edit.add_weight(linear.weight.name, (rows * rows.dtype.type(linear.alpha)).reshape(kernel))


def _conv_bias(edit: Edit, linear: _Linear) -> list[str]:
    """Add the bias as [M]: empty where there is none."""
    if linear.bias is None:
        return []
    if linear.beta == 1.0:
        return [edit.add_weight_like(linear.bias, (linear.features,))]
    values = edit.values(linear.bias)
    return [edit.add_weight(linear.bias.name, (values * values.dtype.type(linear.beta)).reshape(linear.features))]


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    from onnx.helper import get_attribute_value

    return next((get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def _name(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])


# In the order in which they run: a tail that is cut no longer asks the classifier for [N,M].
REWRITES: Mapping[str, Callable[[Edit], list[Change]]] = {
    "cut-tail": _cut_tail,
    "global-pool": _global_pool,
    "gemm-to-conv": _gemm_to_conv,
}
