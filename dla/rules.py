"""What a layer must satisfy to run on Orin's DLA, as data: one `Rule` per restriction.

Sources, by the tag in `Rule.source`: "docs" = TensorRT documentation, "DLA layer restrictions" (10.x); "guide" =
TensorRT developer guide 8.4/8.5, "Working with DLA"; "header" = NvInfer.h release/10.3; "log" = verbose builder logs of
TensorRT 10.3 on Jetson AGX Orin; "issue" = a report in the public TensorRT issue tracker.
Messages are TensorRT's own, with {layer} and {kind} for the layer's name and its TensorRT type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dla.errors import DlaError
from engines.graph import Graph, Layer

TENSORRT_VERSIONS = ("10.3",)
FLOATS = ("float32", "float16")
MAX_BATCH = 4096
MAX_DIM = 8192
MAX_SOFTMAX_AXIS = 1024  # where other axes hold more than one element; MAX_DIM otherwise
CBUF_BANKS = 16
CBUF_BANK_BYTES = 32768
CBUF_BYTES_PER_VALUE = 2  # FP16: a build that allows both precisions is judged by the wider one

UNSUPPORTED = "Layer '{layer}' ({kind}): Unsupported on DLA. Switching this layer's device type to GPU."
REDUCE_AVG = "{layer}: DLA cores do not support AVG Reduce operation."
MATMUL = "{layer}: MatMul is unsupported on DLA, relax constraints or use Convolution layer instead."
CONCAT_AXIS = "{layer}: DLA only supports concatenation on the C dimension."
CONCAT_INPUTS = "{layer}: Concatenation on DLA requires at least two inputs."
BATCH = (
    "DLA LAYER: Batch size (combined volume except for CHW dimensions) for layer {layer} exceeds max batch size "
    f"allowed of {MAX_BATCH}."
)
PRECISION = "DLA only supports FP16 and Int8 precision type. Switching {layer} device type to GPU."

Condition = Callable[[Graph, Layer], bool]


@dataclass(frozen=True)
class Rule:
    """One restriction: layers of `ops` (none named: of every operator) must meet `condition` to run on the DLA.

    `message` is what TensorRT says where it is not met, `fix` what to do; `confidence` is "documented", "seen in a
    log" or "likely"; `tensorrt` are the versions that it holds for.
    """

    id: str
    ops: tuple[str, ...]
    condition: Condition
    message: str
    fix: str
    source: str
    confidence: str
    tensorrt: tuple[str, ...] = TENSORRT_VERSIONS


def _never(graph: Graph, layer: Layer) -> bool:
    return False


def _ints(layer: Layer, name: str, default: int) -> tuple[int, ...]:
    """Return a per-axis attribute, filled with its default where the node leaves it out."""
    value: Any = layer.attributes.get(name)
    return tuple(value) if value else (default,)


def _within(name: str, low: int, high: int, default: int) -> Condition:
    return lambda graph, layer: all(low <= value <= high for value in _ints(layer, name, default))


def _kernel(graph: Graph, layer: Layer) -> tuple[int, ...]:
    """Return the spatial kernel of a convolution, from its constant weights."""
    return graph.tensors[layer.weights[0]].shape[2:]


def _input(graph: Graph, layer: Layer) -> tuple[int, ...]:
    return graph.tensors[layer.inputs[0]].shape


def _output(graph: Graph, layer: Layer) -> tuple[int, ...]:
    return graph.tensors[layer.outputs[0]].shape


def _shapes(graph: Graph, layer: Layer) -> list[tuple[int, ...]]:
    return [graph.tensors[name].shape for name in (*layer.inputs, *layer.outputs)]


def _floats(graph: Graph, layer: Layer) -> bool:
    return all(graph.tensors[name].dtype in FLOATS for name in layer.inputs)


def _batch(graph: Graph, layer: Layer) -> bool:
    return all(math.prod(shape[:-3]) <= MAX_BATCH for shape in _shapes(graph, layer))


def _dims(graph: Graph, layer: Layer) -> bool:
    return all(dim <= MAX_DIM for shape in _shapes(graph, layer) for dim in shape[1:])


def _two_dimensional(graph: Graph, layer: Layer) -> bool:
    return len(_input(graph, layer)) == 4


def _constant_weights(graph: Graph, layer: Layer) -> bool:
    return len(layer.inputs) == 1 and bool(layer.weights)


def _padding(graph: Graph, layer: Layer) -> bool:
    """Padding of each side in [0, 31] and below the kernel."""
    pads = _ints(layer, "pads", 0)
    kernel = _kernel(graph, layer)
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


def _cbuf(graph: Graph, layer: Layer) -> bool:
    shape = _input(graph, layer)
    dilation = _ints(layer, "dilations", 1)[0]
    return cbuf_banks(shape[1], _kernel(graph, layer), dilation, shape[3]) < CBUF_BANKS


def _broadcast(graph: Graph, layer: Layer) -> bool:
    """Operands of an elementwise layer are NCHW, NC11 or N111 (constants: any shape that broadcasts to these)."""
    full = _output(graph, layer)
    shapes = [graph.tensors[name].shape for name in layer.inputs]
    allowed = (full, (*full[:2], 1, 1), (full[0], 1, 1, 1)) if len(full) == 4 else (full,)
    return len(layer.inputs) + len(layer.weights) == 2 and all(shape in allowed for shape in shapes)


def _concat_axis(graph: Graph, layer: Layer) -> bool:
    rank = len(_output(graph, layer))
    return rank == 4 and int(layer.attributes.get("axis", 1)) % rank == 1


def _softmax_axis(graph: Graph, layer: Layer) -> bool:
    shape = _input(graph, layer)
    axis = int(layer.attributes.get("axis", -1 if graph.opset >= 13 else 1)) % len(shape)
    alone = all(dim == 1 for index, dim in enumerate(shape) if index not in (0, axis))
    return axis > 0 and shape[axis] <= (MAX_DIM if alone else MAX_SOFTMAX_AXIS)


_CONV = ("Conv",)
_POOLS = ("MaxPool", "AveragePool")
_ELEMENTWISE = ("Add", "Sub", "Mul", "Max", "Min", "Sum")
_LINEAR = ("Gemm", "MatMul")
_ACTIVATIONS = ("Relu", "LeakyRelu", "Sigmoid", "Tanh")

# The first rule that a layer breaks is the one reported: what it is comes before how large it is.
RULES: tuple[Rule, ...] = (
    Rule(
        "precision", (), _floats, PRECISION, "keep it in floating point, or let it run on the GPU", "log", "documented"
    ),
    Rule("conv-constant", _CONV, _constant_weights, UNSUPPORTED, "fold the weights to constants", "docs", "documented"),
    Rule("conv-2d", _CONV, _two_dimensional, UNSUPPORTED, "use two spatial axes", "docs", "documented"),
    Rule(
        "conv-kernel",
        _CONV,
        lambda graph, layer: all(1 <= size <= 32 for size in _kernel(graph, layer)),
        UNSUPPORTED,
        "use a kernel of at most 32x32",
        "docs",
        "documented",
    ),
    Rule("conv-stride", _CONV, _within("strides", 1, 8, 1), UNSUPPORTED, "use strides of 1 to 8", "docs", "documented"),
    Rule(
        "conv-dilation", _CONV, _within("dilations", 1, 32, 1), UNSUPPORTED, "dilate by 1 to 32", "guide", "documented"
    ),
    Rule(
        "conv-padding",
        _CONV,
        _padding,
        UNSUPPORTED,
        "pad by at most 31 and less than the kernel",
        "guide",
        "documented",
    ),
    Rule(
        "conv-groups",
        _CONV,
        lambda graph, layer: 1 <= layer.attributes.get("group", 1) <= MAX_DIM,
        UNSUPPORTED,
        f"use at most {MAX_DIM} groups",
        "guide",
        "documented",
    ),
    Rule(
        "conv-cbuf",
        _CONV,
        _cbuf,
        UNSUPPORTED,
        "split the layer along its width or channels",
        "guide; issue 3499",
        "likely",
    ),
    Rule("pool-2d", _POOLS, _two_dimensional, UNSUPPORTED, "use two spatial axes", "docs", "documented"),
    Rule(
        "pool-window",
        _POOLS,
        _within("kernel_shape", 1, 8, 1),
        UNSUPPORTED,
        "split it into windows of at most 8x8, one after the other",
        "guide",
        "documented",
    ),
    Rule(
        "pool-stride",
        _POOLS,
        _within("strides", 1, 16, 1),
        UNSUPPORTED,
        "use strides of 1 to 16",
        "guide",
        "documented",
    ),
    Rule("pool-padding", _POOLS, _within("pads", 0, 7, 0), UNSUPPORTED, "pad by at most 7", "guide", "documented"),
    Rule(
        "reduce-avg",
        ("GlobalAveragePool", "ReduceMean"),
        _never,
        REDUCE_AVG,
        "rewrite global-pool: an average pool with an explicit window of at most 8x8",
        "log",
        "seen in a log",
    ),
    Rule(
        "linear-constant", _LINEAR, _constant_weights, MATMUL, "fold one operand to a constant", "log", "seen in a log"
    ),
    Rule(
        "activation-2d",
        _ACTIVATIONS,
        lambda graph, layer: len(_input(graph, layer)) <= 4,
        UNSUPPORTED,
        "use two spatial axes",
        "docs",
        "documented",
    ),
    Rule(
        "elementwise-shapes",
        _ELEMENTWISE,
        _broadcast,
        UNSUPPORTED,
        "give it two operands of equal shape, or [N,C,1,1], or [N,1,1,1]",
        "docs",
        "likely",
    ),
    Rule(
        "scale-2d",
        ("BatchNormalization",),
        _two_dimensional,
        UNSUPPORTED,
        "fold it into a convolution",
        "docs",
        "documented",
    ),
    Rule(
        "concat-axis",
        ("Concat",),
        _concat_axis,
        CONCAT_AXIS,
        "concatenate channels of 4-D tensors",
        "docs",
        "documented",
    ),
    Rule(
        "concat-inputs",
        ("Concat",),
        lambda graph, layer: len(layer.inputs) >= 2,
        CONCAT_INPUTS,
        "drop the concatenation, or make its constant an activation",
        "log",
        "documented",
    ),
    Rule(
        "softmax-axis",
        ("Softmax",),
        _softmax_axis,
        UNSUPPORTED,
        f"reduce over at most {MAX_SOFTMAX_AXIS} elements, never over the batch; or rewrite cut-tail",
        "guide; header",
        "documented",
    ),
    Rule(
        "shuffle",
        ("Flatten", "Reshape", "Squeeze", "Unsqueeze"),
        lambda graph, layer: (
            len(_input(graph, layer)) == len(_output(graph, layer)) == 4
            and _input(graph, layer)[0] == _output(graph, layer)[0]
        ),
        UNSUPPORTED,
        "keep four axes and the batch as they are; before a Gemm: rewrite gemm-to-conv",
        "log",
        "seen in a log",
    ),
    Rule(
        "sort",
        ("TopK", "ArgMax", "ArgMin"),
        _never,
        UNSUPPORTED,
        "rewrite cut-tail: it becomes a step of its own after the engine",
        "log",
        "documented",
    ),
    Rule("batch", (), _batch, BATCH, f"build with a batch of at most {MAX_BATCH}", "docs", "documented"),
    Rule("dims", (), _dims, UNSUPPORTED, f"keep every axis but the batch at most {MAX_DIM}", "docs", "documented"),
)

# What an operator without a rule of its own meets; the two after it are no conditions on one layer but on where it is.
NO_LAYER = Rule(
    "no-dla-layer", (), _never, UNSUPPORTED, "replace the operator, or let it run on the GPU", "docs", "documented"
)
RANK_BELOW_4 = Rule(
    "rank-below-4",
    (),
    _never,
    "Input tensor has less than 4 dimensions for {layer}. "
    "At least one shuffle layer will be inserted which cannot run on DLA.",
    "keep [N,C,1,1] in place of [N,C]; after a Gemm: rewrite gemm-to-conv",
    "log",
    "seen in a log",
)
LOADABLE_LIMIT = Rule(
    "loadable-limit",
    (),
    _never,
    "DLA supports only {limit} subgraphs per DLA core. Switching to GPU for layer {layer}",
    "rewrite or move to the GPU what cuts the network into so many pieces",
    "log",
    "seen in a log",
)


def rules_by_op(tensorrt: str) -> Mapping[str, tuple[Rule, ...]]:
    """Return the rules that each operator must meet under a TensorRT version; an operator left out is the GPU's."""
    if tensorrt not in TENSORRT_VERSIONS:
        raise DlaError(f"TensorRT {tensorrt!r} has no rules here; known: {', '.join(TENSORRT_VERSIONS)}")
    rules = [rule for rule in RULES if tensorrt in rule.tensorrt]
    ops = {op: None for rule in rules for op in rule.ops}
    return {op: tuple(rule for rule in rules if not rule.ops or op in rule.ops) for op in ops}
