import cv2
import numpy as np
import pytest

from engines.errors import EngineError
from engines.preprocess import PREPROCESS, prepare, quantise, read_image

IMAGENET = PREPROCESS["imagenet"]


def test_the_range_is_that_of_nvidias_resnet50_caches():
    assert np.float32(IMAGENET.amax / 127).tobytes()[::-1].hex() == "3f810204"


def test_an_image_is_read_as_rgb(tmp_path):
    path = tmp_path / "red.png"
    cv2.imwrite(str(path), np.full((4, 5, 3), (0, 0, 250), np.uint8))  # OpenCV writes BGR
    image = read_image(path)
    assert image.shape == (4, 5, 3)
    assert image[0, 0].tolist() == [250, 0, 0]


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff\xe0 no JPEG", b"plain text"])
def test_an_unreadable_image_is_named(tmp_path, data):
    path = tmp_path / "broken.jpg"
    path.write_bytes(data)
    with pytest.raises(EngineError, match="broken.jpg .* cannot be decoded"):
        read_image(path)


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(EngineError, match="gone.jpg cannot be read: No such file"):
        read_image(tmp_path / "gone.jpg")


def test_an_image_of_256_is_cropped_at_the_centre_and_loses_the_mean():
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    expected = image[16:240, 16:240].astype(np.float64) - [123.68, 116.78, 103.94]
    result = prepare(image, IMAGENET)
    assert result.dtype == np.float32
    assert np.allclose(result, expected.transpose(2, 0, 1), atol=1e-4)


@pytest.mark.parametrize("shape", [(512, 768), (768, 512), (100, 133)])
def test_the_shorter_side_becomes_256(shape):
    rows = np.linspace(0, 255, shape[0], dtype=np.uint8)
    image = np.broadcast_to(rows[:, None, None], (*shape, 3))
    result = prepare(image, IMAGENET)[0] + 123.68
    assert result.shape == (224, 224)
    span = 255 * 223 / 256 * min(shape) / shape[0]  # of the gradient, what 224 rows show
    assert result[-1, 0] - result[0, 0] == pytest.approx(span, abs=4)


def test_quantise_rounds_half_to_even_and_clips():
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.6, 500, -500, 0.49], np.float32)
    assert quantise(values, 127.0).tolist() == [0, 2, 2, 0, -2, 127, 127, -127, 0]
    assert quantise(np.array([128.0, -128.0, 64.0], np.float32), 128.0).tolist() == [127, -127, 64]
