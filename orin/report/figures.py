"""What a run says, row by row: the one list that the table of `orin show` and the report print."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orin.mlperf import OFFICIAL_SECONDS, SCENARIOS
from orin.record import FLUSH_S, RunRecord
from orin.report.text import milliseconds, number, percent, quantity
from orin.results import Result
from orin.roofline import Roofline
from orin.scenario import ScenarioSettings
from orin.soc import SOCS, Soc

STALE_S = 5 * FLUSH_S  # a run that lives writes record.json each FLUSH_S

_CROP = re.compile(r"#\d+$")  # what follows a photo's path for its second crop and on

Row = tuple[str, str]


def soc_of(record: RunRecord) -> Soc | None:
    """Return the SoC of a run's board; None where its facts are not known."""
    return SOCS.get(record.values.get("soc", ""))


def ceiling(record: RunRecord) -> Roofline | None:
    """Return the roofline that was kept with a run; None where there is none."""
    kept = record.values.get("prediction", {}).get("ceiling")
    found = Roofline(**kept) if kept else None
    return found if found and found.samples_per_s else None


def state(record: RunRecord, now_s: float | None = None) -> str:
    """Return finished, failed, running, or interrupted.

    A run that says it runs is interrupted when its process is gone, or, on another machine, when it has stopped
    writing (`now_s`: POSIX time).
    """
    status: str = record["status"]
    if status != "running":
        return status
    process = record.values.get("process", {})
    if process.get("host") == platform.node():
        return "running" if _alive(process["pid"]) else "interrupted"
    written_s = (record.folder / "record.json").stat().st_mtime
    now_s = time.time() if now_s is None else now_s
    return "interrupted" if now_s - written_s > STALE_S else "running"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def samples_measured(record: RunRecord) -> int:
    """Return how many samples the finished work items answered."""
    return sum(batch.samples for batch in record.batches)


def state_line(record: RunRecord) -> str | None:
    """Return the one line that an unfinished run needs; None for a finished one."""
    found = state(record)
    if found == "finished":
        return None
    cause = f" ({record.values['error']})" if record.values.get("error") else ""
    return f"{found}{cause}: {samples_measured(record):,} samples measured"


def run_title(record: RunRecord) -> str:
    """Return what was run, on what, in a few words."""
    scenario = SCENARIOS.get(record["scenario"], record["scenario"])
    accuracy = ", accuracy" if record["mode"] == "accuracy" else ""
    return f"{record['network']['name']}, {scenario}{accuracy}, {record['board']} ({record['stack']})"


def ceiling_line(record: RunRecord, figures: Result) -> str | None:
    """Return the ceiling, and how much of it was reached, in one line; None where there is none."""
    found, reached = ceiling(record), figures["samples_per_s"]
    limit = found.samples_per_s if found else None
    if found is None or limit is None:
        return None
    text = f"{number(limit, 'samples/s')} ({found.bound} bound)"
    return f"{text}; {percent(reached / limit)} reached" if reached and _timed(record) else text


def rows(record: RunRecord, figures: Result) -> list[Row]:
    """Return label and text of every figure that the run has; `figures` is its `orin.results.result`."""
    texts = ((label, write(record, figures)) for label, write in _ROWS.items())
    return [(label, text) for label, text in texts if text]


def _timed(record: RunRecord) -> bool:
    """Accuracy runs report no speed."""
    return bool(record["mode"] == "performance")


def _throughput(record: RunRecord, found: Result) -> str | None:
    if not _timed(record):
        return "none: accuracy runs report no speed"
    return number(found["samples_per_s"], "samples/s") if found["samples_per_s"] else None


def _predicted(record: RunRecord, found: Result) -> str | None:
    prediction, seen = record.values.get("prediction"), found["samples_per_s"]
    if not prediction or not seen or not _timed(record):
        return None
    expected = prediction["samples_per_s"]
    return f"{number(expected, 'samples/s')} by the virtual Orin; this run {seen / expected - 1:+.1%}"


def _latency(record: RunRecord, found: Result) -> str | None:
    latency = found["latency_ms"]
    if latency is None or not _timed(record):
        return None
    if record["scenario"] == "offline":
        return f"{milliseconds(latency['mean'])}: Offline is one query"
    return ", ".join(f"{name} {milliseconds(value)}" for name, value in latency.items()) + " a query"


def _module(record: RunRecord, found: Result) -> str | None:
    if found["power_w"]:
        return quantity(found["power_w"]["module"], "W")
    missing = record.values.get("power_missing")
    return f"not measured: {missing}" if missing else None


def _rails(record: RunRecord, found: Result) -> str | None:
    rails = found["power_w"]["rails"] if found["power_w"] else {}
    return ", ".join(f"{name} {quantity(watts, 'W')}" for name, watts in rails.items())


def _efficiency(record: RunRecord, found: Result) -> str | None:
    efficiency = found["samples_per_joule"]
    return quantity(efficiency, "samples/J") if efficiency and _timed(record) else None


def _share(record: RunRecord, found: Result) -> str:
    return ", ".join(f"{name} {percent(share)}" for name, share in found["share"].items() if share)


def _loadgen(record: RunRecord, found: Result) -> str | None:
    if found["valid"] is None:
        return None
    verdict = "VALID" if found["valid"] else "INVALID: " + "; ".join(found["invalid_reasons"] or ["no reason given"])
    return verdict + short_note(record)


def short_note(record: RunRecord) -> str:
    """Return the remark that MLPerf would call the run too short; empty where it would not."""
    settings = record.values.get("settings")
    if not settings or not ScenarioSettings(**settings).short:
        return ""
    return f" (short run of {settings['seconds']:g} s: MLPerf asks for {OFFICIAL_SECONDS} s)"


def _copied(record: RunRecord, found: Result) -> str | None:
    copied, sample = found["bytes_copied_per_sample"], record.values.get("sample_bytes")
    if copied is None:
        return None
    of = f" (a sample has {sample:,})" if isinstance(sample, int) else ""
    return f"{number(copied)} bytes a sample{of}"


def _photos(record: RunRecord, found: Result) -> str | None:
    data: dict[str, Any] = record.values.get("data", {})
    if not data:
        return None
    skipped = [f"{Path(item['source']).name} ({item['reason']})" for item in data["skipped"]]
    more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    tail = f"; {len(skipped)} skipped: {', '.join(skipped[:3])}{more}" if skipped else "; none skipped"
    photos = {_CROP.sub("", source) for source in data["sources"]}
    return f"{data['samples']:,} samples from {len(photos):,} photos{tail}"


def _network(record: RunRecord, found: Result) -> str:
    weights, macs = record["network"]["weights"], record["network"].get("macs")
    size = f"{macs / 1e9:.3f} GMACs a sample, " if macs else ""
    return f"{size}weights {weights}" + (
        ": answers mean nothing, no labels are shown" if "untrained" in weights else ""
    )


def _pace(record: RunRecord, found: Result) -> str | None:
    pace: str | None = record.values.get("pace")
    return pace


_ROWS: dict[str, Callable[[RunRecord, Result], str | None]] = {
    "state": lambda record, _: state_line(record),
    "throughput": _throughput,
    "ceiling": ceiling_line,
    "predicted": _predicted,
    "latency": _latency,
    "share": _share,
    "module power": _module,
    "rails": _rails,
    "efficiency": _efficiency,
    "LoadGen": _loadgen,
    "pace": _pace,
    "copied": _copied,
    "photos": _photos,
    "network": _network,
}
