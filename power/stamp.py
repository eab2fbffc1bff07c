"""The stamp: what was in force before each hold, kept on disk so that a killed hold can be undone.

One file lists the holds that are open, the outermost first; each names its process. It is written before anything is
changed, and replaced in one step.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from power.errors import PowerError

STAMP = "held.json"
VERSION = 1

_LOCK = "lock"
_PARENT, _STARTED = 4 - 3, 22 - 3  # fields of /proc/PID/stat, whose third follows the program's name


@dataclass(frozen=True)
class Setting:
    """A mode of a mode file."""

    file: str
    id: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (number {self.id} of {self.file})"


@dataclass(frozen=True)
class Process:
    """A process: number, when it started (ticks since boot) and the boot, since numbers come again."""

    pid: int
    started: str
    boot: str


@dataclass(frozen=True)
class Level:
    """One hold: whose it is, what was there before, what it brought, and the file with the clocks from before."""

    process: Process
    before: Setting
    target: Setting
    clocks: str | None
    utc: str


@dataclass(frozen=True)
class Processes:
    """The processes of this machine."""

    proc: Path = Path("/proc")

    def this(self) -> Process:
        """Return this process."""
        return Process(os.getpid(), self._stat(os.getpid(), _STARTED) or "", self.boot())

    def boot(self) -> str:
        """Return the boot's own name; empty where the kernel does not tell."""
        with suppress(OSError):
            return (self.proc / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return ""

    def lives(self, process: Process) -> bool:
        """Whether it still runs."""
        return process.boot == self.boot() and self._stat(process.pid, _STARTED) == process.started

    def is_ours(self, process: Process) -> bool:
        """Whether it is this process, or one of those that started it."""
        pid = os.getpid()
        while pid and pid != process.pid:
            pid = int(self._stat(pid, _PARENT) or 0)
        return pid == process.pid

    def _stat(self, pid: int, field: int) -> str | None:
        try:
            text = (self.proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = text.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[field]


def default_state() -> Path:
    """Return the folder of stamps: it outlives a reboot, and the user may write it."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "orin-toolkit"


@dataclass(frozen=True)
class Stamp:
    """The stamp file in a folder."""

    folder: Path

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / STAMP

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from reading, writing or acting on the stamp at the same time."""
        with self._said():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = (self.folder / _LOCK).open("w", encoding="ascii")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def levels(self) -> tuple[Level, ...]:
        """Return the holds that are open, the outermost first; PowerError where the file is damaged."""
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
            if values["version"] != VERSION:
                raise ValueError(f"version {values['version']}, expected {VERSION}")
            return tuple(map(_level, values["levels"]))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise PowerError(f"stamp {self.path} cannot be read: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise PowerError(
                f"stamp {self.path} is damaged ({error}): see `nvpmodel -q`, set the mode by hand, delete the file"
            ) from None

    def dead(self, processes: Processes) -> tuple[Level, ...]:
        """Return the killed holds that wait to be undone, the one to undo first in front."""
        return tuple(takewhile(lambda level: not processes.lives(level.process), reversed(self.levels())))

    def keep(self, path: Path, text: str) -> None:
        """Write a file that a hold needs; PowerError where it cannot be written."""
        with self._said():
            write_durably(path, text)

    def write(self, levels: Sequence[Level]) -> None:
        """Replace the list of open holds; without any there is no file. PowerError where it cannot be written."""
        with self._said():
            if levels:
                write_durably(
                    self.path, json.dumps({"version": VERSION, "levels": list(map(asdict, levels))}, indent=1)
                )
            else:
                self.path.unlink(missing_ok=True)

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PowerError(
                f"stamp {self.path} cannot be written: {error.strerror or error}; without it a killed run could not be "
                "undone, so no mode is changed: free some space, or name another folder"
            ) from None


def write_durably(path: Path, text: str) -> None:
    """Replace a file in one step that also survives a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def _level(values: dict[str, Any]) -> Level:
    known = {"process": Process, "before": Setting, "target": Setting}
    return Level(**{name: known[name](**value) if name in known else value for name, value in values.items()})
