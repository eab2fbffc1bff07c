"""The pipeline: one thread per accelerator, a ring of work items in flight on each, one shared queue.

LoadGen is one client of it, a user's loop another:

    with Pipeline(plan, board) as pipeline:
        future = pipeline.submit(array)
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.engine import Engine
from orin.board import Board, LoadedEngine
from orin.errors import OrinError
from orin.plan import Plan
from orin.samples import SampleSet, Staging
from orin.soc import GPU
from orin.tails import Responses, responses_of, tail_name
from orin.work import Chunk, Enqueue, Taker, WorkItem, WorkQueue

Outputs = list[NDArray[Any]] | None


class Client(Protocol):
    """Who is told that work is done; called on the accelerator's thread."""

    def done(self, item: WorkItem, outputs: Outputs) -> None:
        """Take the answers of a work item; `outputs` (samples first) is None where the board computes none."""


class Lane:
    """One accelerator's side of the pipeline: its loaded engine, its slots, its staging memory.

    With a `tail` every enqueue is followed by that engine on the GPU; see `orin.board.Board.load`.
    """

    def __init__(self, accelerator: str, engine: Engine, plan: Plan, board: Board, tail: Engine | None = None) -> None:
        batch = plan.gpu_batch if accelerator == GPU else plan.dla_batch
        static = accelerator != GPU
        self.engine, self.tail = engine, tail
        self.depth = plan.depth(accelerator)
        self.taker = Taker(accelerator, batch, plan.dla_loop if static else 1, static)
        self.loaded: LoadedEngine = board.load(engine, accelerator, self.depth, tail)
        self.copied_bytes = 0
        self._board = board
        self._staging: dict[tuple[int, int], Staging] = {}  # by slot and enqueue: what is in flight is not overwritten
        self._bound: dict[tuple[int, int], tuple[list[Enqueue], Sequence[int] | None]] = {}

    def item(self, chunks: Sequence[Chunk], slot: int, samples: SampleSet) -> WorkItem:
        """Bind one work item's chunks: in place where they lie together, else gathered."""
        ids = chunks[0].ids if len(chunks) == 1 else [number for chunk in chunks for number in chunk.ids]
        item = WorkItem(self.taker.accelerator, slot, ids, [])
        starts = [self._in_place(chunk.positions, samples) for chunk in chunks]
        for step, (chunk, start) in enumerate(zip(chunks, starts)):
            if start is None:
                addresses, read = self._gather(chunk.positions, (slot, step), samples), len(chunk.ids)
            else:
                addresses, read = samples.addresses(self.engine, start), chunk.positions[-1] - start + 1
            item.enqueues.append(Enqueue(self.loaded, addresses, read))
        if sum(enqueue.samples for enqueue in item.enqueues) > len(ids):
            item.rows = _rows(chunks, starts, item.enqueues)
        return item

    def item_at(self, position: int, ids: Sequence[int], samples: SampleSet) -> WorkItem:
        """Bind consecutive samples to slot 0, as many batches as they need; what lies in place is bound only once."""
        key = (position, len(ids))
        bound = self._bound.get(key)
        if bound is not None:
            return WorkItem(self.taker.accelerator, 0, ids, *bound)
        batch, end = self.taker.batch, position + len(ids)
        starts = range(position, end, batch)
        chunks = [Chunk(range(at, min(at + batch, end)), ids[at - position : at - position + batch]) for at in starts]
        copied = self.copied_bytes
        item = self.item(chunks, 0, samples)
        if self.copied_bytes == copied:
            self._bound[key] = (item.enqueues, item.rows)
        return item

    def _in_place(self, positions: Sequence[int], samples: SampleSet) -> int | None:
        """Return where a batch can start so that it covers these positions; None where they have to be gathered.

        A static batch reads its full length wherever it starts, which must not run past the end of the set; the GPU
        reads no more than twice what is asked for.
        """
        first, last = positions[0], positions[-1]
        start = min(first, samples.capacity - self.taker.batch) if self.taker.static else first
        start -= start % samples.align
        span = last - start + 1
        room = self.taker.batch if self.taker.static else min(self.taker.batch, 2 * len(positions))
        if start < 0 or span > room:
            return None
        ascending = isinstance(positions, range) or all(a < b for a, b in zip(positions, positions[1:]))
        return start if ascending else None

    def _gather(self, positions: Sequence[int], place: tuple[int, int], samples: SampleSet) -> tuple[int, ...]:
        staging = self._staging.get(place)
        if staging is None:
            staging = self._staging[place] = Staging(self._board, self.engine, self.taker.batch)
        self.copied_bytes += samples.gather(self.engine, positions, staging)
        return staging.addresses

    def start(self, item: WorkItem) -> None:
        """Enqueue a work item; the slot must be idle."""
        for enqueue in item.enqueues:
            enqueue.engine.enqueue(item.slot, enqueue.addresses, enqueue.samples)

    def finish(self, item: WorkItem) -> Outputs:
        """Wait for a work item and return its outputs, a row for each of its ids."""
        item.begin_ns, item.end_ns = self.loaded.wait(item.slot)
        outputs = self.loaded.outputs(item.slot)
        if outputs is None or item.rows is None:
            return outputs
        return [output[item.rows] for output in outputs]


def _rows(chunks: Sequence[Chunk], starts: Sequence[int | None], enqueues: Sequence[Enqueue]) -> list[int]:
    """Return which rows of a work item's outputs its samples are, where batches read more than was asked for."""
    rows: list[int] = []
    before = 0
    for chunk, start, enqueue in zip(chunks, starts, enqueues):
        first = range(len(chunk.ids)) if start is None else (position - start for position in chunk.positions)
        rows += [before + row for row in first]
        before += enqueue.samples
    return rows


class Pipeline:
    """Engines of a plan on a board, ready to answer samples.

    `engines` maps "gpu" and "dla" to built engines, "gpu_tail" and "dla_tail" to what follows them on the GPU, if
    anything does; left out, they are built from the plan (`orin.build`). `capacity`
    is the number of samples held in shared memory. A failing accelerator stops everything: `failure` names it, waiting
    futures get the error, and nothing hangs.
    """

    def __init__(
        self, plan: Plan, board: Board, engines: Mapping[str, Engine] | None = None, capacity: int = 64
    ) -> None:
        if engines is None:
            from orin.build import build_engines

            engines = build_engines(plan, board=board.name).engines
        self.plan = plan
        self.board = board
        self.failure: OrinError | None = None
        kinds = {name: "gpu" if name == GPU else "dla" for name in plan.accelerators}
        chosen = {name: engines[kind] for name, kind in kinds.items()}
        self.lanes: list[Lane] = []
        with ExitStack() as held:  # an engine that does not load leaves the board as it was
            self.clocks = held.enter_context(board.hold(plan))
            distinct = {engine.manifest.engine_sha256: engine for engine in chosen.values()}
            self.samples = self._sample_set(list(distinct.values()), capacity)
            for name, engine in chosen.items():
                lane = self._lane(name, engine, engines.get(tail_name(kinds[name])))
                held.callback(lane.loaded.close)
                self.lanes.append(lane)
            self._held = held.pop_all()
        self._threads: list[threading.Thread] = []
        self._released = threading.Event()
        self._queue: WorkQueue | None = None
        self._submitter: Submitter | None = None
        self._on_failure: Callable[[OrinError], None] | None = None

    def _sample_set(self, engines: Sequence[Engine], capacity: int) -> SampleSet:
        """Return the shared memory of its samples; volumes have their own."""
        return SampleSet(self.board, engines, capacity)

    def _lane(self, accelerator: str, engine: Engine, tail: Engine | None) -> Lane:
        """Return an accelerator's side; volumes have their own."""
        return Lane(accelerator, engine, self.plan, self.board, tail)

    def responses(self) -> Responses:
        """Return what makes MLPerf's responses of what an accelerator puts out."""
        names = [binding.name for binding in self.lanes[0].engine.manifest.outputs]
        return responses_of(self.plan, names)

    # -- one client at a time -------------------------------------------------------------------------------------

    def start(self, client: Client, ordered: bool, on_failure: Callable[[OrinError], None] | None = None) -> None:
        """Start the lanes' threads for a client; `ordered` as in `WorkQueue`."""
        takers = [lane.taker for lane in self.lanes]
        queue = self._queue = WorkQueue(takers, ordered)
        self._on_failure = on_failure
        self._released.clear()
        self._threads = [
            threading.Thread(target=self._work, args=(lane, queue, client), name=lane.taker.accelerator, daemon=True)
            for lane in self.lanes
        ]
        for thread in self._threads:
            thread.start()

    def put(self, chunks: Sequence[Chunk]) -> None:
        """Queue loaded samples; raises the failure if an accelerator has failed."""
        if self.failure is not None:
            raise self.failure
        assert self._queue is not None, "start() comes before put()"
        self._queue.put(chunks)

    def abandon(self) -> None:
        """Drop what is queued; what is in flight still finishes."""
        if self._queue is not None:
            self._queue.abandon()

    def stop(self) -> None:
        """Finish what is queued, end the threads and re-raise a failure."""
        if self._queue is not None:
            self._queue.close()
        self._released.set()
        for thread in self._threads:
            thread.join()
        self._threads, self._queue = [], None
        if self.failure is not None:
            raise self.failure

    def run_now(self, ids: Sequence[int], position: int) -> tuple[WorkItem, Outputs]:
        """Answer consecutive samples on the calling thread with the first accelerator, one batch after another."""
        lane = self.lanes[0]
        item = lane.item_at(position, ids, self.samples)
        try:
            lane.start(item)
            return item, lane.finish(item)
        except Exception as error:  # whatever a vendor's library raises
            raise _named(lane, error) from error

    @property
    def waiting(self) -> int:
        """Samples queued that no accelerator has taken."""
        return self._queue.waiting if self._queue is not None else 0

    @property
    def copied_bytes(self) -> int:
        """Bytes that were copied to bring samples together, or to where an engine wants them."""
        return sum(lane.copied_bytes + lane.loaded.copied_bytes for lane in self.lanes)

    def _work(self, lane: Lane, queue: WorkQueue, client: Client) -> None:
        try:
            self._drain(lane, queue, client)
        except Exception as error:  # whatever a vendor's library raises: named, kept, and the run ends
            self._fail(lane, error)
        # LoadGen's logger crashes when a thread that has called it ends before the test does.
        self._released.wait()

    def _drain(self, lane: Lane, queue: WorkQueue, client: Client) -> None:
        flying: deque[WorkItem] = deque()
        slot = 0
        while self.failure is None:
            if len(flying) < lane.depth:
                chunks = queue.take(lane.taker, block=not flying)
                if chunks:
                    item = lane.item(chunks, slot, self.samples)
                    lane.start(item)
                    flying.append(item)
                    slot = (slot + 1) % lane.depth
                    continue
                if chunks is None and not flying:
                    return
            if flying:
                item = flying.popleft()
                outputs = lane.finish(item)
                queue.finished(item)
                client.done(item, outputs)

    def _fail(self, lane: Lane, error: Exception) -> None:
        if self.failure is None:
            self.failure = _named(lane, error)
            self.failure.__cause__ = error
        self.abandon()
        if self._on_failure is not None:
            self._on_failure(self.failure)

    # -- a user's own loop ----------------------------------------------------------------------------------------

    def submit(self, *arrays: NDArray[Any]) -> Future[list[NDArray[Any]]]:
        """Queue one pre-processed sample (float32 or INT8 [C,H,W] per input); the future gives its outputs.

        Blocks while the shared memory is full of samples that are still being answered.
        """
        if self._submitter is None:
            if not self.board.computes_outputs:
                raise OrinError(
                    f"board {self.board.name} computes no outputs when paced: open it for results, not for speed"
                )
            self._submitter = Submitter(self)
            self.start(self._submitter, ordered=True, on_failure=self._submitter.fail)
        if self._queue is None:
            raise OrinError("the pipeline is closed: make another one to go on")
        return self._submitter.submit(arrays)

    def close(self) -> None:
        """Finish what was submitted, unload the engines and restore the board's power mode."""
        try:
            self.stop()
        finally:
            self._held.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.close()
            return
        self.abandon()
        with suppress(OrinError):  # the error that ended the block is the one to show
            self.close()


def _named(lane: Lane, error: Exception) -> OrinError:
    return OrinError(f"{lane.taker.accelerator} failed: {str(error) or type(error).__name__}")


class Submitter:
    """Futures over the sample set used as a ring: consecutive submissions lie together, so batches bind in place."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._futures: dict[int, Future[list[NDArray[Any]]]] = {}
        self._next = 0
        self._busy = [threading.Lock() for _ in range(pipeline.samples.capacity)]
        self.copied_bytes = 0

    def submit(self, arrays: Sequence[NDArray[Any]]) -> Future[list[NDArray[Any]]]:
        """Store a sample in the next place of the ring and queue it."""
        pipeline = self._pipeline
        stored = self._int8(arrays)  # a sample that is refused takes no place
        position = self._next % pipeline.samples.capacity
        self._busy[position].acquire()
        if pipeline.failure is not None:
            raise pipeline.failure
        self.copied_bytes += pipeline.samples.store(position, stored)
        future: Future[list[NDArray[Any]]] = Future()
        number = self._next
        self._futures[number] = future
        self._next += 1
        pipeline.put([Chunk([position], [number])])
        return future

    def _int8(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        from engines.preprocess import quantise

        inputs = self._pipeline.lanes[0].engine.manifest.inputs
        if len(arrays) != len(inputs):
            raise OrinError(f"submit() got {len(arrays)} arrays, the network has {len(inputs)} inputs")
        stored = []
        for array, binding in zip(arrays, inputs):
            if array.shape != binding.shape:
                raise OrinError(f"input {binding.name} has shape {array.shape}, expected {binding.shape}")
            needs_scale = array.dtype != np.int8 and binding.scale is not None
            stored.append(quantise(array, binding.scale * 127) if needs_scale else array)  # type: ignore[operator]
        return stored

    def done(self, item: WorkItem, outputs: Outputs) -> None:
        """Hand each sample's outputs to its future and free its place."""
        assert outputs is not None, "submit() refuses boards without outputs"
        for row, number in enumerate(item.ids):
            future = self._futures.pop(number, None)
            if future is not None:  # else a failure elsewhere has answered it
                future.set_result([output[row].copy() for output in outputs])  # the slot's next batch overwrites it
                self._busy[number % self._pipeline.samples.capacity].release()

    def fail(self, error: OrinError) -> None:
        """Give every waiting future the failure."""
        for number in list(self._futures):
            future = self._futures.pop(number, None)
            if future is not None:
                future.set_exception(error)
                self._busy[number % self._pipeline.samples.capacity].release()
