"""A small builder of ONNX networks: each method adds a node and returns the name of its output tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.onnx_model import declared_tensor
from engines.zoo.store import in_memory

if TYPE_CHECKING:
    import onnx

    from engines.zoo.store import Store

OPSET = 13
IR_VERSION = 8
RELU_GAIN = math.sqrt(2.0 / (1.0 - 1.0 / math.pi))  # keeps the standard deviation through ReLU and a zero-sum filter


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or a pooling, the same on each axis: kernel, stride, padding, groups.

    `pad` is the padding on every side; `end` that at the bottom and right where it differs.
    """

    kernel: int
    stride: int = 1
    pad: int = 0
    end: int | None = None
    groups: int = 1

    @classmethod
    def same(cls, side: int, kernel: int, stride: int, groups: int = 1) -> Window:
        """Return the window that TensorFlow's SAME padding makes on a side: what is odd goes to the end."""
        padding = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        return cls(kernel, stride, padding // 2, padding - padding // 2, groups)

    def over(self, side: int) -> int:
        """Return how many positions the window takes along a side."""
        end = self.pad if self.end is None else self.end
        return (side + self.pad + end - self.kernel) // self.stride + 1

    def attributes(self, axes: int) -> dict[str, Any]:
        """Return the ONNX attributes of this window over a number of axes."""
        end = self.pad if self.end is None else self.end
        pads = [self.pad] * axes + [end] * axes
        grouped = {"group": self.groups} if self.groups > 1 else {}
        return {"kernel_shape": [self.kernel] * axes, "strides": [self.stride] * axes, "pads": pads, **grouped}


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
    """Collects nodes and weights and knows each tensor's shape.

    `seed` is that of the weights and `store` makes tensors of them; without a store they are declared without data.
    `suffix` turns a node's name into that of its output tensor.
    """

    def __init__(self, seed: int, store: Store | None, suffix: str = "_output") -> None:
        import onnx

        self._rng = np.random.default_rng(seed)
        self._store = store
        self._suffix = suffix
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="orin-toolkit")
        self._model.opset_import.add(domain="", version=OPSET)

    def shape(self, x: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._shapes[x]

    def input(self, name: str, shape: Sequence[int], dtype: type[np.generic] = np.float32) -> str:
        """Declare a graph input."""
        self._shapes[name] = tuple(shape)
        self._model.graph.input.append(self._value(name, dtype))
        return name

    def output(self, x: str, name: str) -> str:
        """Declare a float32 tensor as a graph output and rename it, before anything reads it."""
        maker = next(node for node in reversed(self._model.graph.node) if x in node.output)
        maker.output[list(maker.output).index(x)] = name
        self._shapes[name] = self._shapes.pop(x)
        self._model.graph.output.append(self._value(name, np.float32))
        return name

    def conv(self, x: str, name: str, channels: int, window: Window, spread: Spread = USUAL_SPREAD) -> str:
        """Add a convolution with bias, over as many axes as the tensor has behind its channels."""
        batch, depth, *sides = self.shape(x)
        shape = (channels, depth // window.groups, *[window.kernel] * len(sides))
        inputs = [x, self.normal(f"{name}.weight", shape, spread), self.full(f"{name}.bias", 0.0, channels)]
        result = (batch, channels, *map(window.over, sides))
        return self.node("Conv", inputs, name, result, **window.attributes(len(sides)))

    def conv_again(self, x: str, name: str, like: str) -> str:
        """Add a convolution of stride 1 with the weights and the geometry of the one named `like`."""
        first = next(node for node in self._model.graph.node if node.name == like)
        channels = self._shapes[first.output[0]][1]
        again = self._model.graph.node.add()
        again.CopyFrom(first)
        again.name, again.input[0], again.output[0] = name, x, name + self._suffix
        self._shapes[again.output[0]] = (self.shape(x)[0], channels, *self.shape(x)[2:])
        return name + self._suffix

    def relu(self, x: str, name: str) -> str:
        """Add a ReLU."""
        return self.node("Relu", [x], name, self.shape(x))

    def relu6(self, x: str, name: str) -> str:
        """Add a ReLU clipped at six, as Clip."""
        low, high = (self.constant(bound, np.float32(bound)) for bound in ("0.0", "6.0"))
        return self.node("Clip", [x, low, high], name, self.shape(x))

    def add(self, a: str, b: str, name: str) -> str:
        """Add an elementwise sum; `a` has the result's shape."""
        return self.node("Add", [a, b], name, self.shape(a))

    def concat(self, parts: Sequence[str], name: str) -> str:
        """Add a concatenation along the channels."""
        batch, _, *sides = self.shape(parts[0])
        return self.node("Concat", parts, name, (batch, sum(self.shape(x)[1] for x in parts), *sides), axis=1)

    def max_pool(self, x: str, name: str, window: Window) -> str:
        """Add a max pooling."""
        sides = self.shape(x)[2:]
        result = (*self.shape(x)[:2], *map(window.over, sides))
        return self.node("MaxPool", [x], name, result, **window.attributes(len(sides)))

    def upsample(self, x: str, name: str) -> str:
        """Add a resizing by two, nearest, in the one form that the DLA takes: constant scales, asymmetric, floor."""
        batch, channels, height, width = self.shape(x)
        scales = self.constant("upsample.scales", np.array([1, 1, 2, 2], np.float32))
        modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.node("Resize", [x, "", scales], name, (batch, channels, 2 * height, 2 * width), **modes)

    def global_average_pool(self, x: str, name: str) -> str:
        """Add a mean over height and width."""
        return self.node("GlobalAveragePool", [x], name, (*self.shape(x)[:2], 1, 1))

    def flatten(self, x: str, name: str) -> str:
        """Add a flattening to two axes."""
        batch, *rest = self.shape(x)
        return self.node("Flatten", [x], name, (batch, math.prod(rest)))

    def linear(self, x: str, name: str, features: int) -> str:
        """Add a fully connected layer with bias, as Gemm with transB."""
        batch, depth = self.shape(x)
        inputs = [x, self.normal(f"{name}.weight", (features, depth)), self.full(f"{name}.bias", 0.0, features)]
        return self.node("Gemm", inputs, name, (batch, features), transB=1)

    def node(self, op: str, inputs: Sequence[str], name: str, shape: Sequence[int], **attributes: Any) -> str:
        """Add any node whose first output has this shape."""
        from onnx.helper import make_node

        output = name + self._suffix
        self._model.graph.node.append(make_node(op, inputs, [output], name=name, **attributes))
        self._shapes[output] = tuple(shape)
        return output

    def normal(self, name: str, shape: tuple[int, ...], spread: Spread = USUAL_SPREAD) -> str:
        """Add a float32 weight, output channels first."""
        return self._weight(name, shape, None if self._store is None else spread.draw(self._rng, shape))

    def full(self, name: str, value: float, *shape: int) -> str:
        """Add a float32 weight that holds one value."""
        return self._weight(name, shape, None if self._store is None else np.full(shape, value, np.float32))

    def constant(self, name: str, values: NDArray[Any] | np.generic) -> str:
        """Add what is no weight, a shape or a bound, once under its name; its values are always there."""
        if name not in self._shapes:
            self._shapes[name] = values.shape
            self._model.graph.initializer.append(in_memory(name, np.asarray(values)))
        return name

    def model(self, name: str) -> onnx.ModelProto:
        """Return the model, named."""
        self._model.graph.name = name
        return self._model

    def _value(self, name: str, dtype: type[np.generic]) -> onnx.ValueInfoProto:
        from onnx.helper import make_tensor_value_info, np_dtype_to_tensor_dtype

        return make_tensor_value_info(name, np_dtype_to_tensor_dtype(np.dtype(dtype)), self._shapes[name])

    def _weight(self, name: str, shape: tuple[int, ...], values: NDArray[Any] | None) -> str:
        import onnx

        self._shapes[name] = shape
        if self._store is None or values is None:
            self._model.graph.initializer.append(declared_tensor(name, shape, onnx.TensorProto.FLOAT))
        else:
            self._model.graph.initializer.append(self._store(name, values))
        return name
