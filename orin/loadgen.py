"""The real MLPerf LoadGen as a client of the pipeline."""

from __future__ import annotations

import gc
import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orin.errors import OrinError
from orin.mlperf import MULTISTREAM_SAMPLES, SCENARIOS
from orin.pipeline import Outputs, Pipeline
from orin.scenario import ScenarioSettings
from orin.tails import Responses
from orin.work import Chunk, WorkItem, rounds

# Seeds of MLPerf Inference v6.1 (qsl, sample index, schedule), as the wheel's own mlperf.conf holds them.
SEEDS = (2085463073848966840, 2747215439041700203, 16159082839903944936)

OnItem = Callable[[WorkItem], None]


@dataclass(frozen=True)
class LoadgenResult:
    """What LoadGen's detail log says of one run, and its power window on the monotonic clock."""

    values: dict[str, Any]
    begin_ns: int
    end_ns: int
    errors: tuple[str, ...] = field(default=())

    @property
    def valid(self) -> bool:
        """Whether LoadGen calls the run valid."""
        return self.values.get("result_validity") == "VALID"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the run is invalid, in LoadGen's words."""
        found = [self.values.get("result_invalid_reason")]
        if self.values.get("early_stopping_met") is False:
            found.append(f"early stopping: {self.values.get('early_stopping_result')}")
        return (*(" ".join(str(reason).split()) for reason in found if reason), *self.errors)


class SampleLibrary:
    """LoadGen's QSL over prepared samples: loads what LoadGen asks for into the pipeline's shared memory."""

    def __init__(self, pipeline: Pipeline, prepared: NDArray[Any], count: int) -> None:
        self._pipeline = pipeline
        self._prepared = prepared
        self.count = count
        self.order: list[int] = []
        self.position = np.zeros(len(prepared), dtype=np.int64)
        self.first: list[int] = []

    def load(self, indices: Sequence[int]) -> None:
        """Put samples next to each other in LoadGen's order (MultiStream's list ends with wrapped-around ones)."""
        self.order = list(indices)
        for place, index in enumerate(self.order):
            self._pipeline.samples.store(place, [self._prepared[index]])
        for place in range(len(self.order) - 1, -1, -1):  # the first place of an index counts
            self.position[self.order[place]] = place
        self.first = self.position.tolist()

    def unload(self, indices: Sequence[int]) -> None:
        """Keep the memory: the next load overwrites it."""

    def place(self, indices: Sequence[int]) -> int | None:
        """Return where a query's samples lie one after another; None where they do not."""
        first = self.first[indices[0]]
        if len(indices) == 1:
            return first
        places = (first, first + self.count)  # an index near the front is also among the wrapped-around ones
        for place in places:
            if self.order[place : place + len(indices)] == list(indices):
                return place
        return None


class LoadgenClient:
    """The SUT: turns LoadGen's queries into runs and work items into completions, one call a batch."""

    def __init__(
        self, pipeline: Pipeline, library: SampleLibrary, settings: ScenarioSettings, on_item: OnItem | None
    ) -> None:
        import mlperf_loadgen as lg

        self._lg = lg
        self._pipeline = pipeline
        self._library = library
        self._settings = settings
        self._on_item = on_item
        self._issued: list[int] = []
        self._answered: list[Sequence[int]] = []
        self._index: dict[int, int] = {}
        self._respond: Responses | None = None
        if pipeline.board.computes_outputs:  # the step after the engines is part of what is timed
            self._respond = pipeline.responses()
        self.failure: Exception | None = None
        self._lock = threading.Lock()

    def issue(self, ids: list[int], indices: list[int]) -> None:
        """LoadGen's callback for a query; a failure is kept, and what is unanswered is answered so that it ends."""
        try:
            if self._settings.accuracy:
                self._index.update(zip(ids, indices))
            if self._settings.scenario in ("singlestream", "multistream"):
                self._answer_now(ids, indices)
            else:
                self._queue(ids, indices)
        except Exception as error:
            self.fail(error, ids)

    def _queue(self, ids: list[int], indices: list[int]) -> None:
        self._issued.extend(ids)
        positions = self._library.position[indices]
        if self._settings.scenario == "offline":
            self._pipeline.put(rounds(positions, ids))
        else:
            self._pipeline.put([Chunk(positions.tolist(), ids)])

    def _answer_now(self, ids: list[int], indices: list[int]) -> None:
        with self._lock:
            if self.failure is not None:
                raise self.failure
            self._issued = ids  # the only open query
        place = self._library.place(indices)
        if place is None:
            raise OrinError("LoadGen issued a query whose samples do not lie together")
        item, outputs = self._pipeline.run_now(ids, place)
        self.done(item, outputs)

    def done(self, item: WorkItem, outputs: Outputs) -> None:
        """Report one work item to LoadGen."""
        response = self._lg.QuerySampleResponse
        if outputs is None or self._respond is None:
            responses = [response(number, 0, 0) for number in item.ids]
        else:
            data, sizes = self._respond(outputs, [self._index.get(number, 0) for number in item.ids])
            starts = itertools.accumulate(sizes, initial=data.ctypes.data)
            responses = [response(*answer) for answer in zip(item.ids, starts, sizes)]
        with self._lock:
            if self.failure is not None:
                return  # fail() has answered these samples; a second answer would break LoadGen
            self._answered.append(item.ids)
        self._lg.QuerySamplesComplete(responses)
        if self._on_item is not None:
            self._on_item(item)

    def fail(self, error: Exception, ids: Sequence[int] = ()) -> None:
        """Answer everything that is still open, so that LoadGen returns, and keep the failure."""
        with self._lock:
            self.failure = self.failure or error
            answered = {number for part in self._answered for number in part}
            still_open = [number for number in {*self._issued, *ids} if number not in answered]
            self._answered.append(still_open)
        if still_open:
            self._lg.QuerySamplesComplete([self._lg.QuerySampleResponse(number, 0, 0) for number in still_open])

    def stop(self) -> None:
        """End the test early: what waits is dropped, what is open is answered without being computed."""
        self._pipeline.abandon()
        self.fail(OrinError("stopped"))

    def flush(self) -> None:
        """Nothing is held back."""


def run_loadgen(
    pipeline: Pipeline, library: SampleLibrary, settings: ScenarioSettings, logs: Path, on_item: OnItem | None = None
) -> LoadgenResult:
    """Run one scenario; returns when LoadGen does, raises the failure of an accelerator."""
    import mlperf_loadgen as lg

    logs.mkdir(parents=True, exist_ok=True)
    client = LoadgenClient(pipeline, library, settings, on_item)
    inline = settings.scenario in ("singlestream", "multistream")
    if not inline:
        pipeline.start(client, ordered=settings.scenario == "server", on_failure=client.fail)
    sut = lg.ConstructFastSUT(client.issue, client.flush)
    qsl = lg.ConstructQSL(len(library.position), library.count, library.load, library.unload)
    arguments = (sut, qsl, _test_settings(settings), _log_settings(logs), str(logs / "audit.config"))
    before = _utc_offset_ns()
    gc.collect()
    gc.disable()  # a collection holds every thread up for longer than a DLA's work in flight lasts
    try:
        _interruptible(lambda: lg.StartTestWithLogSettings(*arguments), client)
        after = _utc_offset_ns()
    finally:
        gc.enable()
        lg.DestroyQSL(qsl)
        lg.DestroyFastSUT(sut)
        if not inline:
            pipeline.stop()
    if client.failure is not None:
        raise client.failure
    return read_result(logs, (before, after))


def _interruptible(test: Callable[[], None], client: LoadgenClient) -> None:
    """Run LoadGen on a thread of its own: on the main one, Ctrl-C would wait for the end of the test."""
    errors: list[Exception] = []
    ended = threading.Event()  # an interrupted Thread.join() takes the thread for dead

    def run() -> None:
        try:
            test()
        except Exception as error:
            errors.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="loadgen", daemon=True)
    thread.start()
    try:
        while not ended.wait(0.2):
            pass
    except KeyboardInterrupt:
        client.stop()
        ended.wait()
        raise
    thread.join()
    if errors:
        raise errors[0]


def _test_settings(settings: ScenarioSettings) -> Any:
    import mlperf_loadgen as lg

    test = lg.TestSettings()
    test.scenario = getattr(lg.TestScenario, SCENARIOS[settings.scenario])
    test.mode = lg.TestMode.AccuracyOnly if settings.accuracy else lg.TestMode.PerformanceOnly
    test.min_duration_ms = round(settings.seconds * 1000)
    test.min_query_count = 1
    test.sample_concatenate_permutation = settings.in_turn
    test.qsl_rng_seed, test.sample_index_rng_seed, test.schedule_rng_seed = SEEDS
    if settings.scenario == "offline":
        test.offline_expected_qps = settings.expected
    elif settings.scenario == "server":
        test.server_target_qps = settings.expected
        test.server_target_latency_ns = round(settings.server_latency_ms * 1e6)
    elif settings.scenario == "singlestream":
        test.single_stream_expected_latency_ns = max(1, round(settings.expected * 1e9))
    else:
        test.multi_stream_expected_latency_ns = max(1, round(settings.expected * 1e9))
        test.multi_stream_samples_per_query = MULTISTREAM_SAMPLES
    return test


def _log_settings(logs: Path) -> Any:
    import mlperf_loadgen as lg

    output = lg.LogOutputSettings()
    output.outdir = str(logs)
    output.copy_summary_to_stdout = False
    log = lg.LogSettings()
    log.log_output = output
    log.enable_trace = False
    return log


def _utc_offset_ns() -> int:
    """UTC minus monotonic clock, from the tightest of a few readings."""
    best = (1 << 62, 0)
    for _ in range(5):
        a = time.monotonic_ns()
        utc = time.time_ns()
        b = time.monotonic_ns()
        best = min(best, (b - a, utc - (a + b) // 2))
    return best[1]


def read_result(logs: Path, offsets_ns: tuple[int, int]) -> LoadgenResult:
    """Parse `mlperf_log_detail.txt`; `offsets_ns`: UTC minus monotonic clock before and after the run."""
    path = logs / "mlperf_log_detail.txt"
    values: dict[str, Any] = {}
    errors = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith(":::MLLOG "):
            continue
        entry = json.loads(line.removeprefix(":::MLLOG "))
        values[entry["key"]] = entry["value"]
        if entry["metadata"].get("is_error"):
            errors.append(f"{entry['key']}: {entry['value']}")
    if "power_begin" not in values or "power_end" not in values:
        raise OrinError(f"{path} has no power_begin and power_end: LoadGen did not finish; see mlperf_log_summary.txt")
    begin_ns = _utc_ns(values["power_begin"]) - offsets_ns[0]
    end_ns = _utc_ns(values["power_end"]) - offsets_ns[1]
    return LoadgenResult(values, begin_ns, end_ns, tuple(errors))


def _utc_ns(text: str) -> int:
    moment = datetime.strptime(text, "%m-%d-%Y %H:%M:%S.%f").replace(tzinfo=timezone.utc)
    return round(moment.timestamp() * 1000) * 1_000_000
