"""3-D volumes as calibration data, cut into the windows that a network reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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


class Volume(Protocol):
    """One volume: its shape is known before it is read."""

    @property
    def name(self) -> str:
        """What tells it from the others."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what `read` returns."""

    def sha256(self) -> str:
        """Return the SHA-256 of what it is made of, in hex."""

    def read(self) -> NDArray[Any]:
        """Return its voxels as the windows are cut from them."""


@dataclass(frozen=True)
class ArrayVolume:
    """A volume in a .npy file, mapped into memory; CalibrationError where it is no array."""

    path: Path
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.read().shape

    def sha256(self) -> str:
        """Return that of the file."""
        return file_sha256(self.path)

    def read(self) -> NDArray[Any]:
        """Map the array; what is cut from it alone is read."""
        try:
            volume: NDArray[Any] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise CalibrationError(f"volume {self.path} cannot be read: {reason}; write it with numpy.save") from None
        return volume


def array_volumes(paths: Sequence[Path]) -> list[ArrayVolume]:
    """Return .npy files as volumes, by what tells their paths apart."""
    return [ArrayVolume(path, name) for path, name in relative_names(paths).items()]


@dataclass(frozen=True)
class Volumes:
    """Windows of volumes for the input named `input`, one volume at a time; `prepared` says how volumes came about."""

    volumes: Sequence[Volume]
    windows: Windows
    input: str
    batch: int = 1
    prepared: Mapping[str, Any] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of windows."""
        return sum(self._counts)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the samples beside the files."""
        cut = {"count": self.total, **self.windows.settings}
        return {"kind": "volumes", "input": self.input, "batch": self.batch, "windows": cut, **self.prepared}

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield every batch; volumes that lie before `first` are hashed alone."""
        return grouped(self._items(first * self.batch), self.batch)

    @cached_property
    def _counts(self) -> list[int]:
        return [self.windows.count(volume.shape) for volume in self.volumes]

    def _items(self, passed: int) -> Iterator[Batch]:
        for volume, count in zip(self.volumes, self._counts):
            files = {volume.name: volume.sha256()}
            skipped = min(passed, count)
            passed -= skipped
            for _ in range(skipped):
                yield Batch({}, files)
            if skipped < count:
                yield from self._windows(volume.read(), files, skipped)

    def _windows(self, volume: NDArray[Any], files: Mapping[str, str], first: int) -> Iterator[Batch]:
        for index, window in enumerate(self.windows.cut(volume)):
            if index >= first:
                yield Batch({self.input: np.asarray(window, np.float32)[None]}, files)
