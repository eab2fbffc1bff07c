"""The self-test: build, run, measure, compare with the virtual board, and pack it all into one file to send back."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from calibration.errors import CalibrationError
from dla.errors import DlaError
from engines.errors import EngineError
from orin.bench import IDLE_S, Bench, bench, environment
from orin.board import Board
from orin.build import Desk, build_engines
from orin.check import check_engines, doubts
from orin.doctor import Fact
from orin.errors import OrinError
from orin.memory import fastest_memory
from orin.plan import Plan
from orin.record import RunRecord
from orin.results import Result, result
from power.errors import PowerError

VERSION = 1
SECONDS, QUICK_SECONDS = 60.0, 1.0
NETWORK, QUICK_NETWORK = "resnet50", "mobilenet-v2"
RAW_FILES = ("batches.csv", "tegrastats.log", "plan.yaml", "loadgen/mlperf_log_summary.txt")
EXPECTED = (OrinError, EngineError, DlaError, CalibrationError, PowerError)

Part = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One run of the self-test."""

    name: str
    plan: Plan
    scenario: str = "offline"


@dataclass(frozen=True)
class Selftest:
    """What to test on: a network, seconds a run and of idling before it, and where records go."""

    network: str = NETWORK
    seconds: float = SECONDS
    idle_s: float = IDLE_S
    runs: Path = Path("runs")


@dataclass(frozen=True)
class Outcome:
    """What came of it: plain values, and the records of the runs that were made."""

    values: dict[str, Any]
    records: list[RunRecord] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every part came to its end and the engines compute what their networks do."""
        parts = [*self.values["runs"], *self.values["checks"].values()]
        return not any(part.get("error") or part.get("doubts") for part in parts)


def cases(network: str) -> tuple[Case, ...]:
    """Return the runs: each kind of accelerator alone, all three, and the GPU with one sample at a time."""
    large = {"gpu_batch": 256, "dla_loop": 4} if network == NETWORK else {"gpu_batch": 16}
    plan = replace(Plan(network=network), **large)  # type: ignore[arg-type] # the fields are whole numbers
    gpu, dlas = replace(plan, dla_cores=0), replace(plan, gpu_batch=0)
    return (
        Case("GPU", gpu),
        Case("DLA0", replace(dlas, dla_cores=1)),
        Case("DLA0 + DLA1", dlas),
        Case("GPU + DLA0 + DLA1", plan),
        Case("GPU, single samples", replace(gpu, gpu_batch=1), "singlestream"),
    )


def selftest(test: Selftest, open_board: Callable[[], Board], desk: Desk, facts: Sequence[Fact]) -> Outcome:
    """Take every part; one that fails is kept as its error's line, and the others go on.

    `open_board` is asked for each run: a simulated board is a new one then, whose pace tells of that run alone.
    """
    board, everything = open_board(), cases(test.network)
    outcome = Outcome(_before(test, board, facts))
    whole = next(case.plan for case in everything if set(case.plan.accelerators) == set(board.soc.accelerators))
    if board.provenance == "measured":  # the virtual board is its own reference, and has one kind of memory
        for name, check in (("numbers", _numbers), ("memory", _memory)):
            desk.say(f"checking {name}")
            outcome.values["checks"][name] = _kept(name, desk, partial(check, whole, board, desk))
    for number, case in enumerate(everything, start=1):
        desk.say(f"run {number} of {len(everything)}: {case.name}")
        options = Bench(case.scenario, test.seconds, test.runs, idle_s=test.idle_s)
        ran = _kept(case.name, desk, partial(_run, case, open_board(), desk, options, outcome.records))
        outcome.values["runs"].append({"name": case.name, "scenario": case.scenario, **ran})
    return outcome


def _before(test: Selftest, board: Board, facts: Sequence[Fact]) -> dict[str, Any]:
    return {
        "version": VERSION,
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "provenance": board.provenance,
        "board": board.name,
        "network": test.network,
        "doctor": [asdict(fact) for fact in facts],
        "environment": _without(environment(), "command"),
        "checks": {},
        "runs": [],
    }


def _kept(name: str, desk: Desk, part: Callable[[], Part]) -> Part:
    try:
        return part()
    except EXPECTED as error:
        line = " ".join(str(error).split())
        desk.say(f"{name} failed: {line}")
        return {"error": line}


def _numbers(plan: Plan, board: Board, desk: Desk) -> Part:
    """Compare each engine's answers with ONNX Runtime's."""
    built = build_engines(plan, replace(desk, references=True), board.name)
    checked = check_engines(built, board, desk.photos)
    sqnr_db = {name: {key: _figure(value) for key, value in found.items()} for name, found in checked.items()}
    return {"sqnr_db": sqnr_db, "doubts": list(doubts(checked))}


def _figure(value_db: float) -> float | str:
    """JSON has no infinity."""
    return value_db if math.isfinite(value_db) else "equal" if value_db > 0 else "no signal"


def _memory(plan: Plan, board: Board, desk: Desk) -> Part:
    kind, seconds = fastest_memory(plan, board, build_engines(plan, desk, board.name).engines)
    return {"fastest": kind, "seconds": seconds}


def _run(case: Case, board: Board, desk: Desk, options: Bench, records: list[RunRecord]) -> Part:
    """Bench one case and set it beside what the virtual board expects."""
    record = bench(case.plan, board, desk, options)
    records.append(record)
    found, expected = result(record), record["prediction"]
    power, module = found["power_w"], expected["power_w"]["module"]
    return {
        "id": record["id"],
        "valid": found["valid"],
        "invalid_reasons": found["invalid_reasons"],
        "pace": record.values.get("pace"),
        "share": found["share"],
        "bytes_copied_per_sample": found["bytes_copied_per_sample"],
        "samples_per_s": _beside(found["samples_per_s"], expected["samples_per_s"], expected["samples_per_s_u95"]),
        "latency_p50_ms": None if case.scenario == "offline" else _latency(found, expected),
        "module_w": _beside(power["module"]["value"] if power and power["module"] else None, **_named(module)),
    }


def _latency(found: Result, expected: Mapping[str, Any]) -> Part:
    """The median of a query's latency; Offline has one query, as long as the run."""
    return _beside((found["latency_ms"] or {}).get("p50"), expected["latency_ms"]["p50"])


def _named(quantity: Mapping[str, float]) -> dict[str, float]:
    return {"expected": quantity["value"], "u95": quantity["u95"]}


def _beside(seen: float | None, expected: float, u95: float | None = None) -> Part:
    """Set what was seen beside what the virtual board expects, whose documented model error is `u95`."""
    off = None if seen is None or not expected else seen / expected - 1
    return {"seen": seen, "virtual": expected, "u95": u95, "off": off}


def pack(outcome: Outcome, path: Path) -> None:
    """Write the one file to send back: selftest.json and each run's record and raw data.

    Neither the names of machine, user and photos are in it, nor command lines.
    """
    part = path.with_name(f".{path.name}.part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in _contents(outcome):
            archive.writestr(name, text.replace(str(Path.home()), "~"))
    part.replace(path)


def _contents(outcome: Outcome) -> Iterator[tuple[str, str]]:
    yield "selftest.json", json.dumps(outcome.values, indent=1)
    for record in outcome.records:
        values = _without(record.values, "process")
        values["environment"] = _without(values["environment"], "command")
        values["data"] = {**values["data"], "sources": len(values["data"]["sources"]), "skipped": []}
        yield f"{record['id']}/record.json", json.dumps(values, indent=1)
        for name in RAW_FILES:
            file = record.folder / name
            if file.is_file():
                yield f"{record['id']}/{name}", file.read_text(encoding="utf-8", errors="replace")


def _without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}
