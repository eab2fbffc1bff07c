"""The running tegrastats as a source of readings."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO

from power.errors import PowerError
from power.reading import Reading, parse_line
from power.source import ChipFilter

_TERMINATE_S = 2.0  # how long the child may take to end before it is killed
_DRAIN_S = 2.0  # how long the last lines of a child that has ended may take to be read
_POLL_S = 0.02


class Tegrastats:
    """A running tegrastats: each reading is stamped with `time.monotonic_ns` on arrival.

    `on_line` gets stamp and text of each raw line, on the reader's thread. A child that ends by itself, prints no
    reading for `silence_s` (nothing, or nothing that can be read), or no rail for so long though it had printed some,
    is a failure, which `check` and `stop` raise; lines in between that are no readings are counted as `garbled`.
    `filters` are the sensors' settings, which tegrastats does not print (see `power.hwmon.chip_filters`).
    """

    def __init__(
        self,
        command: Sequence[str] = ("tegrastats", "--interval", "100"),
        on_line: Callable[[int, str], None] | None = None,
        silence_s: float = 5.0,
        filters: Mapping[str, ChipFilter] | None = None,
    ) -> None:
        self.name = " ".join(command)
        self.filters: Mapping[str, ChipFilter] = filters or {}
        self.garbled = 0
        self._command = tuple(command)
        self._on_line = on_line
        self._silence_s = silence_s
        self._readings: list[tuple[int, Reading]] = []
        self._last_ns = 0
        self._last_rails_ns: int | None = None
        self._last_garbled = ""
        self._failure: str | None = None
        self._child: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Start the child and wait for its first reading; PowerError where none comes."""
        self._stderr: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - outlives this method
        self._last_ns = time.monotonic_ns()
        try:
            # A session of its own: Ctrl-C must reach the program that measures, not its sensor.
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            self._stderr.close()
            raise PowerError(_cannot_start(self._command[0], error)) from None
        self._reader = threading.Thread(target=self._read, args=(self._child.stdout,), name="tegrastats", daemon=True)
        self._reader.start()
        try:
            while not self._readings:
                failure = self.failure()
                if failure is not None and not self._readings:  # a last line makes it a failure of later
                    raise PowerError(failure)
                time.sleep(_POLL_S)
        except BaseException:
            self._end(self._child, self._reader)
            raise

    def stop(self) -> None:
        """End the child, join the reader, and raise what went wrong, if anything did."""
        if self._child is None or self._reader is None:
            return
        failure = self.failure()
        self._end(self._child, self._reader)
        if failure is not None:
            raise PowerError(failure)

    def readings(self) -> list[tuple[int, Reading]]:
        """Return a snapshot of all readings and their stamps, oldest first."""
        return list(self._readings)

    def failure(self) -> str | None:
        """Return what is wrong with the source, in one line; None while all is well."""
        if self._failure is None and self._child is not None:
            found = self._ended() or self._silent(time.monotonic_ns())
            self._failure = self._failure or found  # the reader may have failed first
        return self._failure

    def check(self) -> None:
        """Raise PowerError if the source has failed."""
        failure = self.failure()
        if failure is not None:
            raise PowerError(failure)

    def __enter__(self) -> Tegrastats:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.stop()
        except PowerError:
            if kind is None:  # else the error that is under way says more
                raise

    def _read(self, lines: IO[str]) -> None:
        try:
            for line in lines:
                self._take(time.monotonic_ns(), line.rstrip("\n"))
        except Exception as error:  # whatever `on_line` raises must reach the caller's thread
            self._failure = f"{self.name}: its lines cannot be taken: {error}"

    def _take(self, stamp_ns: int, line: str) -> None:
        if self._on_line is not None:
            self._on_line(stamp_ns, line)
        reading = parse_line(line)
        if reading is None:
            self.garbled += 1
            self._last_garbled = line
            return
        self._failure = self._failure or self._silent(stamp_ns)
        self._last_ns = stamp_ns
        if reading.rails:
            self._last_rails_ns = stamp_ns
        self._readings.append((stamp_ns, reading))

    def _ended(self) -> str | None:
        """Say so where the child has ended, once its last lines are taken; a grandchild may keep the pipe open."""
        if self._child is None or self._reader is None or (code := self._child.poll()) is None:
            return None
        self._reader.join(_DRAIN_S)
        return f"{self.name} ended by itself with exit code {code}: {self._last_stderr()}"

    def _silent(self, now_ns: int) -> str | None:
        silence_s = (now_ns - self._last_ns) / 1e9
        if silence_s < self._silence_s:
            return self._without_rails(now_ns)
        if self.garbled and not self._readings:
            last = repr(self._last_garbled)
            return f"{self.name} printed {self.garbled} lines, none of them a reading of tegrastats; last: {last}"
        return f"{self.name} printed no reading for {silence_s:.1f} s, expected one every interval: is it hung?"

    def _without_rails(self, now_ns: int) -> str | None:
        if self._last_rails_ns is None or now_ns - self._last_rails_ns < self._silence_s * 1e9:
            return None
        return f"{self.name} prints no power rail any more, though it did: has it lost its rights? Try sudo"

    def _last_stderr(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it printed no error")

    def _end(self, child: subprocess.Popen[str], reader: threading.Thread) -> None:
        child.terminate()
        try:
            child.wait(_TERMINATE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        self._child = None
        reader.join(_TERMINATE_S)
        if child.stdout is not None and not reader.is_alive():
            child.stdout.close()
        self._stderr.close()


def _cannot_start(program: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{program!r} is not on this machine: it comes with JetPack; without a Jetson use the virtual board"
    return f"{program!r} cannot be started: {error.strerror}; check its rights, or name another program"
