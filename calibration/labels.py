"""Photos with the class that each shows: from a list in MLPerf's form, or from one folder a class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.accuracy import LabelledBatch
from calibration.dataset import Skipped, check_some, each_photo
from calibration.errors import CalibrationError
from engines.preprocess import Preprocess, prepare, read_image

BATCH_PIXELS = 4 * 224 * 224  # of one batch, whose activations are held twice


def listed_labels(listing: Path, photos: Sequence[Path], folder: Path) -> dict[Path, int]:
    """Return the class of each photo from lines `name label`, as in MLPerf's val_map.txt, names relative to `folder`.

    The list may hold more photos than there are. CalibrationError names a line of another form, and a photo that the
    list lacks.
    """
    label_of = _read(listing)
    names = {photo: photo.relative_to(folder).as_posix() for photo in photos}
    missing = [name for photo, name in names.items() if name not in label_of and photo.name not in label_of]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CalibrationError(f"{listing} has no label for {missing[0]!r}{more}; expected a line '{missing[0]} 0'")
    return {photo: label_of.get(name, label_of.get(photo.name, 0)) for photo, name in names.items()}


def _read(listing: Path) -> Mapping[str, int]:
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise CalibrationError(f"labels {listing} cannot be read: {reason}") from None
    label_of = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        *name, label = line.rsplit(maxsplit=1)
        if not name or not (label.isascii() and label.isdigit()):
            raise CalibrationError(
                f"{listing} line {number} is {line[:60]!r}, expected a name and a class: photo.jpg 65"
            )
        label_of[name[0].strip()] = int(label)
    return label_of


def folder_labels(photos: Sequence[Path], folder: Path, classes: int) -> dict[Path, int] | None:
    """Return the class of each photo from the folder that it is in, directly under `folder`.

    Folders are numbered as they are named ("7"), or in the order of their names where there is one for each class.
    None where the folders say nothing about classes.
    """
    parts = {photo: photo.relative_to(folder).parts for photo in photos}
    names = sorted({path[0] for path in parts.values() if len(path) > 1})
    if not names or any(len(path) == 1 for path in parts.values()):
        return None
    if all(name.isascii() and name.isdigit() for name in names):
        return {photo: int(path[0]) for photo, path in parts.items()}
    if len(names) != classes:
        return None
    return {photo: names.index(path[0]) for photo, path in parts.items()}


@dataclass
class LabelledPhotos:
    """Photos with the class of each, read anew on each pass; `skipped` says which could not be used in the last one."""

    paths: Sequence[Path]
    preprocess: Preprocess
    label_of: Mapping[Path, int] | None
    skipped: list[Skipped] = field(default_factory=list, init=False)

    def __iter__(self) -> Iterator[LabelledBatch]:
        """Yield batches; CalibrationError where no photo can be used."""
        self.skipped = []
        size = max(1, BATCH_PIXELS // self.preprocess.crop**2)
        waiting: list[tuple[Path, NDArray[Any]]] = []
        for path, made in zip(self.paths, each_photo(self.paths, self._prepared), strict=True):
            if isinstance(made, Skipped):
                self.skipped.append(made)
                continue
            waiting.append((path, made))
            if len(waiting) == size:
                yield self._batch(waiting)
                waiting = []
        if waiting:
            yield self._batch(waiting)
        check_some(len(self.paths) - len(self.skipped), self.skipped)

    def _prepared(self, path: Path, _: int) -> NDArray[Any]:
        return prepare(read_image(path), self.preprocess)

    def _batch(self, photos: Sequence[tuple[Path, NDArray[Any]]]) -> LabelledBatch:
        inputs = np.stack([image for _, image in photos])
        if self.label_of is None:
            return LabelledBatch(inputs)
        return LabelledBatch(inputs, np.array([self.label_of[path] for path, _ in photos], np.int64))
