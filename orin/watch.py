"""Watching a board's power: its source while it runs, energy since the start, and one summary at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orin.board import Provenance
from orin.boards import DEFAULT_VIRTUAL, open_board
from orin.errors import OrinError
from orin.jetson.detect import Machine
from power.boards import BOARDS, BoardFacts
from power.errors import PowerError
from power.meter import Meter
from power.running import RunningEnergy
from power.source import Source
from power.sources import AUTO, running_source, this_board

REDRAW_S = 0.5
INTERVAL_MS = 500.0  # about the sensor's time constant: more readings say little more, and cost as much each


@dataclass(frozen=True)
class Request:
    """What to watch: a board (None: this one), a source of `power.sources`, for how long (None: until stopped).

    `interval_ms` is between readings; None: every 500 ms, or the virtual board's own.
    """

    board: str | None = None
    source: str = AUTO
    interval_ms: float | None = None
    seconds: float | None = None
    root: Path = Path("/")


@dataclass
class Watched:
    """A board under watch; `facts` is None for a Jetson that `power.boards` does not know."""

    board: str
    provenance: Provenance
    facts: BoardFacts | None
    source: Source
    energy: RunningEnergy = field(init=False)

    def __post_init__(self) -> None:
        self.energy = RunningEnergy(self.facts)

    def look(self) -> None:
        """Take what is new; PowerError where the source has failed."""
        self.source.check()
        self.energy.take(self.source.readings()[self.energy.readings :])

    def as_json(self) -> dict[str, Any]:
        """Return the summary: plain JSON values, with each joule's u95 where the board's sensors are known."""
        energy, last = self.energy, self.energy.last
        return {
            "board": self.board,
            "provenance": self.provenance,
            "source": self.source.name,
            "seconds": energy.seconds,
            "readings": energy.readings,
            "module_j": energy.module and energy.module.joules,
            "rails_j": {name: rail.joules for name, rail in energy.rails.items()},
            **self._with_u95(),
            "last": last and last.as_json(self.facts),
        }

    def _with_u95(self) -> dict[str, Any]:
        if self.facts is None:
            return {"energy": None, "energy_missing": "no known board: its sensors' steps and filters are not known"}
        try:  # no edge term: the joules above, which a view sums as readings come, have none either
            energy = Meter(self.facts, self.source).energy(*self.energy.span_ns, edge_term=False)
        except PowerError as error:  # too short, or with too many gaps: the joules above are all there is
            return {"energy": None, "energy_missing": str(error)}
        return {"energy": energy.as_json()}


@contextmanager
def watched(request: Request) -> Iterator[Watched]:
    """Start the source of a board; OrinError where this machine is no Jetson and no other board is named."""
    name = request.board or ""
    if name.startswith("virtual:"):
        if request.source not in (AUTO, "tegrastats") or request.interval_ms is not None:
            raise OrinError(f"--source and --interval choose what reads a real board; {name} has its own tegrastats")
        board = open_board(name, "speed")
        with board.meter() as meter:
            yield Watched(board.name, board.provenance, board.soc.board, meter.source)
        return
    facts = _facts(name, request.root)
    with running_source(request.source, request.interval_ms or INTERVAL_MS, request.root) as source:
        yield Watched(facts.name if facts else "unknown Jetson", "measured", facts, source)


def _facts(name: str, root: Path) -> BoardFacts | None:
    if name in ("", "jetson"):
        if not Machine(root).jetson:
            raise OrinError(f"this machine is no Jetson, so it has no rails to watch; try --board {DEFAULT_VIRTUAL}")
        return this_board(root)
    if name not in BOARDS:
        raise OrinError(f"--board is {name!r}, expected jetson, {', '.join(BOARDS)} or {DEFAULT_VIRTUAL}")
    return BOARDS[name]


def watch(request: Request, draw: Callable[[Watched], None]) -> Watched:
    """Watch until the time is over, or Ctrl-C; `draw` is called at most twice a second."""
    with watched(request) as board:
        board.look()
        begin_s = time.monotonic()
        try:
            while request.seconds is None or time.monotonic() < begin_s + request.seconds:
                time.sleep(_pause_s(request.seconds, begin_s))
                board.look()
                draw(board)
        except KeyboardInterrupt:  # how a view without an end is ended
            board.look()
        return board


def _pause_s(seconds: float | None, begin_s: float) -> float:
    left_s = REDRAW_S if seconds is None else begin_s + seconds - time.monotonic()
    return min(REDRAW_S, max(0.0, left_s))
