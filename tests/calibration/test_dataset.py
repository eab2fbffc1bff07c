from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.dataset import image_files, prepare_images
from calibration.errors import CalibrationError
from engines.preprocess import PREPROCESS, prepare, quantise, read_image

IMAGENET = PREPROCESS["imagenet"]


@pytest.fixture
def photos(tmp_path):
    """Three photos of noise in two folders, one file that is no image, one text."""
    rng = np.random.default_rng(0)
    (tmp_path / "sub").mkdir()
    for name, (height, width) in {"b.png": (300, 400), "sub/a.JPG": (260, 256), "c.jpeg": (500, 320)}.items():
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    (tmp_path / "notes.txt").write_text("no image either")
    return tmp_path


def expected(path: Path) -> np.ndarray:
    return quantise(prepare(read_image(path), IMAGENET), IMAGENET.amax)


def test_image_files_are_sorted_and_recursive(photos):
    names = [path.relative_to(photos).as_posix() for path in image_files(photos)]
    assert names == ["b.png", "broken.jpg", "c.jpeg", "sub/a.JPG"]


def test_missing_and_empty_folders_say_so(tmp_path):
    with pytest.raises(CalibrationError, match="is not a folder"):
        image_files(tmp_path / "none")
    with pytest.raises(CalibrationError, match=r"holds no \.jpg"):
        image_files(tmp_path)


def test_prepared_samples_are_the_preprocessed_photos_and_the_broken_one_is_named(photos):
    done = []
    prepared = prepare_images(image_files(photos), IMAGENET, progress=lambda n, total: done.append((n, total)))
    assert prepared.samples.dtype == np.int8
    assert prepared.samples.shape == (3, 3, 224, 224)
    assert [Path(source).name for source in prepared.sources] == ["b.png", "c.jpeg", "a.JPG"]
    for sample, source in zip(prepared.samples, prepared.sources, strict=True):
        assert np.array_equal(sample, expected(Path(source)))
    assert [Path(entry.source).name for entry in prepared.skipped] == ["broken.jpg"]
    assert "broken.jpg" in prepared.skipped[0].reason
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_crops_are_distinct_seeded_and_independent_of_the_workers(photos):
    paths = image_files(photos)
    one = prepare_images(paths, IMAGENET, crops=5, seed=3, workers=1)
    many = prepare_images(paths, IMAGENET, crops=5, seed=3, workers=3)
    other = prepare_images(paths, IMAGENET, crops=5, seed=4, workers=3)
    assert np.array_equal(one.samples, many.samples)
    assert one.sources == many.sources
    assert one.sources[1].endswith("b.png#1")
    assert len({sample.tobytes() for sample in one.samples}) == 15
    assert np.array_equal(one.samples[0], expected(photos / "b.png"))
    assert np.array_equal(one.samples[::5], other.samples[::5])
    assert not np.array_equal(one.samples[1], other.samples[1])


def test_a_photo_too_small_for_its_crops_is_skipped_with_the_reason(photos):
    cv2.imwrite(str(photos / "dot.png"), np.zeros((1, 1, 3), np.uint8))
    prepared = prepare_images([photos / "b.png", photos / "dot.png"], IMAGENET, crops=4)
    assert len(prepared.samples) == 4
    assert "1x1" in prepared.skipped[0].reason


def test_no_usable_image_is_an_error(photos):
    with pytest.raises(CalibrationError, match="none of 1 images"):
        prepare_images([photos / "broken.jpg"], IMAGENET)
    with pytest.raises(CalibrationError, match="0 crops"):
        prepare_images([photos / "b.png"], IMAGENET, crops=0)


def test_opencv_keeps_its_thread_count(photos):
    before = cv2.getNumThreads()
    prepare_images([photos / "b.png"], IMAGENET)
    assert cv2.getNumThreads() == before
