"""A model under change: who makes and who reads each tensor, its shape, and a few edits that keep all that true."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dla.errors import DlaError
from engines.graph import read_graph

if TYPE_CHECKING:
    import onnx


class Edit:
    """A copy of a model that rewrites change; tensor names stay as they are."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        graph = read_graph(model)
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.shapes = {name: tensor.shape for name, tensor in graph.tensors.items()}
        self._dtypes = {name: tensor.dtype for name, tensor in graph.tensors.items()}
        self._inputs = frozenset(graph.inputs)

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes as they are now."""
        return list(self.model.graph.node)

    @property
    def outputs(self) -> list[str]:
        """Names of the graph's outputs."""
        return [value.name for value in self.model.graph.output]

    def maker(self, tensor: str) -> onnx.NodeProto | None:
        """Return the node that makes a tensor; None for graph inputs and weights."""
        return next((node for node in self.model.graph.node if tensor in node.output), None)

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a tensor."""
        return [node for node in self.model.graph.node if tensor in node.input]

    def is_input(self, tensor: str) -> bool:
        """Return whether a tensor is fed by the caller."""
        return tensor in self._inputs

    def weight(self, tensor: str) -> onnx.TensorProto | None:
        """Return an initializer by name; None where that is no initializer."""
        return next((entry for entry in self.model.graph.initializer if entry.name == tensor), None)

    def values(self, weight: onnx.TensorProto) -> NDArray[Any]:
        """Return the values of an initializer; DlaError where they are in a file that was not loaded."""
        from onnx import TensorProto, numpy_helper

        if weight.data_location == TensorProto.EXTERNAL:
            raise DlaError(
                f"weight {weight.name!r} is not loaded, and has to be transposed; load the model with weights"
            )
        return np.asarray(numpy_helper.to_array(weight))

    def add_weight(self, name: str, values: NDArray[Any]) -> str:
        """Add an initializer under a new name made from `name`, and return that name."""
        from onnx import numpy_helper

        return self._store(numpy_helper.from_array(np.ascontiguousarray(values)), name)

    def add_weight_like(self, weight: onnx.TensorProto, shape: tuple[int, ...]) -> str:
        """Add an initializer with the data of another and a shape of as many elements; its data need not be loaded."""
        import onnx

        copy = onnx.TensorProto()
        copy.CopyFrom(weight)
        del copy.dims[:]
        copy.dims.extend(shape)
        return self._store(copy, weight.name)

    def _store(self, weight: onnx.TensorProto, name: str) -> str:
        weight.name = f"{name}_conv"
        while self.weight(weight.name) is not None:
            weight.name += "_"
        self.model.graph.initializer.append(weight)
        return str(weight.name)

    def replace(self, old: Sequence[onnx.NodeProto], new: Sequence[onnx.NodeProto]) -> None:
        """Put new nodes in the place of the last old one, and drop weights that nothing reads any more."""
        graph = self.model.graph
        gone = {output for node in old for output in node.output}
        nodes = list(graph.node)
        last = max(index for index, node in enumerate(nodes) if gone.intersection(node.output))
        nodes[last + 1 : last + 1] = new
        kept = [node for node in nodes if any(node is entry for entry in new) or not gone.intersection(node.output)]
        del graph.node[:]
        graph.node.extend(kept)
        used = {name for node in kept for name in node.input}
        for name in {name for node in old for name in node.input} - used:
            if (weight := self.weight(name)) is not None:
                graph.initializer.remove(weight)
        del graph.value_info[:]  # shapes in between may have changed, and every reader infers them again

    def set_outputs(self, names: Sequence[str]) -> None:
        """Make these tensors the outputs, with the shapes known here; those that were outputs stay as declared."""
        from onnx.helper import make_tensor_value_info, np_dtype_to_tensor_dtype

        declared = {value.name: value for value in self.model.graph.output}
        values = []
        for name in names:
            dtype = np_dtype_to_tensor_dtype(np.dtype(self._dtypes[name]))
            values.append(declared.get(name) or make_tensor_value_info(name, dtype, self.shapes[name]))
        del self.model.graph.output[:]
        self.model.graph.output.extend(values)

    def reshape_output(self, name: str, shape: tuple[int, ...]) -> None:
        """Declare another shape for a tensor, and for the output of that name if it is one."""
        from onnx.helper import make_tensor_value_info, np_dtype_to_tensor_dtype

        self.shapes[name] = shape
        for value in self.model.graph.output:
            if value.name == name:
                dtype = np_dtype_to_tensor_dtype(np.dtype(self._dtypes[name]))
                value.CopyFrom(make_tensor_value_info(name, dtype, shape))
