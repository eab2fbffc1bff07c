"""One board's side of a fleet: its board, the pipeline of the plan at hand, and the shards that it answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.dataset import Skipped
from engines.preprocess import Preprocess, quantise
from engines.spec import INT8_MAX
from orin.board import Board, close_board
from orin.boards import Purpose, open_board
from orin.build import Desk, build_engines
from orin.errors import OrinError
from orin.fleet.library import Sample, Span, read_spans
from orin.fleet.shards import Shard
from orin.memory import with_memory
from orin.pipeline import Outputs, Pipeline
from orin.plan import Plan
from orin.tails import answers_of
from orin.work import Chunk, WorkItem

AHEAD = 2  # times what is in flight: samples held in shared memory
LOOK_S = 0.5  # how soon a waiting shard sees that an accelerator has failed


@dataclass(frozen=True)
class Job:
    """What a board is opened for: the plan, photos for INT8 ranges, and whether outputs are computed ("results") or a
    virtual board takes an Orin's time instead ("speed")."""

    plan: Plan
    purpose: Purpose = "results"
    photos: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Task:
    """One shard to answer: where its samples lie, and the folder for its answers."""

    shard: Shard
    folder: Path
    kind: str
    spans: tuple[Span, ...]
    output: Path


@dataclass(frozen=True)
class Answered:
    """What a board says of a shard that it has answered; `seconds` from the first sample read to the file's rename,
    `pace` why they are not to be trusted."""

    shard: Shard
    seconds: float
    skipped: int
    pace: str | None = None


class Station:
    """A board that answers shards; one pipeline is open at a time and stays open between them.

    Shards may be answered on several threads: the next one's samples follow those of the one under way.
    """

    def __init__(self, name: str, board: str) -> None:
        self.name = name
        self.board_name = board
        self._board: Board | None = None
        self._job: Job | None = None
        self._preprocess: Preprocess | None = None
        self._stream: Stream | None = None
        self._state = threading.Condition()
        self._active = 0
        self._last_end_s = 0.0

    def open(self, job: Job) -> None:
        """Build and load the job's engines, unless they are already."""
        with self._state:
            if self._stream is not None and self._stream.failure is None and job == self._job:
                return
            self._state.wait_for(lambda: not self._active)
            self._close()
            self._board = open_board(self.board_name, job.purpose)
            built = build_engines(job.plan, Desk(photos=job.photos), self._board.name)
            plan, _ = with_memory(job.plan, self._board, built.engines)
            in_flight = sum(plan.depth(name) * plan.item_samples(name) for name in plan.accelerators)
            self._stream = Stream(Pipeline(plan, self._board, built.engines, capacity=AHEAD * in_flight))
            self._job, self._preprocess = job, built.preprocess

    def answer(self, task: Task) -> Answered:
        """Answer a shard and write it under its own name, whole or not at all.

        OrinError, or what reading and writing raise, where that fails.
        """
        begin_s = time.monotonic()
        stream, preprocess = self._enter()
        try:
            samples = read_spans(task.folder, task.kind, task.spans, preprocess)
            lines = stream.run(samples, task.shard)
            _write(task.output / task.shard.file, lines, self.name)
            skipped = sum("skipped" in line for line in lines)
            with self._state:
                begin_s = max(begin_s, self._last_end_s)
                self._last_end_s = time.monotonic()
                return Answered(task.shard, self._last_end_s - begin_s, skipped, stream.pace())
        finally:
            self._leave(stream)

    def close(self, patience_s: float = 5.0) -> None:
        """Unload the engines and restore the board's power mode, unless a shard is under way for longer than that."""
        with self._state:
            if self._state.wait_for(lambda: not self._active, timeout=patience_s):
                self._close()

    def _enter(self) -> tuple[Stream, Preprocess]:
        with self._state:
            if self._stream is None or self._preprocess is None:
                raise OrinError(f"board {self.name} was restarted and has no engines open")
            self._active += 1
            return self._stream, self._preprocess

    def _leave(self, stream: Stream) -> None:
        with self._state:
            self._active -= 1
            if not self._active and stream.failure is not None:
                self._close()
            self._state.notify_all()

    def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        close_board(self._board)
        self._board = None


class Group:
    """The answers of one shard as they come."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.open = 0
        self.changed = threading.Condition()


class Stream:
    """Streams shards through a pipeline: shared memory is a ring, filled ahead of the accelerators.

    One shard is fed at a time, in the order of their calls; `failure` is an accelerator's, which ends all of them.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._places = [threading.Semaphore() for _ in range(pipeline.samples.capacity)]
        self._unit = max(lane.taker.batch * lane.taker.loop for lane in pipeline.lanes)
        self._inputs = pipeline.lanes[0].engine.manifest.inputs
        names = [binding.name for binding in pipeline.lanes[0].engine.manifest.outputs]
        self._answers = answers_of(pipeline.plan, names) if pipeline.board.computes_outputs else None
        self._feeding = threading.Lock()
        self._next = 0
        self._owners: dict[int, tuple[Group, dict[str, Any]]] = {}
        self.failure: OrinError | None = None
        pipeline.start(self, ordered=True, on_failure=self._fail)

    def run(self, samples: Iterable[Sample], shard: Shard) -> list[dict[str, Any]]:
        """Answer a shard's samples; returns a line for each, in order."""
        group = Group()
        with self._feeding:
            self._feed(samples, shard, group)
        with group.changed:
            while group.open and self.failure is None:
                group.changed.wait(LOOK_S)
        if self.failure is not None:
            raise self.failure
        missing = shard.samples - len(group.lines)
        if missing:
            raise OrinError(f"{shard.file} lacks {missing} of {shard.samples} samples: the folder has changed")
        return group.lines

    def done(self, item: WorkItem, outputs: Outputs) -> None:
        """Take the answers of a work item and free its places; called on the accelerator's thread."""
        answers = self._answers(outputs) if self._answers and outputs is not None else None
        for row, number in enumerate(item.ids):
            group, line = self._owners.pop(number)
            line.update(answers[row] if answers else {})
            self._places[number % len(self._places)].release()
            with group.changed:
                group.open -= 1
                if not group.open:
                    group.changed.notify_all()

    def pace(self) -> str | None:
        """Say why times are not to be trusted; None where they are."""
        return self._pipeline.board.keeps_pace()

    def close(self) -> None:
        """Finish what is queued and unload the engines."""
        with suppress(OrinError):  # a failure was the answer to its shards
            self._pipeline.close()

    def _feed(self, samples: Iterable[Sample], shard: Shard, group: Group) -> None:
        waiting: list[int] = []
        try:
            for number, sample in enumerate(samples, shard.begin):
                line: dict[str, Any] = {"sample": number, "file": sample.file, "index": sample.index}
                group.lines.append(line)
                if isinstance(sample.values, Skipped):
                    line["skipped"] = sample.values.reason
                    continue
                waiting.append(self._store(sample, group, line))
                if len(waiting) == self._unit:
                    self._put(waiting)
                    waiting = []
        finally:
            self._put(waiting)  # a shard that cannot be read to its end frees its places like any other

    def _store(self, sample: Sample, group: Group, line: dict[str, Any]) -> int:
        values = self._fitting(sample)
        number = self._next
        place = number % len(self._places)
        while not self._places[place].acquire(timeout=LOOK_S):
            if self.failure is not None:
                raise self.failure
        if values.ndim == 1:
            self._pipeline.samples.store_packed(place, values)
        else:
            self._pipeline.samples.store(place, [values])
        self._next += 1
        with group.changed:
            group.open += 1
        self._owners[number] = group, line
        return number

    def _fitting(self, sample: Sample) -> NDArray[Any]:
        """Return a sample as it is stored: packed (uint8 [bytes]) or INT8; OrinError where it is another network's."""
        values, binding = np.asarray(sample.values), self._inputs[0]
        packed = values.dtype == np.uint8 and values.ndim == 1
        wanted = (binding.sample_bytes,) if packed else binding.shape
        if values.shape != wanted:
            raise OrinError(f"{sample.file} holds samples of {list(values.shape)}, expected {list(wanted)}")
        if packed or values.dtype == np.int8 or binding.scale is None:
            return values
        return quantise(values, binding.scale * INT8_MAX)

    def _put(self, numbers: list[int]) -> None:
        if numbers:
            self._pipeline.put([Chunk([number % len(self._places) for number in numbers], numbers)])

    def _fail(self, error: OrinError) -> None:
        self.failure = error


def _write(path: Path, lines: list[dict[str, Any]], name: str) -> None:
    """Write answers under a temporary name of this board's and rename; what could not be written is removed."""
    part = path.with_name(f".{path.name}.{name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise OrinError(f"{path} cannot be written: {error.strerror or error}; free some space there") from None
