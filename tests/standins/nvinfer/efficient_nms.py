"""The plugin EfficientNMS_TRT: what it makes, computed by plain loops, and the network in front of it.

Source: TensorRT OSS release/10.3, plugin/efficientNMSPlugin (efficientNMSPlugin.cpp, efficientNMSParameters.h).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tests.standins.nvinfer.bridge import Refused

if TYPE_CHECKING:
    import onnx

NAME, VERSION = "EfficientNMS_TRT", "1"
SELECTED_BOXES = 4096  # of an image, all classes together: numSelectedBoxes
Shape = tuple[int, ...]
Arrays = list[NDArray[Any]]


def is_plugin(node: onnx.NodeProto) -> bool:
    """Tell whether a node is one that the plugin library has; the parser goes by operator and version alone."""
    return node.op_type == NAME and _attributes(node).get("plugin_version", VERSION) == VERSION


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx.helper import get_attribute_value

    values = {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def output_shapes(node: onnx.NodeProto, inputs: Sequence[Shape]) -> tuple[Shape, Shape, Shape, Shape]:
    """Return the shapes of the four outputs; `Refused` where boxes and scores are not what the plugin takes."""
    if len(inputs) != 2 or _attributes(node).get("box_coding", 0) != 0:
        raise Refused(f"{node.name}: this stand-in computes corners alone (two inputs, box_coding 0)", 4)
    boxes, scores = inputs
    if len(boxes) != 3 or boxes[2] != 4 or len(scores) != 3 or boxes[:2] != scores[:2]:
        raise Refused(f"{node.name}: boxes {list(boxes)} and scores {list(scores)} are not [N,B,4] and [N,B,C]", 4)
    batch, best = boxes[0], int(_attributes(node)["max_output_boxes"])
    return (batch, 1), (batch, best, 4), (batch, best), (batch, best)


@dataclass(frozen=True)
class Front:
    """A network up to its plugins: `network` computes what they read, `plugins` are the last nodes of the whole."""

    network: bytes
    plugins: tuple[onnx.NodeProto, ...]

    @classmethod
    def of(cls, network: bytes) -> Front:
        """Split a network; a plugin whose outputs other nodes read is more than this stand-in computes."""
        import onnx
        from onnx.helper import make_tensor_value_info

        model = onnx.load_from_string(network)
        plugins = tuple(node for node in model.graph.node if is_plugin(node))
        if not plugins:
            return cls(network, ())
        made = {name for node in plugins for name in node.output}
        others = [node for node in model.graph.node if not is_plugin(node)]
        if any(made.intersection(node.input) for node in others):
            raise Refused("a plugin's output feeds another layer, which this stand-in does not compute", 10)
        read = dict.fromkeys(name for node in plugins for name in node.input)
        kept = [value for value in model.graph.output if value.name not in made]
        del model.graph.node[:], model.graph.output[:]
        model.graph.node.extend(others)
        model.graph.output.extend(kept)
        model.graph.output.extend(make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in read)
        return cls(model.SerializeToString(), plugins)

    def asked(self, outputs: Sequence[str]) -> list[str]:
        """Return the tensors that the network in front has to compute for some of the whole's outputs."""
        made = {name for node in self.plugins for name in node.output}
        read = dict.fromkeys(name for node in self.plugins for name in node.input)
        return [*(name for name in outputs if name not in made), *read]

    def finished(self, outputs: Sequence[str], known: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return the outputs, those of the plugins computed from what they read."""
        values = dict(known)
        for node in self.plugins:
            values.update(zip(node.output, compute(node, [known[name] for name in node.input]), strict=True))
        return [values[name] for name in outputs]


def compute(node: onnx.NodeProto, inputs: Sequence[NDArray[Any]]) -> Arrays:
    """Return count, boxes, scores and classes of each image; rows behind the count are zero, their class -1."""
    attributes = _attributes(node)
    made = [np.zeros(shape, np.float32) for shape in output_shapes(node, [array.shape for array in inputs])]
    made[3] -= 1
    for image, (boxes, scores) in enumerate(zip(*inputs)):
        if attributes["score_activation"]:
            scores = np.exp(-np.logaddexp(0, -scores))  # the sigmoid, without overflow
        for row, (box, label) in enumerate(_kept(boxes, scores, attributes)):
            made[0][image] = row + 1
            made[1][image, row], made[2][image, row], made[3][image, row] = boxes[box], scores[box, label], label
    return [made[0].astype(np.int32), made[1], made[2], made[3].astype(np.int32)]


def _kept(boxes: NDArray[Any], scores: NDArray[Any], attributes: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Yield box and class of what is left, best first."""
    places = np.argwhere(scores > attributes["score_threshold"])
    places = places[places[:, 1] != attributes["background_class"]]
    places = places[np.argsort(-scores[tuple(places.T)], kind="stable")][:SELECTED_BOXES]
    kept: dict[int, list[NDArray[Any]]] = {}
    left = int(attributes["max_output_boxes"])
    for box, label in places.tolist():
        rivals = kept.setdefault(label, [])
        if any(_overlap(boxes[box], other) > attributes["iou_threshold"] for other in rivals):
            continue
        if not left:
            return
        left -= 1
        rivals.append(boxes[box])
        yield box, label


def _overlap(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return intersection over union of two boxes given by opposite corners."""
    shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared
    return float(shared / union) if union > 0 else 0.0
