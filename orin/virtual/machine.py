"""The machine: a fluid discrete-event model of GPU, DLA0, DLA1 and the DRAM that they share.

Each accelerator serves its queue in order. A job is a chain of segments; its tail, if it has one, runs in a queue of
its own, while the accelerator goes on. Between two events every running segment advances at a constant rate, which
three mechanisms set:
1. DRAM: the memory part stretches by soft weighted max-min sharing, relative to the same segment alone.
2. GPU work inside DLA jobs (fallback layers), and tails, share the GPU equally with what runs there.
3. Separate processes: a GPU segment of a DLA job first waits for its time slice, and costs the GPU's own job a switch.
Rates depend only on which segments run, so every such state is solved once; energy, traffic and busy time are the
states' elapsed times, summed when read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

from orin.errors import OrinError
from orin.soc import DRAM_SUSTAINED_SHARE, GPU, GPU_STREAM_SHARE
from orin.virtual.model import GPU_SEGMENT, CostModel, EngineCost, Segment
from orin.virtual.power import RailModel

PROCESSES = ("one", "separate")
SWEEPS = 3  # fixed-point sweeps of the DRAM shares: the third moves rates by less than 1e-4
STATES_KEPT = 512  # then their sums are folded, so that a long run of many batch sizes stays small
DONE_NS = 1e-3  # work below a picosecond-scale remainder is finished: float rounding, not time


class Job:
    """One enqueue on its way through an accelerator; `end_ns` stays None until it is done."""

    __slots__ = ("cost", "ready_ns", "begin_ns", "end_ns", "index", "scale", "tag")

    def __init__(self, cost: EngineCost, ready_ns: float, scale: float, tag: object) -> None:
        self.cost = cost
        self.ready_ns = ready_ns
        self.scale = scale
        self.tag = tag
        self.index = 0
        self.begin_ns: float | None = None
        self.end_ns: float | None = None


class Lane:
    """One accelerator, or the tails of its jobs: a queue and where its first job stands. A job that waits has no
    `segment` but time left."""

    __slots__ = ("name", "queue", "segment", "left_ns", "rate", "waited")

    def __init__(self, name: str) -> None:
        self.name = name
        self.queue: deque[Job] = deque()
        self.segment: Segment | None = None
        self.left_ns = inf
        self.rate = 1.0
        self.waited = False


class State:
    """A set of segments running together: rates, power, DRAM traffic, and how long it has lasted."""

    __slots__ = ("segments", "rates", "watts", "dram_gb_per_s", "elapsed_ns")

    def __init__(
        self, segments: tuple[Segment | None, ...], rates: tuple[float, ...], watts: tuple[float, ...], gb_per_s: float
    ) -> None:
        self.segments = segments  # also keeps them alive, so that their ids stay theirs
        self.rates = rates
        self.watts = watts
        self.dram_gb_per_s = gb_per_s
        self.elapsed_ns = 0.0


@dataclass(frozen=True)
class Totals:
    """Sums since the machine started: busy time by accelerator, DRAM bytes, joules by rail."""

    elapsed_ns: float
    busy_ns: Mapping[str, float]
    dram_bytes: float
    rail_j: Mapping[str, float]

    def since(self, earlier: Totals) -> Totals:
        """Return the difference to an earlier reading."""
        return Totals(
            self.elapsed_ns - earlier.elapsed_ns,
            {name: ns - earlier.busy_ns[name] for name, ns in self.busy_ns.items()},
            self.dram_bytes - earlier.dram_bytes,
            {name: joules - earlier.rail_j[name] for name, joules in self.rail_j.items()},
        )


class Machine:
    """GPU and DLAs at given clocks; `noise` draws a factor on each job's service time (None: exact)."""

    def __init__(
        self,
        model: CostModel,
        processes: str = "one",
        noise: Callable[[], float] | None = None,
        now_ns: float = 0.0,
    ) -> None:
        if processes not in PROCESSES:
            raise OrinError(f"processes is {processes!r}, expected one of {', '.join(PROCESSES)}")
        self.now_ns = now_ns
        self.events = 0
        self._lanes = tuple(Lane(name) for name in model.soc.accelerators)
        self._by_name = {lane.name: lane for lane in self._lanes}
        self._tails: dict[str, Lane] = {}  # by accelerator; each is one of the lanes from its first job on
        self._separate = processes == "separate"
        self._noise = noise
        self._shared = model.parameters.shared
        self._rails = RailModel(model.soc, model.clocks, model.parameters)
        peak = model.soc.dram_peak_bytes_per_s(model.clocks) * 1e-9
        self._sustained_gb_per_s = DRAM_SUSTAINED_SHARE * peak
        self._most_gb_per_s = GPU_STREAM_SHARE * peak
        self._host_mj = 0.0
        self._states: dict[tuple[int, ...], State] = {}
        self._folded = [0.0] * (2 + len(self._lanes) + len(self._rails.rails))
        self._state = self._enter_state()

    # -- work in, time forward ----------------------------------------------------------------------------------------

    def submit(self, accelerator: str, cost: EngineCost, tag: object = None, spent_ns: float = 0.0) -> Job:
        """Queue a job now; its submission, of which `spent_ns` are over, is hidden while earlier jobs still run."""
        lane = self._by_name[accelerator]
        ready_ns = self.now_ns + max(0.0, cost.submit_ns - spent_ns)
        job = Job(cost, ready_ns, self._noise() if self._noise else 1.0, tag)
        if cost.tail is not None and accelerator not in self._tails:
            self._add_tails(accelerator)
        lane.queue.append(job)
        if len(lane.queue) == 1:
            self._start(lane)
        return job

    def next_event_ns(self) -> float:
        """Return when something next begins or ends; infinity when nothing is queued."""
        return self.now_ns + min(lane.left_ns / lane.rate for lane in self._lanes)

    def advance(self, until_ns: float) -> list[Job]:
        """Let time pass up to a moment and return the jobs that were finished, in order."""
        finished: list[Job] = []
        lanes = self._lanes
        while True:
            step = inf
            for lane in lanes:
                ahead = lane.left_ns / lane.rate
                if ahead < step:
                    step, first = ahead, lane
            if self.now_ns + step > until_ns:
                self._pass(until_ns - self.now_ns)
                self.now_ns = max(self.now_ns, until_ns)
                return finished
            self._pass(step)
            self.now_ns += step
            first.left_ns = 0.0
            for lane in lanes:
                if lane.left_ns <= DONE_NS:
                    self._next(lane, finished)

    def finish_next(self) -> list[Job]:
        """Let time pass until at least one job is finished; [] when nothing is queued."""
        while (at := self.next_event_ns()) < inf:
            finished = self.advance(at)
            if finished:
                return finished
        return []

    def left_ns(self, accelerator: str, job: Job) -> float:
        """Return a lower bound of the time until a queued job is done: nothing runs faster than alone."""
        follows = job.index == len(job.cost.segments)
        lane = self._tails[accelerator] if follows else self._by_name[accelerator]
        total = 0.0
        for queued in lane.queue:
            own = queued.cost.chain if follows or queued is job else queued.cost.segments
            total += sum(segment.solo_ns for segment in own[queued.index :]) * queued.scale
            if queued is job:
                break
        if lane.segment is None:
            return total + lane.left_ns  # waits pass at rate 1
        total -= lane.segment.solo_ns * lane.queue[0].scale - lane.left_ns
        return max(0.0, total)

    def queued(self, accelerator: str) -> int:
        """Return how many jobs an accelerator holds."""
        return len(self._by_name[accelerator].queue)

    def is_last(self, accelerator: str, job: Job) -> bool:
        """Say whether nothing is queued behind a job."""
        queue = self._by_name[accelerator].queue
        if not queue and accelerator in self._tails:
            queue = self._tails[accelerator].queue
        return bool(queue) and queue[-1] is job

    # -- what it has cost ---------------------------------------------------------------------------------------------

    def totals(self) -> Totals:
        """Return what has passed since the machine started."""
        sums = list(self._folded)
        for state in self._states.values():
            self._add(sums, state)
        lanes = len(self._lanes)
        return Totals(
            elapsed_ns=sums[0],
            busy_ns={name: sums[2 + i] for i, name in enumerate(self._by_name)},
            dram_bytes=sums[1],
            rail_j=self._rails.with_host(sums[2 + lanes :], self._host_mj),
        )

    def _add(self, sums: list[float], state: State) -> None:
        elapsed_ns = state.elapsed_ns
        sums[0] += elapsed_ns
        sums[1] += elapsed_ns * state.dram_gb_per_s
        for i, segment in enumerate(state.segments):
            if segment is not None:
                sums[2 + i] += elapsed_ns
        rails = 2 + len(state.segments)
        for i, watts in enumerate(state.watts):
            sums[rails + i] += elapsed_ns * watts * 1e-9

    # -- lanes --------------------------------------------------------------------------------------------------------

    def _pass(self, step_ns: float) -> None:
        if step_ns <= 0.0:
            return
        self._state.elapsed_ns += step_ns
        for lane in self._lanes:
            lane.left_ns -= step_ns * lane.rate  # infinity stays infinity

    def _start(self, lane: Lane) -> None:
        """Take up the queue's first job, or wait for its submission."""
        if not lane.queue:
            lane.segment, lane.left_ns, lane.rate = None, inf, 1.0
            self._state = self._enter_state()
            return
        job = lane.queue[0]
        if job.ready_ns > self.now_ns:
            lane.segment, lane.left_ns, lane.rate = None, job.ready_ns - self.now_ns, 1.0
            self._state = self._enter_state()
            return
        if job.begin_ns is None:
            job.begin_ns = self.now_ns
            self._host_mj += job.cost.host_mj
        self._run(lane, job)

    def _add_tails(self, accelerator: str) -> None:
        """Make the lane for the tails of an accelerator's jobs; what was summed without it keeps its place."""
        self._fold()
        self._folded.insert(2 + len(self._lanes), 0.0)
        self._tails[accelerator] = Lane(accelerator)
        self._lanes += (self._tails[accelerator],)
        self._state = self._enter_state()

    def _next(self, lane: Lane, finished: list[Job]) -> None:
        """Move a lane on: its wait or its segment is over."""
        self.events += 1
        job = lane.queue[0]
        if lane.segment is None:
            if job.begin_ns is None:
                self._start(lane)
            else:
                self._run(lane, job)
            return
        job.index += 1
        if job.index < len(job.cost.segments):
            self._run(lane, job)
            return
        lane.queue.popleft()
        if job.index == len(job.cost.segments) and job.cost.tail is not None:
            self._follow(self._tails[lane.name], job)
        else:
            job.end_ns = self.now_ns
            finished.append(job)
        self._start(lane)

    def _follow(self, tails: Lane, job: Job) -> None:
        """Hand a job over to the lane of its tail."""
        tails.queue.append(job)
        if len(tails.queue) == 1:
            self._run(tails, job)

    def _run(self, lane: Lane, job: Job) -> None:
        segment = job.cost.chain[job.index]
        if self._separate and segment.resource == GPU_SEGMENT and lane.name != GPU and not lane.waited:
            lane.waited = True
            lane.segment, lane.left_ns, lane.rate = None, self._slice_wait_ns(lane), 1.0
        else:
            lane.waited = False
            lane.segment, lane.left_ns = segment, segment.solo_ns * job.scale
        self._state = self._enter_state()

    def _slice_wait_ns(self, lane: Lane) -> float:
        """Wait for a time slice of the GPU; a job of another process that runs there loses a switch."""
        gpu = self._by_name[GPU]
        if gpu.segment is not None:
            gpu.left_ns += self._shared["process_switch_ms"] * 1e6
            return self._shared["process_gpu_wait_ms"] * 1e6
        others = any(other is not lane and other.queue for other in self._lanes)
        return self._shared["process_dla_wait_ms"] * 1e6 if others else 0.0

    # -- states -------------------------------------------------------------------------------------------------------

    def _enter_state(self) -> State:
        key = tuple([id(lane.segment) for lane in self._lanes])
        state = self._states.get(key)
        if state is None:
            state = self._solve(tuple(lane.segment for lane in self._lanes))
            if len(self._states) >= STATES_KEPT:
                self._fold()
            self._states[key] = state
        for lane, rate in zip(self._lanes, state.rates):
            lane.rate = rate
        return state

    def _fold(self) -> None:
        for state in self._states.values():
            self._add(self._folded, state)
        self._states.clear()

    def _solve(self, segments: tuple[Segment | None, ...]) -> State:
        rates = self._rates(segments)
        running = [(s, rate) for s, rate in zip(segments, rates) if s is not None]
        traffic = sum(_demand_gb_per_s(s) * rate for s, rate in running)
        on_gpu = [s.activity for s, _ in running if s.resource == GPU_SEGMENT]
        activity = sum(on_gpu) / len(on_gpu) if on_gpu else 0.0
        watts = self._rails.watts(activity, len(running) - len(on_gpu), traffic)
        return State(segments, rates, watts, traffic)

    def _rates(self, segments: tuple[Segment | None, ...]) -> tuple[float, ...]:
        slot = self._gpu_slot([s for s in segments if s is not None and s.resource == GPU_SEGMENT])
        shares = [slot if s is not None and s.resource == GPU_SEGMENT else 1.0 for s in segments]
        rates = list(shares)
        demands = [_demand_gb_per_s(s) if s is not None else 0.0 for s in segments]
        for _ in range(SWEEPS):
            total = sum(d * rate for d, rate in zip(demands, rates))
            rates = [
                share * self._slowed(s, d, total - d * rate) if s is not None else 1.0
                for s, d, rate, share in zip(segments, demands, rates, shares)
            ]
        total = sum(d * rate for d, rate in zip(demands, rates))
        if total > self._most_gb_per_s:
            rates = [rate * self._most_gb_per_s / total if d else rate for d, rate in zip(demands, rates)]
        return tuple(rates)

    def _gpu_slot(self, on_gpu: list[Segment]) -> float:
        """Share of the GPU that each of its segments gets: equal, but small kernels alone run side by side."""
        exclusive = self._separate  # time slices of processes: their cost is the wait and the switch
        return 1.0 / len(on_gpu) if any(s.activity for s in on_gpu) and not exclusive else 1.0

    def _slowed(self, segment: Segment, demand: float, others: float) -> float:
        """Rate of a segment that shares DRAM with others' traffic (GB/s), relative to alone."""
        sustained = self._sustained_gb_per_s
        available = max(self._shared["dram_floor"] * sustained, sustained - others)
        stretch = self._knee(demand / available) / self._knee(demand / sustained)
        solo = segment.solo_ns
        return solo / (segment.compute_ns + segment.memory_ns * stretch) if solo else 1.0

    def _knee(self, load: float) -> float:
        """Demand over achieved bandwidth of the soft minimum of demand and what is available."""
        knee = self._shared["dram_knee"]
        return float((1.0 + load**knee) ** (1.0 / knee))


def _demand_gb_per_s(segment: Segment) -> float:
    return segment.dram_bytes / segment.solo_ns if segment.solo_ns else 0.0
