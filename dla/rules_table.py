"""The restrictions as data, for TensorRT 8.4 to 10.7 and 11.4.

Sources, by the tag in `Rule.source`: "docs" = TensorRT documentation, "DLA layer restrictions" (10.x); "guide" =
TensorRT developer guide 8.4/8.5, "Working with DLA"; "header" = NvInfer.h release/8.6 and release/10.3; "log" = verbose
builder logs of Jetson boards; "issue" = a report in TensorRT's public tracker; "ops" = NVIDIA's table of ONNX operators
on Orin's DLA (Deep-Learning-Accelerator-SW, operators/README.md); "docs 11.4" = "DLA strongly typed networks" (11.4).
Messages are TensorRT's own, with {layer} and {kind} for the layer's name and its TensorRT type, {operation} for the
operation in it.
"""

from __future__ import annotations

from dla.rules import (
    MAX_BATCH,
    MAX_DIM,
    Condition,
    Rule,
    batch,
    broadcast,
    casts_a_comparison,
    cbuf,
    clip_bounds,
    concat_channels,
    constant_weights,
    conv_padding,
    convolves_images,
    deconv_kernel,
    deconv_padding,
    dims,
    floats,
    four_axes,
    goes_into_a_cast,
    known_shapes,
    linear_batch,
    linear_shapes,
    never,
    not_beside_slice,
    one_constant,
    one_of,
    reduces_maximum,
    resize_factors,
    resize_mode,
    resize_scales,
    shuffle_keeps_batch,
    slice_inside,
    slice_steps,
    slope_constant,
    softmax_alone,
    softmax_axis,
    within,
)

UNSUPPORTED = "Layer '{layer}' ({kind}): Unsupported on DLA. Switching this layer's device type to GPU."
ELEMENTWISE = "{layer}: DLA cores do not support {operation} ElementWise operation."
REDUCE = "{layer}: DLA cores do not support {operation} Reduce operation."
UNARY = "{layer}: Unary operation: {operation} is not supported on DLA."
MATMUL = "{layer}: MatMul is unsupported on DLA, relax constraints or use Convolution layer instead."
CONCAT_AXIS = "{layer}: DLA only supports concatenation on the C dimension."
CONCAT_INPUTS = "{layer}: Concatenation on DLA requires at least two inputs."
SLICE_AXES = "{layer}: DLA only supports slicing 4 dimensional tensors."
SLICE_BOUNDS = (
    "{layer}: DLA does not support out-of-bounds slice operation. "
    "Set slice mode to SliceMode::kDEFAULT to allow the layer to be offloaded to DLA."
)
RESHAPE = "{layer}: This version of DLA does not support reshape layers directly connected to Slice or Concat"
BATCH = (
    "DLA LAYER: Batch size (combined volume except for CHW dimensions) for layer {layer} exceeds max batch size "
    f"allowed of {MAX_BATCH}."
)
PRECISION = "DLA only supports FP16 and Int8 precision type. Switching {layer} device type to GPU."

DOCUMENTED, SEEN, LIKELY = "documented", "seen in a log", "likely"
TRT_8_4, TRT_8_5, TRT_8_6, TRT_10 = (8, 4), (8, 5), (8, 6), (10, 0)

_CONV = ("Conv",)
_LINEAR = ("Gemm", "MatMul")
_COMPARISONS = ("Equal", "Greater", "Less")
_BASIC = ("Add", "Sub", "Mul", "Max", "Min", "Sum")


def _int8(condition: Condition) -> Condition:
    """Hold only in an INT8 build, and where the condition does."""
    return lambda site: site.precision == "int8" and condition(site)


# The first rule that a layer breaks is the one reported: what it is comes before how large it is.
RULES: tuple[Rule, ...] = (
    Rule(
        "unknown-shape",
        "",
        known_shapes,
        UNSUPPORTED,
        "declare the shape of what the custom operator makes (value_info), and place again",
        "docs",
        LIKELY,
    ),
    # QUANTIZE, DEQUANTIZE: TensorRT 11 takes them for the types of their neighbours, so they are no layers there.
    Rule(
        "explicit-quantisation",
        "QUANTIZE",
        never,
        UNSUPPORTED,
        "make the scales implicit: drop QuantizeLinear/DequantizeLinear, and give their scales in a calibration cache",
        "guide; ops",
        DOCUMENTED,
        until=(10, 7),
    ),
    Rule(
        "explicit-dequantisation",
        "DEQUANTIZE",
        never,
        UNSUPPORTED,
        "make the scales implicit: drop QuantizeLinear/DequantizeLinear, and give their scales in a calibration cache",
        "guide; ops",
        DOCUMENTED,
        until=(10, 7),
    ),
    Rule(
        "cast",
        "CAST",
        _int8(casts_a_comparison),
        UNSUPPORTED,
        "keep one type throughout: cast in front of the network or behind it",
        "docs",
        DOCUMENTED,
    ),
    Rule("precision", "", floats, PRECISION, "keep it in floating point, or let it run on the GPU", "log", DOCUMENTED),
    # CONVOLUTION of a Conv
    Rule(
        "conv-constant",
        "CONVOLUTION",
        constant_weights,
        UNSUPPORTED,
        "fold the weights to constants",
        "docs",
        DOCUMENTED,
        _CONV,
    ),
    Rule(
        "conv-2d",
        "CONVOLUTION",
        convolves_images,
        UNSUPPORTED,
        "use two spatial axes: a 1-D convolution with an axis of 1, a 3-D one slice by slice",
        "docs",
        DOCUMENTED,
        _CONV,
    ),
    Rule(
        "conv-kernel",
        "CONVOLUTION",
        lambda site: all(1 <= size <= 32 for size in site.kernel),
        UNSUPPORTED,
        "use a kernel of at most 32x32",
        "docs",
        DOCUMENTED,
        _CONV,
    ),
    Rule(
        "conv-stride",
        "CONVOLUTION",
        within("strides", 1, 8, 1),
        UNSUPPORTED,
        "use strides of 1 to 8",
        "docs",
        DOCUMENTED,
        _CONV,
    ),
    Rule(
        "conv-dilation",
        "CONVOLUTION",
        within("dilations", 1, 32, 1),
        UNSUPPORTED,
        "dilate by 1 to 32",
        "guide",
        DOCUMENTED,
        _CONV,
    ),
    Rule(
        "conv-padding",
        "CONVOLUTION",
        conv_padding,
        UNSUPPORTED,
        "pad by at most 31 and less than the kernel",
        "guide",
        DOCUMENTED,
        _CONV,
    ),
    Rule(
        "conv-groups",
        "CONVOLUTION",
        lambda site: 1 <= site.number("group", 1) <= MAX_DIM,
        UNSUPPORTED,
        f"use at most {MAX_DIM} groups",
        "guide",
        DOCUMENTED,
        _CONV,
    ),
    Rule(
        "conv-cbuf",
        "CONVOLUTION",
        cbuf,
        UNSUPPORTED,
        "split the layer along its width or channels",
        "guide; issue 3499",
        LIKELY,
        _CONV,
    ),
    # CONVOLUTION of a Gemm or MatMul by a constant; any other MATRIX_MULTIPLY is the GPU's
    Rule(
        "linear-constant",
        "MATRIX_MULTIPLY",
        never,
        MATMUL,
        "fold the second operand to a constant; two activations are multiplied on the GPU",
        "log",
        SEEN,
    ),
    Rule(
        "linear-shapes",
        "CONVOLUTION",
        linear_shapes,
        MATMUL,
        "multiply activations by one constant matrix from the right, not transposed themselves",
        "guide",
        LIKELY,
        _LINEAR,
    ),
    Rule(
        "linear-batch",
        "CONVOLUTION",
        linear_batch,
        BATCH,
        f"multiply at most {MAX_BATCH} rows",
        "docs; log",
        LIKELY,
        _LINEAR,
    ),
    # DECONVOLUTION
    Rule(
        "deconv-constant",
        "DECONVOLUTION",
        constant_weights,
        UNSUPPORTED,
        "fold the weights to constants",
        "docs",
        DOCUMENTED,
    ),
    Rule("deconv-2d", "DECONVOLUTION", convolves_images, UNSUPPORTED, "use two spatial axes", "docs", DOCUMENTED),
    Rule(
        "deconv-kernel",
        "DECONVOLUTION",
        deconv_kernel,
        UNSUPPORTED,
        "use a kernel and a stride of at most 22x22, or 32 where they are not square",
        "header",
        DOCUMENTED,
    ),
    Rule(
        "deconv-groups",
        "DECONVOLUTION",
        lambda site: site.number("group", 1) == 1,
        UNSUPPORTED,
        "use one group: split the channels and join the results",
        "docs",
        DOCUMENTED,
    ),
    Rule(
        "deconv-dilation",
        "DECONVOLUTION",
        within("dilations", 1, 1, 1),
        UNSUPPORTED,
        "use no dilation",
        "docs",
        DOCUMENTED,
    ),
    Rule(
        "deconv-padding",
        "DECONVOLUTION",
        deconv_padding,
        UNSUPPORTED,
        "pad by 0, and crop what is too much behind it",
        "docs; log",
        DOCUMENTED,
    ),
    # POOLING
    Rule("pool-2d", "POOLING", four_axes, UNSUPPORTED, "use two spatial axes", "docs", DOCUMENTED),
    Rule(
        "pool-window",
        "POOLING",
        within("kernel_shape", 1, 8, 1),
        UNSUPPORTED,
        "split it into windows of at most 8x8, one after the other",
        "guide",
        DOCUMENTED,
    ),
    Rule(
        "pool-stride",
        "POOLING",
        within("strides", 1, 16, 1),
        UNSUPPORTED,
        "use strides of 1 to 16",
        "guide",
        DOCUMENTED,
    ),
    Rule("pool-padding", "POOLING", within("pads", 0, 7, 0), UNSUPPORTED, "pad by at most 7", "guide", DOCUMENTED),
    Rule(
        "pool-dilation", "POOLING", within("dilations", 1, 1, 1), UNSUPPORTED, "use no dilation", "header", DOCUMENTED
    ),
    Rule(
        "pool-indices",
        "POOLING",
        lambda site: len(site.layer.outputs) == 1,
        UNSUPPORTED,
        "drop the output of the indices",
        "header",
        LIKELY,
    ),
    # REDUCE
    Rule(
        "reduce",
        "REDUCE",
        never,
        REDUCE,
        "rewrite global-pool: average pools or a convolution",
        "log",
        SEEN,
        (),
        TRT_8_4,
        TRT_8_6,
    ),
    Rule(
        "reduce-max",
        "REDUCE",
        reduces_maximum,
        REDUCE,
        "rewrite global-pool: average pools or a convolution with windows of at most 8x8",
        "log; ops",
        SEEN,
        since=TRT_10,
    ),
    # ACTIVATION, PARAMETRIC_RELU
    Rule(
        "activation",
        "ACTIVATION",
        one_of("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip"),
        UNSUPPORTED,
        "use Relu, LeakyRelu, Sigmoid, Tanh or Clip; rewrite hard-swish for HardSwish and HardSigmoid",
        "docs",
        DOCUMENTED,
    ),
    Rule(
        "activation-clip",
        "ACTIVATION",
        clip_bounds,
        UNSUPPORTED,
        "clip from 0 to a constant of 1 to 127",
        "guide",
        DOCUMENTED,
        ("Clip",),
    ),
    Rule(
        "prelu-constant",
        "PARAMETRIC_RELU",
        slope_constant,
        UNSUPPORTED,
        "make the slopes constants",
        "guide",
        DOCUMENTED,
    ),
    # ELEMENTWISE, UNARY
    Rule(
        "elementwise",
        "ELEMENTWISE",
        one_of(*_BASIC, "Equal"),
        ELEMENTWISE,
        "use Add, Sub, Mul, Max or Min: a division by a constant is a product",
        "log; guide",
        SEEN,
        (),
        TRT_8_4,
        TRT_8_6,
    ),
    Rule(
        "elementwise",
        "ELEMENTWISE",
        one_of(*_BASIC, "Div", "Pow", *_COMPARISONS),
        ELEMENTWISE,
        "use Add, Sub, Mul, Max, Min, or Div and Pow with a constant",
        "docs",
        DOCUMENTED,
        since=TRT_10,
    ),
    Rule(
        "elementwise-constant",
        "ELEMENTWISE",
        _int8(one_constant),
        ELEMENTWISE,
        "give Div and Pow one constant operand, in an INT8 build; a division by a constant is a product",
        "guide; docs",
        LIKELY,
        ("Div", "Pow"),
    ),
    Rule(
        "comparison-8.4",
        "ELEMENTWISE",
        never,
        ELEMENTWISE,
        "build with TensorRT 8.5 or later",
        "ops",
        LIKELY,
        _COMPARISONS,
        TRT_8_4,
        TRT_8_4,
    ),
    Rule(
        "comparison-cast",
        "ELEMENTWISE",
        _int8(goes_into_a_cast),
        ELEMENTWISE,
        "read the comparison by one Cast to floating point and nothing else, in an INT8 build",
        "docs",
        DOCUMENTED,
        _COMPARISONS,
    ),
    Rule(
        "elementwise-shapes",
        "ELEMENTWISE",
        broadcast,
        UNSUPPORTED,
        "give it operands of equal shape, or [N,C,1,1], or [N,1,1,1]: constants too, so repeat them over the batch",
        "docs; log",
        LIKELY,
    ),
    Rule(
        "unary",
        "UNARY",
        one_of("Abs"),
        UNARY,
        "replace the operation, or let it run on the GPU",
        "header; log",
        SEEN,
        (),
        TRT_8_4,
        TRT_8_6,
    ),
    Rule(
        "unary",
        "UNARY",
        one_of("Abs", "Sin", "Cos", "Atan"),
        UNARY,
        "replace the operation, or let it run on the GPU",
        "log; ops",
        SEEN,
        since=TRT_10,
    ),
    Rule(
        "unary-int8",
        "UNARY",
        lambda site: site.precision == "int8",
        UNARY,
        "build in INT8",
        "ops",
        LIKELY,
        ("Sin", "Cos", "Atan"),
    ),
    # SCALE, LRN
    Rule("scale-2d", "SCALE", four_axes, UNSUPPORTED, "fold it into a convolution", "docs", DOCUMENTED),
    Rule(
        "lrn-window",
        "LRN",
        lambda site: site.number("size", 5) in (3, 5, 7, 9),
        UNSUPPORTED,
        "use a window of 3, 5, 7 or 9",
        "guide",
        DOCUMENTED,
    ),
    # CONCATENATION
    Rule(
        "concat-axis",
        "CONCATENATION",
        concat_channels,
        CONCAT_AXIS,
        "concatenate channels of 4-D tensors",
        "docs; log",
        SEEN,
    ),
    Rule(
        "concat-inputs",
        "CONCATENATION",
        lambda site: len(site.layer.inputs) >= 2,
        CONCAT_INPUTS,
        "drop the concatenation, or make its constant an activation",
        "log",
        SEEN,
    ),
    # RESIZE
    Rule(
        "resize-scales",
        "RESIZE",
        resize_scales,
        UNSUPPORTED,
        "give scales in place of sizes: rewrite resize-scales",
        "docs",
        DOCUMENTED,
    ),
    Rule(
        "resize-factors",
        "RESIZE",
        resize_factors,
        UNSUPPORTED,
        "enlarge height and width by an integer: up to 32 (nearest) or 4 (linear)",
        "guide",
        DOCUMENTED,
    ),
    Rule(
        "resize-mode",
        "RESIZE",
        resize_mode,
        UNSUPPORTED,
        "use nearest with asymmetric and floor, or half_pixel; linear with half_pixel",
        "header",
        DOCUMENTED,
    ),
    # SLICE
    Rule("slice-axes", "SLICE", four_axes, SLICE_AXES, "slice tensors of four axes", "log", SEEN),
    Rule("slice-bounds", "SLICE", slice_inside, SLICE_BOUNDS, "rewrite pad: fold it into its reader", "log", SEEN),
    Rule(
        "slice-int8",
        "SLICE",
        lambda site: site.precision == "fp16",
        UNSUPPORTED,
        "build in FP16, or with TensorRT 8.5 or later",
        "guide; log",
        DOCUMENTED,
        (),
        TRT_8_4,
        TRT_8_4,
    ),
    Rule(
        "slice-steps",
        "SLICE",
        slice_steps,
        UNSUPPORTED,
        "slice channels, height or width by constant bounds and steps of 1",
        "header",
        DOCUMENTED,
    ),
    # SOFTMAX
    Rule("softmax-axes", "SOFTMAX", four_axes, UNSUPPORTED, "give it four axes, or rewrite cut-tail", "guide", LIKELY),
    Rule(
        "softmax-8.4",
        "SOFTMAX",
        softmax_alone,
        UNSUPPORTED,
        "build with TensorRT 8.5 or later, or rewrite cut-tail",
        "guide",
        DOCUMENTED,
        (),
        TRT_8_4,
        TRT_8_4,
    ),
    Rule(
        "softmax-axis",
        "SOFTMAX",
        softmax_axis,
        UNSUPPORTED,
        "reduce over at most 1024 elements, never over the batch; or rewrite cut-tail",
        "guide; header",
        DOCUMENTED,
        ("Softmax",),
    ),
    Rule(
        "log-softmax",
        "SOFTMAX",
        never,
        UNARY,
        "rewrite cut-tail: the logarithm is the GPU's",
        "ops",
        LIKELY,
        ("LogSoftmax",),
    ),
    # SHUFFLE
    Rule(
        "shuffle-8.4",
        "SHUFFLE",
        never,
        UNSUPPORTED,
        "build with TensorRT 8.5 or later",
        "guide; log",
        SEEN,
        (),
        TRT_8_4,
        TRT_8_4,
    ),
    Rule(
        "shuffle",
        "SHUFFLE",
        shuffle_keeps_batch,
        UNSUPPORTED,
        "keep four axes and the batch as they are; before a Gemm: rewrite gemm-to-conv",
        "log",
        SEEN,
    ),
    Rule(
        "shuffle-slice",
        "SHUFFLE",
        not_beside_slice,
        RESHAPE,
        "build with TensorRT 8.6 or later",
        "log",
        SEEN,
        ("Reshape",),
        TRT_8_5,
        TRT_8_5,
    ),
    # What the GPU alone can do, by what to do about it
    Rule(
        "sort",
        "TOPK",
        never,
        UNSUPPORTED,
        "rewrite cut-tail: it becomes a step of its own after the engine",
        "log",
        DOCUMENTED,
    ),
    Rule(
        "normalisation",
        "NORMALIZATION",
        never,
        UNSUPPORTED,
        "train with batch normalisation: it folds into the convolution; group, layer and instance norm are the GPU's",
        "log",
        SEEN,
    ),
    Rule("batch", "", batch, BATCH, f"build with a batch of at most {MAX_BATCH}", "docs", DOCUMENTED),
    Rule("dims", "", dims, UNSUPPORTED, f"keep every axis but the batch at most {MAX_DIM}", "docs", DOCUMENTED),
)

# What a type without a rule of its own meets; the ones after it are no conditions on one layer but on where it is.
NO_LAYER = Rule(
    "no-dla-layer", "", never, UNSUPPORTED, "replace the operator, or let it run on the GPU", "docs", DOCUMENTED
)
PLUGIN_NEEDED = Rule(
    "plugin",
    "PLUGIN",
    never,
    UNSUPPORTED,
    "plugin needed: TensorRT's parser does not know the operator; register one for the GPU, or replace the operator",
    "docs",
    DOCUMENTED,
)
SHUFFLE_FUSED = Rule(
    "shuffle-fused",
    "SHUFFLE",
    never,
    UNSUPPORTED,
    "keep four axes and the batch in the reshape beside it too: TensorRT makes one shuffle of both",
    "log",
    SEEN,
)
RANK_BELOW_4 = Rule(
    "rank-below-4",
    "",
    never,
    "Input tensor has less than 4 dimensions for {layer}. "
    "At least one shuffle layer will be inserted which cannot run on DLA.",
    "keep [N,C,1,1] in place of [N,C]; after a Gemm: rewrite gemm-to-conv",
    "log",
    SEEN,
)
LOADABLE_LIMIT = Rule(
    "loadable-limit",
    "",
    never,
    "DLA supports only {limit} subgraphs per DLA core. Switching to GPU for layer {layer}",
    "rewrite or move to the GPU what cuts the network into so many pieces",
    "log",
    SEEN,
)

KINDS = frozenset(rule.kind for rule in RULES if rule.kind)


def rules_for(kind: str, op: str, tensorrt: tuple[int, int]) -> tuple[Rule, ...]:
    """Return the rules that a layer must meet under a version of TensorRT, the first one to report first."""
    if kind == PLUGIN_NEEDED.kind:
        return (PLUGIN_NEEDED,)
    if kind not in KINDS:
        return (NO_LAYER,)
    return tuple(rule for rule in RULES if rule.holds_for(kind, op, tensorrt))
