"""TensorRT's INT8 calibrators over plain callables; they exist up to TensorRT 10.

The batches are float32, also where the engine's input is INT8. TensorRT computes their ranges on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.tensorrt.adapt import adapt

BASES = {"minmax": "IInt8MinMaxCalibrator", "entropy": "IInt8EntropyCalibrator2"}

Batch = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Feed:
    """What a calibrator reads: batches of `batch_size` samples, each input by name.

    `allocate(nbytes)` returns the address of memory that the GPU reads, `copy(address, array)` fills it. A cache that
    `read_cache` returns is used in place of the batches; `write_cache` gets the bytes of a new one. `name` says what
    the data are: engines built with other data are other engines.
    """

    name: str
    batch_size: int
    batches: Iterable[Batch]
    allocate: Callable[[int], int]
    copy: Callable[[int, NDArray[Any]], None]
    read_cache: Callable[[], bytes | None] = lambda: None
    write_cache: Callable[[bytes], None] = lambda cache: None


class Calibrator:
    """What TensorRT's calibrators ask for, over a feed; what a callable raises is kept for `raise_failure`."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._batches: Iterator[Batch] | None = None
        self._addresses: dict[str, int] = {}
        self._failure: BaseException | None = None

    def get_batch_size(self) -> int:
        """Return the samples of a batch."""
        return self._feed.batch_size

    def get_batch(self, names: list[str]) -> list[int] | None:
        """Return the addresses of the next batch, None after the last."""
        addresses: list[int] | None = self._kept(lambda: self._next(names))
        return addresses

    def read_calibration_cache(self) -> bytes | None:
        """Return the cache that is there."""
        cache: bytes | None = self._kept(self._feed.read_cache)
        return cache

    def write_calibration_cache(self, cache: Any) -> None:
        """Hand on the cache that TensorRT made."""
        if self._failure is None:  # batches that broke off make no ranges
            self._kept(lambda: self._feed.write_cache(bytes(cache)))

    def raise_failure(self) -> None:
        """Raise what a callable raised in the middle of the build, if one did."""
        if self._failure is not None:
            raise self._failure

    def _next(self, names: list[str]) -> list[int] | None:
        if self._batches is None:
            self._batches = iter(self._feed.batches)
        batch = next(self._batches, None)
        if batch is None:
            return None
        missing = [name for name in names if name not in batch]
        if missing:
            raise EngineError(f"a calibration batch lacks input {missing[0]!r}; it has {', '.join(batch) or 'none'}")
        return [self._placed(name, batch[name]) for name in names]

    def _placed(self, name: str, values: NDArray[Any]) -> int:
        """Copy one input where the GPU reads it; a short last batch is filled up with its own samples."""
        whole = np.ascontiguousarray(np.resize(values, (self._feed.batch_size, *values.shape[1:])), np.float32)
        if name not in self._addresses:
            self._addresses[name] = self._feed.allocate(whole.nbytes)
        self._feed.copy(self._addresses[name], whole)
        return self._addresses[name]

    def _kept(self, call: Callable[[], Any]) -> Any:
        """Call, or keep what is raised: an exception must not pass through TensorRT's C++."""
        try:
            return call()
        except BaseException as failure:
            self._failure = self._failure or failure
            return None


def make_calibrator(trt: Any, algorithm: str, calibrator: Calibrator) -> Any:
    """Return TensorRT's calibrator, "minmax" or "entropy" (the DLA's), over ours; EngineError where it has none."""
    if algorithm not in BASES:
        raise EngineError(f"calibration algorithm is {algorithm!r}, expected one of {', '.join(BASES)}")
    base = getattr(trt, BASES[algorithm], None)
    if base is None:
        raise EngineError(f"TensorRT {trt.__version__} has no calibrators; give ranges (`orin calibrate`) instead")
    return adapt(base, calibrator)
