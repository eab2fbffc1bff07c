"""Photos as calibration data: what an INT8 engine reads of each, as float32 batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.dataset import Crops, Skipped, each_photo, int8_samples
from calibration.errors import CalibrationError
from calibration.source import Batch, file_sha256, grouped, relative_names
from engines.errors import EngineError
from engines.preprocess import Preprocess
from engines.spec import INT8_MAX

BATCH_PIXELS = 4 * 224 * 224  # whole activations of a batch are in memory: 4 photos of a classifier, 1 of a detector


@dataclass(frozen=True)
class Images:
    """Photos pre-processed as a network wants them, for the input named `name`.

    Samples are rounded to INT8 with the pre-processing's own range and given back as float32 [B,3,crop,crop]: the
    values that reach the first layer of an engine fed with INT8. Crops are those of `prepare_images`, all of a photo's
    in one batch; `fixed_batch` photos a batch, or as many as memory likes.
    """

    paths: Sequence[Path]
    preprocess: Preprocess
    name: str
    crops: Crops = Crops()
    fixed_batch: int | None = None

    @property
    def total(self) -> int:
        """Number of photos."""
        return len(self.paths)

    @property
    def batch(self) -> int:
        """Photos a batch."""
        pixels = self.crops.count * self.preprocess.crop**2
        return self.fixed_batch or max(1, BATCH_PIXELS // pixels)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the samples beside the files."""
        return {
            "kind": "images",
            "photos": self.total,
            "input": self.name,
            "batch": self.batch,
            "preprocess": asdict(self.preprocess),
            "crops": asdict(self.crops),
        }

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield every batch; photos of those before `first` are hashed alone. A few photos are read ahead."""
        passed = first * self.batch

        def item(path: Path, index: int) -> Batch:
            return self._hashed(path) if index < passed else self._read(path, index)

        return grouped(map(_given, each_photo(self.paths, item)), self.batch)

    @cached_property
    def _names(self) -> dict[Path, str]:
        return relative_names(self.paths)

    def _hashed(self, path: Path) -> Batch:
        return Batch({}, {self._names[path]: file_sha256(path)})

    def _read(self, path: Path, index: int) -> Batch:
        files = self._hashed(path).files
        try:
            samples = int8_samples(self.preprocess, self.crops)(path, index)
        except (EngineError, CalibrationError) as error:
            return Batch({}, files, (Skipped(str(path), str(error)),))
        return Batch({self.name: dequantised(np.stack(samples), self.preprocess.amax)}, files)


def dequantised(samples: NDArray[Any], amax: float) -> NDArray[Any]:
    """Return INT8 samples as the float32 values that they stand for."""
    values: NDArray[Any] = samples.astype(np.float32) * np.float32(amax / INT8_MAX)
    return values


def _given(result: Batch | Skipped) -> Batch:
    return Batch({}, skipped=(result,)) if isinstance(result, Skipped) else result
