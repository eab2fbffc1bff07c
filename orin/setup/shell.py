"""Running scripts on a machine, this one or one behind ssh; becoming root there with nothing secret in sight.

A password goes to `sudo -S` on its stdin: it is on no command line, in no file and in no log. ssh is the system's own,
so that its configuration, agent, known hosts and jump hosts are the user's; it asks on the terminal for what it needs.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

from orin.errors import OrinError
from power.commands import Done

Ask = Callable[[str], str]

# -k: what sudo remembers of a password does not count, as it forgets that in the middle of a long job
SUDO_QUIETLY = ("sudo", "-k", "-n")
SUDO_WITH_PASSWORD = ("sudo", "-k", "-S", "-p", "")
SSH_LOST = 255  # ssh's exit code for a failure of its own
TIMED_OUT = 124  # that of `timeout`
PLAIN = ("env", "LC_ALL=C.UTF-8")  # messages are recognised as programs say them in English
KILL_AFTER_S = 10
GRACE_S = 60.0  # a connection may take as long on top of a script's limit
SHORT_S = 60.0


@dataclass(frozen=True)
class Call:
    """A script for `sh`, run to its end or to its limit; `feed` is its stdin, which is never logged."""

    script: str
    as_root: bool = False
    feed: bytes = field(default=b"", repr=False)
    limit_s: float = SHORT_S


class Shell(Protocol):
    """A machine that runs scripts; `where` names it."""

    @property
    def where(self) -> str:
        """The machine, in words."""

    def run(self, call: Call, log: Path | None = None) -> Done:
        """Run a script, what it prints appended to `log`; OrinError where the machine or the rights are missing."""


@dataclass(frozen=True)
class Sudo:
    """How to become root: the words before a command, and what they read from stdin."""

    words: tuple[str, ...] = ()
    feed: bytes = field(default=b"", repr=False)


class SystemShell:
    """Runs scripts through `door` (empty: on this machine, in `folder`); `ask` reads a password from the user."""

    def __init__(
        self, where: str, door: Sequence[str] = (), folder: Path | None = None, ask: Ask | None = None
    ) -> None:
        self.where = where
        self._door = tuple(door)
        self._folder = folder
        self._ask = ask
        self._sudo: Sudo | None = None

    def run(self, call: Call, log: Path | None = None) -> Done:
        """Run a script; OrinError where the machine is out of reach, or root's rights are not to be had."""
        if not call.as_root:
            return self._ran(call, Sudo(), log)
        if self._sudo is None:
            self._sudo = self._find_sudo()
        return self._ran(call, self._sudo, log)

    def _find_sudo(self) -> Sudo:
        """Find a way to become root, asking for a password only where one is needed."""
        if self._ran(Call("id -u"), Sudo()).text.strip() == "0":
            return Sudo()
        if self._ran(Call("true"), Sudo(SUDO_QUIETLY)).code == 0:
            return Sudo(SUDO_QUIETLY)
        if self._ask is None:
            raise OrinError(f"sudo on {self.where} wants a password, and here is no terminal to ask on: run it in one")
        found = Sudo(SUDO_WITH_PASSWORD, (self._ask(f"password for sudo on {self.where}: ") + "\n").encode())
        done = self._ran(Call("true"), found)
        if done.code != 0:
            raise OrinError(f"sudo on {self.where} refuses: {done.last_line}")
        return found

    def _ran(self, call: Call, sudo: Sudo, log: Path | None = None) -> Done:
        with log.open("a+b") if log else tempfile.TemporaryFile() as output:
            begin = output.seek(0, 2)
            code = self._wait(self._words(call, sudo), sudo.feed + call.feed, output, call.limit_s + GRACE_S)
            output.seek(begin)
            text = output.read().decode("utf-8", "replace")
        if self._door and code == SSH_LOST:
            raise OrinError(f"{self.where}: {_ssh_trouble(text, self.where)}")
        return Done(None if code == TIMED_OUT else code, text)

    def _words(self, call: Call, sudo: Sudo) -> list[str]:
        here = () if self._door else ("--foreground",)  # Ctrl-C then reaches what runs
        limit = ("timeout", *here, "-k", str(KILL_AFTER_S), f"{call.limit_s:.0f}")
        words = [*sudo.words, *PLAIN, *limit, "sh", "-c", call.script]
        if not self._door:
            return words
        # nvpmodel ends with 255 too: only ssh itself may say so
        tells_apart = f'{shlex.join(words)}; code=$?; [ "$code" -ne {SSH_LOST} ] || code=254; exit "$code"'
        return [*self._door, shlex.join(["sh", "-c", tells_apart])]

    def _wait(self, words: Sequence[str], feed: bytes, output: IO[bytes], limit_s: float) -> int:
        try:
            child = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, cwd=self._folder
            )
        except OSError as error:
            raise OrinError(f"{words[0]} cannot be run here: {error.strerror or error}; install it") from None
        with child:
            try:
                child.communicate(feed, limit_s)
            except subprocess.TimeoutExpired:
                with suppress(PermissionError):  # what sudo started is root's
                    child.kill()
                return TIMED_OUT
            except KeyboardInterrupt:
                with suppress(PermissionError):
                    child.terminate()
                raise
        return child.returncode


class SshShell(SystemShell):
    """A machine behind ssh, all scripts over one connection; close it, and group memberships are read anew."""

    def __init__(self, host: str, options: Sequence[str] = (), ask: Ask | None = None) -> None:
        if host.startswith("-"):
            raise OrinError(f"--host is {host!r}, expected USER@BOARD or a name from ~/.ssh/config")
        self._sockets = tempfile.TemporaryDirectory(prefix="orin-ssh-", dir="/tmp")  # a socket's path is short
        shared = {
            "BatchMode": "no" if ask else "yes",
            "ConnectTimeout": "15",
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
            "ControlMaster": "auto",
            "ControlPath": f"{self._sockets.name}/%C",
            "ControlPersist": "60",
        }
        words = ["ssh", *(word for name, value in shared.items() for word in ("-o", f"{name}={value}")), *options]
        super().__init__(host, [*words, "--", host], ask=ask)
        self._hang_up = [*words, "-O", "exit", "--", host]

    def reconnect(self) -> None:
        """End the connection; the next script opens another one."""
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(self._hang_up, capture_output=True, stdin=subprocess.DEVNULL, timeout=SHORT_S)

    def __enter__(self) -> SshShell:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.reconnect()
        self._sockets.cleanup()


def read(shell: Shell, script: str) -> str:
    """Return what a script prints that only looks, without the white space around it; its exit code says nothing."""
    return shell.run(Call(f"{{ {script}\n}} 2>/dev/null")).text.strip()


def with_variable(call: Call, name: str, value: str) -> Call:
    """Return a call whose script finds a value in a variable, whatever characters it has."""
    return replace(call, script=f"{name}={shlex.quote(value)}\n{call.script}")


def _ssh_trouble(text: str, host: str) -> str:
    """Say in one line why ssh did not get through, and what to do."""
    plain_host = host.rpartition("@")[2]
    known = {
        "Permission denied": f"ssh is refused: copy your key there once (ssh-copy-id {host})",
        "IDENTIFICATION HAS CHANGED": "its ssh key is another one than last time, as after flashing: "
        f"ssh-keygen -R {plain_host}, and try again",
        "Host key verification failed": f"its ssh key is not known yet: ssh {host} once by hand, and accept it",
        "Could not resolve": "no machine of this name: give an address",
        "No route to host": "no way there: is the board up, and the cable in the port beside the 40-pin header?",
        "Connection refused": "nothing listens for ssh there: a first boot takes minutes",
        "timed out": "no answer: is the board up?",
    }
    lines = [line for line in text.splitlines() if line.strip()] or ["the connection is lost"]
    mend = next((mend for message, mend in known.items() if message in text), "run the same command again to go on")
    return f"{mend} ({lines[-1].strip()})"
