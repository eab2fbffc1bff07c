"""Work in steps that is done once: a step is skipped while its inputs and its files are those of the last time.

The state of such work is one JSON file, read by `load_state` and replaced whole by `save_state`, wherever it lies.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from calibration.source import file_sha256
from orin.errors import OrinError
from orin.record import write_atomically

STATE_VERSION = 1

Summary = dict[str, Any]


class Store(Protocol):
    """Where a state lies: `name` for messages, its text (None where there is none yet), replaced as a whole."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def read(self) -> str | None:
        """Return the text, None where there is none yet."""

    def write(self, text: str) -> None:
        """Replace the text in one step: a reader sees the old one or the new one."""


@dataclass(frozen=True)
class FileStore:
    """A state in a file of this machine."""

    path: Path

    @property
    def name(self) -> str:
        """The file's path."""
        return str(self.path)

    def read(self) -> str | None:
        """Return the file's text, None where there is no such file."""
        return self.path.read_text(encoding="utf-8") if self.path.exists() else None

    def write(self, text: str) -> None:
        """Replace the file."""
        write_atomically(self.path, text)


def load_state(store: Store) -> dict[str, Any]:
    """Return the steps of a state by name, none where there is no state; OrinError where it cannot be used."""
    text = store.read()
    if text is None:
        return {}
    try:
        values = json.loads(text)
        version, steps = values["version"], dict(values["steps"])
    except (ValueError, KeyError, TypeError) as error:
        raise OrinError(f"{store.name} is damaged ({error}): delete it, and every step runs again") from None
    if version != STATE_VERSION:
        raise OrinError(
            f"{store.name} has version {version!r}, expected {STATE_VERSION}: delete it, or name another folder"
        )
    return steps


def save_state(store: Store, steps: Mapping[str, Any]) -> None:
    """Replace a state."""
    store.write(json.dumps({"version": STATE_VERSION, "steps": steps}, indent=1))


def utc_now() -> str:
    """Return the time of day, UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Done:
    """What a step left: a summary for people and later steps, and the files that have to stay as they are."""

    summary: Summary
    files: Sequence[Path] = ()


class Steps:
    """A folder's steps, kept in one JSON file that is rewritten, whole, after each; `say` hears what is skipped.

    Files are named relative to the state's folder, so that the folder can be moved.
    """

    def __init__(self, state: Path, say: Callable[[str], None]) -> None:
        self._store = FileStore(state)
        self._say = say
        self.skipped: list[str] = []
        self._steps: dict[str, Any] = load_state(self._store)

    def take(self, name: str, inputs: Mapping[str, Any], run: Callable[[], Done]) -> Summary:
        """Return what a step says: of this run, or of an earlier one with the same inputs and intact files."""
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        kept = self._steps.get(name)
        if kept is not None and kept["inputs_sha256"] == digest and self._intact(kept["files"]):
            self.skipped.append(name)
            self._say(f"{name}: done before ({kept['utc']}), skipped")
            summary: Summary = kept["summary"]
            return summary
        self._say(f"{name} ...")
        begin_s = time.monotonic()
        done = run()
        self._steps[name] = {
            "inputs": dict(inputs),
            "inputs_sha256": digest,
            "utc": utc_now(),
            "took_s": round(time.monotonic() - begin_s, 3),
            "summary": done.summary,
            "files": {self._relative(path): file_sha256(path) for path in done.files},
        }
        save_state(self._store, self._steps)
        return done.summary

    def _relative(self, path: Path) -> str:
        return path.resolve().relative_to(self._store.path.parent.resolve()).as_posix()

    def _intact(self, files: Mapping[str, str]) -> bool:
        folder = self._store.path.parent
        return all((folder / name).is_file() and file_sha256(folder / name) == sha for name, sha in files.items())
