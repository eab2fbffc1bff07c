"""A gRPC server that speaks Triton's protocol on loopback: models are functions on real values."""

from __future__ import annotations

import contextlib
import threading
from concurrent import futures

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from engines.engine import Binding
from engines.formats import pack, sample_bytes, unpack
from orin.export.splitter import Ends, LaneFacts, Split

SHAPE, OUT = (3, 4, 6), (5, 1, 1)
WEIGHT = np.random.default_rng(5).integers(-3, 4, (OUT[0], SHAPE[0])).astype(np.float32)


def binding(name, shape, dtype, fmt, scale=None):
    return Binding(name, shape, dtype, fmt, scale, sample_bytes(fmt, shape, np.dtype(dtype).itemsize))


GPU = Ends((binding("x", SHAPE, "int8", "CHW4", 0.5),), (binding("y", OUT, "float32", "LINEAR"),))
DLA = Ends((binding("x", SHAPE, "int8", "DLA_HWC4", 0.5),), (binding("y", OUT, "int8", "DLA_LINEAR", 2.0),))
SPLIT = Split(
    (
        LaneFacts("gpu", "net_gpu", 8, False, 2),
        LaneFacts("dla0", "net_dla", 2, True, 2),
        LaneFacts("dla1", "net_dla", 2, True, 2),
    ),
    {"net_gpu": GPU, "net_dla": DLA},
)


def reference(samples):
    """Sum over the channels' means, rounded to the even numbers that the DLA's output scale holds."""
    whole = np.einsum("oc,nchw->no", WEIGHT, samples.astype(np.float64))[:, :, None, None]
    return np.clip(np.rint(whole / 2.0), -127, 127).astype(np.float32) * 2.0


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves a split's models; refuses what Triton refuses. `gates` hold a model's requests until they are set."""

    def __init__(self, split=SPLIT, missing=(), failing=()):
        self.split, self.missing, self.failing = split, missing, failing
        self.batches = {name: [] for name in split.models}
        self.gates = {}
        self._static = {lane.model: lane.batch for lane in split.lanes if lane.static}

    def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=request.name not in self.missing)

    def ModelInfer(self, request, context):
        ends, samples = self.split.models[request.model_name], request.inputs[0].shape[0]
        wanted = self._static.get(request.model_name)
        if request.model_name in self.failing or (wanted and samples != wanted):
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"expected the shape of dimension 0 to be {wanted}\nbut {samples}"
            )
        if request.model_name in self.gates:
            self.gates[request.model_name].wait(30)
        self.batches[request.model_name].append(samples)
        x, y = ends.inputs[0], ends.outputs[0]
        packed = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(samples, x.sample_bytes)
        result = reference(unpack(packed, x.format, x.shape, x.dtype) * x.scale)
        stored = result if y.scale is None else (result / y.scale).astype(y.dtype)
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        response.outputs.add(name="y", datatype="FP32", shape=(samples, *y.shape))
        response.raw_output_contents.append(pack(stored, y.format).tobytes())
        return response


@contextlib.contextmanager
def served(triton):
    """Serve on a free port; yields its address."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def gate(triton, model):
    """Hold a model's requests until the event is set."""
    triton.gates[model] = threading.Event()
    return triton.gates[model]
