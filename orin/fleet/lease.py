"""An exclusive lease of a board: a file lock that ends with the process that holds it, kill -9 included."""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from orin.errors import OrinError

RUN_LOCK = Path("/run/lock")


def lock_path(board: str, name: str, root: Path = RUN_LOCK) -> Path:
    """Return a board's lock file: one for the attached Jetson, one for each name of a virtual board."""
    folder = root if os.access(root, os.W_OK) else Path(tempfile.gettempdir())
    return folder / ("orin-board.lock" if board == "jetson" else f"orin-virtual-{name}.lock")


class Lease:
    """Holds a lock file while the context is open; OrinError names the holder where there is one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    def __enter__(self) -> Lease:
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise OrinError(f"lease {self._path} cannot be opened: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 4096, 0).decode(errors="replace").strip() or "someone"
            os.close(self._file)
            raise OrinError(
                f"the board is leased ({self._path}) by {holder}: wait for it, or end that process"
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, _holder().encode(), 0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.ftruncate(self._file, 0)
        os.close(self._file)


def _holder() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        user = str(os.getuid())
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return json.dumps({"pid": os.getpid(), "user": user, "since": since})
