"""Where the weights of a network go while it is built: into the model, or into one file beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from engines.onnx_model import SMALL_ELEMENTS, declared_tensor

if TYPE_CHECKING:
    import onnx

    Store = Callable[[str, NDArray[Any]], onnx.TensorProto]

ALIGNMENT_BYTES = 4096  # of a weight's offset, so that it can be memory-mapped


def in_memory(name: str, values: NDArray[Any]) -> onnx.TensorProto:
    """Return a tensor that holds its values."""
    from onnx.numpy_helper import from_array

    return from_array(values, name)


@dataclass(frozen=True)
class ExternalFile:
    """A store that appends large weights to an open file, `location` being its name beside the model."""

    file: BinaryIO
    location: str

    def __call__(self, name: str, values: NDArray[Any]) -> onnx.TensorProto:
        """Return a tensor that says where its values are; a small one holds them."""
        if values.size <= SMALL_ELEMENTS:
            return in_memory(name, values)
        tensor = declared_tensor(name, values.shape, in_memory(name, values[:0]).data_type)
        offset = -(-self.file.tell() // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        self.file.seek(offset)
        self.file.write(np.ascontiguousarray(values).data)
        tensor.external_data[0].value = self.location
        for key, value in (("offset", offset), ("length", values.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor
