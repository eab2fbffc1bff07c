"""What follows a backbone as a network of its own, which reads its outputs as they lie: a detector's decoding and
suppression, or a classifier's best class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.engine import Binding
from engines.errors import EngineError
from engines.nms import DOMAIN, NO_BACKGROUND, OUTPUTS, EfficientNms
from engines.onnx_nodes import FLOAT, HALF, INT32, OnnxNodes
from engines.spec import INT8_MAX, EngineSpec, TensorFormat
from engines.tails import LARGEST_GROWTH, Detections, Detector

if TYPE_CHECKING:
    import onnx

OPSET = 13
BEST = ("best_score", "best_class")  # of a classifier: float32 and int32, [N, 1] each
PLANAR = (TensorFormat.LINEAR.value, TensorFormat.DLA_LINEAR.value)


def tail_network(detector: Detector, outputs: Sequence[Binding]) -> onnx.ModelProto:
    """Return the network from a backbone's outputs to detections; its inputs have the outputs' names.

    The GPU reads DLA_LINEAR as LINEAR with wider rows, whose padding the network cuts off. EngineError where an output
    is missing, does not fit the detector's priors, or lies in blocks of channels.
    """
    from onnx.helper import make_graph, make_model, make_opsetid

    steps = OnnxNodes("tail")
    scores = steps.add("Concat", *_heads(steps, detector, outputs, 0), axis=1)
    if detector.softmax:
        scores = steps.add("Softmax", scores, axis=2)
    boxes = _decoded(steps, detector, steps.add("Concat", *_heads(steps, detector, outputs, 1), axis=1))
    steps.nodes.append(_nms(detector).node(boxes, scores))
    read = {head.format(level) for head in detector.heads for level in detector.names}
    inputs = [_input(binding) for binding in outputs if binding.name in read]
    graph = make_graph(steps.nodes, "tail", inputs, _outputs(detector.best), initializer=steps.constants)
    return make_model(graph, opset_imports=[make_opsetid("", OPSET), make_opsetid(DOMAIN, 1)], ir_version=8)


def top1_network(output: Binding) -> onnx.ModelProto:
    """Return the network from a classifier's scores, [C] or [C,1,1] of each sample, to the outputs `BEST`."""
    from onnx.helper import make_graph, make_model, make_opsetid, make_tensor_value_info

    _check_planar(output)
    steps = OnnxNodes("tail")
    scores = _real(steps, output)
    if len(output.shape) > 1:
        scores = steps.add("Reshape", scores, [0, output.elements])
    steps.add("TopK", scores, [1], axis=1, made=(BEST[0], "place"))
    steps.add("Cast", "place", to=INT32, made=BEST[1:])
    ends = [make_tensor_value_info(name, kind, (1, 1)) for name, kind in zip(BEST, (FLOAT, INT32))]
    graph = make_graph(steps.nodes, "tail", [_input(output)], ends, initializer=steps.constants)
    return make_model(graph, opset_imports=[make_opsetid("", OPSET)], ir_version=8)


def tail_spec(network: str, outputs: Sequence[Binding], batch: int) -> EngineSpec:
    """Return what the tail of a network is built with: float32 on the GPU, INT8 outputs of the backbone as they are."""
    amax = {binding.name: binding.scale * INT8_MAX for binding in outputs if binding.scale is not None}
    return EngineSpec(f"{network}-tail", "gpu", batch, "fp32", amax_by_tensor=amax)


def detections(outputs: Sequence[NDArray[Any]]) -> list[Detections]:
    """Return each image's detections from what a tail engine computes, in the order of `engines.nms.OUTPUTS`."""
    return [
        Detections(boxes[:count].clip(0.0, 1.0), scores[:count], classes[:count])
        for (count,), boxes, scores, classes in zip(*outputs, strict=True)
    ]


def _nms(detector: Detector) -> EfficientNms:
    background = detector.background - 1 if detector.background else NO_BACKGROUND
    return EfficientNms(detector.score, detector.iou, detector.best, not detector.softmax, background)


def _heads(steps: OnnxNodes, detector: Detector, outputs: Sequence[Binding], kind: int) -> list[str]:
    """Add what reads the scores (0) or the boxes (1) of each level: [N, boxes, values] in the order of the priors."""
    values = (detector.classes, 4)[kind]
    by_name = {binding.name: binding for binding in outputs}
    made = []
    for level, boxes in zip(detector.names, detector.priors(), strict=True):
        shape = (boxes.shape[0] * values, *boxes.shape[1:3])
        head = _head(by_name, detector.heads[kind].format(level), shape)
        made.append(_rows(steps, head, values, detector.anchor_major))
    return made


def _head(bindings: dict[str, Binding], name: str, shape: tuple[int, ...]) -> Binding:
    """Return a head's output; EngineError where there is none, or it is not what the priors belong to."""
    binding = bindings.get(name)
    if binding is None:
        raise EngineError(f"detection needs the output {name!r}, there are {', '.join(bindings)}")
    if binding.shape != shape:
        raise EngineError(f"output {name!r} has the shape {list(binding.shape)}, its priors want {list(shape)}")
    _check_planar(binding)
    return binding


def _check_planar(binding: Binding) -> None:
    if binding.format not in PLANAR:
        raise EngineError(f"output {binding.name!r} is {binding.format}, a tail engine reads {' or '.join(PLANAR)}")


def _width(binding: Binding) -> int:
    """Return the elements of a row, padding included."""
    rows = math.prod(binding.shape[:-1])
    return binding.sample_bytes // (rows * np.dtype(binding.dtype).itemsize)


def _input(binding: Binding) -> onnx.ValueInfoProto:
    from onnx.helper import make_tensor_value_info

    real = HALF if binding.dtype == "float16" else FLOAT
    return make_tensor_value_info(binding.name, real, (1, *binding.shape[:-1], _width(binding)))


def _real(steps: OnnxNodes, binding: Binding) -> str:
    """Add what cuts off the padding of an output's rows and makes it float32."""
    name, last = binding.name, len(binding.shape)
    if _width(binding) > binding.shape[-1]:
        name = steps.add("Slice", name, [0], [binding.shape[-1]], [last])
    return steps.add("Cast", name, to=FLOAT) if binding.dtype == "float16" else name


def _outputs(best: int) -> list[onnx.ValueInfoProto]:
    from onnx.helper import make_tensor_value_info

    kinds = (INT32, (1, 1)), (FLOAT, (1, best, 4)), (FLOAT, (1, best)), (INT32, (1, best))
    return [make_tensor_value_info(name, *kind) for name, kind in zip(OUTPUTS, kinds, strict=True)]


def _rows(steps: OnnxNodes, binding: Binding, values: int, anchor_major: bool) -> str:
    """Add what turns a head [N, channels, rows, columns] into [N, boxes, values]."""
    channels, height, width = binding.shape
    head = _real(steps, binding)
    if not anchor_major:
        return steps.add("Transpose", steps.add("Reshape", head, [0, values, -1]), perm=[0, 2, 1])
    split = steps.add("Reshape", head, [0, channels // values, values, height * width])
    return steps.add("Reshape", steps.add("Transpose", split, perm=[0, 1, 3, 2]), [0, -1, values])


def _decoded(steps: OnnxNodes, detector: Detector, codes: str) -> str:
    """Add what turns codes [N, boxes, 4] into corners x0, y0, x1, y1."""
    priors = np.concatenate([boxes.reshape(-1, 4) for boxes in detector.priors()])[None]
    if detector.y_first:
        codes = steps.add("Gather", codes, [1, 0, 3, 2], axis=2)
    moves = steps.add("Mul", steps.add("Slice", codes, [0], [2], [2]), detector.variances[0] * priors[..., 2:])
    growth = steps.add("Mul", steps.add("Slice", codes, [2], [4], [2]), np.float32(detector.variances[1]))
    grown = steps.add("Exp", steps.add("Min", growth, np.float32(LARGEST_GROWTH)))
    centres = steps.add("Add", moves, priors[..., :2])
    halves = steps.add("Mul", grown, priors[..., 2:] / 2)
    corners = steps.add("Concat", steps.add("Sub", centres, halves), steps.add("Add", centres, halves), axis=2)
    return steps.add("Clip", corners, np.float32(0), np.float32(1)) if detector.clip_first else corners
