"""From an image file to the INT8 values that an engine reads."""

from __future__ import annotations

import struct
from collections.abc import Mapping
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

    Without `short_side` both sides are stretched to `crop` instead, bilinear, and nothing is cut off. `amax` is the
    dynamic range of the result; a scale of amax/127 turns it into INT8.
    """

    short_side: int | None
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    amax: float


class _Known(dict[str, Preprocess]):
    """Pre-processing by name; EngineError for a name that is not there yet."""

    def __missing__(self, name: str) -> Preprocess:
        known = ", ".join(self)
        raise EngineError(f"pre-processing {name!r} is not there yet, expected one of {known}; name another network")


# NVIDIA's calibration caches of ssd-resnet34 (v2.0) and retinanet (v3.0): the input's scale.
DETECTION_AMAX = struct.unpack(">f", bytes.fromhex("3caa54fc"))[0] * INT8_MAX
# torchvision, `ImageClassification` presets: mean and standard deviation on 0..1 of ImageNet's training images.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

PREPROCESS: Mapping[str, Preprocess] = _Known(
    {
        # MLPerf Inference, vision/classification_and_detection/python/dataset.py, `pre_process_vgg`; the range is that
        # of the input in NVIDIA's ResNet-50 calibration caches: scale 0x3f810204 = 128/127.
        "imagenet": Preprocess(short_side=256, crop=224, mean=(123.68, 116.78, 103.94), std=(1.0,) * 3, amax=128.0),
        # torchvision, MobileNet_V2_Weights.IMAGENET1K_V1, but resized by area as above, not antialiased bilinear;
        # white has the largest magnitude, in blue.
        "torchvision": Preprocess(short_side=256, crop=224, mean=MEAN, std=STD, amax=(1 - 0.406) / 0.225),
        # MLPerf Inference v2.0, v3.0: dataset.py, ranges of NVIDIA's calibration caches (ssd-mobilenet: 0x3c010204).
        "ssd-mobilenet": Preprocess(short_side=None, crop=300, mean=(127.5,) * 3, std=(127.5,) * 3, amax=1.0),
        "ssd-resnet34": Preprocess(short_side=None, crop=1200, mean=MEAN, std=STD, amax=DETECTION_AMAX),
        "retinanet": Preprocess(short_side=None, crop=800, mean=MEAN, std=STD, amax=DETECTION_AMAX),
        # Ours: what `digits` is trained on, ink 1 and paper -1.
        "digits": Preprocess(short_side=None, crop=16, mean=(127.5,) * 3, std=(127.5,) * 3, amax=1.0),
    }
)


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
    centred = _fitted(image, preprocess).astype(np.float32) - np.array(preprocess.mean, np.float32)
    normal = centred / np.array(preprocess.std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


def _fitted(image: NDArray[Any], preprocess: Preprocess) -> NDArray[Any]:
    """Return the image as uint8 [crop, crop, RGB]."""
    import cv2

    crop = preprocess.crop
    if preprocess.short_side is None:
        stretched: NDArray[Any] = cv2.resize(image, (crop, crop), interpolation=cv2.INTER_LINEAR)
        return stretched
    height, width = image.shape[:2]
    short = min(height, width)
    size = (preprocess.short_side * width // short, preprocess.short_side * height // short)
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    top, left = (size[1] - crop) // 2, (size[0] - crop) // 2
    cut: NDArray[Any] = resized[top : top + crop, left : left + crop]
    return cut


def quantise(array: NDArray[Any], amax: float) -> NDArray[Any]:
    """Return round(x * 127 / amax) as int8, half to even, clipped to [-127, 127]."""
    steps: NDArray[Any] = np.rint(array * np.float32(INT8_MAX / amax))
    return steps.clip(-INT8_MAX, INT8_MAX).astype(np.int8)
