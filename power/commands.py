"""The few programs that read and change power modes, run without a shell, without input and under a time limit.

This runs as the user. `nvpmodel` and `jetson_clocks` alone go through `sudo -n`, which never asks for a password; what
sudo refuses is told apart from what a program refuses.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from power.errors import PowerError

NVPMODEL = "nvpmodel"
JETSON_CLOCKS = "jetson_clocks"
WITH_SUDO = (NVPMODEL, JETSON_CLOCKS)  # nothing else is ever run as root
TIMEOUT_S = 30.0

_FOLDERS = ("usr/sbin", "usr/bin", "sbin", "bin")
_KILLED_S = 2.0
_SUDO_REFUSES = re.compile(
    r"^sudo: (?!unable to resolve)|is not in the sudoers|not allowed to (?:execute|run)|as a root user", re.MULTILINE
)


@dataclass(frozen=True)
class Command:
    """One call of a program: `as_root` where it needs rights, `changes` where the board is not the same afterwards."""

    program: str
    arguments: tuple[str, ...]
    as_root: bool = True
    changes: bool = False

    def __str__(self) -> str:
        return " ".join([*(("sudo", "-n") if self.as_root else ()), self.program, *self.arguments])


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code, None where it was killed at its time limit; both its streams as text.

    `refused` is set where the rights to run it are missing, so that it never ran.
    """

    code: int | None
    text: str
    refused: bool = False

    @property
    def last_line(self) -> str:
        """The line to show: the last error, else the last that is not empty."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line or "Error" in line]
        return (errors or lines or [self._ending])[-1]

    @property
    def _ending(self) -> str:
        return "it did not end in time" if self.code is None else f"exit code {self.code}, no word why"


class Runner(Protocol):
    """What runs commands: this machine, a dry run, or a test's own."""

    def run(self, command: Command) -> Done:
        """Run one command to its end; PowerError where the program is not on this machine."""


class SystemRunner:
    """Runs the programs of a root folder; `is_root` (by default: whether this process is) leaves sudo out."""

    def __init__(self, root: Path = Path("/"), timeout_s: float = TIMEOUT_S, is_root: bool | None = None) -> None:
        self._root = root
        self._timeout_s = timeout_s
        self._is_root = os.geteuid() == 0 if is_root is None else is_root

    def run(self, command: Command) -> Done:
        """Run one command to its end; PowerError where the program is not on this machine."""
        words = [self._find(command.program), *command.arguments]
        sudo = command.as_root and not self._is_root
        if not sudo:
            return _done(*_ran(words, self._timeout_s))
        if command.program not in WITH_SUDO:
            raise PowerError(f"{command.program!r} is not one of the programs that run as root: {', '.join(WITH_SUDO)}")
        found = self._path("sudo")
        if found is None:
            return Done(1, "sudo: not on this machine", refused=True)
        return _done(*_ran([str(found), "-n", *words], self._timeout_s))

    def _path(self, program: str) -> Path | None:
        return next((path for folder in _FOLDERS if (path := self._root / folder / program).is_file()), None)

    def _find(self, program: str) -> str:
        found = self._path(program)
        if found is None:
            raise PowerError(
                f"{program} is not on this machine (not in usr/sbin or usr/bin below {self._root}): power modes are a "
                "Jetson's; in a container mount the host's program"
            )
        return str(found)


class DryRunner:
    """Runs what only reads, and says what would be run of the rest."""

    def __init__(self, runner: Runner, say: Callable[[str], None]) -> None:
        self._runner = runner
        self._say = say

    def run(self, command: Command) -> Done:
        """Run a command that changes nothing; say one that does."""
        if not command.changes:
            return self._runner.run(command)
        self._say(str(command))
        return Done(0, "")


def _done(code: int | None, text: str) -> Done:
    return Done(code, text, refused=bool(code) and bool(_SUDO_REFUSES.search(text)))


def _ran(words: list[str], timeout_s: float) -> tuple[int | None, str]:
    """Run a program with its streams in a file: a pipe that a grandchild keeps open would be waited for."""
    with tempfile.TemporaryFile() as output:
        try:
            child = _started(words, output)
        except OSError as error:
            raise PowerError(f"{words[0]} cannot be run: {error.strerror or error}; run orin doctor") from None
        try:
            code: int | None = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(child)
        output.seek(0)
        return code, output.read().decode("utf-8", "replace")


def _started(words: list[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C must not cut a mode change in two.
    return subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    with suppress(OSError):  # what sudo started is root's, and not ours to kill
        os.killpg(child.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        child.wait(_KILLED_S)
