"""Checking a submission tree against the built-in list, without the inference repository."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orin.export.mlperf_rules import (
    ACCURACY_FILES,
    ACCURACY_LOG_BYTES,
    BENCHMARKS,
    FILE_BYTES,
    LOGS,
    MEASUREMENTS,
    MIN_DURATION_MS,
    POWER_PLACES,
    SEED_KEYS,
    STATUSES,
    SYSTEM_PRESENT,
    SYSTEM_SAYING,
    TEST_FILES,
    VERIFIED,
    Benchmark,
)


@dataclass(frozen=True)
class Fault:
    """One thing that the tree lacks or has wrong: a name for it, where, and what was expected."""

    name: str
    path: Path
    text: str


def check_tree(root: Path) -> list[Fault]:
    """Return every fault of a tree whose root holds `closed/`; none for one that is complete."""
    submitters = sorted(path for path in (root / "closed").glob("*") if path.is_dir())
    if not submitters:
        return [Fault("submitter-missing", root / "closed", "expected a folder named after the submitter")]
    faults = [fault for folder in submitters for fault in _submitter(folder)]
    large = [path for path in root.rglob("*") if path.is_file() and path.stat().st_size > FILE_BYTES]
    return [
        *faults,
        *(Fault("file-too-large", path, f"{path.stat().st_size >> 20} MB, the limit is 50") for path in large),
    ]


def _submitter(folder: Path) -> Iterator[Fault]:
    if not _holds_files(folder / "src"):
        yield Fault("src-missing", folder / "src", "expected the code that ran")
    for name in ("README.md", "calibration.md"):
        if not _says(folder / "documentation" / name):
            yield Fault("documentation-missing", folder / "documentation" / name, "missing or empty")
    systems = sorted(path for path in (folder / "results").glob("*") if path.is_dir())
    if not systems:
        yield Fault("results-missing", folder / "results", "expected a folder for each system")
    for system in systems:
        yield from _system(folder / "systems" / f"{system.name}.json", folder.name)
        for benchmark in sorted(path for path in system.iterdir() if path.is_dir()):
            yield from _benchmark(benchmark)


def _system(path: Path, submitter: str) -> Iterator[Fault]:
    values = _json(path)
    if values is None:
        yield Fault("system-missing", path, "missing or no JSON object")
        return
    for field in (*SYSTEM_SAYING, *SYSTEM_PRESENT):
        if field not in values or (field in SYSTEM_SAYING and not str(values[field]).strip()):
            yield Fault("system-field-missing", path, f"{field} says nothing")
    if values.get("submitter") != submitter:
        yield Fault("submitter-differs", path, f"submitter is {values.get('submitter')!r}, the folder is {submitter!r}")
    for field, allowed in (("division", ("closed",)), ("system_type", ("edge",)), ("status", STATUSES)):
        if values.get(field) not in allowed:
            yield Fault("system-field-wrong", path, f"{field} is {values.get(field)!r}, expected {', '.join(allowed)}")


def _benchmark(folder: Path) -> Iterator[Fault]:
    benchmark = BENCHMARKS.get(folder.name)
    if benchmark is None:
        yield Fault("benchmark-unknown", folder, f"expected one of {', '.join(BENCHMARKS)}")
        return
    for scenario in benchmark.scenarios:
        if not (folder / scenario).is_dir():
            yield Fault("scenario-missing", folder / scenario, f"{folder.name} on the edge needs it")
        else:
            yield from _scenario(folder / scenario, benchmark)


def _scenario(folder: Path, benchmark: Benchmark) -> Iterator[Fault]:
    if not (folder / "user.conf").is_file():
        yield Fault("user-conf-missing", folder / "user.conf", "missing")
    if not _says(folder / "README.md"):
        yield Fault("readme-empty", folder / "README.md", "missing or empty")
    yield from _measurements(folder / "measurements.json")
    yield from _accuracy(folder / "accuracy", benchmark)
    yield from _performance(folder / "performance" / "run_1", folder.name, benchmark)
    for place in POWER_PLACES:
        if (folder / place).exists():
            yield Fault(
                "power-not-mlperf", folder / place, "power comes from PTDaemon; readings of the module do not count"
            )
    for test in benchmark.tests:
        yield from _compliance(folder / test)


def _measurements(path: Path) -> Iterator[Fault]:
    values = _json(path) or {}
    for field in MEASUREMENTS:
        if not str(values.get(field, "")).strip():
            yield Fault("measurements-field-empty", path, f"{field} says nothing")


def _accuracy(folder: Path, benchmark: Benchmark) -> Iterator[Fault]:
    missing = [name for name in ACCURACY_FILES if not (folder / name).is_file()]
    for name in missing:
        yield Fault("accuracy-file-missing", folder / name, "missing")
    if missing:
        return
    size = (folder / "mlperf_log_accuracy.json").stat().st_size
    if size > ACCURACY_LOG_BYTES:
        yield Fault(
            "accuracy-log-not-truncated",
            folder / "mlperf_log_accuracy.json",
            f"{size} bytes, at most {ACCURACY_LOG_BYTES}",
        )
    text = _text(folder / "accuracy.txt")
    if "hash=" not in text:
        yield Fault("accuracy-hash-missing", folder / "accuracy.txt", "expected a line hash=")
    found = benchmark.accuracy.search(text)
    if found is None:
        yield Fault("accuracy-missing", folder / "accuracy.txt", f"nothing matches {benchmark.accuracy.pattern}")
    elif float(found[1]) < benchmark.least_accuracy:
        yield Fault("accuracy-too-low", folder / "accuracy.txt", f"{found[1]}, at least {benchmark.least_accuracy:.5g}")
    yield from _log_errors(folder / LOGS[1])


def _performance(folder: Path, scenario: str, benchmark: Benchmark) -> Iterator[Fault]:
    missing = [name for name in LOGS if not (folder / name).is_file()]
    for name in missing:
        yield Fault("performance-file-missing", folder / name, "missing")
    if missing:
        return
    log = folder / LOGS[1]
    values = _detail(log)
    yield from _log_errors(log)
    checks: list[tuple[str, str, Callable[[Any], bool], str]] = [
        (
            "duration-too-short",
            "effective_min_duration_ms",
            lambda v: v >= MIN_DURATION_MS,
            f"{MIN_DURATION_MS} or more",
        ),
        ("result-invalid", "result_validity", lambda v: v == "VALID", "VALID"),
        *(("seeds-differ", key, lambda v, seed=seed: v == seed, str(seed)) for key, seed in SEED_KEYS.items()),
    ]
    if scenario == "Offline":
        least = benchmark.offline_samples
        checks.append(("too-few-samples", "effective_samples_per_query", lambda v: v >= least, f"{least} or more"))
    for name, key, good, wanted in checks:
        value = values.get(key)
        if value is None or not good(value):
            yield Fault(name, log, f"{key} is {value!r}, expected {wanted}")


def _compliance(folder: Path) -> Iterator[Fault]:
    if not folder.is_dir():
        yield Fault("compliance-missing", folder, f"expected the results of {folder.name}")
        return
    for name in TEST_FILES[folder.name]:
        if not (folder / name).is_file():
            yield Fault("compliance-file-missing", folder / name, "missing")
        elif name in VERIFIED and VERIFIED[name] not in _text(folder / name):
            yield Fault("compliance-failed", folder / name, f"expected {VERIFIED[name]}")


def _log_errors(path: Path) -> Iterator[Fault]:
    for entry in _entries(path):
        if entry.get("metadata", {}).get("is_error"):
            yield Fault("log-error", path, f"{entry.get('key')}: {entry.get('value')}")


def _detail(path: Path) -> dict[str, Any]:
    return {str(entry.get("key")): entry.get("value") for entry in _entries(path)}


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    for line in _text(path).splitlines():
        if line.startswith(":::MLLOG "):
            try:
                entry = json.loads(line.removeprefix(":::MLLOG "))
            except ValueError:  # a line cut short: what it said is missing, which is a fault of its own
                continue
            yield entry


def _json(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(_text(path))
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _says(path: Path) -> bool:
    return bool(_text(path).strip())


def _holds_files(folder: Path) -> bool:
    return any(path.is_file() for path in folder.rglob("*")) if folder.is_dir() else False
