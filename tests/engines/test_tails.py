"""Decode and suppression against plain loops in float64, written from the published rules and not from the code."""

import math

import numpy as np
import pytest

from engines import priors
from engines.errors import EngineError
from engines.tails import DETECTORS, suppress
from engines.zoo import graph


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 0.0  # beyond the image's edge nothing is left of a box


def clip(box):
    return [min(max(v, 0.0), 1.0) for v in box]


def corners(code, prior, variances):
    """Corners of a moved box: code x, y, w, h and prior cx, cy, w, h, all float64."""
    cx, cy = prior[0] + code[0] * variances[0] * prior[2], prior[1] + code[1] * variances[0] * prior[3]
    w = prior[2] * math.exp(min(code[2] * variances[1], math.log(62.5)))
    h = prior[3] * math.exp(min(code[3] * variances[1], math.log(62.5)))
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def greedy(found, iou, per_class, best):
    """found: (score, label, box); the reference's rule, class by class."""
    kept = []
    for label in sorted({entry[1] for entry in found}):
        mine = []
        for entry in sorted((e for e in found if e[1] == label), key=lambda e: -e[0])[:per_class]:
            if all(overlap(entry[2], other[2]) <= iou for other in mine):
                mine.append(entry)
        kept += mine
    return sorted(kept, key=lambda e: -e[0])[:best]


def check(seen, expected):
    assert len(seen) == len(expected) > 5
    assert np.allclose(seen.scores, [e[0] for e in expected], atol=1e-5)
    assert list(seen.classes) == [e[1] for e in expected]
    assert np.allclose(seen.boxes, [clip(e[2]) for e in expected], atol=1e-5)


def heads(name, shapes, rng, likely=24, low=-9.0):
    """Outputs of a detector: everything unlikely but for a few classes of a few cells."""
    outputs = {}
    for (score_name, box_name), (channels, codes, grid) in shapes.items():
        logits = np.full((1, channels, grid, grid), low) + rng.uniform(0, 0.1, (1, channels, grid, grid))
        for _ in range(likely):
            where = (0, rng.integers(channels), rng.integers(grid), rng.integers(grid))
            logits[where] = rng.uniform(0.5, 4.0)
        outputs[score_name] = logits.astype(np.float32)
        outputs[box_name] = rng.normal(0, 1.0, (1, codes, grid, grid)).astype(np.float32)
    return outputs


def test_ssd_mobilenet():
    rng = np.random.default_rng(1)
    anchors, grids = (3, 6, 6, 6, 6, 6), (19, 10, 5, 3, 2, 1)
    shapes = {(f"classes_{k}", f"boxes_{k}"): (a * 91, a * 4, g) for k, (a, g) in enumerate(zip(anchors, grids))}
    outputs = heads("ssd-mobilenet", shapes, rng)
    scales = [0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0]
    found = []
    for k, (count, grid) in enumerate(zip(anchors, grids)):
        forms = [(0.1, 1), (0.2, 2), (0.2, 0.5)] if k == 0 else [(scales[k], r) for r in (1, 2, 0.5, 3, 1 / 3)]
        forms += [] if k == 0 else [(math.sqrt(scales[k] * scales[k + 1]), 1)]
        for y in range(grid):
            for x in range(grid):
                for a in range(count):
                    s, r = forms[a]
                    prior = ((x + 0.5) / grid, (y + 0.5) / grid, s * math.sqrt(r), s / math.sqrt(r))
                    ty, tx, th, tw = (float(outputs[f"boxes_{k}"][0, a * 4 + c, y, x]) for c in range(4))
                    for label in range(1, 91):
                        score = sigmoid(float(outputs[f"classes_{k}"][0, a * 91 + label, y, x]))
                        if score > 0.3:
                            found.append((score, label, corners((tx, ty, tw, th), prior, (0.1, 0.2))))
    check(DETECTORS["ssd-mobilenet"].detect(outputs)[0], greedy(found, 0.6, 100, 100))


def test_ssd_resnet34():
    rng = np.random.default_rng(2)
    anchors, grids = (4, 6, 6, 6, 4, 4), (50, 25, 13, 7, 3, 3)
    shapes = {(f"conf_{k}", f"loc_{k}"): (a * 81, a * 4, g) for k, (a, g) in enumerate(zip(anchors, grids))}
    outputs = heads("ssd-resnet34", shapes, rng)
    for k in range(6):
        outputs[f"conf_{k}"][0, : anchors[k]] = rng.uniform(0, 1, outputs[f"conf_{k}"][0, : anchors[k]].shape)
    pixels = [84, 180, 396, 612, 828, 1044, 1260]
    found = []
    for k, (count, grid) in enumerate(zip(anchors, grids)):
        s, t = pixels[k] / 1200, pixels[k + 1] / 1200
        forms = [(s, s), (math.sqrt(s * t),) * 2]
        for ratio in (2, 3)[: (count - 2) // 2]:
            w, h = s * math.sqrt(ratio), s / math.sqrt(ratio)
            forms += [(w, h), (h, w)]
        conf, loc = outputs[f"conf_{k}"][0].astype(float), outputs[f"loc_{k}"][0].astype(float)
        total = np.exp(conf).reshape(81, count, grid, grid).sum(axis=0)
        for channel, y, x in zip(*np.nonzero(conf > 0)):
            label, a = divmod(int(channel), count)
            score = math.exp(conf[channel, y, x]) / total[a, y, x]
            if label and score > 0.05:
                prior = [min(v, 1.0) for v in ((x + 0.5) / grid, (y + 0.5) / grid, *forms[a])]
                code = [loc[c * count + a, y, x] for c in range(4)]
                found.append((score, label, corners(code, prior, (0.1, 0.2))))
    check(DETECTORS["ssd-resnet34"].detect(outputs)[0], greedy(found, 0.5, 200, 200))


def test_retinanet():
    rng = np.random.default_rng(3)
    grids, pixels = (100, 50, 25, 13, 7), priors.RETINANET_PIXELS
    shapes = {(f"classification_head_{g}x{g}", f"regression_head_{g}x{g}"): (9 * 264, 36, g) for g in grids}
    outputs = heads("retinanet", shapes, rng, likely=40)
    outputs["classification_head_7x7"][0, :40] = rng.uniform(0.1, 3, (40, 7, 7))  # 1,960 of one level: 1,000 stay
    found = []
    for grid, sizes in zip(grids, pixels):
        scores, codes = outputs[f"classification_head_{grid}x{grid}"][0], outputs[f"regression_head_{grid}x{grid}"][0]
        level = []
        for channel, y, x in zip(*np.nonzero(scores > -3)):
            a, label = divmod(int(channel), 264)
            ratio, size = (0.5, 1, 2)[a // 3], sizes[a % 3]
            w, h = round(size / math.sqrt(ratio) / 2) * 2, round(size * math.sqrt(ratio) / 2) * 2
            prior = [v / 800 for v in (x * (800 // grid), y * (800 // grid), w, h)]
            code = [float(codes[a * 4 + c, y, x]) for c in range(4)]
            level.append((sigmoid(float(scores[channel, y, x])), label, clip(corners(code, prior, (1, 1)))))
        found += sorted((e for e in level if e[0] > 0.05), key=lambda e: -e[0])[:1000]
    check(DETECTORS["retinanet"].detect(outputs)[0], greedy(found, 0.5, None, 300))


@pytest.mark.parametrize("name,count", [("ssd-mobilenet", 1917), ("ssd-resnet34", 15130), ("retinanet", 120087)])
def test_priors_are_as_many_as_the_networks_heads_say(name, count):
    detector, tensors = DETECTORS[name], graph(name).tensors
    levels = detector.priors()
    assert sum(boxes[..., 0].size for boxes in levels) == count
    for level, boxes in zip(detector.names, levels):
        scores, codes = (tensors[head.format(level)].shape for head in detector.heads)
        assert scores[1:] == (boxes.shape[0] * detector.classes, *boxes.shape[1:3])
        assert codes[1:] == (boxes.shape[0] * 4, *boxes.shape[1:3])


def test_unclipped_priors_of_ssd_mobilenet_reach_where_the_published_ones_do():
    boxes = np.concatenate([level.reshape(-1, 4) for level in priors.ssd_mobilenet()])
    low, high = (boxes[:, :2] - boxes[:, 2:] / 2).min(), (boxes[:, :2] + boxes[:, 2:] / 2).max()
    assert (round(low, 3), round(high, 3)) == (-0.443, 1.443)


def test_suppression_keeps_what_lies_apart():
    boxes = np.array([[0, 0, 2, 2], [0, 0, 2, 1], [4, 4, 5, 5], [0, 0, 2, 1.01], [0, 0, 0, 0]], float)
    assert suppress(boxes, 0.5).tolist() == [0, 1, 2, 4]  # row 1 overlaps by exactly one half
    assert suppress(boxes[:0], 0.5).tolist() == []


def test_nothing_found_is_an_empty_answer_and_a_missing_head_an_error():
    detector = DETECTORS["ssd-mobilenet"]
    outputs = {
        head.format(k): np.full((2, boxes.shape[0] * values, *boxes.shape[1:3]), -9, np.float32)
        for k, boxes in enumerate(detector.priors())
        for head, values in zip(detector.heads, (91, 4))
    }
    assert [len(found) for found in detector.detect(outputs)] == [0, 0]
    del outputs["boxes_3"]
    with pytest.raises(EngineError, match="'boxes_3'"):
        detector.detect(outputs)
