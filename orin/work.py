"""What the pipeline issues to an accelerator, and the queue it takes that from."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orin.board import LoadedEngine


@dataclass(slots=True)
class Enqueue:
    """One batch of one engine: addresses of its inputs and how many samples it reads from there."""

    engine: LoadedEngine
    addresses: tuple[int, ...]
    samples: int


@dataclass(slots=True)
class WorkItem:
    """One unit issued to an accelerator: its enqueues run one after another on one slot.

    `ids` are the samples it answers, in order; `rows` says which rows of the outputs those are (None: all of them).
    """

    accelerator: str
    slot: int
    ids: Sequence[int]
    enqueues: list[Enqueue]
    rows: Sequence[int] | None = None
    begin_ns: int = 0
    end_ns: int = 0


@dataclass(slots=True)
class Chunk:
    """Samples of the loaded set: their positions and the ids that they answer; those before `at` are taken."""

    positions: Sequence[int]
    ids: Sequence[int]
    at: int = 0

    def __len__(self) -> int:
        return len(self.ids) - self.at

    def cut(self, samples: int) -> Chunk:
        """Take the first samples that are left."""
        end = self.at + samples
        head = Chunk(self.positions[self.at : end], self.ids[self.at : end])
        self.at = min(end, len(self.ids))
        return head


def rounds(positions: NDArray[Any], ids: Sequence[int]) -> list[Chunk]:
    """Order a query by counting sort: every sample once by position, then every sample that is asked for twice, ...

    LoadGen's Offline query asks for each sample equally often but for one, so that all rounds but the last are the
    whole loaded set, and a batch of any size is a run of consecutive samples.
    """
    by_position = np.argsort(positions, kind="stable")
    ordered = positions[by_position]
    occurrence = np.arange(len(ordered)) - np.searchsorted(ordered, ordered, side="left")
    order = by_position[np.argsort(occurrence, kind="stable")]
    edges = np.cumsum([0, *np.bincount(occurrence)]).tolist()
    places = positions[order].tolist()
    numbers = np.asarray(ids, dtype=np.uint64)[order].tolist()
    return [Chunk(places[a:b], numbers[a:b]) for a, b in zip(edges, edges[1:])]


@dataclass(frozen=True)
class Taker:
    """Who takes from the queue: batch of one enqueue, enqueues per work item; a static batch cannot be cut short."""

    accelerator: str
    batch: int
    loop: int
    static: bool


class Tail:
    """Who takes the last samples: an accelerator takes no batch that the others would finish earlier.

    Speeds are those seen in this run; while an accelerator has no speed yet, everyone takes what it can.
    """

    def __init__(self, takers: Sequence[Taker]) -> None:
        self._takers = {taker.accelerator: taker for taker in takers}
        self._per_s: dict[str, float] = {}
        self._all_per_s = 0.0
        self._in_flight = {taker.accelerator: 0 for taker in takers}

    def issued(self, accelerator: str, samples: int) -> None:
        """Note that a work item was taken."""
        self._in_flight[accelerator] += samples

    def finished(self, item: WorkItem) -> None:
        """Note that a work item is done and how fast it was."""
        self._in_flight[item.accelerator] -= len(item.ids)
        busy_ns = item.end_ns - item.begin_ns
        if busy_ns > 0:
            self._per_s[item.accelerator] = len(item.ids) * 1e9 / busy_ns
            self._all_per_s = sum(self._per_s.values())

    def share(self, taker: Taker, waiting: int) -> int:
        """Return how many of the waiting samples this accelerator should take now; 0: leave them to the others."""
        full = min(taker.batch * taker.loop, waiting)
        if len(self._takers) == 1 or len(self._per_s) < len(self._takers):
            return full
        own, busy = self._per_s[taker.accelerator], self._in_flight[taker.accelerator]
        if waiting > 2 * (busy + full) / own * self._all_per_s:  # plenty, whoever takes it
            return full
        if not taker.static:
            balanced_s = (waiting + sum(self._in_flight.values())) / self._all_per_s
            return min(full, max(int(balanced_s * own) - busy, 0 if busy else 1))
        # Just before this batch would end: were all waiting samples done by the others?
        end_s = (busy + taker.batch * taker.loop) / own * (1 - 1e-9)
        done = sum(self._done_by(other, end_s) for other in self._takers.values() if other is not taker)
        return 0 if done >= waiting else full

    def _done_by(self, taker: Taker, end_s: float) -> int:
        samples = end_s * self._per_s[taker.accelerator] - self._in_flight[taker.accelerator]
        unit = taker.batch * taker.loop if taker.static else 1
        return max(0, int(samples // unit) * unit)


class WorkQueue:
    """Samples waiting for an accelerator; every lane takes from it, under one lock.

    An `ordered` queue (Server, `submit`) is first come, first served. Otherwise (Offline) it holds rounds: the GPU
    takes from the fullest, accelerators with static batches from the emptiest, where holes cost them least.
    """

    def __init__(self, takers: Sequence[Taker], ordered: bool) -> None:
        self._ordered = ordered
        self._tail = Tail(takers)
        self._rounds: deque[Chunk] = deque()
        self._waiting = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, chunks: Sequence[Chunk]) -> None:
        """Add samples and wake the lanes; positions of a chunk ascend unless the queue is ordered."""
        with self._changed:
            self._rounds.extend(chunks)
            if not self._ordered:
                self._rounds = deque(sorted(self._rounds, key=lambda chunk: -len(chunk)))
            self._waiting += sum(map(len, chunks))
            self._changed.notify_all()

    def close(self) -> None:
        """Say that nothing more comes; lanes end when all is taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Drop what is waiting and close: the run has failed."""
        with self._changed:
            self._rounds.clear()
            self._waiting = 0
            self._closed = True
            self._changed.notify_all()

    def finished(self, item: WorkItem) -> None:
        """Note that a work item is done."""
        with self._changed:
            self._tail.finished(item)
            if self._waiting or self._closed:  # a lane that left the tail to this one may have to think again, or end
                self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """Samples that no lane has taken."""
        return self._waiting

    def take(self, taker: Taker, block: bool) -> list[Chunk] | None:
        """Take one work item's samples, a chunk for each enqueue.

        [] says that there is nothing for this accelerator now, None that there never will be.
        """
        with self._changed:
            while True:
                if self._waiting:
                    share = self._share(taker)
                    if share:
                        return self._item(taker, share)
                elif self._closed:
                    return None
                if not block:
                    return []
                self._changed.wait()

    def _share(self, taker: Taker) -> int:
        if self._ordered:
            return min(taker.batch * taker.loop, self._waiting)
        return self._tail.share(taker, self._waiting)

    def _item(self, taker: Taker, share: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        taken = 0
        while len(chunks) < taker.loop and taken < share:
            samples = min(taker.batch, share - taken)
            chunk = self._first(samples) if self._ordered else self._window(samples, taker)
            chunks.append(chunk)
            taken += len(chunk.ids)
        self._waiting -= taken
        self._tail.issued(taker.accelerator, taken)
        return chunks

    def _window(self, samples: int, taker: Taker) -> Chunk:
        """Take what lies within one batch of consecutive samples; where that is less than half, a batch to gather."""
        at = -1 if taker.static else 0
        source = self._rounds[at]
        begin, most = source.at, min(samples, len(source))
        span = taker.batch if taker.static else samples
        taken = bisect_left(source.positions, source.positions[begin] + span, begin, begin + most) - begin
        chunk = source.cut(taken if 2 * taken >= samples else most)
        if not len(source):
            del self._rounds[at]
        return chunk

    def _first(self, samples: int) -> Chunk:
        positions: list[int] = []
        ids: list[int] = []
        while self._rounds and len(ids) < samples:
            chunk = self._rounds[0].cut(samples - len(ids))
            positions += chunk.positions
            ids += chunk.ids
            if not len(self._rounds[0]):
                self._rounds.popleft()
        return Chunk(positions, ids)
