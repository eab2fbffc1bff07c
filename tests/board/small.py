"""A small network, and the shortest way to build and run it with NVIDIA's bindings."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto, helper, numpy_helper

AMAX = 6.0
SHAPE = (3, 8, 8)
NODES = ("conv1", "relu1", "pool1", "conv2", "add", "relu2")


def value(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(batch=2, nodes=None, weights=None, outputs=("y",)):
    """Conv, ReLU, MaxPool, Conv, Add, ReLU: [N,3,8,8] to [N,8,4,4]; all of it is the DLA's."""
    rng = np.random.default_rng(3)
    weights = weights or {
        "w1": rng.standard_normal((8, 3, 3, 3)).astype(np.float32) * 0.2,
        "w2": rng.standard_normal((8, 8, 3, 3)).astype(np.float32) * 0.1,
    }
    nodes = nodes or [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], name="pool1", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "p1"], ["a"], name="add"),
        helper.make_node("Relu", ["a"], ["y"], name="relu2"),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    results = [value(name, None) for name in outputs]
    graph = helper.make_graph(nodes, "small", [value("x", (batch, *SHAPE))], results, initializer=tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def images(batch=2):
    return np.clip(np.random.default_rng(4).standard_normal((batch, *SHAPE)), -3.9, 3.9).astype(np.float32)


@dataclass
class Log:
    """Lines of TensorRT's log by severity."""

    lines: list = field(default_factory=list)

    def of(self, trt, severity):
        return [text for level, text in self.lines if level == severity]


def make_logger(trt):
    """Return a logger and the lines that it keeps."""

    class Keeping(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.kept = Log()

        def log(self, severity, text):
            self.kept.lines.append((severity, text))

    return Keeping()


class Job:
    """Builder, network and configuration of one build, with the errors of its log."""

    def __init__(self, network=None, flags=(), dla=False, ranges=False):
        import tensorrt as trt

        self.trt = trt
        self.logger = make_logger(trt)
        self.builder = trt.Builder(self.logger)
        self.network = self.builder.create_network(0)
        self.parser = trt.OnnxParser(self.network, self.logger)
        assert self.parser.parse((network or model()).SerializeToString())
        self.config = self.builder.create_builder_config()
        self.config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        self.flags(*flags)
        if dla:
            self.config.default_device_type = trt.DeviceType.DLA
        if ranges:
            self.ranges()

    def flags(self, *names):
        for name in names:
            self.config.set_flag(getattr(self.trt.BuilderFlag, name))

    def layers(self):
        return [self.network.get_layer(index) for index in range(self.network.num_layers)]

    def ranges(self, amax=AMAX):
        self.network.get_input(0).dynamic_range = (-amax, amax)
        for layer in self.layers():
            for index in range(layer.num_outputs):
                layer.get_output(index).dynamic_range = (-amax, amax)

    def bind(self, tensor, format_, dtype=None):
        tensor.dtype = dtype or self.trt.int8
        tensor.allowed_formats = 1 << int(getattr(self.trt.TensorFormat, format_))

    def profile(self, least, best, most):
        profile = self.builder.create_optimization_profile()
        profile.set_shape("x", (least, *SHAPE), (best, *SHAPE), (most, *SHAPE))
        return self.config.add_optimization_profile(profile)

    def build(self):
        return self.builder.build_serialized_network(self.network, self.config)

    def plan(self):
        """Build; the plan's bytes, or a failure with the log's errors."""
        made = self.build()
        assert made is not None, self.errors()
        return bytes(made)

    def engine(self):
        return Loaded(self.plan(), self.logger)

    def errors(self):
        return self.logger.kept.of(self.trt, self.trt.ILogger.ERROR)

    def warnings(self):
        return self.logger.kept.of(self.trt, self.trt.ILogger.WARNING)


class Loaded:
    """An engine with one context and memory for its tensors, on a stream of its own."""

    def __init__(self, plan, logger=None, core=None):
        import pycuda.driver as cuda
        import tensorrt as trt

        self.logger = logger or make_logger(trt)
        self.runtime = trt.Runtime(self.logger)
        if core is not None:
            self.runtime.DLA_core = core
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        assert self.engine is not None, self.logger.kept.lines
        self.context = self.engine.create_execution_context()
        self.stream = cuda.Stream()
        self.memory = {}
        self.names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]

    def allocate(self, nbytes=1 << 16):
        import pycuda.driver as cuda

        for name in self.names:
            flags = cuda.host_alloc_flags.DEVICEMAP
            self.memory[name] = cuda.pagelocked_empty(nbytes, np.uint8, mem_flags=flags)
            assert self.context.set_tensor_address(name, self.memory[name].base.get_device_pointer())
        return self

    def run(self, packed, shape=None):
        """Put packed input bytes in, wait; the first output's bytes."""
        self.memory or self.allocate()
        if shape is not None:
            assert self.context.set_input_shape("x", shape)
        raw = np.ascontiguousarray(packed).reshape(-1).view(np.uint8)
        self.memory["x"][: raw.size] = raw
        assert self.context.execute_async_v3(self.stream.handle), self.logger.kept.lines
        self.stream.synchronize()
        return self.memory[self.names[-1]]
