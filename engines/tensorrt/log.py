"""TensorRT's log of one build: kept in a file as trtexec prints it, its errors at hand for the exception."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import IO

from engines.errors import EngineError

LETTERS = {"INTERNAL_ERROR": "F", "ERROR": "E", "WARNING": "W", "INFO": "I", "VERBOSE": "V"}


class BuildLog:
    """Takes TensorRT's messages; writes each to `path` at once, so that a killed build leaves its log.

    `verbose` keeps the verbose ones too, which say of each layer whether the DLA takes it.
    """

    def __init__(self, path: Path, verbose: bool = False) -> None:
        self.path = path
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self._verbose = verbose
        self._file: IO[str] | None = None

    def __enter__(self) -> BuildLog:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8", buffering=1)
        except OSError as error:
            raise EngineError(f"log {self.path} cannot be written: {error.strerror}; choose another cache") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def take(self, severity: str, message: str) -> None:
        """Keep one message; `severity` is a name of `trt.ILogger.Severity`."""
        letter = LETTERS.get(severity, "I")
        if letter in "FE":
            self.errors.append(message)
        elif letter == "W":
            self.warnings.append(message)
        if self._file is not None and (self._verbose or letter != "V"):
            self._file.write(f"[{time.strftime('%m/%d/%Y-%H:%M:%S')}] [{letter}] [TRT] {message}\n")


class Logger:
    """What `trt.ILogger` asks for, over a log."""

    def __init__(self, log: BuildLog) -> None:
        self._log = log

    def log(self, severity: object, message: str) -> None:
        """Take a message from TensorRT."""
        self._log.take(getattr(severity, "name", ""), message)
