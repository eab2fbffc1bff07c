"""Energy since the start, kept up as readings come: what a live view shows without looking back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from power.boards import BoardFacts
from power.reading import Reading, module_mw


@dataclass
class Track:
    """One rail, or the module: trapezoids between its own readings, in stamps of the source."""

    first_ns: int
    last_ns: int
    now_mw: int
    joules: float = 0.0

    def take(self, stamp_ns: int, power_mw: int) -> None:
        """Go on to the next reading."""
        self.joules += (self.now_mw + power_mw) / 2e3 * (stamp_ns - self.last_ns) / 1e9
        self.last_ns, self.now_mw = stamp_ns, power_mw

    @property
    def mean_w(self) -> float:
        """Mean power since the first reading."""
        seconds = (self.last_ns - self.first_ns) / 1e9
        return self.joules / seconds if seconds > 0 else self.now_mw / 1e3


class RunningEnergy:
    """Every rail and the module since the first reading; without a board its rails must tell the kind of module."""

    def __init__(self, board: BoardFacts | None = None) -> None:
        self.rails: dict[str, Track] = {}
        self.module: Track | None = None
        self.last: Reading | None = None
        self.readings = 0
        self._board = board
        self._first_ns = self._last_ns = -1

    @property
    def span_ns(self) -> tuple[int, int]:
        """Stamps of the first and the last reading."""
        return self._first_ns, self._last_ns

    @property
    def seconds(self) -> float:
        """Time from the first reading to the last."""
        return (self._last_ns - self._first_ns) / 1e9

    def take(self, readings: Iterable[tuple[int, Reading]]) -> None:
        """Take the readings that are newer than those taken before."""
        for stamp_ns, reading in readings:
            if stamp_ns > self._last_ns:
                self._take(stamp_ns, reading)

    def _take(self, stamp_ns: int, reading: Reading) -> None:
        if self.last is None:
            self._first_ns = stamp_ns
        self.last, self._last_ns = reading, stamp_ns
        self.readings += 1
        for name, rail in reading.rails.items():
            self.rails[name] = _next(self.rails.get(name), stamp_ns, rail.now_mw)
        total_mw = module_mw(reading, self._board)
        if total_mw is not None:
            self.module = _next(self.module, stamp_ns, total_mw)


def _next(track: Track | None, stamp_ns: int, power_mw: int) -> Track:
    if track is None:
        return Track(stamp_ns, stamp_ns, power_mw)
    track.take(stamp_ns, power_mw)
    return track
