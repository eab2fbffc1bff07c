"""A folder of samples of any size: photos, or pre-processed arrays; read piece by piece, never as a whole."""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.dataset import SUFFIXES, Skipped, prepare_each
from engines.preprocess import Preprocess
from orin.errors import OrinError

ARRAYS, PHOTOS = "arrays", "photos"


@dataclass(frozen=True)
class Span:
    """Samples `first` to `first + count` of one file."""

    file: str
    first: int
    count: int


@dataclass(frozen=True)
class Sample:
    """One sample as the pipeline takes it: INT8 [C,H,W], or uint8 [bytes] where the file holds it packed."""

    file: str
    index: int
    values: NDArray[Any] | Skipped


class Library:
    """Samples of a folder, numbered in the order of its files' names.

    Arrays are .npy files of INT8 or float32 [N,C,H,W], or uint8 [N, bytes] as the engines read them; photos are JPEG
    or PNG files. OrinError where there is neither.
    """

    def __init__(self, folder: Path) -> None:
        arrays, photos = _files(folder)
        if arrays and photos:
            raise OrinError(f"{folder} holds both .npy files and photos: name a folder of one kind")
        if not arrays and not photos:
            raise OrinError(f"{folder} holds no .npy, {', '.join(SUFFIXES)} file: name a folder of samples")
        self.folder = folder
        self.kind = ARRAYS if arrays else PHOTOS
        self._names = arrays or photos
        counts = [_rows(folder / name) for name in arrays] if arrays else [1] * len(photos)
        self._starts = [0, *itertools.accumulate(counts)]

    @property
    def total(self) -> int:
        """Number of samples."""
        return self._starts[-1]

    @property
    def digest(self) -> str:
        """What tells this list of samples from another one."""
        text = "\n".join(f"{start} {name}" for start, name in zip(self._starts, self._names))
        return hashlib.sha256(f"{self.kind}\n{self.total}\n{text}".encode()).hexdigest()

    def spans(self, begin: int, end: int) -> tuple[Span, ...]:
        """Return where samples `begin` to `end` lie."""
        spans = []
        at = bisect.bisect_right(self._starts, begin) - 1
        while begin < end:
            count = min(end, self._starts[at + 1]) - begin
            if count:
                spans.append(Span(self._names[at], begin - self._starts[at], count))
            begin, at = begin + count, at + 1
        return tuple(spans)


def read_spans(folder: Path, kind: str, spans: Sequence[Span], preprocess: Preprocess) -> Iterator[Sample]:
    """Yield samples in order; a photo that cannot be used is a `Skipped`, an array file that cannot an OrinError."""
    if kind == PHOTOS:
        paths = [folder / span.file for span in spans]
        for span, values in zip(spans, prepare_each(paths, preprocess)):
            yield Sample(span.file, 0, values)
        return
    for span in spans:
        rows = _open(folder / span.file)
        if span.first + span.count > len(rows):
            raise OrinError(
                f"{folder / span.file} holds {len(rows)} samples, expected {span.first + span.count} or more"
            )
        for index in range(span.first, span.first + span.count):
            yield Sample(span.file, index, np.asarray(rows[index]))


def _files(folder: Path) -> tuple[list[str], list[str]]:
    if not folder.is_dir():
        raise OrinError(f"{folder} is not a folder, expected one of samples")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    arrays = [name for name in names if name.lower().endswith(".npy")]
    return arrays, [name for name in names if name.lower().endswith(SUFFIXES)]


def _rows(path: Path) -> int:
    return len(_open(path))


def _open(path: Path) -> NDArray[Any]:
    try:
        rows: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise OrinError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if rows.ndim not in (2, 4):
        raise OrinError(
            f"{path} has the shape {list(rows.shape)}, expected [N,C,H,W], or [N, bytes] where it is packed"
        )
    return rows
