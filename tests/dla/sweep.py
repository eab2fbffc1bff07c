"""One network an operator for the rows of NVIDIA's table of ONNX operators on Orin's DLA, and what the table says."""

import csv

import numpy as np
from onnx import TensorProto

from tests.dla.cases import CASES
from tests.dla.excerpts import Net

TABLE = CASES.parent / "onnx_ops_dla.csv"
NATIVE, LATER, INFERRED = "Native", "Native (as of TensorRT 8.6.12)", "Can be inferred at build time"
SHAPE = (1, 8, 16, 16)
ONES = np.ones(SHAPE, np.float32)
TWO = np.array(2.0, np.float32)

# What an operator needs besides one activation of SHAPE: operands after it, attributes, the opset.
OPERANDS = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean"), ("x",)),
    **dict.fromkeys(("Div", "Mod"), (TWO,)),
    **dict.fromkeys(("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"), ("x",)),
    "BatchNormalization": ((8,), (8,), (8,), (8,)),
    "Clip": (np.array(0.0, np.float32), np.array(6.0, np.float32)),
    "Concat": ("x",),
    "Conv": ((8, 8, 3, 3),),
    "ConvTranspose": ((8, 8, 2, 2),),
    "CumSum": (np.array(1),),
    "Expand": (np.array([2, 8, 16, 16]),),
    "Gather": (np.array([0, 2]),),
    "GatherElements": (np.zeros(SHAPE, np.int64),),
    "GatherND": (np.array([[0, 1]]),),
    "Gemm": ((8, 8),),
    "GroupNormalization": (np.ones(8, np.float32), np.ones(8, np.float32)),
    "InstanceNormalization": (np.ones(8, np.float32), np.ones(8, np.float32)),
    "LayerNormalization": (np.ones(16, np.float32),),
    "MatMul": ((16, 8),),
    "PRelu": ((8, 1, 1),),
    "Pad": (np.array([0, 0, 1, 1, 0, 0, 1, 1]),),
    "QuantizeLinear": (TWO,),
    "ReduceSum": (np.array([2, 3]),),
    "Reshape": (np.array([1, 16, 8, 16]),),
    "Resize": ("", np.array([1, 1, 2, 2], np.float32)),
    "Scatter": (np.zeros(SHAPE, np.int64), "x"),
    "ScatterElements": (np.zeros(SHAPE, np.int64), "x"),
    "Slice": (np.array([2]), np.array([6]), np.array([1])),
    "Split": (np.array([4, 4]),),
    "Squeeze": (np.array([0]),),
    "Tile": (np.array([1, 2, 1, 1]),),
    "Unsqueeze": (np.array([0]),),
}
ATTRIBUTES = {
    **dict.fromkeys(("AveragePool", "MaxPool", "LpPool"), {"kernel_shape": [2, 2]}),
    "Concat": {"axis": 1},
    "ConvTranspose": {"strides": [2, 2]},
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), {"blocksize": 2}),
    **dict.fromkeys(("Gather", "GatherElements", "Softmax", "LogSoftmax"), {"axis": 1}),
    "GroupNormalization": {"num_groups": 2},
    "LRN": {"size": 5},
    "Mod": {"fmod": 1},
    "Resize": {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    "Split": {"axis": 1},
    "Transpose": {"perm": [0, 2, 1, 3]},
}
OPSETS = {"GroupNormalization": 21, "LayerNormalization": 17, "Mish": 18, "Scatter": 11}
COMPARISONS = ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")
RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}


def rows():
    """The operators of the table, and what it says of TensorRT on Orin."""
    with TABLE.open(newline="") as file:
        return [(row["onnx_op"], row["orin_dla_through_tensorrt"]) for row in csv.DictReader(file)]


def expected(op, says, tensorrt_10):
    """Where a layer of its own runs by the table: "folded" where TensorRT works it out while building."""
    if says == INFERRED or op == "Constant":  # "performs constant folding into supported DLA ops", says its note
        return "folded"
    return "dla" if says == NATIVE or (says == LATER and tensorrt_10) else "gpu"


def network(op):
    """A network whose layer "op" is one of an operator; None where the operator is gone from opset 11 on."""
    if op == "Upsample":
        return None
    if op in RECURRENT:
        return _recurrent(op)
    net = Net(*((4, 8) if op == "Gemm" else SHAPE))
    outputs = 2 if op == "Split" else 1
    if op in ("Constant", "ConstantOfShape", "Shape"):
        return _constant(net, op)
    if op in ("And", "Or", "Xor", "Not", "Where"):
        return _logical(net, op)
    if op == "DequantizeLinear":
        net.add("QuantizeLinear", "quantise", TWO)
        net.add(op, "op", TWO)
        return net.model()
    net.add(op, "op", *OPERANDS.get(op, ()), outputs=outputs, **ATTRIBUTES.get(op, {}))
    if op in COMPARISONS:
        net.add("Cast", "cast", to=TensorProto.FLOAT)
    dtype = TensorProto.UINT8 if op == "QuantizeLinear" else TensorProto.FLOAT
    return net.model(opset=OPSETS.get(op, 13), dtype=dtype)


def _constant(net, op):
    if op == "Constant":
        net.add("Add", "sum", ONES)
        net.nodes.insert(0, _node("Constant", [], value=net.weights.pop()))
        net.nodes[1].input[1] = "op_out"
    elif op == "Shape":
        net.add("Shape", "op")
        net.add("Reshape", "reshape", net.last, source="x")
    else:
        net.add("ConstantOfShape", "op", source=net._operand(np.array(SHAPE), "shape", 0))
        net.add("Add", "sum", "x")
    return net.model()


def _node(op, inputs, **attributes):
    from onnx import helper

    return helper.make_node(op, inputs, ["op_out"], name="op", **attributes)


def _logical(net, op):
    condition = net.add("Greater", "greater", TWO)
    operands = {"Not": (), "Where": ("x", "x")}.get(op, (condition,))
    net.add(op, "op", *operands)
    if op != "Where":
        net.add("Cast", "cast", to=TensorProto.FLOAT)
    return net.model()


def _recurrent(op):
    net, gates = Net(5, 1, 8), RECURRENT[op]
    net.add(op, "op", (1, gates * 8, 8), (1, gates * 8, 8), hidden_size=8)
    return net.model()
