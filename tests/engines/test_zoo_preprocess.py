"""Every network's pre-processing: there and fitting its input, or refused in one line."""

import numpy as np
import pytest

from engines import zoo
from engines.errors import EngineError
from engines.preprocess import PREPROCESS, prepare

NOT_THERE = {
    "bert-large": "squad",
    "unet3d": "kits19",
    "unet3d-small": "kits19-half",
    "yolov5s": "yolov5",
    "retinanet-resnet34": "waymo",
}


@pytest.mark.parametrize("name", [name for name in zoo.NETWORKS if name not in NOT_THERE])
def test_a_photo_becomes_the_networks_input(name):
    entry = zoo.network(name)
    photo = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    prepared = prepare(photo, PREPROCESS[entry.preprocess])
    assert prepared.shape == entry.input_shape
    assert np.abs(prepared).max() <= PREPROCESS[entry.preprocess].amax * 1.001 or name == "resnet50"


@pytest.mark.parametrize(("name", "key"), NOT_THERE.items())
def test_what_is_not_there_yet_is_refused_by_name(name, key):
    assert zoo.network(name).preprocess == key
    with pytest.raises(EngineError, match=f"pre-processing '{key}' is not there yet, expected one of imagenet, "):
        PREPROCESS[zoo.network(name).preprocess]


@pytest.mark.parametrize(
    ("key", "black", "white"),
    [
        ("ssd-mobilenet", (-1, -1, -1), (1, 1, 1)),
        ("digits", (-1, -1, -1), (1, 1, 1)),
        ("ssd-resnet34", (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225), (2.2489083, 2.4285714, 2.64)),
        ("retinanet", (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225), (2.2489083, 2.4285714, 2.64)),
        ("torchvision", (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225), (2.2489083, 2.4285714, 2.64)),
    ],
)
def test_black_and_white_are_normalised_as_published(key, black, white):
    for value, expected in ((0, black), (255, white)):
        prepared = prepare(np.full((30, 40, 3), value, np.uint8), PREPROCESS[key])
        assert np.allclose(prepared.min(axis=(1, 2)), expected, atol=1e-5)
        assert np.allclose(prepared.max(axis=(1, 2)), expected, atol=1e-5)


@pytest.mark.parametrize("key", ["ssd-mobilenet", "ssd-resnet34", "retinanet"])
def test_detectors_see_the_whole_photo_stretched(key):
    photo = np.zeros((100, 400, 3), np.uint8)
    photo[:, :20] = photo[:, -20:] = 255  # what a centre crop would lose
    row = prepare(photo, PREPROCESS[key])[0, PREPROCESS[key].crop // 2]
    assert (row > 0).mean() == pytest.approx(0.1, abs=0.01)
    assert row[0] > 0 and row[-1] > 0


def test_detection_ranges_are_those_of_nvidias_caches():
    scales = {key: np.float32(PREPROCESS[key].amax / 127).tobytes()[::-1].hex() for key in PREPROCESS}
    assert scales["ssd-resnet34"] == scales["retinanet"] == "3caa54fc"
    assert scales["ssd-mobilenet"] == "3c010204"
