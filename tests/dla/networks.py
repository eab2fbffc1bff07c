"""Small networks for the tests: nodes by hand, weights seeded."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, DOUBLE, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64
CUSTOM_DOMAIN = "my.domain"


def node(op, inputs, outputs, **attributes):
    """A node named after its first output."""
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"{outputs.split()[0]}_node", **attributes)


def model(nodes, inputs, outputs, weights=None, opset=13, dtype=FLOAT):
    """A model: `inputs` maps names to shapes, `outputs` to a type or None, `weights` to an array or a shape."""
    rng = np.random.default_rng(0)
    numpy_dtype = helper.tensor_dtype_to_np_dtype(dtype)
    initializers = []
    for name, value in (weights or {}).items():
        array = value if isinstance(value, np.ndarray) else rng.standard_normal(value).astype(numpy_dtype)
        initializers.append(numpy_helper.from_array(array, name))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind or dtype, None) for name, kind in outputs.items()],
        initializers,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(CUSTOM_DOMAIN, 1)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    shapes = {value.name: value for value in onnx.shape_inference.infer_shapes(made).graph.output}
    for value in made.graph.output:
        value.CopyFrom(shapes[value.name])
    return made


def conv(source, output, weight, **attributes):
    """A convolution; its kernel is that of its weight."""
    return node("Conv", f"{source} {weight}", output, **attributes)
