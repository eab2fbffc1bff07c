"""Run records: a folder per run, readable at any moment, also after kill -9.

`record.json` (versioned) is written when the run starts, again every second with what has been measured so far, and at
its end; always to a temporary name and renamed. Raw data is appended beside it as it comes: `batches.csv` (one line a
work item), `tegrastats.log` (lines as read) and `loadgen/`. Statistics are computed when a record is read.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TextIO

from orin.errors import OrinError
from orin.work import WorkItem

RECORD_VERSION = 1
FLUSH_S = 1.0
DAMAGED = "it is damaged or no run of this toolkit"


class Batch(NamedTuple):
    """One finished work item: when it ran (`time.monotonic_ns`) and how many samples it answered."""

    accelerator: str
    begin_ns: int
    end_ns: int
    samples: int


@dataclass(frozen=True)
class RunRecord:
    """A run as read back: `values` is record.json, `batches` the raw work items."""

    folder: Path
    values: Mapping[str, Any]
    batches: tuple[Batch, ...]

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.values["status"] == "finished")

    def __getitem__(self, key: str) -> Any:
        """Return a field; OrinError where a damaged record lacks it."""
        if key not in self.values:
            raise OrinError(f"run {self.folder}: record.json has no {key!r}: {DAMAGED}")
        return self.values[key]


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content in one step: a reader sees the old text or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class Recorder:
    """Writes one run's folder while the run goes on; work items are noted from any thread."""

    def __init__(self, root: Path, values: Mapping[str, Any]) -> None:
        stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        self.folder = root / f"{stamp}-{values['network']['name']}-{values['scenario']}-{secrets.token_hex(2)}"
        self.values: dict[str, Any] = {
            "version": RECORD_VERSION,
            "id": self.folder.name,
            "status": "running",
            "utc": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "monotonic_ns": time.monotonic_ns(),
            "process": {"host": platform.node(), "pid": os.getpid()},
            **values,
        }
        self._fresh: list[Batch] = []
        self._count: dict[str, int] = {}
        self._ended = False
        self._stop = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._flush_often, name="recorder", daemon=True)
        try:
            self.folder.mkdir(parents=True)
            self._batches: TextIO = (self.folder / "batches.csv").open("w", encoding="utf-8", newline="")
            self._power: TextIO = (self.folder / "tegrastats.log").open("w", encoding="utf-8")
            self._batches.write("accelerator,begin_ns,end_ns,samples\n")
            self.write()
        except OSError as error:
            raise OrinError(f"run folder {self.folder} cannot be written: {error.strerror or error}") from None
        self._thread.start()

    def note(self, item: WorkItem) -> None:
        """Keep one finished work item."""
        self._fresh.append(Batch(item.accelerator, item.begin_ns, item.end_ns, len(item.ids)))

    def power_line(self, monotonic_ns: int, line: str) -> None:
        """Keep one line of the power source as it came, behind its arrival time."""
        self._power.write(f"{monotonic_ns} {line.rstrip()}\n")

    def write(self, indent: int | None = None) -> None:
        """Write record.json as it stands; without an indent it takes a tenth of the time, which a running pipeline
        would miss."""
        write_atomically(self.folder / "record.json", json.dumps(self.values, indent=indent))

    def flush(self) -> None:
        """Append what is new to the raw files."""
        fresh, self._fresh = self._fresh, []
        for batch in fresh:
            self._count[batch.accelerator] = self._count.get(batch.accelerator, 0) + batch.samples
        self._batches.write("".join(f"{b.accelerator},{b.begin_ns},{b.end_ns},{b.samples}\n" for b in fresh))
        self._batches.flush()
        self._power.flush()

    def _flush_often(self) -> None:
        while not self._stop.wait(FLUSH_S):
            try:
                self.flush()
                self.values["samples_so_far"] = dict(self._count)
                self.write()
            except OSError as error:  # disk full: what is on disk stays, the run says so at its end
                self._error = error
                return

    def finish(self, values: Mapping[str, Any], status: str = "finished") -> None:
        """Write the end of the run; OrinError where the disk did not take it all."""
        self._ended = True
        self._stop.set()
        self._thread.join()
        try:
            if self._error is not None:
                raise self._error
            self.flush()
            self.values.pop("samples_so_far", None)
            self.values.update(values, status=status)
            self.write(indent=1)
        except OSError as error:
            raise OrinError(
                f"run folder {self.folder} could not be completed: {error.strerror or error}; "
                "free some space; what was written before is kept"
            ) from None
        finally:
            for file in (self._batches, self._power):
                with suppress(OSError):
                    file.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None and not self._ended:
            with suppress(OrinError):  # the run's own error is the one to show
                self.finish({"error": str(error) or "stopped by the user"}, status="failed")


def load_record(folder: Path) -> RunRecord:
    """Read a run's folder (or its record.json); OrinError says what is wrong with it."""
    path = folder / "record.json" if folder.is_dir() else folder
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OrinError(f"run {folder} cannot be read: {error.strerror or error}; give a folder below runs/") from None
    except ValueError as error:
        raise OrinError(f"run {folder}: record.json is not JSON ({error})") from None
    if not isinstance(values, dict) or values.get("version") != RECORD_VERSION:
        found = values.get("version") if isinstance(values, dict) else None
        raise OrinError(f"run {folder} has record version {found!r}, expected {RECORD_VERSION}")
    missing = sorted({"id", "status", "provenance", "network", "board", "stack", "scenario"} - set(values))
    if missing:
        raise OrinError(f"run {folder}: record.json has no {missing[0]!r}: {DAMAGED}")
    return RunRecord(path.parent, values, tuple(_batches(path.parent / "batches.csv")))


def _batches(path: Path) -> list[Batch]:
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))[1:]
        # A killed run may have left its last line cut short: that one is not read.
        whole = (row for row in rows if len(row) == 4 and row[3])
        return [Batch(name, int(begin), int(end), int(samples)) for name, begin, end, samples in whole]
    except (ValueError, csv.Error) as error:
        raise OrinError(f"{path} is damaged: {error}; run it again") from None
