"""Built engines on disk, found by what they were built from."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engines.engine import Engine, Manifest
from engines.errors import EngineError
from engines.onnx_model import without_weights
from engines.spec import EngineSpec

if TYPE_CHECKING:
    import onnx


def model_sha256(model: onnx.ModelProto) -> str:
    """Return the SHA-256 of a model, in hex; doc strings do not count."""
    light = without_weights(model)
    for entry in (*light.graph.node, *light.graph.input, *light.graph.output, *light.graph.value_info):
        entry.ClearField("doc_string")
    digest = hashlib.sha256(light.SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        digest.update(tensor.raw_data or tensor.SerializeToString(deterministic=True))
    return digest.hexdigest()


def engine_key(model_sha256: str, spec: EngineSpec, builder: str) -> str:
    """Return the name of an engine in the cache: what it is built from, from what and by what."""
    return hashlib.sha256(f"{model_sha256}\n{spec.digest()}\n{builder}".encode()).hexdigest()


class EngineCache:
    """Engines under one directory, `<key>.engine` with `<key>.json`; `say` is told when an entry cannot be used."""

    def __init__(self, root: Path, say: Callable[[str], None]) -> None:
        self._root = root
        self._say = say

    def get(self, key: str) -> Engine | None:
        """Return an intact entry; None where there is none, or a damaged or foreign one, which is told."""
        path = self._root / f"{key}.json"
        try:
            manifest = Manifest.loads(path.read_text(encoding="utf-8"))
            fault = self._fault(key, manifest)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            fault = f"its manifest cannot be read ({' '.join(str(error).split())})"
        if fault:
            self._say(f"engine {path.with_suffix('.engine')} is rebuilt: {fault}")
            return None
        return Engine(path.with_suffix(".engine"), manifest)

    def put(self, key: str, data: bytes, manifest: Manifest) -> Engine:
        """Store an engine, whole or not at all; its SHA-256 goes into the manifest."""
        stored = replace(manifest, engine_sha256=hashlib.sha256(data).hexdigest())
        path = self._root / f"{key}.engine"
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
            write_atomically(path.with_suffix(".json"), stored.dumps().encode())
        except OSError as error:
            reason = error.strerror or str(error)
            raise EngineError(f"engine {path} cannot be stored: {reason}; free space or choose another cache") from None
        return Engine(path, stored)

    def log_path(self, key: str) -> Path:
        """Return where the builder's log of an engine lies, if it writes one."""
        return self._root / f"{key}.log"

    def _fault(self, key: str, manifest: Manifest) -> str | None:
        """Return what is wrong with an entry, None if nothing is."""
        if engine_key(manifest.model_sha256, manifest.spec, manifest.builder) != key:
            return "its manifest belongs to another engine"
        try:
            found = hashlib.sha256((self._root / f"{key}.engine").read_bytes()).hexdigest()
        except FileNotFoundError:
            return "its file is missing"
        return None if found == manifest.engine_sha256 else "its bytes are damaged (SHA-256 differs)"


def write_atomically(path: Path, data: bytes) -> None:
    """Write under a temporary name and rename, so that no reader ever sees half a file; OSError where it cannot."""
    temporary = path.with_name(f".{path.name[:12]}-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:  # unlike tempfile's, readable to whom the umask says
            file.write(data)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
