"""The step after the engines: answers of `orin run`, responses for LoadGen, and tails that cannot be."""

import json

import numpy as np
import pytest

from engines.tails import DETECTORS
from orin.cli.main import main
from orin.errors import OrinError
from orin.plan import Plan
from orin.tails import answers_of, responses_of

PLAN = Plan(network="ssd-mobilenet")
NAMES = [head.format(level) for level in range(6) for head in DETECTORS["ssd-mobilenet"].heads]


def heads():
    """Two images; the second has one thing: class 7 on the one cell of the last level, moved from its prior."""
    outputs = []
    for boxes in DETECTORS["ssd-mobilenet"].priors():
        anchors, rows, columns = boxes.shape[:3]
        outputs += [np.full((2, anchors * 91, rows, columns), -9.0, np.float32)]
        outputs += [np.zeros((2, anchors * 4, rows, columns), np.float32)]
    outputs[-2][1, 7, 0, 0] = 2.0
    outputs[-1][1, :4, 0, 0] = (1.0, -2.0, 0.0, 0.0)  # y, x: a tenth of the prior, each
    return outputs


def test_a_classifier_answers_with_its_best_class():
    scores = np.array([[0.1, 0.7, 0.2], [3.0, -1.0, 2.0]], np.float32)[:, :, None, None]
    answers = answers_of(Plan(), ["logits"])([scores])
    assert answers == [{"class": 1, "score": pytest.approx(0.7)}, {"class": 0, "score": 3.0}]
    data, sizes = responses_of(Plan(), ["logits"])([scores], [5, 6])
    assert data.dtype == np.int32 and data.tolist() == [1, 0] and sizes == [4, 4]


def test_a_detector_answers_with_boxes_of_the_photo():
    empty, one = answers_of(PLAN, NAMES)(heads())
    assert empty == {"detections": []}
    (found,) = one["detections"]
    # the last level's first prior is the unit square's middle with sides 0.95; it moves by 0.1 * 0.95 and -0.2 * 0.95
    side, x, y = 0.95, 0.5 - 0.2 * 0.95, 0.5 + 0.1 * 0.95
    assert found["class"] == 7 and found["score"] == pytest.approx(1 / (1 + np.exp(-2)))
    assert found["box"] == pytest.approx([0.0, y - side / 2, x + side / 2, 1.0])


def test_a_detectors_responses_are_mlperfs_rows():
    data, sizes = responses_of(PLAN, NAMES)(heads(), [41, 42])
    assert data.dtype == np.float32 and data.shape == (1, 7) and sizes == [0, 28]
    index, ymin, xmin, ymax, xmax, score, label = data[0].tolist()
    assert (index, xmin, ymax, label) == (42.0, 0.0, 1.0, 7.0)
    assert (ymin, xmax, score) == pytest.approx((0.12, 0.785, 0.880797), abs=1e-5)


@pytest.mark.parametrize("tail", ["gpu", "none"])
def test_a_detector_without_its_step_is_refused(tail):
    with pytest.raises(OrinError, match=f"finds its boxes after the engine and tail is '{tail}': set tail to cpu"):
        answers_of(Plan(network="retinanet", tail=tail), [])
    assert answers_of(Plan(tail=tail), [])  # a classifier's top-1 costs nothing


def test_run_finds_boxes_in_photos(tmp_path, capsys, monkeypatch):
    cv2 = pytest.importorskip("cv2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 255, (90, 120, 3), dtype=np.uint8)
        cv2.imwrite(str(photos / f"{number}.png"), noise)
    words = (
        f"run ssd-mobilenet --board virtual:agx-orin-64gb --gpu-batch 2 --dla-cores 0 --precision fp16 --data {photos}"
    )
    assert main([*words.split(), "-o", str(tmp_path / "out.jsonl"), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["answered"] == 2
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(0 < len(line["detections"]) <= 100 for line in lines)
    boxes = np.array([found["box"] for line in lines for found in line["detections"]])
    assert (boxes >= 0).all() and (boxes <= 1).all() and (boxes[:, 2:] >= boxes[:, :2]).all()
