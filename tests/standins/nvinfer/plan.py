"""Serialized engines: what a plan holds, its bytes, and what is refused when they are read back."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engines.spec import TensorFormat
from tests.standins.nvinfer.bridge import Refused

MAGIC = b"ftrt-standin"
VERSION = 239  # of the serialization, as TensorRT's messages number them
_HEAD = struct.Struct("<12sIQ32s")  # magic, version, bytes of the description, SHA-256 of what follows
SCALAR_FORMATS = (TensorFormat.LINEAR, TensorFormat.DLA_LINEAR, TensorFormat.DLA_HWC4)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Binding:
    """An input or output: `symbol` is its tensor in the ONNX network, which computes in `computed`.

    `dtype` and `computed` are numpy names, `format` a `TensorFormat`; `scale` turns INT8 into real values. `shapes`
    are the least, best and largest shape of each optimisation profile; equal where the shape is static.
    """

    name: str
    symbol: str
    is_input: bool
    dims: Shape
    dtype: str
    computed: str
    format: str
    scale: float | None
    shapes: tuple[tuple[Shape, Shape, Shape], ...]


@dataclass(frozen=True)
class Plan:
    """An engine as its builder leaves it: `layers` is what the inspector tells, `network` ONNX bytes that compute."""

    name: str
    bindings: tuple[Binding, ...]
    layers: tuple[Mapping[str, Any], ...]
    uses_dla: bool
    dla_core: int
    profiles: int
    verbosity: int
    network: bytes

    def dumps(self) -> bytes:
        """Return the plan's bytes."""
        fields = asdict(self)
        network = fields.pop("network")
        text = json.dumps(fields).encode()
        digest = hashlib.sha256(text + network).digest()
        return b"".join([_HEAD.pack(MAGIC, VERSION, len(text), digest), text, network])


def loads(blob: bytes) -> Plan:
    """Read a plan; `Refused` with TensorRT's message where magic, version or content is wrong."""
    head = blob[: _HEAD.size].ljust(_HEAD.size, b"\0")
    magic, version, length, digest = _HEAD.unpack(head)
    if magic != MAGIC:
        raise _serialization("magicTagRead == kMAGIC_TAG failed.Magic tag does not match")
    if version != VERSION:
        note = f"Note: Current Version: {VERSION}, Serialized Engine Version: {version}"
        raise _serialization(f"stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match. {note}")
    content = blob[_HEAD.size :]
    if hashlib.sha256(content).digest() != digest:
        raise _serialization("safeChecksum failed.The engine's bytes are damaged or cut short")
    fields = json.loads(content[:length])
    fields["bindings"] = tuple(map(_binding, fields["bindings"]))
    fields["layers"] = tuple(fields["layers"])
    return Plan(**fields, network=content[length:])


def of_another_version(blob: bytes, version: int = VERSION - 1) -> bytes:
    """Return a plan as another TensorRT would have written it: for tests of version mismatch."""
    return blob[:12] + struct.pack("<I", version) + blob[16:]


def _binding(fields: dict[str, Any]) -> Binding:
    shapes = tuple(tuple(map(tuple, profile)) for profile in fields["shapes"])
    return Binding(**{**fields, "dims": tuple(fields["dims"]), "shapes": shapes})


def _serialization(text: str) -> Refused:
    return Refused(f"Serialization assertion {text}", 1, "Serialization")
