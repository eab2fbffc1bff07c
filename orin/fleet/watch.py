"""Bringing lost boards back: ends what hangs, starts workers again, and keeps trying while a run lasts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from orin.fleet.cluster import Processes, Starter, start_worker

LOOK_S = 0.5
PATIENCE_S = 60.0


class Watch:
    """A thread that starts lost boards' workers again; one that has not come back after `patience_s` is tried again."""

    def __init__(
        self, starter: Starter, processes: Processes, say: Callable[[str], None], patience_s: float = PATIENCE_S
    ) -> None:
        self._starter, self._processes, self._say, self._patience_s = starter, processes, say, patience_s
        self._lost: set[str] = set()
        self._started_s: dict[str, float] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)

    def lost(self, name: str) -> None:
        """Note that a board is gone, or hangs; returns at once."""
        self._lost.add(name)

    def found(self, name: str) -> None:
        """Note that a board is back."""
        self._lost.discard(name)

    def _work(self) -> None:
        while not self._end.wait(LOOK_S):
            for name in sorted(self._lost):
                waits_s = time.monotonic() - self._started_s.get(name, -self._patience_s)
                if name in self._lost and waits_s >= self._patience_s:
                    self._restart(name)

    def _restart(self, name: str) -> None:
        member, pid = self._starter.inventory.member(name), self._processes.workers.get(name)
        if pid is not None:
            self._starter.end(member, pid)  # it may hang, or be cut off, and holds the board's lease
        start_worker(member, self._starter, self._processes, self._say)
        self._started_s[name] = time.monotonic()

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
