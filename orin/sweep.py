"""Measuring what the user lists: power modes times plans, each run a record, all in one folder that can be resumed.

Every run begins near the temperature of the first one, where the board tells its temperatures; a run whose clocks fell
while they were busy, or were not the ones asked for, is flagged and not chosen.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from calibration.errors import CalibrationError
from dla.errors import DlaError
from engines.errors import EngineError
from orin.bench import Bench, bench
from orin.board import Board, close_board
from orin.build import Desk
from orin.errors import OrinError
from orin.outcome import Candidate, Outcome, Start, flags_of
from orin.plan import Plan
from orin.record import RunRecord, load_record, write_atomically
from power.errors import PowerError
from power.reading import Reading

LEDGER = "sweep.json"
VERSION = 1
_FAILURES = (OrinError, PowerError, EngineError, DlaError, CalibrationError)


@dataclass(frozen=True)
class Thermal:
    """When a board is cool enough: within `margin_c` of the first run's start, or after `patience_s`."""

    margin_c: float = 3.0
    patience_s: float = 300.0
    poll_s: float = 2.0
    sleep: Callable[[float], None] = time.sleep


def candidates(plans: Sequence[tuple[str, Plan]], modes: Sequence[str]) -> tuple[Candidate, ...]:
    """Return every plan in every mode; without modes the plans as they are, of equal ones the first."""
    asked = [(mode, name, plan) for mode in modes or (None,) for name, plan in plans]
    found = [
        Candidate(f"{mode} {name}", replace(plan, mode=mode, clocks_mhz=None)) if mode else Candidate(name, plan)
        for mode, name, plan in asked
    ]
    return tuple(one for at, one in enumerate(found) if all(one.plan != other.plan for other in found[:at]))


@dataclass(frozen=True)
class Site:
    """Where a sweep measures: a fresh board for each run, what builds for it, and the thermal state to begin with."""

    open_board: Callable[[], Board]
    desk: Desk
    thermal: Thermal = Thermal()

    @contextmanager
    def board(self) -> Iterator[Board]:
        """Open the board for one run, and close it."""
        board = self.open_board()
        try:
            yield board
        finally:
            close_board(board)


def sweep(wanted: Sequence[Candidate], site: Site, options: Bench) -> Iterator[Outcome]:
    """Measure candidates in turn and yield what came of each; `options.runs` is the sweep's folder.

    Runs that the folder already holds are not measured again. A candidate that fails is an outcome, too. Each run
    opens the board anew: TPCs cannot be switched while the GPU is in use.
    """
    ledger = _Ledger(options.runs)
    for number, candidate in enumerate(wanted, 1):
        with site.board() as board:
            digest = digest_of(candidate.plan, board, options)
            known = ledger.find(digest)
            if known is not None:
                site.desk.say(f"{candidate.name}: measured before, {known[0].folder}")
            try:
                record, start = known or _measure(candidate, board, site, _Job(options, ledger.first_c))
            except _FAILURES as error:  # the others are worth measuring all the same
                site.desk.say(f"{candidate.name}: {error}")
                yield Outcome(number, candidate, None, None, failure=str(error))
                continue
            if known is None:
                ledger.add(digest, record, start)
            yield Outcome(number, candidate, record, start, flags_of(record, board.soc))


@dataclass(frozen=True)
class _Job:
    options: Bench
    first_c: float | None


def _measure(candidate: Candidate, board: Board, site: Site, job: _Job) -> tuple[RunRecord, Start]:
    start = cool_down(board, job.first_c, site.thermal, site.desk.say)
    return bench(candidate.plan, board, site.desk, job.options), start


def digest_of(plan: Plan, board: Board, options: Bench) -> str:
    """Return what tells a run from others: plan, contents of its files, board, scenario and length."""
    files = {name: _content(path) for name in ("weights", "calibration") if (path := getattr(plan, name))}
    values = {
        "plan": plan.as_json(),
        "files": files,
        "board": board.name,
        "soc": board.soc.name,
        "scenario": options.scenario,
        "seconds": options.seconds,
        "qps": options.server_qps,
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _content(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return "missing"  # which the build says better


class _Ledger:
    """Which runs a sweep's folder holds, by digest; written after each run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / LEDGER
        self._runs: dict[str, dict[str, Any]] = self._load()

    @property
    def first_c(self) -> float | None:
        """The temperature that the first run began with."""
        return next((run["start"]["hottest_c"] for run in self._runs.values()), None)

    def find(self, digest: str) -> tuple[RunRecord, Start] | None:
        """Return a finished run; None where there is none, or it was deleted."""
        run = self._runs.get(digest)
        if run is None:
            return None
        try:
            record = load_record(self._folder / run["run"])
        except OrinError:
            return None
        return (record, Start(**run["start"])) if record.finished else None

    def add(self, digest: str, record: RunRecord, start: Start) -> None:
        """Note a run."""
        self._runs[digest] = {"run": record.folder.name, "start": asdict(start)}
        write_atomically(self._path, json.dumps({"version": VERSION, "runs": self._runs}, indent=1))

    def _load(self) -> dict[str, dict[str, Any]]:
        try:
            values = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise OrinError(f"sweep {self._path} cannot be read: {error}; name another folder with --out") from None
        if not isinstance(values, dict) or values.get("version") != VERSION or not isinstance(values.get("runs"), dict):
            raise OrinError(f"sweep {self._path} is no sweep of version {VERSION}; name another folder with --out")
        runs: dict[str, dict[str, Any]] = values["runs"]
        return runs


def cool_down(board: Board, first_c: float | None, thermal: Thermal, say: Callable[[str], None]) -> Start:
    """Wait until the board is near the temperature that the first run began with (None: this is the first)."""
    waited_s = 0.0
    with board.meter() as meter:
        now_c = hottest_c(meter.source.readings()[-1][1])
        limit_c = math.inf if first_c is None else first_c + thermal.margin_c
        if now_c is not None and now_c > limit_c:
            say(f"hottest zone at {now_c:.1f} °C: waiting for {limit_c:.1f} °C")
        while now_c is not None and now_c > limit_c and waited_s < thermal.patience_s:
            thermal.sleep(thermal.poll_s)
            waited_s += thermal.poll_s
            meter.check()
            now_c = hottest_c(meter.source.readings()[-1][1])
    return Start(now_c, waited_s)


def hottest_c(reading: Reading) -> float | None:
    """Return the temperature of the hottest zone; None where no zone is on, or none is printed."""
    zones = [zone.now_c for name, zone in reading.temperatures_c.items() if zone is not None and name != "PMIC"]
    return max(zones, default=None)
