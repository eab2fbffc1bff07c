"""What a rule is: one restriction on the layers that run on Orin's DLA, and the site that it is held against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dla.errors import DlaError
from engines.graph import UNKNOWN, Graph, Layer, Tensor

FLOATS = ("float32", "float16")
MAX_BATCH = 4096
MAX_DIM = 8192
CBUF_BANKS = 16
CBUF_BANK_BYTES = 32768
CBUF_BYTES_PER_VALUE = 2  # FP16: a build that allows both precisions is judged by the wider one
PAIR = 2


@dataclass(frozen=True)
class Site:
    """A layer in its place: the graph, the precision to build, the operators that feed it and that read it."""

    graph: Graph
    layer: Layer
    precision: str = "int8"
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def input(self) -> tuple[int, ...]:
        """Shape of the first activation."""
        return self.graph.tensors[self.layer.inputs[0]].shape

    @property
    def output(self) -> tuple[int, ...]:
        """Shape of the first result."""
        return self.graph.tensors[self.layer.outputs[0]].shape

    @property
    def rank(self) -> int:
        """Number of axes of the first activation."""
        return len(self.input)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial kernel of a convolution, from its constant weights."""
        return self.graph.tensors[self.layer.weights[0]].shape[2:]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of all activations and results."""
        return [self.graph.tensors[name].shape for name in (*self.layer.inputs, *self.layer.outputs)]

    @property
    def four_axes(self) -> bool:
        """Whether first activation and first result are [N,C,H,W]."""
        return len(self.input) == len(self.output) == 4

    def ints(self, name: str, default: int, count: int = PAIR) -> tuple[int, ...]:
        """Return a per-axis attribute, filled with its default where the node leaves it out."""
        value: Any = self.layer.attributes.get(name)
        if not isinstance(value, tuple):
            return (default,) * count
        return tuple(self._number(name, entry) for entry in value)

    def number(self, name: str, default: float) -> Any:
        """Return a plain number among the attributes, or its default."""
        return self._number(name, self.layer.attributes.get(name, default))

    def _number(self, name: str, value: Any) -> Any:
        if isinstance(value, (int, float)):
            return value
        raise DlaError(f"layer {self.layer.name!r}: {name} is {value!r}, expected a number; export the network again")

    def text(self, name: str, default: str) -> str:
        """Return a text among the attributes, or its default."""
        return str(self.layer.attributes.get(name, default))

    def axis(self, default: int) -> int:
        """Return the axis attribute, counted from the front."""
        return int(self.number("axis", default)) % max(1, self.rank)

    def operand(self, index: int) -> Tensor | None:
        """Return what the node reads at a position; None where it reads nothing there."""
        name = self.layer.operands[index] if index < len(self.layer.operands) else ""
        return self.graph.tensors[name] if name else None

    def values(self, index: int) -> tuple[float, ...]:
        """Return the values of a small constant operand: none where it is left out, large or computed."""
        operand = self.operand(index)
        return operand.values or () if operand is not None else ()


Condition = Callable[[Site], bool]


@dataclass(frozen=True)
class Rule:
    """One restriction: layers of a TensorRT type must meet `condition` to run on the DLA.

    `kind` is the layer's type ("" for all), `ops` the ONNX operators that it is for (none named: all of that type).
    `message` is what TensorRT says where it is not met, `fix` what to do; `confidence` is "documented", "seen in a
    log" or "likely"; `since` and `until` are the first and the last TensorRT that it holds for.
    """

    id: str
    kind: str
    condition: Condition
    message: str
    fix: str
    source: str
    confidence: str
    ops: tuple[str, ...] = ()
    since: tuple[int, int] = (8, 4)
    until: tuple[int, int] = (11, 4)

    def holds_for(self, kind: str, op: str, tensorrt: tuple[int, int]) -> bool:
        """Return whether the rule is one for a layer under a version of TensorRT."""
        of_kind = self.kind in ("", kind) and (not self.ops or op in self.ops)
        return of_kind and self.since <= tensorrt <= self.until


def never(site: Site) -> bool:
    """Refuse every layer."""
    return False


def within(name: str, low: int, high: int, default: int) -> Condition:
    """Return the condition that each value of a per-axis attribute is in a range."""
    return lambda site: all(low <= value <= high for value in site.ints(name, default))


def one_of(*ops: str) -> Condition:
    """Return the condition that a layer is one of these operators."""
    return lambda site: site.layer.op in ops


def known_shapes(site: Site) -> bool:
    """Every tensor of the layer has a shape that something says."""
    names = (*site.layer.inputs, *site.layer.outputs)
    return all(site.graph.tensors[name].dtype != UNKNOWN for name in names)


def floats(site: Site) -> bool:
    """Every activation is FP32 or FP16 in the file, so that the DLA can have it in FP16 or INT8; a Cast goes free."""
    return site.layer.op == "Cast" or all(site.graph.tensors[name].dtype in FLOATS for name in site.layer.inputs)


def batch(site: Site) -> bool:
    """All axes but the last three hold at most 4096 elements together."""
    return all(math.prod(shape[:-3]) <= MAX_BATCH for shape in site.shapes)


def dims(site: Site) -> bool:
    """Every axis but the batch has at most 8192 elements."""
    return all(dim <= MAX_DIM for shape in site.shapes for dim in shape[1:])


def constant_weights(site: Site) -> bool:
    """Weights are constants."""
    return len(site.layer.inputs) == 1 and bool(site.layer.weights)


def convolves_images(site: Site) -> bool:
    """The convolution has two spatial axes."""
    return site.four_axes and len(site.kernel) == PAIR


def conv_padding(site: Site) -> bool:
    """Padding of each side in [0, 31] and below the kernel."""
    pads, kernel = site.ints("pads", 0, 4), site.kernel
    return all(0 <= pad <= 31 and pad < kernel[index % len(kernel)] for index, pad in enumerate(pads) if pad)


def cbuf_banks(channels: int, kernel: tuple[int, ...], dilation: int, width: int) -> int:
    """Return how many of the convolution buffer's 16 banks a layer needs for one kernel and the least data.

    `channels` are those of the input, `width` is that of the input. Source: guide 8.4, "Working with DLA".
    """
    kernel_bytes = math.ceil(channels * math.prod(kernel) * CBUF_BYTES_PER_VALUE / 128) * 128
    weight_banks = math.ceil(kernel_bytes / CBUF_BANK_BYTES)
    slice_entries = math.ceil(math.ceil(channels * CBUF_BYTES_PER_VALUE / 32) * width / 4)
    data_banks = math.ceil(slice_entries * ((kernel[0] - 1) * dilation + 1) / 256)
    return weight_banks + data_banks


def cbuf(site: Site) -> bool:
    """The convolution buffer holds one kernel and the rows that it reads; 16 of 16 banks were refused in practice."""
    shape = site.input
    return cbuf_banks(shape[1], site.kernel, site.ints("dilations", 1)[0], shape[3]) < CBUF_BANKS


def linear_shapes(site: Site) -> bool:
    """The constant is a matrix [K,M] behind the activations, read along their last axis."""
    weight = site.graph.tensors[site.layer.weights[0]].shape
    second = site.layer.operands[:1] == site.layer.inputs[:1]
    return second and len(weight) == PAIR and not site.number("transA", 0)


def linear_batch(site: Site) -> bool:
    """Rows become the batch of a 1x1 convolution."""
    return math.prod(site.input[:-1]) <= MAX_BATCH


def deconv_kernel(site: Site) -> bool:
    """Kernel and stride in [1, 22] each way, up to 32 where they are not square, or 1x{64,96,128}."""
    return all(map(_deconv_size, (site.kernel, site.ints("strides", 1))))


def _deconv_size(size: tuple[int, ...]) -> bool:
    low, high = min(size), max(size)
    if low == 1 and high in (64, 96, 128):
        return True
    return low >= 1 and high <= 32 and not (low == high >= 23)


def deconv_padding(site: Site) -> bool:
    """Nothing is padded or cropped: each output axis is (input - 1) * stride + kernel."""
    axes = zip(site.input[2:], site.output[2:], site.kernel, site.ints("strides", 1))
    return all(after == (before - 1) * stride + size for before, after, size, stride in axes)


def clip_bounds(site: Site) -> bool:
    """Clip from 0 to a bound in [1, 127]."""
    return site.values(1) == (0.0,) and len(high := site.values(2)) == 1 and 1 <= high[0] <= 127


def slope_constant(site: Site) -> bool:
    """The slopes of PRelu are constants."""
    return len(site.layer.inputs) == 1


def broadcast(site: Site) -> bool:
    """Operands are NCHW, NC11 or N111; of fewer axes: the result's own shape, cut off and filled with ones."""
    full = site.output
    names = (*site.layer.inputs, *site.layer.weights)
    return len(names) >= PAIR and all(_spreads(site.graph.tensors[name].shape, full) for name in names)


def _spreads(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    padded = (1,) * (len(full) - len(shape)) + shape
    kept = (1, 2) if len(full) >= 4 else range(len(full))
    return padded == full or any(padded == full[:axes] + (1,) * (len(full) - axes) for axes in kept)


def one_constant(site: Site) -> bool:
    """One of two operands is a constant."""
    return len(site.layer.weights) == 1


def goes_into_a_cast(site: Site) -> bool:
    """The comparison's result is read by one Cast and by nothing else."""
    return site.after == ("Cast",) and site.layer.outputs[0] not in site.graph.outputs


def casts_a_comparison(site: Site) -> bool:
    """What is cast comes from a comparison."""
    return site.before in (("Equal",), ("Greater",), ("Less",))


def concat_channels(site: Site) -> bool:
    """The axis is that of the channels, of four."""
    return site.rank == 4 and site.axis(1) == 1


def softmax_axis(site: Site) -> bool:
    """The axis is not the batch; it has at most 1024 elements where others hold more than one, else 8192."""
    axis = site.axis(-1 if site.graph.opset >= 13 else 1)
    alone = all(dim == 1 for index, dim in enumerate(site.input) if index not in (0, axis))
    return axis > 0 and site.input[axis] <= (MAX_DIM if alone else 1024)


def softmax_alone(site: Site) -> bool:
    """Batch 1, and one element on every axis but the softmax's."""
    return sum(dim > 1 for dim in site.input) <= 1 and site.input[0] == 1


def four_axes(site: Site) -> bool:
    """Input and output have four axes."""
    return site.four_axes


def slice_inside(site: Site) -> bool:
    """The slice reads inside its input: no padding, no tiling."""
    return site.layer.op not in ("Tile", "Pad")


def slice_steps(site: Site) -> bool:
    """The slice takes whole runs of constant bounds: step 1, never along the batch, nothing repeated."""
    if site.layer.op == "Expand":
        return site.input == site.output
    constant = len(site.layer.inputs) == 1 and all(step == 1 for step in site.values(4))
    return constant and site.input[0] == site.output[0] and (site.layer.op != "Split" or site.axis(0) != 0)


def shuffle_keeps_batch(site: Site) -> bool:
    """Neither reshape nor transpose touches the batch axis, and there are four axes all the way."""
    if site.layer.op in ("DepthToSpace", "SpaceToDepth") or not site.four_axes:
        return False  # six axes in between
    return site.input[0] == site.output[0] and site.ints("perm", 0, 1)[0] == 0


def not_beside_slice(site: Site) -> bool:
    """No Slice, Split or Concat directly before or after a reshape."""
    return not {"Slice", "Split", "Concat"}.intersection((*site.before, *site.after))


def resize_scales(site: Site) -> bool:
    """The node is given scales, not sizes."""
    return bool(site.values(2)) and not site.values(3)


def resize_factors(site: Site) -> bool:
    """Height and width grow by an integer: up to 32 for nearest, up to 4 for linear; nothing else changes."""
    factors = site.values(2)
    limit = 4 if site.text("mode", "nearest") == "linear" else 32
    whole = all(factor == int(factor) and 1 <= factor <= limit for factor in factors)
    return site.four_axes and len(factors) == 4 and factors[:2] == (1, 1) and whole


RESIZE_MODES = {
    ("nearest", "asymmetric", "floor"),
    ("nearest", "half_pixel", "round_prefer_floor"),
    ("nearest", "half_pixel", "round_prefer_ceil"),
}


def resize_mode(site: Site) -> bool:
    """Nearest with asymmetric floor or half-pixel rounding; linear with half-pixel."""
    mode = site.text("mode", "nearest")
    transform = site.text("coordinate_transformation_mode", "half_pixel")
    if mode == "linear":
        return transform == "half_pixel"
    return (mode, transform, site.text("nearest_mode", "round_prefer_floor")) in RESIZE_MODES


def reduces_maximum(site: Site) -> bool:
    """The largest value over channels, height or width of four axes that are kept."""
    return site.layer.op in ("GlobalMaxPool", "ReduceMax") and site.four_axes and site.input[0] == site.output[0]
