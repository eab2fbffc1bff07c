"""TensorRT's progress as one bar: its outermost phase."""

from __future__ import annotations

import threading
from collections.abc import Callable

Progress = Callable[[str, int, int], None]


class Monitor:
    """What `trt.IProgressMonitor` asks for; `progress(what, done, total)` hears of phases that have no parent.

    TensorRT calls from several threads. What `progress` raises, Ctrl-C too, stops the build and is kept in `failure`.
    """

    def __init__(self, what: str, progress: Progress) -> None:
        self._what = what
        self._progress = progress
        self._steps: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._lock = threading.Lock()
        self._failure: BaseException | None = None

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        """Note an outermost phase and how many steps it has."""
        if not parent:
            with self._lock:
                self._steps[phase] = steps

    def step_complete(self, phase: str, step: int) -> bool:
        """Report a step; False ends the build."""
        with self._lock:
            self._report(phase, step + 1)
            return self._failure is None

    def phase_finish(self, phase: str) -> None:
        """Report that a phase has ended, with all its steps or early."""
        with self._lock:
            total = self._steps.get(phase, 0)
            if self._done.pop(phase, 0) < total:
                self._report(phase, total)
            self._steps.pop(phase, None)

    def raise_failure(self) -> None:
        """Raise what stopped the build, if anything did."""
        if self._failure is not None:
            raise self._failure

    def _report(self, phase: str, done: int) -> None:
        total = self._steps.get(phase, 0)
        if not total or self._failure is not None:
            return
        self._done[phase] = done
        try:
            self._progress(self._what, min(done, total), total)
        except BaseException as failure:  # must not pass through TensorRT's C++
            self._failure = failure
