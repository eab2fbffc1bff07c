"""What a meter reads from, and what is known about the chips behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from power.reading import Reading

# TI SBOS576: 140 us is the shortest conversion, one each of bus and shunt; NVIDIA's setting, see `power.boards`.
SHORTEST_CYCLE_MS = 2 * 0.140


@dataclass(frozen=True)
class ChipFilter:
    """Settings of an INA3221 as its driver states them: `samples` averaged, channels that are on.

    It is no mean but an exponential filter (TI SBOS576, 7.4.1): each cycle moves the shown value by 1 / samples of
    the way.
    """

    chip: str
    samples: int
    update_interval_ms: float
    channels: int

    @property
    def tau_s(self) -> float:
        """Time constant of the filter.

        Before Linux 5.14 `update_interval` is the time of all samples, since then of one cycle; either in whole ms,
        so that a cycle of 0.84 ms reads as 1.
        """
        shortest_ms = self.channels * SHORTEST_CYCLE_MS
        if self.update_interval_ms >= int(self.samples * shortest_ms) > 0:
            return self.update_interval_ms / 1000
        is_shortest = abs(self.update_interval_ms - shortest_ms) <= 0.5
        return self.samples * (shortest_ms if is_shortest else self.update_interval_ms) / 1000


class Source(Protocol):
    """Where a meter's readings come from; `filters` by rail, empty where the chips' settings are not known."""

    @property
    def name(self) -> str:
        """What is read, e.g. a command."""

    @property
    def filters(self) -> Mapping[str, ChipFilter]:
        """Filter of each rail whose chip has been asked."""

    def readings(self) -> list[tuple[int, Reading]]:
        """Return all readings so far and their stamps in ns, oldest first."""

    def check(self) -> None:
        """Raise PowerError if the source has failed."""
