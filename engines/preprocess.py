"""From an image file to the INT8 values that an engine reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.spec import INT8_MAX


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side, crop the centre, subtract the mean, divide by `std` (both RGB, on 0..255).

    `amax` is the dynamic range of the result; a scale of amax/127 turns it into INT8.
    """

    short_side: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    amax: float


PREPROCESS = {
    # MLPerf Inference, vision/classification_and_detection/python/dataset.py, `pre_process_vgg`; the range is that of
    # the input in NVIDIA's ResNet-50 calibration caches: scale 0x3f810204 = 128/127.
    "imagenet": Preprocess(short_side=256, crop=224, mean=(123.68, 116.78, 103.94), std=(1.0, 1.0, 1.0), amax=128.0),
}


def read_image(path: Path) -> NDArray[Any]:
    """Read an image file as uint8 [height, width, RGB]; EngineError names a file that is none."""
    import cv2

    try:
        encoded = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise EngineError(f"image {path} cannot be read: {error.strerror}") from None
    try:
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    except cv2.error:
        image = None
    if image is None:
        raise EngineError(f"image {path} ({encoded.size} bytes) cannot be decoded, expected JPEG, PNG or the like")
    rgb: NDArray[Any] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return rgb


def prepare(image: NDArray[Any], preprocess: Preprocess) -> NDArray[Any]:
    """Turn uint8 [height, width, RGB] into float32 [3, crop, crop]."""
    import cv2

    height, width = image.shape[:2]
    short = min(height, width)
    size = (preprocess.short_side * width // short, preprocess.short_side * height // short)
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    top, left = (size[1] - preprocess.crop) // 2, (size[0] - preprocess.crop) // 2
    cropped = resized[top : top + preprocess.crop, left : left + preprocess.crop].astype(np.float32)
    normal = (cropped - np.array(preprocess.mean, np.float32)) / np.array(preprocess.std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


def quantise(array: NDArray[Any], amax: float) -> NDArray[Any]:
    """Return round(x * 127 / amax) as int8, half to even, clipped to [-127, 127]."""
    steps: NDArray[Any] = np.rint(array * np.float32(INT8_MAX / amax))
    return steps.clip(-INT8_MAX, INT8_MAX).astype(np.int8)
