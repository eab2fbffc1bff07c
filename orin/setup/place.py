"""Where jobs keep their state and their logs: in a folder of this machine, or on the machine that they change."""

from __future__ import annotations

import fcntl
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from orin.errors import OrinError
from orin.setup.job import Desk, Job
from orin.setup.shell import Ask, Call, Shell, SystemShell, read
from orin.setup.step import Step
from orin.steps import FileStore


def log_file(folder: Path, what: str) -> Path:
    """Return the log of a run that begins now."""
    return folder / f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{what}.log"


@contextmanager
def local_job(
    steps: Sequence[Step], folder: Path, what: str, say: Callable[[str], None], ask: Ask | None
) -> Iterator[Job]:
    """Open a job on this machine whose scripts, state and logs are a folder's; one process at a time may have it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{what}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OrinError(f"{folder} is in use by another run: wait until it is through") from None
        desk = Desk(FileStore(folder / f"{what}.json"), log_file(folder / "logs", what), say)
        yield Job(steps, SystemShell("this machine", folder=folder, ask=ask), desk)


@dataclass(frozen=True)
class RemoteStore:
    """A state on the machine that it is about, below its user's home: it stays there when another host goes on."""

    shell: Shell
    path: str  # relative to the home folder

    @property
    def name(self) -> str:
        """The path, and the machine."""
        return f"~/{self.path} on {self.shell.where}"

    def read(self) -> str | None:
        """Return the text, None where there is none yet."""
        return read(self.shell, f"cat ~/{shlex.quote(self.path)}") or None

    def write(self, text: str) -> None:
        """Replace the text in one step."""
        path = f"~/{shlex.quote(self.path)}"
        script = f'set -e\nmkdir -p "$(dirname {path})"\ncat >{path}.part\nmv {path}.part {path}'
        done = self.shell.run(Call(script, feed=text.encode()))
        if done.code != 0:
            raise OrinError(f"{self.name} cannot be written: {done.last_line}")
