"""A closed/edge submission tree from own runs on a board; what no run can say comes from a file that the user writes.

Simulated runs are refused, and so is everything of the module's power: MLPerf's power comes from PTDaemon alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from engines.cache import write_atomically
from orin.errors import OrinError
from orin.export.mlperf_rules import (
    ACCURACY_LOG_BYTES,
    BENCHMARKS,
    LOGS,
    MEASUREMENTS,
    MIN_DURATION_MS,
    SYSTEM_PRESENT,
    SYSTEM_SAYING,
    TEST_FILES,
    VIEWABLE_BYTES,
)
from orin.mlperf import SCENARIOS
from orin.record import RunRecord, load_record

Files = dict[str, bytes]


@dataclass(frozen=True)
class ScenarioRuns:
    """The runs of one scenario: `performance` and `accuracy` are run folders, `accuracy_txt` what MLPerf's accuracy
    script printed, `compliance` the results of run_verification.py by test."""

    performance: Path
    accuracy: Path
    accuracy_txt: Path
    compliance: Mapping[str, Path]


@dataclass(frozen=True)
class Submission:
    """What a submission file says; paths are relative to it.

    `system` holds the fields of systems/<name>.json, `measurements` those of measurements.json; `src` is the folder of
    the code that ran, `readme` and `calibration` are documents.
    """

    submitter: str
    name: str
    benchmark: str
    system: Mapping[str, Any]
    measurements: Mapping[str, Any]
    src: Path
    readme: Path
    calibration: Path
    runs: Mapping[str, ScenarioRuns]


def load_submission(path: Path) -> Submission:
    """Read a submission file (YAML); OrinError says what it lacks."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OrinError(f"submission {path} cannot be read: {' '.join(str(error).split())}") from None
    names = [field.name for field in fields(Submission)]
    wrong = [name for name in names if not isinstance(values, dict) or not values.get(name)]
    if wrong or set(values) - set(names):
        raise OrinError(
            f"submission {path} {'lacks ' + wrong[0] if wrong else 'has unknown fields'}; fields are {', '.join(names)}"
        )
    if values["benchmark"] not in BENCHMARKS:
        raise OrinError(
            f"submission {path}: benchmark is {values['benchmark']!r}, expected one of {', '.join(BENCHMARKS)}"
        )
    for name in ("submitter", "name"):
        if not isinstance(values[name], str) or "/" in values[name] or values[name].startswith("."):
            raise OrinError(f"submission {path}: {name} is {values[name]!r}, expected a name for a folder")
    at = path.parent
    documents = {name: at / str(values[name]) for name in ("src", "readme", "calibration")}
    runs = {str(name): _runs(at, path, str(name), entry) for name, entry in values["runs"].items()}
    return Submission(**{**values, **documents, "runs": runs})


def export_mlperf(submission: Submission, root: Path) -> list[Path]:
    """Write the tree below `root`; nothing is written where a run cannot stand in it. Returns the files."""
    base = f"closed/{submission.submitter}"
    files: Files = {f"{base}/systems/{submission.name}.json": _json(_system(submission))}
    for source, name in ((submission.readme, "README.md"), (submission.calibration, "calibration.md")):
        files[f"{base}/documentation/{name}"] = _read(source)
    files |= _folder(submission.src, f"{base}/src")
    for scenario, runs in submission.runs.items():
        place = f"{base}/results/{submission.name}/{submission.benchmark}/{scenario}"
        files |= {f"{place}/{name}": data for name, data in _scenario(submission, scenario, runs).items()}
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(root / name, data)
    return [root / name for name in files]


def truncated(log: bytes) -> tuple[bytes, str]:
    """Return an accuracy log as it may be submitted, its first and last 4 KiB, and the SHA-256 of all of it."""
    digest = hashlib.sha256(log).hexdigest()
    if len(log) <= ACCURACY_LOG_BYTES:
        return log, digest
    return b"\n\n...\n\n".join((log[:VIEWABLE_BYTES], log[-VIEWABLE_BYTES:])), digest


def user_conf(record: RunRecord, benchmark: str, scenario: str) -> str:
    """Return `user.conf` with the settings that a run had."""
    settings = record["settings"]
    expected = float(settings["expected"])
    streams = scenario in ("SingleStream", "MultiStream")
    goal = f"target_latency = {expected * 1e3:.6g}" if streams else f"target_qps = {expected:.6g}"
    lines = [goal, f"min_duration = {round(float(settings['seconds']) * 1000)}"]
    return "".join(f"{benchmark}.{scenario}.{line}\n" for line in lines)


# -- one scenario -----------------------------------------------------------------------------------------------------


def _scenario(submission: Submission, scenario: str, runs: ScenarioRuns) -> Files:
    performance = _record(runs.performance, scenario, "performance")
    accuracy = _record(runs.accuracy, scenario, "accuracy")
    if float(performance["settings"]["seconds"]) * 1000 < MIN_DURATION_MS:
        asked = f"{performance['settings']['seconds']:g} s"
        raise OrinError(f"run {runs.performance} asked for {asked}, MLPerf for 600: orin bench --seconds 600")
    log, digest = truncated(_read(accuracy.folder / "loadgen" / "mlperf_log_accuracy.json"))
    files: Files = {
        "measurements.json": _json({name: submission.measurements.get(name, "") for name in MEASUREMENTS}),
        "user.conf": user_conf(performance, submission.benchmark, scenario).encode(),
        "README.md": _read(submission.readme),
        "accuracy/mlperf_log_accuracy.json": log,
        "accuracy/accuracy.txt": _read(runs.accuracy_txt).rstrip() + f"\nhash={digest}\n".encode(),
    }
    for name in LOGS:
        files[f"accuracy/{name}"] = _read(accuracy.folder / "loadgen" / name)
        files[f"performance/run_1/{name}"] = _read(performance.folder / "loadgen" / name)
    for test, folder in runs.compliance.items():
        files |= {f"{test}/{name}": _read(folder / name) for name in TEST_FILES.get(test, ())}
    return files


def _record(folder: Path, scenario: str, mode: str) -> RunRecord:
    """Return a run that may stand in a submission; OrinError says why not."""
    record = load_record(folder)
    if record["provenance"] != "measured":
        raise OrinError(
            f"run {folder} is {record['provenance']} ({record['board']}): MLPerf takes runs on a board alone"
        )
    if not record.finished:
        raise OrinError(f"run {folder} has the status {record['status']}, expected a finished one")
    seen = SCENARIOS.get(record["scenario"], record["scenario"])
    if seen != scenario or record["mode"] != mode:
        raise OrinError(f"run {folder} is {seen} {record['mode']}, expected {scenario} {mode}")
    if mode == "performance" and not record.values.get("valid"):
        reasons = "; ".join(record.values.get("invalid_reasons", [])) or "LoadGen gives no reason"
        raise OrinError(f"run {folder} is not valid: {reasons}")
    return record


def _system(submission: Submission) -> dict[str, Any]:
    """Return the system's fields: the user's, those that are given, and the others empty, which the check names."""
    given = {"division": "closed", "system_type": "edge", "submitter": submission.submitter}
    empty = dict.fromkeys((*SYSTEM_SAYING, *SYSTEM_PRESENT), "")
    return {**empty, "system_name": submission.name, **submission.system, **given}


def _runs(at: Path, path: Path, scenario: str, values: Any) -> ScenarioRuns:
    names = [field.name for field in fields(ScenarioRuns)]
    if scenario not in SCENARIOS.values():
        raise OrinError(f"submission {path}: scenario is {scenario!r}, expected one of {', '.join(SCENARIOS.values())}")
    if not isinstance(values, dict) or set(values) != set(names) or not isinstance(values["compliance"], dict):
        raise OrinError(
            f"submission {path}: {scenario} has to name {', '.join(names)} (by test, such as TEST01: FOLDER)"
        )
    compliance = {str(test): at / str(folder) for test, folder in values["compliance"].items()}
    performance, accuracy, text = (at / str(values[name]) for name in names[:3])
    return ScenarioRuns(performance, accuracy, text, compliance)


def _folder(source: Path, place: str) -> Files:
    paths = sorted(path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    if not paths:
        raise OrinError(f"source folder {source} holds no files, expected the code that ran")
    return {f"{place}/{path.relative_to(source).as_posix()}": _read(path) for path in paths}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OrinError(f"{path} cannot be read: {error.strerror or error}") from None


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()
