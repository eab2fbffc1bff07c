"""EfficientNMS: the suppression that TensorRT ships as a plugin, as an ONNX node and in ONNX's own operators.

Source: TensorRT OSS, plugin/efficientNMSPlugin (README.md, EfficientNMS_TRT_PluginConfig.yaml).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engines.onnx_nodes import FLOAT, INT32, OnnxNodes

if TYPE_CHECKING:
    import onnx

OPERATOR = "EfficientNMS_TRT"
OUTPUTS = ("num_detections", "detection_boxes", "detection_scores", "detection_classes")
DOMAIN = "TRT"  # of its node; the parser goes by the name alone
NO_BACKGROUND = -1


@dataclass(frozen=True)
class EfficientNms:
    """What the operator does with boxes [N, boxes, 4 corners] and scores [N, boxes, classes].

    Scores, after their sigmoid where they need one, over `score` compete within their class: a box goes that overlaps
    a better one by more than `iou`. The `best` are left, whatever their class; `background` counts for nothing. The
    outputs are [N, 1] int32, [N, best, 4], [N, best] and [N, best] int32; rows from the first one on mean nothing.
    """

    score: float
    iou: float
    best: int
    sigmoid: bool = False
    background: int = NO_BACKGROUND

    def node(self, boxes: str, scores: str) -> onnx.NodeProto:
        """Return the node that TensorRT's parser maps to the plugin."""
        from onnx.helper import make_node

        return make_node(
            OPERATOR,
            [boxes, scores],
            list(OUTPUTS),
            name="nms",
            domain=DOMAIN,
            plugin_version="1",
            score_threshold=self.score,
            iou_threshold=self.iou,
            max_output_boxes=self.best,
            background_class=self.background,
            score_activation=int(self.sigmoid),
            class_agnostic=0,
            box_coding=0,
        )

    @classmethod
    def of(cls, node: onnx.NodeProto) -> EfficientNms:
        """Read a node."""
        known = {attribute.name: attribute for attribute in node.attribute}
        return cls(
            score=float(known["score_threshold"].f),
            iou=float(known["iou_threshold"].f),
            best=int(known["max_output_boxes"].i),
            sigmoid=bool(known["score_activation"].i),
            background=int(known["background_class"].i),
        )


def portable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with every EfficientNMS node in ONNX's own operators, for one sample; itself where it has none.

    ONNX suppresses among all boxes over the threshold, as `engines.tails` does without its limit on candidates; the
    plugin among the best few thousand of them.
    """
    import onnx

    if not any(node.op_type == OPERATOR for node in model.graph.node):
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    for node in model.graph.node:
        if node.op_type != OPERATOR:
            made.graph.node.append(node)
            continue
        steps = OnnxNodes(node.name)
        _suppress(steps, EfficientNms.of(node), list(node.input), list(node.output))
        made.graph.node.extend(steps.nodes)
        made.graph.initializer.extend(steps.constants)
    return made


def _suppress(steps: OnnxNodes, nms: EfficientNms, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Add what makes the operator's outputs; zeros behind what is kept let there always be `best` rows to choose."""
    boxes, scores = inputs
    likely = steps.add("Sigmoid", scores) if nms.sigmoid else scores
    by_class = steps.add("Transpose", likely, perm=[0, 2, 1])
    limits = [nms.best], [nms.iou], [nms.score]
    kept = steps.add("NonMaxSuppression", boxes, by_class, *limits)  # [M, (image, class, box)]
    known = steps.add("Not", steps.add("Equal", steps.add("Gather", kept, 1, axis=1), nms.background))
    found = steps.add("Mul", steps.add("GatherND", by_class, kept), steps.add("Cast", known, to=FLOAT))
    padded = steps.add("Concat", found, np.zeros(nms.best), axis=0)
    best, order = f"{steps.prefix}.best", f"{steps.prefix}.order"
    steps.add("TopK", padded, [nms.best], made=(best, order))
    rows = steps.add("Gather", steps.add("Concat", kept, np.zeros((nms.best, 3), int), axis=0), order)
    labels, places = (steps.add("Gather", rows, column, axis=1) for column in (1, 2))
    counted = steps.add("ReduceSum", steps.add("Cast", steps.add("Greater", best, 0.0), to=INT32), [0], keepdims=1)
    steps.add("Unsqueeze", counted, [0], made=outputs[:1])
    steps.add("Gather", boxes, places, axis=1, made=outputs[1:2])
    steps.add("Unsqueeze", best, [0], made=outputs[2:3])
    steps.add("Cast", steps.add("Unsqueeze", labels, [0]), to=INT32, made=outputs[3:])
