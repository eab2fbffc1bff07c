"""3-D volumes as calibration data: .npy files, cut into the windows that a network reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.source import Batch, file_sha256, grouped, relative_names


class Windows(Protocol):
    """How a volume is cut; `settings` describe it as plain JSON values."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the windows beside the volume."""

    def count(self, shape: tuple[int, ...]) -> int:
        """Return the number of windows of a volume of this shape."""

    def cut(self, volume: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """Yield the windows, each float32 as the network takes it, without the batch axis."""


@dataclass(frozen=True)
class Volumes:
    """Windows of .npy volumes for the input named `name`; volumes are mapped into memory, a window at a time is read.

    CalibrationError names a file that is no array.
    """

    paths: Sequence[Path]
    windows: Windows
    name: str
    batch: int = 1

    @property
    def total(self) -> int:
        """Number of windows."""
        return sum(self._counts.values())

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the samples beside the files."""
        cut = {"count": self.total, **self.windows.settings}
        return {"kind": "volumes", "input": self.name, "batch": self.batch, "windows": cut}

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield every batch; volumes that lie before `first` are hashed alone."""
        return grouped(self._items(first * self.batch), self.batch)

    @cached_property
    def _counts(self) -> dict[Path, int]:
        return {path: self.windows.count(_mapped(path).shape) for path in self.paths}

    def _items(self, passed: int) -> Iterator[Batch]:
        for path, name in relative_names(self.paths).items():
            files, count = {name: file_sha256(path)}, self._counts[path]
            skipped = min(passed, count)
            passed -= skipped
            for _ in range(skipped):
                yield Batch({}, files)
            if skipped < count:
                yield from self._windows(path, files, skipped)

    def _windows(self, path: Path, files: Mapping[str, str], first: int) -> Iterator[Batch]:
        for index, window in enumerate(self.windows.cut(_mapped(path))):
            if index >= first:
                yield Batch({self.name: np.asarray(window, np.float32)[None]}, files)


def _mapped(path: Path) -> NDArray[Any]:
    try:
        volume: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CalibrationError(f"volume {path} cannot be read: {reason}; write it with numpy.save") from None
    return volume
