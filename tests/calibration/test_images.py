"""Photos as calibration data: what an INT8 engine reads, hashed while it is read."""

from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.dataset import Crops, image_files, prepare_images
from calibration.images import Images
from engines.preprocess import PREPROCESS

SSD = PREPROCESS["ssd-mobilenet"]


@pytest.fixture
def photos(tmp_path):
    """Three photos of noise in two folders, and one file that is no image."""
    rng = np.random.default_rng(0)
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "c.png", "sub/a.png"):
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    (tmp_path / "b.jpg").write_bytes(b"not an image")
    return image_files(tmp_path)


def test_batches_are_the_int8_samples_as_floats(photos):
    made = list(Images(photos, SSD, "x", Crops(3, seed=1), fixed_batch=2).batches())
    assert [(batch.samples, batch.items) for batch in made] == [(3, 2), (6, 2)]
    samples = np.concatenate([batch.arrays["x"] for batch in made])
    assert samples.dtype == np.float32
    prepared = prepare_images(photos, SSD, crops=3, seed=1).samples
    assert np.array_equal(samples, prepared.astype(np.float32) * np.float32(1 / 127))


def test_every_file_is_hashed_and_the_broken_one_named(photos):
    made = list(Images(photos, SSD, "x").batches())
    files = {name: digest for batch in made for name, digest in batch.files.items()}
    assert list(files) == ["a.png", "b.jpg", "c.png", "sub/a.png"]
    assert list(files.values()) == [sha256(path.read_bytes()).hexdigest() for path in photos]
    assert [Path(entry.source).name for batch in made for entry in batch.skipped] == ["b.jpg"]


def test_a_file_that_went_away_is_skipped(photos):
    photos[0].unlink()
    (batch,) = Images(photos[:1], SSD, "x").batches()
    assert (batch.arrays, batch.files, batch.items) == ({}, {}, 1)
    assert "No such file" in batch.skipped[0].reason


def test_batches_passed_over_are_hashed_alone(photos):
    source = Images(photos, SSD, "x", fixed_batch=1)
    whole, rest = list(source.batches()), list(source.batches(first=3))
    assert [batch.files for batch in rest] == [batch.files for batch in whole]
    assert [batch.samples for batch in rest] == [0, 0, 0, 1]
    assert np.array_equal(rest[3].arrays["x"], whole[3].arrays["x"])


def test_batches_hold_as_many_pixels_as_four_photos_of_a_classifier(photos):
    sizes = {name: Images(photos, preprocess, "x").batch for name, preprocess in PREPROCESS.items()}
    assert (sizes["imagenet"], sizes["ssd-mobilenet"], sizes["ssd-resnet34"]) == (4, 2, 1)
    assert Images(photos, PREPROCESS["imagenet"], "x", Crops(8)).batch == 1
    assert Images(photos, SSD, "x").total == 4
