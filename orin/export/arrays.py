"""Samples from .npy and .npz files, and outputs into them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.cache import write_atomically
from orin.errors import OrinError


def read_samples(path: Path, names: Sequence[str]) -> list[NDArray[Any]]:
    """Read an array [N,...] for each input: an .npy for a single one, an .npz with one under each name."""
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = [loaded] if isinstance(loaded, np.ndarray) else [loaded[name] for name in names]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OrinError(
            f"samples {path} cannot be read: {reason}; expected .npy, or .npz with {', '.join(names)}"
        ) from None
    if len(arrays) != len(names) or len({array.shape[:1] for array in arrays}) != 1 or not arrays[0].shape:
        shapes = ", ".join(str(list(array.shape)) for array in arrays)
        raise OrinError(f"samples {path} hold {shapes}, expected [N,...] for each of {', '.join(names)}")
    return arrays


def write_outputs(path: Path, outputs: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as an .npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **outputs)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())
