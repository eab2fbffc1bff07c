"""Sharded inference over a folder: shards go to boards by measured rate, and to others where a board is lost."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orin.errors import OrinError
from orin.fleet.crew import Crew, Event
from orin.fleet.inventory import Inventory
from orin.fleet.library import Library
from orin.fleet.shards import Ledger, Rules, Shard, shards_in
from orin.fleet.station import Job, Task
from orin.record import write_atomically

SUMMARY = "fleet.json"
VERSION = 1
POLL_S = 0.25
ALONE_S = 120.0  # how long a run waits with no board at all


def _quiet(*_: object) -> None:
    return None


@dataclass(frozen=True)
class Order:
    """What to answer and where to: a job, samples, and the folder for the answers."""

    job: Job
    library: Library
    output: Path
    rules: Rules = Rules()


@dataclass(frozen=True)
class Ears:
    """Who is told: messages, samples done of all, boards that are lost and found; and the clock."""

    say: Callable[[str], None] = _quiet
    progress: Callable[[str, int, int], None] = _quiet
    lost: Callable[[str], None] = _quiet
    found: Callable[[str], None] = _quiet
    clock: Callable[[], float] = time.monotonic


@dataclass
class _Seen:
    """A board's worker as it was last seen; `ready` once its engines are loaded, `refused` why they are not."""

    address: str
    ready: bool = False
    refused: str | None = None


class Run:
    """One run over a crew; `answer` does it all and returns the figures."""

    def __init__(self, order: Order, inventory: Inventory, crew: Crew, ears: Ears | None = None) -> None:
        self._order, self._inventory, self._crew = order, inventory, crew
        self._ears = ears or Ears()
        order.output.mkdir(parents=True, exist_ok=True)
        before = _finished_before(order)
        self.ledger = Ledger(order.library.total, order.rules, before)
        self._before = self.ledger.samples_done
        self._seen: dict[str, _Seen] = {}
        self._losses: dict[str, int] = {}
        self._skipped = 0
        self._pace: dict[str, str | None] = {}
        self._last_seen_s = self._ears.clock()

    def answer(self) -> dict[str, Any]:
        """Answer every sample; OrinError where that cannot be done, and what was answered is kept."""
        begin_s = self._ears.clock()
        while not self.ledger.finished:
            self.step()
        self.ledger.check()
        self._check_files()
        summary = self._summary(self._ears.clock() - begin_s)
        write_atomically(self._order.output / SUMMARY, json.dumps({**_identity(self._order), "run": summary}, indent=1))
        return summary

    def step(self) -> None:
        """Look who is there, give out shards, and take what comes back."""
        now_s = self._ears.clock()
        self._look(self._crew.present(), now_s)
        for name in self.ledger.overdue(now_s):
            self._ears.say(f"{name} takes far longer than expected: its shard goes to another board")
            self._count_loss(name)  # its answer still counts if it comes
        self._give(now_s)
        for event in self._crew.events(POLL_S):
            self._take(event)
        self._ears.progress("samples", self.ledger.samples_done, self.ledger.total)

    # -- who is there -------------------------------------------------------------------------------------------------

    def _look(self, present: Mapping[str, str], now_s: float) -> None:
        known = {name: address for name, address in present.items() if self._is_member(name)}
        for name in list(self._seen):
            if known.get(name) != self._seen[name].address:
                self._ears.say(f"{name} is lost")
                if not self.ledger.hands[name].hung:
                    self._count_loss(name)
                self._crew.forget(name)
                del self._seen[name]
                self.ledger.lose(name)
        for name, address in known.items():
            if name not in self._seen:
                self._seen[name] = _Seen(address)
                self.ledger.found(name)
                self._ears.found(name)
                self._crew.open(name, address, self._order.job)
        self._check_alone(now_s)

    def _is_member(self, name: str) -> bool:
        return any(member.name == name for member in self._inventory.members)

    def _count_loss(self, name: str) -> None:
        self._losses[name] = self._losses.get(name, 0) + 1
        self._ears.lost(name)

    def _check_alone(self, now_s: float) -> None:
        refusals = [f"{name}: {seen.refused}" for name, seen in self._seen.items() if seen.refused]
        if refusals and len(refusals) == len(self._inventory.members):
            raise OrinError(f"no board can open the plan; {refusals[0]}")
        if any(not seen.refused for seen in self._seen.values()):
            self._last_seen_s = now_s
        elif now_s - self._last_seen_s > ALONE_S:
            reason = f"; {refusals[0]}" if refusals else ""
            raise OrinError(f"no board has been there for {ALONE_S:.0f} s{reason}: run again once one is, it goes on")

    # -- shards -------------------------------------------------------------------------------------------------------

    def _give(self, now_s: float) -> None:
        library, order = self._order.library, self._order
        for name, seen in self._seen.items():
            while seen.ready and (shard := self.ledger.take(name, now_s)) is not None:
                own = self._inventory.member(name).output
                output = Path(own) if own else order.output.resolve()
                spans = library.spans(*shard)
                self._crew.answer(
                    name, seen.address, Task(shard, library.folder.resolve(), library.kind, spans, output)
                )

    def _take(self, event: Event) -> None:
        seen = self._seen.get(event.name)
        if event.task is None:
            if seen is not None and seen.address == event.address:
                self._opened(event, seen)
        elif event.answered is not None:  # an answer counts, however late and from whom
            if self.ledger.finish(event.name, event.task.shard, event.answered.seconds, self._ears.clock()):
                self._skipped += event.answered.skipped
                self._pace[event.name] = event.answered.pace
        elif seen is not None and seen.address == event.address:
            self._ears.say(f"{event.name}: {event.error}")
            self.ledger.fail(event.name, event.task.shard, event.error or "", self._ears.clock())
            if seen.ready:  # where an accelerator failed, its pipeline is closed
                seen.ready = False
                self._crew.open(event.name, seen.address, self._order.job)

    def _opened(self, event: Event, seen: _Seen) -> None:
        seen.ready, seen.refused = event.error is None, event.error
        if event.error is not None:
            self._ears.say(f"{event.name} cannot open the plan: {event.error}")

    # -- the end ------------------------------------------------------------------------------------------------------

    def _check_files(self) -> None:
        """What is said to be done is in the folder, but for boards with a folder of their own."""
        if any(member.output for member in self._inventory.members):
            return
        missing = [shard.file for shard in self.ledger.shards_done if not (self._order.output / shard.file).is_file()]
        if missing:
            raise OrinError(
                f"{len(missing)} shards were answered and are not in {self._order.output} ({missing[0]}): the boards "
                "do not see this folder; share it, or give each an `output` in the inventory"
            )

    def _timed(self) -> bool:
        """Whether rates mean anything: a virtual board that computes its answers has the speed of its host."""
        boards = {member.board for member in self._inventory.members}
        return self._order.job.purpose == "speed" or boards == {"jetson"}

    def _summary(self, seconds: float) -> dict[str, Any]:
        done = self.ledger.total - self._before
        hands = dict(sorted(self.ledger.hands.items()))
        timed = self._timed()
        rates = {name: hand.samples / hand.busy_s for name, hand in hands.items() if timed and hand.busy_s}
        boards = {
            name: {
                "samples": hand.samples,
                "samples_per_s": rates.get(name),
                "losses": self._losses.get(name, 0),
                "pace": self._pace.get(name),
            }
            for name, hand in hands.items()
        }
        return {
            "samples": self.ledger.total,
            "done_before": self._before,
            "skipped": self._skipped,
            "repeated": self.ledger.repeated,
            "seconds": seconds,
            "samples_per_s": done / seconds if timed and seconds > 0 and done else None,
            "boards": boards,
            "spread": spread(list(rates.values())),
        }


def spread(rates_per_s: list[float]) -> dict[str, float] | None:
    """Return how boards differ: mean, coefficient of variation, slowest and fastest over the mean; None for one."""
    if len(rates_per_s) < 2:
        return None
    mean = statistics.mean(rates_per_s)
    return {
        "mean": mean,
        "cv": statistics.stdev(rates_per_s) / mean,
        "slowest": min(rates_per_s) / mean,
        "fastest": max(rates_per_s) / mean,
    }


def _identity(order: Order) -> dict[str, Any]:
    job = order.job
    return {
        "version": VERSION,
        "library": order.library.digest,
        "plan": job.plan.as_json(),
        "purpose": job.purpose,
    }


def _finished_before(order: Order) -> list[Shard]:
    """Return the shards that the folder holds; OrinError where they are another run's."""
    path, wanted = order.output / SUMMARY, _identity(order)
    found = shards_in(entry.name for entry in order.output.iterdir())
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        kept = None if found else wanted
    except (OSError, ValueError) as error:
        raise OrinError(f"{path} cannot be read ({error}): name another folder") from None
    differing = [key for key in wanted if not isinstance(kept, dict) or kept.get(key) != wanted[key]]
    if differing:
        raise OrinError(f"{order.output} holds answers of another run ({differing[0]} differs): name another folder")
    write_atomically(path, json.dumps(kept, indent=1))
    return found
