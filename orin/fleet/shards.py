"""Shards: samples cut by measured rate, given out, taken back, stolen at the tail; no sample lost or counted twice.

Pure bookkeeping: it knows neither Dask nor a clock, moments come in as arguments.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from orin.errors import OrinError

IN_HAND = 2  # shards of a board at a time: one under way, and the next, so that it never runs dry
FILE = re.compile(r"shard-(\d{12})-(\d{12})\.jsonl")


class Shard(NamedTuple):
    """Samples from `begin` to `end`."""

    begin: int
    end: int

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.end - self.begin

    @property
    def file(self) -> str:
        """Name of its answers' file: the same whoever answers it."""
        return f"shard-{self.begin:012d}-{self.end:012d}.jsonl"


@dataclass(frozen=True)
class Rules:
    """How shards are cut and when a board is given up.

    A shard takes about `slice_s`; the first one of a board holds `first_samples`. A board that needs `patience` times
    as long as expected, and `least_s` at least, is taken for hung. A shard that fails `attempts` times, or loses
    `losses` boards, fails the run; a board that fails twice in a row rests for `rest_s`.
    """

    slice_s: float = 10.0
    first_samples: int = 16
    least_samples: int = 4
    patience: float = 5.0
    least_s: float = 60.0
    attempts: int = 3
    losses: int = 5
    rest_s: float = 30.0
    in_hand: int = IN_HAND


@dataclass
class Hand:
    """What a board has in hand, the first of its shards under way since a moment, and how fast it has been."""

    per_s: float | None = None
    shards: list[Shard] = field(default_factory=list)
    since_s: float = 0.0
    failures: int = 0
    rests_until_s: float = 0.0
    hung: bool = False
    samples: int = 0
    busy_s: float = 0.0

    def expected_end_s(self, shard: Shard) -> float:
        """When one of its shards should be done; at once where its rate is unknown."""
        samples = sum(before.samples for before in self.shards[: self.shards.index(shard) + 1])
        return self.since_s + (samples / self.per_s if self.per_s else 0.0)


@dataclass
class Ledger:
    """Which samples are done, in hand or free. `done` are shards finished before this run."""

    total: int
    rules: Rules = Rules()
    done: Sequence[Shard] = ()
    hands: dict[str, Hand] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._done = sorted(self.done)
        self._free = _gaps(self.total, self._done)
        self._again: list[Shard] = []  # given back, and given out whole: who had one may still answer it
        self._attempts: dict[Shard, list[str]] = {}
        self._losses: Counter[Shard] = Counter()
        self.repeated = 0
        self.failed: dict[Shard, str] = {}

    @property
    def samples_done(self) -> int:
        """Samples with an answer."""
        return sum(shard.samples for shard in self._done)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to be done."""
        return self.samples_done + sum(shard.samples for shard in self.failed) == self.total

    @property
    def shards_done(self) -> tuple[Shard, ...]:
        """Finished shards in the order of their samples."""
        return tuple(self._done)

    def found(self, name: str) -> None:
        """Note that a board is there (again)."""
        hand = self.hands.setdefault(name, Hand())
        hand.hung = False

    def take(self, name: str, now_s: float) -> Shard | None:
        """Give a board its next shard: of the free samples, else one that another board would finish later."""
        hand = self.hands[name]
        most = self.rules.in_hand if hand.per_s else 1
        if len(hand.shards) >= most or hand.hung or now_s < hand.rests_until_s:
            return None
        shard = self._cut(hand) or self._steal(name, hand, now_s)
        if shard is not None:
            hand.since_s = hand.since_s if hand.shards else now_s
            hand.shards.append(shard)
        return shard

    def finish(self, name: str, shard: Shard, seconds: float, now_s: float) -> bool:
        """Note a finished shard; False where another board had finished it before."""
        hand = self.hands.setdefault(name, Hand())
        self._drop(hand, shard, now_s)
        hand.failures, hand.hung = 0, False
        rate = shard.samples / max(seconds, 1e-9)
        hand.per_s = rate if hand.per_s is None else 0.5 * (hand.per_s + rate)
        if shard in self._done:
            self.repeated += shard.samples
            return False
        if shard in self._again:
            self._again.remove(shard)
        self.failed.pop(shard, None)
        self._done.append(shard)
        self._done.sort()
        hand.samples += shard.samples
        hand.busy_s += seconds
        return True

    def fail(self, name: str, shard: Shard, reason: str, now_s: float) -> None:
        """Note a failed shard: it goes to another board, or is given up after enough boards."""
        hand = self.hands.setdefault(name, Hand())
        self._drop(hand, shard, now_s)
        hand.failures += 1
        if hand.failures >= 2:
            hand.rests_until_s = now_s + self.rules.rest_s
        tried = self._attempts.setdefault(shard, [])
        tried.append(name)
        if len(tried) >= self.rules.attempts and len(set(tried)) >= min(2, len(self.hands)):
            self.failed[shard] = f"{name}: {reason}"
            return
        self._return(shard)

    def lose(self, name: str) -> list[Shard]:
        """Note that a board is gone; its shards are free again."""
        hand = self.hands[name]
        shards, hand.shards = hand.shards, []
        for shard in shards:
            self._return(shard)
        if shards:
            self._count_loss(name, shards[0])
        return shards

    def overdue(self, now_s: float) -> list[str]:
        """Return the boards that take far too long, mark them as hung and free their shards."""
        late = [name for name, hand in self.hands.items() if hand.shards and now_s > self._limit_s(hand)]
        for name in late:
            self.lose(name)
            self.hands[name].hung = True
        return late

    def check(self) -> None:
        """Raise OrinError unless every sample is done exactly once."""
        if self.failed:
            shard, reason = next(iter(self.failed.items()))
            raise OrinError(f"{len(self.failed)} shards failed; {shard.file}, {reason}")
        edge = 0
        for shard in self._done:
            if shard.begin != edge:
                raise OrinError(f"samples {min(edge, shard.begin)} to {max(edge, shard.begin)} are lost or done twice")
            edge = shard.end
        if edge != self.total:
            raise OrinError(f"samples {edge} to {self.total} are lost")

    # -- inside -------------------------------------------------------------------------------------------------------

    def _limit_s(self, hand: Hand) -> float:
        expected_s = hand.expected_end_s(hand.shards[0]) - hand.since_s
        return hand.since_s + max(self.rules.least_s, self.rules.patience * expected_s)

    def _count_loss(self, name: str, shard: Shard) -> None:
        self._losses[shard] += 1
        if self._losses[shard] >= self.rules.losses and shard in self._again:
            self._again.remove(shard)
            self.failed[shard] = f"{self._losses[shard]} boards were lost over it, {name} the last"

    def _cut(self, hand: Hand) -> Shard | None:
        """Take a shard that was given back, else cut the next: a slice of time, but no more than half of the board's
        share of what is free."""
        if self._again:
            return self._again.pop(0)
        if not self._free:
            return None
        size = self.rules.first_samples
        if hand.per_s:
            rates = sum(other.per_s or hand.per_s for other in self.hands.values() if not other.hung)
            share = sum(shard.samples for shard in self._free) * hand.per_s / rates
            size = max(self.rules.least_samples, min(math.ceil(hand.per_s * self.rules.slice_s), math.ceil(share / 2)))
        first = self._free[0]
        shard = Shard(first.begin, min(first.end, first.begin + size))
        self._free[:1] = [Shard(shard.end, first.end)] if shard.end < first.end else []
        return shard

    def _steal(self, name: str, hand: Hand, now_s: float) -> Shard | None:
        """Take a second copy of the shard that ends last, where this board has nothing to do and would be sooner."""
        held = Counter(shard for other in self.hands.values() for shard in other.shards)
        ends_s = {
            shard: other.expected_end_s(shard)
            for key, other in self.hands.items()
            for shard in other.shards
            if key != name and other.per_s and held[shard] == 1
        }
        if not ends_s or hand.shards or not hand.per_s:
            return None
        last = max(ends_s, key=ends_s.__getitem__)
        return last if now_s + last.samples / hand.per_s < ends_s[last] else None

    def _drop(self, hand: Hand, shard: Shard, now_s: float) -> None:
        if shard in hand.shards:
            hand.shards.remove(shard)
            hand.since_s = now_s

    def _return(self, shard: Shard) -> None:
        held = any(shard in hand.shards for hand in self.hands.values())
        if shard not in self._done and shard not in self._again and not held:
            self._again.append(shard)


def shards_in(names: Iterable[str]) -> list[Shard]:
    """Return the shards whose files are there, by name; of overlapping ones the first."""
    found: list[Shard] = []
    for match in filter(None, map(FILE.fullmatch, sorted(names))):
        shard = Shard(int(match[1]), int(match[2]))
        if shard.end > shard.begin and (not found or shard.begin >= found[-1].end):
            found.append(shard)
    return found


def _gaps(total: int, done: Sequence[Shard]) -> list[Shard]:
    edges = [0, *(edge for shard in done for edge in shard), total]
    return [Shard(begin, end) for begin, end in zip(edges[::2], edges[1::2]) if end > begin]
