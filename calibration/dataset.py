"""A folder of photos as INT8 samples: those that the accelerators read, and that calibration makes floats of."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from engines.errors import EngineError
from engines.preprocess import Preprocess, prepare, quantise, read_image

Made = TypeVar("Made")

SUFFIXES = (".jpg", ".jpeg", ".png")
MIN_SIDE_SHARE = 0.5  # of a photo's shorter side, the least that a random crop takes
DRAWS_PER_CROP = 100


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Prepared:
    """Samples as int8 [N,C,H,W], where each came from (`photo.jpg`, crops after the first `photo.jpg#1` on), and
    the images that were skipped."""

    samples: NDArray[Any]
    sources: tuple[str, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class _Window:
    """A square of a photo, in pixels, mirrored or not."""

    top: int
    left: int
    side: int
    mirrored: bool

    def cut(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return the window of an image [H,W,3], contiguous."""
        square = image[self.top : self.top + self.side, self.left : self.left + self.side]
        return np.ascontiguousarray(square[:, ::-1] if self.mirrored else square)


def image_files(folder: Path) -> list[Path]:
    """Return the JPEG and PNG files under a folder, sorted; CalibrationError where there is none."""
    if not folder.is_dir():
        raise CalibrationError(f"image folder {folder} is not a folder, expected one that holds JPEG or PNG files")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise CalibrationError(f"image folder {folder} holds no {', '.join(SUFFIXES)} file; name a folder of photos")
    return files


def prepare_images(
    paths: Sequence[Path],
    preprocess: Preprocess,
    crops: int = 1,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Read, crop, normalise and quantise photos in parallel; the result does not depend on `workers`.

    The first crop of a photo is the network's own centre crop; further ones are seeded random squares, mirrored or
    not, none twice. `progress` is called with the images done and their number. CalibrationError where no image
    can be used.
    """
    skipped: list[Skipped] = []
    sources: list[str] = []
    samples: NDArray[Any] = np.empty((0,), np.int8)
    results = each_photo(paths, int8_samples(preprocess, Crops(crops, seed)), workers)
    for done, result in enumerate(results, start=1):
        if isinstance(result, Skipped):
            skipped.append(result)
        else:
            if not sources:
                samples = np.empty((len(paths) * crops, *result[0].shape), np.int8)
            for index, sample in enumerate(result):
                samples[len(sources)] = sample
                sources.append(f"{paths[done - 1]}#{index}" if index else str(paths[done - 1]))
        if progress is not None:
            progress(done, len(paths))
    check_some(len(sources), skipped)
    return Prepared(samples[: len(sources)], tuple(sources), tuple(skipped))


def prepare_each(paths: Sequence[Path], preprocess: Preprocess) -> Iterator[NDArray[Any] | Skipped]:
    """Yield the INT8 sample [C,H,W] of each photo, or why there is none, in order; a few are read ahead."""
    for result in each_photo(paths, int8_samples(preprocess, Crops())):
        yield result if isinstance(result, Skipped) else result[0]


@dataclass(frozen=True)
class Crops:
    """How many crops of each photo, and the seed of those after the first; CalibrationError below one."""

    count: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise CalibrationError(f"{self.count} crops a photo are asked for, expected one at least")

    def of(self, image: NDArray[Any], index: int) -> list[NDArray[Any]]:
        """Return the image itself, then the random windows of the photo at `index`."""
        rng = np.random.default_rng((self.seed, index))
        windows: dict[_Window, None] = {}
        draws = 0
        while len(windows) < self.count - 1:
            windows[_window(image.shape[0], image.shape[1], rng)] = None
            draws += 1
            if draws > DRAWS_PER_CROP * self.count:
                size = f"{image.shape[1]}x{image.shape[0]}"
                raise CalibrationError(f"{size} pixels are too few for {self.count} distinct crops; ask for fewer")
        return [image, *(window.cut(image) for window in windows)]


def _window(height: int, width: int, rng: np.random.Generator) -> _Window:
    short = min(height, width)
    side = int(rng.integers(max(1, round(short * MIN_SIDE_SHARE)), short, endpoint=True))
    top = int(rng.integers(0, height - side, endpoint=True))
    left = int(rng.integers(0, width - side, endpoint=True))
    return _Window(top, left, side, bool(rng.integers(2)))


def int8_samples(preprocess: Preprocess, crops: Crops) -> Callable[[Path, int], list[NDArray[Any]]]:
    """Return what makes the INT8 samples [C,H,W] of a photo, given its path and its place among the photos."""

    def samples(path: Path, index: int) -> list[NDArray[Any]]:
        return [quantise(prepare(crop, preprocess), preprocess.amax) for crop in crops.of(read_image(path), index)]

    return samples


def each_photo(
    paths: Sequence[Path], make: Callable[[Path, int], Made], workers: int | None = None
) -> Iterator[Made | Skipped]:
    """Yield what `make` makes of each photo and its index, in order, or why it was skipped.

    Photos are read by `workers` threads (None: one a core), at most two a thread ahead. EngineError, CalibrationError
    and OSError of `make` skip the photo.
    """
    workers = workers or os.cpu_count() or 1

    def made(index: int) -> Made | Skipped:
        try:
            return make(paths[index], index)
        except (EngineError, CalibrationError, OSError) as error:
            return Skipped(str(paths[index]), str(error))

    with _one_opencv_thread(), ThreadPoolExecutor(workers) as pool:
        flying: deque[Future[Made | Skipped]] = deque()
        for index in range(len(paths)):
            flying.append(pool.submit(made, index))
            if len(flying) > 2 * workers:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Keep OpenCV from starting threads of its own inside each worker; restore its setting after."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def check_some(usable: int, skipped: Sequence[Skipped]) -> None:
    """Raise CalibrationError, with the first reason, where no image can be used."""
    if not usable:
        first = f"; the first: {skipped[0].source}: {skipped[0].reason}" if skipped else ""
        raise CalibrationError(f"none of {len(skipped)} images can be used{first}; name a folder of photos")
