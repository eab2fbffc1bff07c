"""What calibration data is: batches of a network's inputs in a fixed order, each with what was read for it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from calibration.dataset import Skipped
from calibration.errors import CalibrationError
from engines.onnx_model import keeps_batch, model_inputs, shape_of

if TYPE_CHECKING:
    import onnx

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Batch:
    """Samples that go through a network together, and what was read for them.

    `arrays` holds values by input, samples first, and is empty where nothing was usable or the batch was passed over.
    `files` maps each file to the SHA-256 of what has been read of it by then; `items` counts the photos, samples or
    windows that were asked for, skipped ones included.
    """

    arrays: Mapping[str, NDArray[Any]]
    files: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    items: int = 1

    @property
    def samples(self) -> int:
        """Number of samples."""
        return next((len(values) for values in self.arrays.values()), 0)


class Source(Protocol):
    """Calibration data for the inputs of one network; every pass gives the same batches in the same order."""

    @property
    def total(self) -> int:
        """Number of items, usable or not."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the samples beside the files, their number included, as plain JSON values."""

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield every batch; those before `first` are read and hashed, but nothing is made of them."""


@dataclass(frozen=True)
class Input:
    """An input of a network: its name, shape (None for each axis without a size) and NumPy element type."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


def inputs_of(model: onnx.ModelProto) -> list[Input]:
    """Return what a network reads; CalibrationError where an input has no shape at all."""
    from onnx.helper import tensor_dtype_to_np_dtype

    inputs = []
    for value in model_inputs(model):
        shape = shape_of(value)
        if not shape:
            raise CalibrationError(
                f"input {value.name!r} of {model.graph.name} has no axes, expected [N,...]; export it again"
            )
        inputs.append(Input(value.name, shape, tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)))
    return inputs


def batch_of(model: onnx.ModelProto) -> int | None:
    """Return the batch that a network's own constants ask for, None where it takes any."""
    if keeps_batch(model, "batch"):
        return None
    return next((shape[0] for value in model_inputs(model) if (shape := shape_of(value)) and shape[0]), 1)


def grouped(items: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Join every `size` batches of one item into one; no more than `size` items are held."""
    source = iter(items)
    while parts := list(islice(source, size)):
        usable = [part.arrays for part in parts if part.arrays]
        arrays = {name: np.concatenate([part[name] for part in usable]) for name in (usable[0] if usable else ())}
        files = {name: digest for part in parts for name, digest in part.files.items()}
        skipped = tuple(entry for part in parts for entry in part.skipped)
        yield Batch(arrays, files, skipped, sum(part.items for part in parts))


def relative_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the paths with what tells them apart: the part below the folder that holds them all."""
    root = os.path.commonpath([path.parent for path in paths])
    return {path: path.relative_to(root).as_posix() for path in paths}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex; OSError where it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
