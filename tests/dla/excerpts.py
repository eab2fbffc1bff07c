"""The published cases that list no nodes, rebuilt by hand: the part of each network that its log speaks of.

What TensorRT did is transcribed from the case's file: by node "dla" or "gpu", TensorRT's message where one is printed,
the number of loadables where the log shows it.
"""

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.onnx_model import declared_tensor
from tests.dla.cases import load_case, recorded_model

FLOAT = TensorProto.FLOAT
DLA, GPU, FOLDED = "dla", "gpu", "folded"
WORDS = {"DLA": DLA, "DLA_CANDIDATE": DLA, "GPU": GPU, "FOLDED_OR_FUSED": FOLDED}


@dataclass(frozen=True)
class Case:
    """A network, and what TensorRT did with its nodes before the limit of loadables (and after it, where known)."""

    name: str
    board: str
    tensorrt: str
    precision: str
    model: onnx.ModelProto
    real: dict[str, str]
    final: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    candidates: int | None = None
    kept: int | None = None


class Net:
    """A network written down layer by layer, each reading the one before it unless told otherwise."""

    def __init__(self, *shape):
        self.shape = shape
        self.nodes, self.weights, self.last = [], [], "x"

    def add(self, op, name, *operands, source=None, **attributes):
        """Add a node: `operands` are shapes of weights, arrays of constants, names of tensors, or "" for none."""
        inputs = [source or self.last, *(self._operand(operand, name, index) for index, operand in enumerate(operands))]
        outputs = [f"{name}_out"] + [f"{name}_out{index}" for index in range(1, attributes.pop("outputs", 1))]
        self.last = outputs[0]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))
        return self.last

    def model(self, *outputs, opset=13, dtype=FLOAT):
        """Return the network as a model; what was added last is its output unless others are named."""
        graph = helper.make_graph(
            self.nodes,
            "case",
            [helper.make_tensor_value_info("x", FLOAT, self.shape)],
            [helper.make_tensor_value_info(name, dtype, None) for name in outputs or (self.last,)],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)

    def _operand(self, operand, name, index):
        if isinstance(operand, str):
            return operand
        made = f"{name}.{index}"
        large = isinstance(operand, tuple)
        weight = declared_tensor(made, operand, FLOAT) if large else numpy_helper.from_array(np.asarray(operand), made)
        self.weights.append(weight)
        return made


def all_cases():
    """Every case of an Orin and TensorRT 8.4 or later that names its layers; the recorded ones first."""
    return [recorded("c01"), recorded("c03"), *(make() for make in EXCERPTS)]


def recorded(name):
    """A case whose file lists every ONNX node with what became of it."""
    case = load_case(name)
    entries, trt = case["onnx_nodes"], case["trt"]
    return Case(
        name,
        "AGX Orin",
        "10.3",
        "fp16" if case["precision"] == "fp16" else "int8",
        recorded_model(case),
        real={entry["name"]: WORDS[entry["trt_assignment"]] for entry in entries},
        final={entry["name"]: WORDS[entry["final_assignment"]] for entry in entries},
        messages={entry["name"]: entry["reason"] for entry in entries if "reason" in entry},
        candidates=trt["candidates_offloaded_of"][1],
        kept=len(trt["dla_loadables_final"]),
    )


def _group_norm():
    net, index, channels = Net(32, 3, 32, 32), 0, 3
    real = {}
    for features in (64, 128, 256, 512):
        conv, reshape, norm, back = f"Conv_{index}", f"Reshape_{index + 2}", f"Norm_{index + 5}", f"Reshape_{index + 7}"
        mul, add, relu = f"Mul_{index + 8}", f"Add_{index + 9}", f"Relu_{index + 10}"
        net.add("Conv", conv, (features, channels, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
        side = 32 * 64 // features // 2
        net.add("Reshape", reshape, np.array([32, 8, -1]))
        net.add("InstanceNormalization", norm, np.ones(8, np.float32), np.zeros(8, np.float32))
        net.add("Reshape", back, np.array([32, features, side, side]))
        net.add("Mul", mul, (features, 1, 1))
        net.add("Add", add, (features, 1, 1))
        net.add("Relu", relu)
        real |= {conv: DLA, relu: DLA} | dict.fromkeys((reshape, norm, back, mul, add), GPU)
        index, channels = index + 11, features
    return Case("c05", "AGX Orin", "8.4", "int8", net.model(), real, candidates=5)


def _batch_norm(pool, loadables, name, verdict):
    net, channels, real = Net(32, 3, 32, 32), 3, {}
    for index, features in enumerate((64, 128, 256, 512)):
        net.add("Conv", f"Conv_{2 * index}", (features, channels, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
        net.add("Relu", f"Relu_{2 * index + 1}")
        real |= {f"Conv_{2 * index}": DLA, f"Relu_{2 * index + 1}": DLA}
        channels = features
    net.add(pool, "pool", **({"kernel_shape": [2, 2]} if pool == "AveragePool" else {}))
    net.add("Flatten", "flatten")
    net.add("Gemm", "Gemm_15", (10, 512), (10,), transB=1)
    real |= {"pool": verdict, "flatten": FOLDED, "Gemm_15": DLA}
    return Case(name, "AGX Orin", "8.4", "int8", net.model(), real, candidates=loadables)


def _vgg19():
    net, channels, real = Net(8, 3, 224, 224), 3, {}
    for block, (features, count) in enumerate(((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)), 1):
        for index in range(1, count + 1):
            net.add("Conv", f"conv{block}_{index}", (features, channels, 3, 3), pads=[1, 1, 1, 1])
            net.add("Relu", f"relu{block}_{index}")
            channels = features
        net.add("MaxPool", f"pool{block}", kernel_shape=[2, 2], strides=[2, 2])
    real |= {node.name: DLA for node in net.nodes}
    net.add("Reshape", "shuffle_between_pool5_and_fc6", np.array([8, 25088, 1, 1]))
    net.add("Conv", "fc6", (4096, 25088, 1, 1))
    net.add("Relu", "relu6")
    net.add("Conv", "fc7", (4096, 4096, 1, 1))
    net.add("Relu", "relu7")
    net.add("Conv", "fc8", (1000, 4096, 1, 1))
    net.add("Softmax", "prob", axis=1)
    real |= dict.fromkeys(("relu6", "fc7", "relu7", "fc8"), DLA)
    real |= dict.fromkeys(("shuffle_between_pool5_and_fc6", "fc6", "prob"), GPU)
    return Case("c09", "not printed", "8.4", "int8", net.model(), real, candidates=2)


def _super_resolution():
    net = Net(1, 1, 321, 481)
    for name, out, channels, size in (("9", 64, 1, 5), ("11", 64, 64, 3), ("13", 32, 64, 3), ("15", 9, 32, 3)):
        net.add("Conv", f"node_of_{name}", (out, channels, size, size), pads=[size // 2] * 4)
        if name != "15":
            net.add("Relu", f"relu_{name}")
    real = {node.name: DLA for node in net.nodes}
    net.add("Reshape", "node_of_17", np.array([1, 1, 3, 3, 321, 481]))
    net.add("Transpose", "node_of_18", perm=[0, 1, 4, 2, 5, 3])
    net.add("Reshape", "node_of_output_0", np.array([1, 1, 963, 1443]))
    real |= dict.fromkeys(("node_of_17", "node_of_18", "node_of_output_0"), GPU)
    return Case("c10", "not printed", "8.4", "int8", net.model(), real, candidates=1)


def _unet():
    net, skips, channels, real = Net(1, 1, 512, 512), [], 1, {}
    for level, features in enumerate((32, 64, 128, 256), 1):
        skips.append(_two_convolutions(net, f"down{level}", features, channels))
        net.add("MaxPool", f"pool{level}", kernel_shape=[2, 2], strides=[2, 2])
        channels = features
    _two_convolutions(net, "bottom", 512, channels)
    channels = 512
    for level, features in enumerate((256, 128, 64, 32), 1):
        side = 512 >> (4 - level)
        net.add("ConvTranspose", f"deconv{level}", (channels, features, 3, 3), strides=[2, 2])
        net.add("Slice", f"crop{level}", np.array([0, 0]), np.array([side, side]), np.array([2, 3]))
        net.add("Add", f"bias{level}", (1, features, 1, 1))
        net.add("Concat", f"concat{level}", skips.pop(), axis=1)
        _two_convolutions(net, f"up{level}", features, 2 * features)
        channels = features
    net.add("Conv", "last", (1, channels, 1, 1))
    net.add("Sigmoid", "sigmoid")
    real = {node.name: GPU if node.op_type == "Slice" else DLA for node in net.nodes}
    return Case("c11", "not printed", "8.4", "int8", net.model(), real, candidates=5)


def _two_convolutions(net, name, features, channels):
    for index, before in enumerate((channels, features)):
        net.add("Conv", f"{name}_{index}", (features, before, 3, 3), pads=[1, 1, 1, 1])
        net.add("Relu", f"{name}_relu{index}")
    return net.last


def _yolov3_tiny():
    net = Net(1, 256, 26, 26)
    net.add("Conv", "conv0", (256, 256, 3, 3), pads=[1, 1, 1, 1])
    skip = net.add("LeakyRelu", "leaky0", alpha=0.1)
    net.add("MaxPool", "pool_stride2", kernel_shape=[2, 2], strides=[2, 2])
    net.add("MaxPool", "pool_stride1", kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1])
    net.add("Conv", "conv1", (128, 256, 1, 1))
    net.add("LeakyRelu", "leaky1", alpha=0.1)
    scales = np.array([1, 1, 2, 2], np.float32)
    net.add("Resize", "upsample", "", scales, coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    net.add("Concat", "concat", skip, axis=1)
    net.add("Conv", "conv2", (255, 384, 1, 1))
    return Case("c13", "not printed", "8.4", "int8", net.model(), {node.name: DLA for node in net.nodes}, candidates=1)


def _yolov8_head():
    net = Net(1, 192, 80, 80)
    net.add("Conv", "head", (144, 192, 1, 1))
    net.add("Reshape", "/model.22/Reshape", np.array([1, 144, 6400]))
    net.add("Split", "/model.22/Split", np.array([64, 80]), axis=1, outputs=2)
    net.add("Div", "/model.22/Div", np.array(2.0, np.float32))
    real = {"head": DLA, "/model.22/Reshape": GPU, "/model.22/Div": GPU}
    message = {"/model.22/Div": "DLA cores do not support DIV ElementWise operation."}
    return Case("c18", "AGX Orin", "8.6.2", "fp16", net.model(), real, messages=message)


def _yolov5_head():
    net = Net(1, 128, 80, 80)
    net.add("Conv", "/model.24/m.0/Conv", (255, 128, 1, 1))
    net.add("Reshape", "/model.24/Reshape", np.array([1, 3, 85, 80, 80]))
    net.add("Transpose", "/model.24/Transpose", perm=[0, 1, 3, 4, 2])
    net.add("Sigmoid", "/model.24/Sigmoid")
    net.add("Mul", "/model.24/Mul", np.array(2.0, np.float32))
    net.add("Pow", "/model.24/Pow", np.array(2.0, np.float32))
    real = {"/model.24/m.0/Conv": DLA, "/model.24/Reshape": GPU, "/model.24/Transpose": GPU, "/model.24/Pow": GPU}
    message = {"/model.24/Pow": "DLA cores do not support POW ElementWise operation."}
    return Case("c20", "Orin or Xavier", "8.6", "fp16", net.model(), real, messages=message)


def _large_convolution():
    net = Net(1, 512, 80, 160)
    net.add("Conv", "Conv", (256, 512, 3, 3), pads=[1, 1, 1, 1])
    net.add("Relu", "Relu")
    return Case("c21", "Orin", "8.5.2.2", "int8", net.model(), {"Conv": GPU})


def _translation():
    net = Net(128, 16, 64)
    net.add("Transpose", "transpose", perm=[0, 2, 1])
    net.add("MatMul", "attention", "x", source=net.last)
    net.add("Softmax", "likelihood", axis=-1)
    product = net.add("Mul", "product", net.last)
    net.add("TopK", "topk", np.array([4]), outputs=2)
    real = {"attention": GPU, "likelihood": GPU, "product": GPU, "topk": GPU}
    return Case("c27", "Orin or Xavier", "8.4", "fp16", net.model(product, "topk_out"), real)


def _elementwise():
    net = Net(1, 32, 32, 32)
    net.add("Add", "Add", "x")
    return Case("c31", "Orin", "8.5", "int8", net.model(), {"Add": DLA}, candidates=1)


EXCERPTS = (
    _group_norm,
    lambda: _batch_norm("GlobalAveragePool", 2, "c06", GPU),
    lambda: _batch_norm("AveragePool", 1, "c07", DLA),
    _vgg19,
    _super_resolution,
    _unet,
    _yolov3_tiny,
    _yolov8_head,
    _yolov5_head,
    _large_convolution,
    _translation,
    _elementwise,
)
