"""The boards that are there, as a run sees them: who is present, what they are asked, and what comes back."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from orin.errors import OrinError
from orin.fleet.cluster import members_present
from orin.fleet.inventory import needs
from orin.fleet.shards import IN_HAND
from orin.fleet.station import Answered, Job, Task
from orin.fleet.worker import answer_shard, close_station, open_station

CLOSE_S = 10.0


@dataclass(frozen=True)
class Event:
    """What came of something a board was asked: `task` None is the opening; `error` None is success.

    `address` is that of the worker that was asked: a board that was started again has another one.
    """

    name: str
    address: str
    task: Task | None = None
    answered: Answered | None = None
    error: str | None = None


class Crew(Protocol):
    """Boards that answer shards; nothing blocks but `events`."""

    def present(self) -> Mapping[str, str]:
        """Return who is there: each worker's address by its board's name."""

    def open(self, name: str, address: str, job: Job) -> None:
        """Ask a board to open a job."""

    def answer(self, name: str, address: str, task: Task) -> None:
        """Ask a board to answer a shard."""

    def forget(self, name: str) -> None:
        """Withdraw what a board was asked."""

    def events(self, timeout_s: float) -> list[Event]:
        """Return what has happened, waiting for the first event."""


class DaskCrew:
    """A crew of Dask workers: every question is pinned to one worker; IN_HAND of them take what a plan needs."""

    def __init__(self, client: Any, job: Job) -> None:
        self._client = client
        self._resources = {name: count / IN_HAND for name, count in needs(job.plan).items()}
        self._events: queue.Queue[Event] = queue.Queue()
        self._asked: dict[str, list[Any]] = {}

    def present(self) -> Mapping[str, str]:
        """Return who is there: each worker's address by its board's name."""
        try:
            return members_present(self._client)
        except (OSError, TimeoutError) as error:
            raise OrinError(
                f"the fleet's scheduler is gone ({error}): orin fleet up, then run again; it goes on"
            ) from None

    def open(self, name: str, address: str, job: Job) -> None:
        """Ask a board to open a job."""
        self._ask(Event(name, address), open_station, job)

    def answer(self, name: str, address: str, task: Task) -> None:
        """Ask a board to answer a shard."""
        self._ask(Event(name, address, task), answer_shard, task)

    def _ask(self, event: Event, function: Any, argument: Any) -> None:
        future = self._client.submit(
            function, argument, workers=[event.address], resources=self._resources, pure=False, retries=0
        )
        kept = [asked for asked in self._asked.get(event.name, ()) if not asked.done()]
        self._asked[event.name] = [*kept, future]
        future.add_done_callback(lambda done: self._done(event, done))

    def _done(self, event: Event, future: Any) -> None:
        """Note how a question ended; called on a thread of Dask's. A lost worker's is told by its absence."""
        if future.status == "finished":
            result = future.result()
            answered = result if isinstance(result, Answered) else None
            self._events.put(Event(event.name, event.address, event.task, answered))
        elif future.status == "error":
            error = future.exception()
            if type(error).__name__ != "KilledWorker":
                self._events.put(Event(event.name, event.address, event.task, error=str(error) or type(error).__name__))

    def forget(self, name: str) -> None:
        """Withdraw what a board was asked."""
        for future in self._asked.pop(name, ()):
            future.cancel(force=True)

    def events(self, timeout_s: float) -> list[Event]:
        """Return what has happened, waiting for the first event."""
        events = []
        try:
            events.append(self._events.get(timeout=timeout_s))
            while True:
                events.append(self._events.get_nowait())
        except queue.Empty:
            return events

    def close(self) -> None:
        """Let the boards unload their engines; one that hangs is not waited for."""
        for name in list(self._asked):
            self.forget(name)
        asking = threading.Thread(target=self._close_stations, daemon=True)
        asking.start()
        asking.join(CLOSE_S)

    def _close_stations(self) -> None:
        with suppress(OSError, TimeoutError):
            self._client.run(close_station, on_error="ignore")
