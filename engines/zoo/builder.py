"""A small builder of ONNX networks: each method adds a node and returns the name of its output tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.onnx_model import declared_tensor

if TYPE_CHECKING:
    import onnx

OPSET = 13
IR_VERSION = 8
RELU_GAIN = math.sqrt(2.0 / (1.0 - 1.0 / math.pi))  # keeps the standard deviation through ReLU and a zero-sum filter


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or a pooling: square kernel, stride, padding on every side."""

    kernel: int
    stride: int = 1
    pad: int = 0

    def attributes(self) -> dict[str, list[int]]:
        """Return the ONNX attributes of this window in two dimensions."""
        return {"kernel_shape": [self.kernel] * 2, "strides": [self.stride] * 2, "pads": [self.pad] * 4}


@dataclass(frozen=True)
class Spread:
    """How seeded weights are drawn: normal, standard deviation `gain` / sqrt(fan in), each filter of zero sum or not.

    Filters that sum to zero ignore the positive mean that each ReLU adds; without that, random networks this deep
    answer nearly the same to every image (Brock et al. 2021, arXiv:2101.08692).
    """

    gain: float = RELU_GAIN
    zero_sum: bool = True

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return float32 weights, output channels first."""
        values = rng.standard_normal((shape[0], math.prod(shape[1:])), dtype=np.float32)
        if self.zero_sum:
            values -= values.mean(axis=1, keepdims=True)
        values *= np.float32(self.gain / math.sqrt(values.shape[1]))
        return values.reshape(shape)


USUAL_SPREAD = Spread()


class NetworkBuilder:
    """Collects nodes and weights; `rng` seeds the weights, None declares them without data."""

    def __init__(self, rng: np.random.Generator | None) -> None:
        self._rng = rng
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._channels: dict[str, int] = {}

    def input(self, name: str, channels: int) -> str:
        """Declare the channels of a graph input."""
        self._channels[name] = channels
        return name

    def conv(self, x: str, name: str, channels: int, window: Window, spread: Spread = USUAL_SPREAD) -> str:
        """Add a convolution with bias."""
        shape = (channels, self._channels[x], window.kernel, window.kernel)
        inputs = [x, self.normal(f"{name}.weight", shape, spread), self.zeros(f"{name}.bias", channels)]
        return self.node("Conv", inputs, name, channels, **window.attributes())

    def relu(self, x: str, name: str) -> str:
        """Add a ReLU."""
        return self.node("Relu", [x], name, self._channels[x])

    def add(self, a: str, b: str, name: str) -> str:
        """Add an elementwise sum."""
        return self.node("Add", [a, b], name, self._channels[a])

    def max_pool(self, x: str, name: str, window: Window) -> str:
        """Add a max pooling."""
        return self.node("MaxPool", [x], name, self._channels[x], **window.attributes())

    def global_average_pool(self, x: str, name: str) -> str:
        """Add a mean over height and width."""
        return self.node("GlobalAveragePool", [x], name, self._channels[x])

    def flatten(self, x: str, name: str) -> str:
        """Add a flattening to two axes."""
        return self.node("Flatten", [x], name, self._channels[x])

    def linear(self, x: str, name: str, features: int, output: str) -> str:
        """Add a fully connected layer with bias, as Gemm with transB, writing the tensor `output`."""
        weight = self.normal(f"{name}.weight", (features, self._channels[x]))
        inputs = [x, weight, self.zeros(f"{name}.bias", features)]
        return self.node("Gemm", inputs, name, features, output=output, transB=1)

    def node(self, op: str, inputs: Sequence[str], name: str, channels: int, **attributes: Any) -> str:
        """Add any node; its output tensor is `name`_output, or the attribute `output`."""
        from onnx.helper import make_node

        output = str(attributes.pop("output", f"{name}_output"))
        self._nodes.append(make_node(op, inputs, [output], name=name, **attributes))
        self._channels[output] = channels
        return output

    def normal(self, name: str, shape: tuple[int, ...], spread: Spread = USUAL_SPREAD) -> str:
        """Add a float32 weight, output channels first."""
        return self._declare(name, shape) if self._rng is None else self._store(name, spread.draw(self._rng, shape))

    def zeros(self, name: str, *shape: int) -> str:
        """Add a float32 weight of zeros."""
        return self._declare(name, shape) if self._rng is None else self._store(name, np.zeros(shape, np.float32))

    def model(self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> Any:
        """Return the `onnx.ModelProto`."""
        from onnx.helper import make_graph, make_model, make_opsetid

        graph = make_graph(self._nodes, name, inputs, outputs, initializer=self._weights)
        opsets = [make_opsetid("", OPSET)]
        return make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="orin-toolkit")

    def _declare(self, name: str, shape: tuple[int, ...]) -> str:
        import onnx

        self._weights.append(declared_tensor(name, shape, onnx.TensorProto.FLOAT))
        return name

    def _store(self, name: str, values: NDArray[Any]) -> str:
        from onnx.numpy_helper import from_array

        self._weights.append(from_array(values, name))
        return name
