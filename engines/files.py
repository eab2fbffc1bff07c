"""Writing files whole or not at all: no reader ever sees half of one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

LARGE_BYTES = 2**31 - 2**20  # a protobuf message, and so an ONNX file, holds less than 2 GiB


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace a file in one step by what `write` writes; OSError where it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def is_large(model: onnx.ModelProto, limit_bytes: int = LARGE_BYTES) -> bool:
    """Tell whether a model's weights are too large for one ONNX file."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > limit_bytes


def write_model(model: onnx.ModelProto, path: Path, limit_bytes: int = LARGE_BYTES) -> None:
    """Replace an ONNX file in one step; weights of a large model go to `path` + ".data" and leave the model in memory.

    OSError where the folder cannot be written.
    """
    import onnx

    weights = f"{path.name}.data" if is_large(model, limit_bytes) else None
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        made = Path(folder) / path.name
        onnx.save_model(model, str(made), save_as_external_data=weights is not None, location=weights)
        if weights is not None:
            shutil.copymode(made, made.with_name(weights))  # onnx writes weights for the owner's eyes alone
            made.with_name(weights).replace(path.with_name(weights))
        made.replace(path)
