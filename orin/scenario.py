"""MLPerf scenarios: their names, their settings, and what a short probe of the pipeline makes of them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from orin.mlperf import MULTISTREAM_SAMPLES, OFFICIAL_SECONDS
from orin.pipeline import Outputs, Pipeline
from orin.work import Chunk, WorkItem

PROBE_S = 1.0


@dataclass(frozen=True)
class ScenarioSettings:
    """How LoadGen drives one run; `expected`: samples per second (Offline, Server) or seconds a query (the streams).

    `in_turn`: every sample is issued equally often, as MLPerf has it where samples differ in size.
    """

    scenario: str
    seconds: float
    expected: float
    accuracy: bool = False
    server_latency_ms: float = 15.0
    in_turn: bool = False

    @property
    def short(self) -> bool:
        """Whether MLPerf would call the run too short."""
        return self.seconds < OFFICIAL_SECONDS

    @property
    def samples_per_query(self) -> int:
        """Samples of one query of a stream scenario."""
        return MULTISTREAM_SAMPLES if self.scenario == "multistream" else 1


class _Spans:
    """Client of a probe: samples, busy time and span of each accelerator."""

    def __init__(self) -> None:
        self.samples: dict[str, int] = {}
        self.busy_ns: dict[str, int] = {}
        self.begin_ns: dict[str, int] = {}
        self.end_ns: dict[str, int] = {}

    def done(self, item: WorkItem, outputs: Outputs) -> None:
        name = item.accelerator
        self.samples[name] = self.samples.get(name, 0) + len(item.ids)
        self.busy_ns[name] = self.busy_ns.get(name, 0) + item.end_ns - item.begin_ns
        self.begin_ns.setdefault(name, item.begin_ns)
        self.end_ns[name] = item.end_ns

    def samples_per_s(self) -> float:
        """What the accelerators can do: time in which this host left one idle does not count against it, since a
        rate seen too low makes the run too short. (Busy times of items in flight together may overlap.)"""
        taken_ns = {a: min(busy, self.end_ns[a] - self.begin_ns[a]) for a, busy in self.busy_ns.items()}
        return sum(n * 1e9 / max(1, taken_ns[a]) for a, n in self.samples.items())

    def answered_per_s(self) -> float:
        """What came out, time in which this host was too slow included: more cannot be offered for long."""
        span_ns = max(self.end_ns.values(), default=0) - min(self.begin_ns.values(), default=0)
        return sum(self.samples.values()) * 1e9 / max(1, span_ns)


def _probe(pipeline: Pipeline, loaded: int, seconds: float = PROBE_S) -> _Spans:
    """Keep every accelerator busy for a while, as warm-up, and return what was seen."""
    spans = _Spans()
    pipeline.start(spans, ordered=False)
    end = time.monotonic() + seconds
    numbers = list(range(loaded))
    while time.monotonic() < end and pipeline.failure is None:
        if pipeline.waiting < 2 * loaded:
            pipeline.put([Chunk(numbers, numbers)])
        time.sleep(0.002)
    pipeline.stop()
    return spans


def probe_query_s(pipeline: Pipeline, samples_per_query: int, seconds: float = PROBE_S / 4) -> float:
    """Answer queries one by one for a while and return the seconds of the fastest."""
    numbers = list(range(samples_per_query))
    stamps = [time.monotonic()]
    while stamps[-1] - stamps[0] < seconds or len(stamps) < 4:
        pipeline.run_now(numbers, 0)
        stamps.append(time.monotonic())
    return min(after - before for before, after in zip(stamps, stamps[1:]))


def settings_from_probe(
    pipeline: Pipeline, scenario: str, seconds: float, loaded: int, server_qps: float | None = None
) -> ScenarioSettings:
    """Probe the pipeline and set what LoadGen has to be told.

    Offline issues 1.1 x seconds x expected samples at once; the streams prepare 2 x seconds / expected queries, so
    less than the least latency seen leaves room for faster ones. Server is offered 80 % of the rate that came out, or
    the one that is given.
    """
    if scenario in ("singlestream", "multistream"):
        samples = ScenarioSettings(scenario, seconds, 0.0).samples_per_query
        return ScenarioSettings(scenario, seconds, 0.9 * probe_query_s(pipeline, samples))
    seen = _probe(pipeline, loaded)
    if scenario == "server":
        return ScenarioSettings(scenario, seconds, server_qps or 0.8 * seen.answered_per_s())
    return ScenarioSettings(scenario, seconds, seen.samples_per_s())
