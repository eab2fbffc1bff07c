"""What an external meter saw during the window of a log: the wall's watts, set beside the module's, never mixed in.

The two were recorded by two programs, so their clocks decide which samples belong to the window. A run's log has the
monotonic clock, which its record ties to UTC; other logs have the board's local time, to a second.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from orin.errors import OrinError
from orin.record import load_record
from power.analysis import LogAnalysis
from power.external import Clock, WallEnergy, read_meter
from power.log import LONGEST_S, Stamps

RECORD, POWER_LOG = "record.json", "tegrastats.log"  # in a run's folder
SECOND_NS = 1_000_000_000


def wall_energy(meter: Path, log: Path, analysis: LogAnalysis, ahead_s: float = 0.0) -> WallEnergy:
    """Return what a meter's file says of an analysed window; `ahead_s` is how far its clock is ahead of the log's.

    PowerError where the file is none or saw nothing of the window, OrinError where the two have no clock in common.
    """
    if not abs(ahead_s) < LONGEST_S:
        raise OrinError(f"--meter-ahead is {ahead_s:g}, expected the seconds that the meter's clock is ahead")
    series = read_meter(meter)
    first_ns = _first_ns(series.clock, log, analysis.times)
    return series.during(first_ns + round(ahead_s * SECOND_NS), analysis.span_ns)


def _first_ns(clock: Clock, log: Path, times: Stamps) -> int:
    """Return when the log's first record was taken, by the meter's clock."""
    if times.clock is None:
        reason = times.reason or f"they are from {times.source}"
        raise OrinError(f"log {log} cannot be set beside a meter: its times are of no clock: {reason}")
    if clock == times.clock or (clock, times.clock) == ("utc", "local"):
        return times.first_ns
    if clock == "utc":
        return times.first_ns + _utc_minus_monotonic_ns(log.with_name(RECORD))
    raise OrinError(f"log {log} has wall-clock times and the meter a monotonic clock: give a meter's file in UTC")


def log_provenance(log: Path) -> str | None:
    """Return "measured" or "simulated" of a log in its run's folder, None for any other log."""
    if log.name != POWER_LOG:
        return None
    try:
        return str(load_record(log.with_name(RECORD))["provenance"])
    except OrinError:
        return None


def _utc_minus_monotonic_ns(path: Path) -> int:
    if not path.is_file():
        raise OrinError(f"{path} is not there, which ties a run's own stamps to UTC: give the log in its run's folder")
    record = load_record(path)
    return round(datetime.fromisoformat(record["utc"]).timestamp() * SECOND_NS) - int(record["monotonic_ns"])
