"""The machine in wall time: threads of a real pipeline put work in and wait for it, on `time.monotonic_ns`.

Work moves in the machine's own exact time. A job that was enqueued behind another begins when that one ends, however
late the host wakes up; only an enqueue that comes after the queue ran dry costs time, as on a real board. A submission
is the host's way from one answer to the next job, as published back-to-back queries show it: what this host needs for
that way is part of it, not added to it.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from orin.soc import Clocks
from orin.virtual.machine import Job, Machine, Totals
from orin.virtual.model import CostModel, EngineShape

SPIN_NS = 200_000  # a waiter whose answer the next query waits for does not trust the timer with the last stretch
LOOK_NS = 15_000  # what it takes to look at the machine again
NAP_NS = 50_000  # other waiters may come late: their accelerator already has its next job
PAUSE_JOBS, PAUSE_NS = 2.0, 10_000_000  # an empty queue for longer than this is a pause of the run, not a late host
TURN_SUBMISSIONS = 2.0  # a query that comes later than this after an answer is a new start, not the next one
PACE_SHARE = 0.02  # the host may cost an accelerator this share of its time before the run is said to lag


class Clock(Protocol):
    """Time as the paced machine sees it."""

    def now_ns(self) -> int:
        """Return the time on the scale of `time.monotonic_ns`."""

    def sleep(self, seconds: float) -> None:
        """Let other threads run for a while."""

    def spin_until(self, at_ns: int) -> None:
        """Return at a moment, without giving up the core."""


class WallClock:
    """This machine's own clock."""

    now_ns = staticmethod(time.monotonic_ns)
    sleep = staticmethod(time.sleep)

    @staticmethod
    def spin_until(at_ns: int) -> None:
        """Return at a moment; `time.sleep(0)` would cost a timer's slack, 0.05 ms."""
        while time.monotonic_ns() < at_ns:
            pass


@dataclass
class Pace:
    """How well the host fed one accelerator: idle though fed without a break, answers fetched late, time served."""

    was_fed_ahead: bool = False
    last_end_ns: float = 0.0
    last_solo_ns: float = 0.0
    served_ns: float = 0.0
    starved_ns: float = 0.0
    awaited_ns: float = 0.0
    late_ns: float = 0.0

    def enqueued(self, now_ns: float, ahead: int, solo_ns: float, is_full: bool) -> None:
        """Note an enqueue. With none ahead, the idle time before it was the host's fault if it had been ahead before
        and comes with a full batch: after a lull of queries there is less to bring."""
        idle_ns = now_ns - self.last_end_ns
        had_work = is_full and self.was_fed_ahead
        if not ahead and had_work and idle_ns < max(PAUSE_NS, PAUSE_JOBS * self.last_solo_ns):
            self.starved_ns += idle_ns
        self.was_fed_ahead = ahead > 0
        self.last_solo_ns = solo_ns

    def spent_ns(self, now_ns: float, submit_ns: float) -> float:
        """Return how much of a submission this host has spent since the last answer; 0 after a pause."""
        idle_ns = now_ns - self.last_end_ns
        return idle_ns if 0.0 <= idle_ns < TURN_SUBMISSIONS * submit_ns else 0.0

    def ended(self, job: Job) -> None:
        """Note a finished job."""
        assert job.begin_ns is not None and job.end_ns is not None
        self.last_end_ns = job.end_ns
        self.served_ns += job.end_ns - job.begin_ns

    def complaint(self, name: str) -> str | None:
        """Say in one line what the host cost this accelerator, if it matters."""
        starved = self.starved_ns / (self.served_ns + self.starved_ns) if self.served_ns else 0.0
        if starved > PACE_SHARE:
            return (
                f"this machine cannot keep pace: {name} stood idle for {starved:.1%} of its time because work was "
                f"enqueued late (limit {PACE_SHARE:.0%}); stop other programs, or use orin predict"
            )
        late = self.late_ns / self.awaited_ns if self.awaited_ns else 0.0
        if late > PACE_SHARE:
            return (
                f"this machine cannot keep pace: answers of {name} were fetched late by {late:.1%} of their time "
                f"(limit {PACE_SHARE:.0%}); stop other programs, or use orin predict"
            )
        return None


class PacedMachine:
    """A machine that runs with a clock, this machine's own by default; every method may be called from any thread."""

    def __init__(self, model: CostModel, seed: int, clock: Clock | None = None) -> None:
        self._lock = threading.Lock()
        self._clock = clock or WallClock()
        self._source = random.Random(seed)
        self._cv = model.parameters.shared["noise_cv"]
        self._past: list[Totals] = []
        self._pace = {name: Pace() for name in model.soc.accelerators}
        self.origin_ns = self._clock.now_ns()
        self.model = model
        self._machine = self._new(model, 0.0)

    def _new(self, model: CostModel, now_ns: float) -> Machine:
        return Machine(model, noise=lambda: self._source.lognormvariate(0.0, self._cv), now_ns=now_ns)

    @property
    def clocks(self) -> Clocks:
        """Clocks in force."""
        return self.model.clocks

    def change(self, model: CostModel) -> None:
        """Change clocks or stack; what is still queued is finished first, in no time."""
        with self._lock:
            now_ns = self._advance()
            while finished := self._machine.finish_next():
                self._note(finished)
            self._past = [_sum([*self._past, self._machine.totals()])]
            self.model = model
            self._machine = self._new(model, now_ns)
            for pace in self._pace.values():
                pace.was_fed_ahead = False

    def enqueue(self, accelerator: str, shape: EngineShape, samples: int) -> Job:
        """Queue a batch now."""
        cost = self.model.cost(shape, samples)
        with self._lock:
            now_ns = self._advance()
            pace = self._pace[accelerator]
            pace.enqueued(now_ns, self._machine.queued(accelerator), cost.solo_ns, samples == shape.batch)
            return self._machine.submit(accelerator, cost, accelerator, pace.spent_ns(now_ns, cost.submit_ns))

    def wait(self, accelerator: str, job: Job) -> None:
        """Block until a job is done."""
        while True:
            with self._lock:
                now_ns = self._advance()
                if job.end_ns is not None:
                    self._fetched(accelerator, job, now_ns)
                    return
                left_ns = self._machine.left_ns(accelerator, job)
                is_last = self._machine.is_last(accelerator, job)
            self._pass(left_ns, is_last)

    def totals(self) -> tuple[int, Totals]:
        """Return the time, and what has passed until then since the board was opened."""
        with self._lock:
            now_ns = self._advance()
            return self.origin_ns + round(now_ns), _sum([*self._past, self._machine.totals()])

    def keeps_pace(self) -> str | None:
        """Say in one line that this host was too slow to feed the accelerators in wall time; None: it was not."""
        with self._lock:
            complaints = [pace.complaint(name) for name, pace in self._pace.items()]
        return next((complaint for complaint in complaints if complaint), None)

    def _advance(self) -> float:
        now_ns = float(self._clock.now_ns() - self.origin_ns)
        self._note(self._machine.advance(now_ns))
        return now_ns

    def _note(self, finished: list[Job]) -> None:
        for job in finished:
            self._pace[str(job.tag)].ended(job)

    def _fetched(self, accelerator: str, job: Job, now_ns: float) -> None:
        """Lateness beyond a submission counts where nothing is queued behind: the next query waits for this answer."""
        assert job.begin_ns is not None and job.end_ns is not None
        pace = self._pace[accelerator]
        if not self._machine.queued(accelerator) and not pace.was_fed_ahead:
            pace.awaited_ns += job.end_ns - job.begin_ns
            pace.late_ns += max(0.0, now_ns - job.end_ns - job.cost.submit_ns)

    def _pass(self, left_ns: float, is_last: bool) -> None:
        """Sleep towards a moment at least `left_ns` away; the last job's waiter spins through the end of it."""
        if not is_last:
            self._clock.sleep(max(left_ns, NAP_NS) * 1e-9)
        elif left_ns > SPIN_NS:
            self._clock.sleep((left_ns - SPIN_NS) * 1e-9)
        else:
            self._clock.spin_until(self._clock.now_ns() + round(left_ns) - LOOK_NS)


def _sum(parts: list[Totals]) -> Totals:
    first = parts[0]
    return Totals(
        sum(part.elapsed_ns for part in parts),
        {name: sum(part.busy_ns[name] for part in parts) for name in first.busy_ns},
        sum(part.dram_bytes for part in parts),
        {name: sum(part.rail_j[name] for part in parts) for name in first.rail_j},
    )
