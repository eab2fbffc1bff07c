"""Recorded placements of TensorRT, and the networks behind them rebuilt as ONNX: shapes kept, weights declared only."""

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from engines.onnx_model import declared_tensor

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "dla_cases"
FLOAT = TensorProto.FLOAT


def load_case(name):
    """Read a case by the start of its file's name, e.g. "c03"."""
    return json.loads(next(CASES.glob(f"{name}_*.json")).read_text())


def recorded_model(case):
    """Rebuild the network of a case that lists its ONNX nodes with shapes: its first tensor is the network's input."""
    entries = case["onnx_nodes"]
    tensors = {tensor["name"]: tensor for entry in entries for tensor in (*entry["inputs"], *entry["outputs"])}
    made = {tensor["name"] for entry in entries for tensor in entry["outputs"]}
    read = {tensor["name"] for entry in entries for tensor in entry["inputs"]}
    source = entries[0]["inputs"][0]["name"]
    targets = {
        entry["inputs"][1]["name"]: entry["outputs"][0]["shape"] for entry in entries if entry["op"] == "Reshape"
    }
    weights = [_weight(tensors[name], targets.get(name)) for name in tensors if name not in made and name != source]
    graph = helper.make_graph(
        [_node(entry) for entry in entries],
        case["case_id"],
        [_info(tensors[source])],
        [_info(tensors[name]) for name in tensors if name in made - read],
        weights,
        value_info=[_info(tensors[name]) for name in tensors if name in made & read],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _info(tensor):
    return helper.make_tensor_value_info(tensor["name"], TensorProto.DataType.Value(tensor["dtype"]), tensor["shape"])


def _weight(tensor, values):
    if values is not None:
        return numpy_helper.from_array(np.array(values, np.int64), tensor["name"])
    return declared_tensor(tensor["name"], tensor["shape"], TensorProto.DataType.Value(tensor["dtype"]))


def _node(entry):
    shapes = [tensor["shape"] for tensor in (*entry["inputs"], *entry["outputs"])]
    names = [[tensor["name"] for tensor in entry[side]] for side in ("inputs", "outputs")]
    attributes = _ATTRIBUTES.get(entry["op"], lambda shapes: {})(shapes)
    return helper.make_node(entry["op"], *names, name=entry["name"], **attributes)


def _window(before, after, kernel):
    """Strides and pads that lead from one [H,W] to the other: the log has no attributes."""
    strides = [round(a / b) for a, b in zip(before, after)]
    pads = [max(0, (b - 1) * s + k - a) for a, b, s, k in zip(before, after, strides, kernel)]
    return {
        "kernel_shape": list(kernel),
        "strides": strides,
        "pads": [-(-pad // 2) for pad in pads] + [pad // 2 for pad in pads],
    }


def _permutation(shapes):
    """A permutation that leads from the first shape to the last, axes of one size in their order."""
    before, after = list(shapes[0]), shapes[-1]
    perm = []
    for size in after:
        perm.append(next(axis for axis, dim in enumerate(before) if dim == size and axis not in perm))
    return {"perm": perm}


_ATTRIBUTES = {
    "Conv": lambda shapes: {
        **_window(shapes[0][2:], shapes[-1][2:], shapes[1][2:]),
        "group": shapes[0][1] // shapes[1][1],
    },
    "MaxPool": lambda shapes: _window(shapes[0][2:], shapes[-1][2:], (3, 3)),
    "Transpose": _permutation,
    "Gemm": lambda shapes: {"transB": int(shapes[1] == [shapes[-1][1], shapes[0][1]] and shapes[1][0] != shapes[1][1])},
    "Softmax": lambda shapes: {"axis": -1},
}
