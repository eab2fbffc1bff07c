"""A model under change, on onnx-ir: tensors know their shapes, and a few edits keep names and readers true."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dla.errors import DlaError
from engines.graph import UNKNOWN, Graph, Tensor, read_graph

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

NOT_LOADED = "not-loaded"
IR_WITH_CONSTANTS = 4  # the first in which an initializer need not be an input
ONNX_DOMAINS = ("", "ai.onnx")


class Edit:
    """A copy of a model that rewrites change; a tensor that stays keeps its name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx_ir

        known = read_graph(model)
        self.opset = known.opset
        try:
            self.model = onnx_ir.from_proto(model)
        except onnx_ir.serde.SerdeError as error:
            reason = " ".join(str(error).split())[:200]
            raise DlaError(f"network cannot be rewritten: {reason}; export it again") from None
        self.graph = self.model.graph
        self._names: set[str] = set()
        self._learn(known)
        self._take_weights_off_inputs()

    def proto(self) -> onnx.ModelProto:
        """Return the model as it is now."""
        import onnx_ir

        return onnx_ir.to_proto(self.model)

    @property
    def nodes(self) -> Iterator[ir.Node]:
        """ONNX's own operators, as they were when this was first asked, without those that are gone by now."""
        for node in tuple(self.graph):
            if node.graph is not None and node.domain in ONNX_DOMAINS:
                yield node

    def constant(self, name: str, values: Any) -> ir.Value:
        """Add an initializer under a new name made from `name`."""
        import onnx_ir

        return self._register(onnx_ir.tensor(np.asarray(values), name=self.fresh(name)))

    def scalar(self, name: str, number: float, like: ir.Value, rank: int = 0) -> ir.Value:
        """Add one number of a tensor's element type, with `rank` axes of length 1."""
        return self.constant(name, np.full((1,) * rank, number, dtype_of(like)))

    def derived(self, weight: ir.Value, shape: Sequence[int], change: Callable[[Any], Any] | None = None) -> ir.Value:
        """Add a weight made from another: changed, then reshaped. Where the data is not loaded, so is that of the new.

        Without a change the new weight still points at the other's external data.
        """
        import onnx_ir

        tensor = onnx_ir.convenience.get_const_tensor(weight)
        assert tensor is not None
        name = self.fresh(f"{weight.name}_conv")
        if not isinstance(tensor, onnx_ir.ExternalTensor):
            values = tensor.numpy() if change is None else change(tensor.numpy())
            return self._register(onnx_ir.tensor(np.asarray(values).reshape(shape), name=name))
        kept = (tensor.location, tensor.offset, tensor.length) if change is None else (NOT_LOADED, None, None)
        dims = onnx_ir.Shape(shape)
        return self._register(onnx_ir.ExternalTensor(*kept, dtype=tensor.dtype, shape=dims, name=name))

    def add(
        self, before: ir.Node, op: str, inputs: Sequence[ir.Value | None], shape: Sequence[int], **attributes: Any
    ) -> ir.Value:
        """Put a node in front of another; return its output, of the first input's type, named after the other's."""
        import onnx_ir

        name = self.fresh(f"{before.outputs[0].name}_{op.lower()}")
        assert inputs[0] is not None
        output = onnx_ir.val(name, inputs[0].dtype, shape)
        node = onnx_ir.node(op, inputs, attributes, outputs=[output], name=self.fresh(f"{label(before)}_{op}"))
        before.prepend(node)
        return output

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Give a tensor's name, readers and place among the outputs to another; what nothing reads then is dropped.

        The node that makes the new tensor takes the name of the old one's.
        """
        import onnx_ir

        maker, heir = old.producer(), new.producer()
        assert maker is not None and heir is not None
        name, old.name = old.name, self.fresh(f"{old.name}_before")
        heir.name, maker.name = maker.name or heir.name, None
        new.name, new.type = name, old.type
        onnx_ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        self.sweep(maker)

    def sweep(self, *nodes: ir.Node) -> None:
        """Drop nodes whose outputs nothing reads, then what only they read, weights too."""
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node.graph is None or any(value.uses() or value.is_graph_output() for value in node.outputs):
                continue
            inputs = [value for value in node.inputs if value is not None]
            self.graph.remove(node, safe=True)
            waiting.extend(maker for value in inputs if (maker := value.producer()) is not None)
            for value in inputs:
                if value.is_initializer() and not value.uses():
                    self.graph.initializers.pop(str(value.name), None)

    def fresh(self, name: str) -> str:
        """Return a name that no tensor and no node has yet."""
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name

    def _register(self, tensor: ir.TensorProtocol) -> ir.Value:
        import onnx_ir

        value = onnx_ir.Value(
            name=tensor.name,
            shape=onnx_ir.Shape(tuple(tensor.shape)),  # type: ignore[arg-type]
            type=onnx_ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def _take_weights_off_inputs(self) -> None:
        """Let weights be constants alone: files of IR 3 list them among the inputs too, and take no others."""
        inputs = [value for value in self.graph.inputs if not value.is_initializer()]
        if len(inputs) < len(self.graph.inputs):
            self.graph.inputs[:] = inputs
            self.model.ir_version = max(self.model.ir_version, IR_WITH_CONSTANTS)

    def _learn(self, known: Graph) -> None:
        """Take over shapes and types from shape inference, and the names that are taken."""
        for value in (*self.graph.inputs, *self.graph.initializers.values()):
            _annotate(value, known.tensors.get(str(value.name)))
        for node in self.graph.all_nodes():
            self._names.add(str(node.name))
            for value in node.outputs:
                _annotate(value, known.tensors.get(str(value.name)))
        self._names.update(known.tensors)


def _annotate(value: ir.Value, tensor: Tensor | None) -> None:
    import onnx_ir

    if tensor is None or tensor.dtype == UNKNOWN:
        return
    value.shape = onnx_ir.Shape(tensor.shape)
    if value.dtype is None and tensor.dtype != "object":
        value.dtype = onnx_ir.DataType.from_numpy(np.dtype(tensor.dtype))


def label(node: ir.Node) -> str:
    """Return a node's name, or that of its first output where it has none."""
    return str(node.name or node.outputs[0].name)


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    """Return a tensor's static shape; () where it has none or is not there."""
    if value is None or value.shape is None or not value.shape.is_static():
        return ()
    return tuple(int(dim) for dim in value.shape)  # type: ignore[arg-type]


def dtype_of(value: ir.Value) -> np.dtype[Any]:
    """Return a tensor's element type; float32 where nothing says it."""
    return np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()


def is_float(value: ir.Value) -> bool:
    """Tell whether a tensor holds floating-point numbers."""
    return value.dtype is not None and value.dtype.is_floating_point()


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input of a node; None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def is_constant(value: ir.Value | None) -> bool:
    """Tell whether a tensor is an initializer or made by a Constant node; its data need not be loaded."""
    import onnx_ir

    return value is not None and onnx_ir.convenience.get_const_tensor(value) is not None


def numbers(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the numbers of a constant tensor; None where it is not constant, not there or not loaded."""
    import onnx_ir

    tensor = None if value is None else onnx_ir.convenience.get_const_tensor(value)
    if tensor is None or isinstance(tensor, onnx_ir.ExternalTensor):
        return None
    return np.asarray(tensor.numpy())


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Return the value of a node's attribute; sequences as tuples."""
    if name not in node.attributes:
        return default
    value = node.attributes[name].value
    return tuple(value) if isinstance(value, (list, tuple)) else value
