"""Drives the machine in its own time, as the pipeline drives a board: greedy, a ring of work items per accelerator."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from orin.plan import Plan
from orin.soc import GPU
from orin.virtual.machine import Machine, Totals
from orin.virtual.model import CostModel, EngineCost, EngineShape

WARM_ITEMS = 3  # work items of the slowest accelerator before the window of the steady state
STEADY_ITEMS = 4, 12  # the fewest and the most of them in the window, which holds about ENOUGH_ITEMS of the fastest
ENOUGH_ITEMS = 200


class Item:
    """One work item in flight: its samples and the enqueues still to come back."""

    __slots__ = ("accelerator", "samples", "open", "query_ns")

    def __init__(self, accelerator: str, samples: int, enqueues: int, query_ns: list[float] | None = None) -> None:
        self.accelerator = accelerator
        self.samples = samples
        self.open = enqueues
        self.query_ns = query_ns or []


class Crew:
    """The accelerators of a plan with their engines on a machine: takes samples as work items, gives items back."""

    def __init__(self, plan: Plan, model: CostModel, shapes: Mapping[str, EngineShape], machine: Machine) -> None:
        self.plan = plan
        self.machine = machine
        self.names = plan.accelerators
        self.in_flight = dict.fromkeys(self.names, 0)
        self.samples_in_flight = dict.fromkeys(self.names, 0)
        self.model = model
        self.shapes = shapes
        ends_in_topk = plan.tail == "gpu" and "cut-tail" in plan.rewrites  # unless the shapes say what follows
        self._topk = {name for name in self.names if ends_in_topk and name != GPU and shapes[name].tail is None}
        self._with_tail = lru_cache(maxsize=None)(self._add_tail)
        self._cost = lru_cache(maxsize=None)(lambda name, samples: model.cost(shapes[name], samples))

    def size(self, accelerator: str) -> int:
        """Samples of a full work item."""
        return self.plan.item_samples(accelerator)

    def batch(self, accelerator: str) -> int:
        """Samples of one enqueue."""
        return self.plan.gpu_batch if accelerator == GPU else self.plan.dla_batch

    def solo_rate(self, accelerator: str) -> float:
        """Samples per nanosecond of full work items, nothing else running."""
        batch = self.batch(accelerator)
        return batch / self.model.cost(self.shapes[accelerator], batch).solo_ns

    def is_free(self, accelerator: str) -> bool:
        """Say whether a slot is free."""
        return self.in_flight[accelerator] < self.plan.depth(accelerator)

    def issue(self, accelerator: str, samples: int, query_ns: list[float] | None = None) -> None:
        """Enqueue one work item, batch by batch."""
        batch = self.batch(accelerator)
        enqueues = -(-samples // batch)
        item = Item(accelerator, samples, enqueues, query_ns)
        for k in range(enqueues):
            cost = self._cost(accelerator, min(batch, samples - k * batch))
            if accelerator in self._topk and k == enqueues - 1:
                cost = self._with_tail(cost)
            self.machine.submit(accelerator, cost, item)
        self.in_flight[accelerator] += 1
        self.samples_in_flight[accelerator] += samples

    def _add_tail(self, cost: EngineCost) -> EngineCost:
        return replace(cost, segments=(*cost.segments, self.model.tail()))

    def collect(self, until_ns: float | None = None) -> list[Item]:
        """Let time pass until a moment (None: until something is finished) and return the finished items."""
        jobs = self.machine.finish_next() if until_ns is None else self.machine.advance(until_ns)
        done = []
        for job in jobs:
            item = job.tag
            assert isinstance(item, Item)
            item.open -= 1
            if not item.open:
                self.in_flight[item.accelerator] -= 1
                self.samples_in_flight[item.accelerator] -= item.samples
                done.append(item)
        return done


@dataclass
class Observed:
    """What a run in the machine's time showed: duration, samples by accelerator, query latencies, totals."""

    duration_ns: float
    samples: dict[str, float]
    latencies_ns: list[float]
    totals: Totals


class _Window:
    """The steady state: per accelerator its samples between first and last completion inside a window of time."""

    def __init__(self, machine: Machine, begin_ns: float, end_ns: float, anchor: str) -> None:
        self._machine = machine
        self._anchor = anchor
        self._begin_ns, self._end_ns = begin_ns, end_ns
        self._first_ns: dict[str, float] = {}
        self._last_ns: dict[str, float] = {}
        self._samples: dict[str, int] = {}
        self._readings: dict[bool, Totals] = {}

    def note(self, item: Item) -> None:
        """Take note of a finished item."""
        now_ns, name = self._machine.now_ns, item.accelerator
        if not self._begin_ns <= now_ns <= self._end_ns:
            return
        is_first = name not in self._first_ns
        if is_first:
            self._first_ns[name] = now_ns
        self._samples[name] = 0 if is_first else self._samples[name] + item.samples
        self._last_ns[name] = now_ns
        if name == self._anchor:  # whole items of the slowest accelerator bound the totals too
            self._readings[is_first] = self._machine.totals()

    def rates(self) -> dict[str, float]:
        """Samples per nanosecond by accelerator."""
        return {name: self._samples[name] / (self._last_ns[name] - self._first_ns[name]) for name in self._first_ns}

    def steady(self) -> Totals:
        """Totals of the window."""
        return self._readings[False].since(self._readings[True])


def offline(crew: Crew, samples: int | None, seconds: float, full: bool = False) -> Observed:
    """Answer one query of so many samples, or else of about so many seconds.

    All events are run, or the steady state is measured once and carried on.
    """
    rates = {name: crew.solo_rate(name) for name in crew.names}
    items_ns = {name: crew.size(name) / rates[name] for name in crew.names}
    slowest = max(items_ns, key=lambda name: items_ns[name])
    slowest_ns = items_ns[slowest]
    fewest, most = STEADY_ITEMS
    steady_items = min(most, max(fewest, ENOUGH_ITEMS * min(items_ns.values()) / slowest_ns))
    warm_ns, window_ns = WARM_ITEMS * slowest_ns, steady_items * slowest_ns
    # Enough for warm-up and window; the queue's last samples, where the accelerators end unevenly, are run as well.
    enough = int(sum(rates.values()) * (warm_ns + window_ns + 3 * slowest_ns)) + sum(map(crew.size, crew.names))
    asked = samples or max(1, round(seconds * sum(rates.values()) * 1e9))
    if full or asked <= enough:
        return _answer(crew, asked, rates, lambda item: None)
    window = _Window(crew.machine, warm_ns, warm_ns + window_ns, slowest)
    run = _answer(crew, enough, rates, window.note)
    rates = window.rates()
    extra_ns = (samples - enough) / sum(rates.values()) if samples else max(0.0, seconds * 1e9 - run.duration_ns)
    return _carried_on(run, extra_ns, rates, window.steady())


def _carried_on(run: Observed, extra_ns: float, rates: dict[str, float], steady: Totals) -> Observed:
    """Put a stretch of steady state into a run."""
    times = extra_ns / steady.elapsed_ns
    totals = Totals(
        run.totals.elapsed_ns + extra_ns,
        {name: ns + times * steady.busy_ns[name] for name, ns in run.totals.busy_ns.items()},
        run.totals.dram_bytes + times * steady.dram_bytes,
        {name: joules + times * steady.rail_j[name] for name, joules in run.totals.rail_j.items()},
    )
    samples = {name: count + extra_ns * rates.get(name, 0.0) for name, count in run.samples.items()}
    duration_ns = run.duration_ns + extra_ns
    return Observed(duration_ns, samples, [duration_ns], totals)


def _answer(crew: Crew, samples: int, rates: dict[str, float], note: Callable[[Item], None]) -> Observed:
    done: dict[str, float] = dict.fromkeys(crew.names, 0)
    waiting = samples
    start = crew.machine.totals()
    start_ns = crew.machine.now_ns
    left = samples
    while left:
        for name in crew.names:
            while waiting and crew.is_free(name) and (share := _share(crew, name, waiting, rates)):
                crew.issue(name, share)
                waiting -= share
        for item in crew.collect():
            done[item.accelerator] += item.samples
            left -= item.samples
            note(item)
    duration_ns = crew.machine.now_ns - start_ns
    return Observed(duration_ns, done, [duration_ns], crew.machine.totals().since(start))


def _share(crew: Crew, name: str, waiting: int, rates: dict[str, float]) -> int:
    """Samples that an accelerator takes now; at the tail it takes none that the others would finish earlier."""
    full = min(crew.size(name), waiting)
    others = [other for other in crew.names if other != name]
    queue_ns = (crew.samples_in_flight[name] + full) / rates[name]
    if not others or waiting > queue_ns * sum(rates.values()):  # far from the tail
        return full
    busy = crew.samples_in_flight[name]
    if name == GPU:  # its batch can be cut, so that all end together
        balanced_ns = (waiting + sum(crew.samples_in_flight.values())) / sum(rates.values())
        return min(full, max(int(balanced_ns * rates[name]) - busy, 0 if busy else 1))
    end_ns = (busy + crew.size(name)) / rates[name] * (1 - 1e-9)
    done = sum(_done_by(crew, other, end_ns * rates[other]) for other in others)
    return 0 if done >= waiting else full


def _done_by(crew: Crew, name: str, samples: float) -> int:
    unit = 1 if name == GPU else crew.size(name)
    return max(0, int((samples - crew.samples_in_flight[name]) // unit) * unit)


def stream(crew: Crew, queries: int, samples_per_query: int) -> Observed:
    """SingleStream and MultiStream: one query in flight, on the first accelerator."""
    name = crew.names[0]
    start, start_ns = crew.machine.totals(), crew.machine.now_ns
    latencies_ns = []
    for _ in range(queries):
        issued_ns = crew.machine.now_ns
        crew.issue(name, samples_per_query)
        while not crew.collect():
            pass
        latencies_ns.append(crew.machine.now_ns - issued_ns)
    samples = dict.fromkeys(crew.names, 0.0) | {name: float(queries * samples_per_query)}
    duration_ns = crew.machine.now_ns - start_ns
    return Observed(duration_ns, samples, latencies_ns, crew.machine.totals().since(start))


def server(crew: Crew, queries: int, per_s: float, seed: int) -> Observed:
    """Queries of one sample at Poisson arrivals; whoever has a free slot takes what waits, first come first served."""
    arrivals_ns = _poisson(queries, per_s, seed)
    done: dict[str, float] = dict.fromkeys(crew.names, 0)
    latencies_ns: list[float] = []
    at = taken = 0
    start, start_ns = crew.machine.totals(), crew.machine.now_ns
    while len(latencies_ns) < queries:
        now_ns = crew.machine.now_ns - start_ns
        while at < queries and arrivals_ns[at] <= now_ns:
            at += 1
        for name in crew.names:
            while taken < at and crew.is_free(name):
                count = min(crew.size(name), at - taken)
                crew.issue(name, count, arrivals_ns[taken : taken + count])
                taken += count
        next_ns = crew.machine.next_event_ns()
        if at < queries:
            next_ns = min(next_ns, start_ns + arrivals_ns[at])
        for item in crew.collect(next_ns):
            done[item.accelerator] += item.samples
            latencies_ns += [crew.machine.now_ns - start_ns - query_ns for query_ns in item.query_ns]
    return Observed(crew.machine.now_ns - start_ns, done, latencies_ns, crew.machine.totals().since(start))


def _poisson(queries: int, per_s: float, seed: int) -> list[float]:
    source = random.Random(seed)
    at_ns, arrivals_ns = 0.0, []
    for _ in range(queries):
        at_ns += source.expovariate(per_s) * 1e9
        arrivals_ns.append(at_ns)
    return arrivals_ns
