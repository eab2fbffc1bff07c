"""What a run record says, computed on read: the one list of figures that table, JSON and report print."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from orin.record import RunRecord
from orin.soc import ACCELERATORS
from power.quantity import Quantity

Result = dict[str, Any]


def result(record: RunRecord) -> Result:
    """Return the figures of a run under the names that scripts rely on; None for what was not measured."""
    values = record.values
    samples_per_s = _samples_per_s(record)
    power = values.get("power")
    module = power.get("module_w") if power else None
    efficiency = Quantity(**module).ratio(samples_per_s).as_json() if samples_per_s and module else None
    return {
        "provenance": values["provenance"],
        "network": values["network"]["name"],
        "board": values["board"],
        "stack": values["stack"],
        "scenario": values["scenario"],
        "status": values["status"],
        "samples_per_s": samples_per_s,
        "latency_ms": _latency_ms(values.get("loadgen", {}), record),
        "power_w": {"module": module, "rails": power["rails_w"]} if power else None,
        "samples_per_joule": efficiency,
        "share": share(record),
        "valid": values.get("valid"),
        "invalid_reasons": values.get("invalid_reasons", []),
        "bytes_copied_per_sample": _copied_per_sample(record),
        "run_dir": str(record.folder),
    }


def share(record: RunRecord) -> dict[str, float]:
    """Return each accelerator's share of the samples."""
    samples = {name: sum(b.samples for b in record.batches if b.accelerator == name) for name in ACCELERATORS}
    total = sum(samples.values())
    return {name: count / total for name, count in samples.items()} if total else {}


def _samples_per_s(record: RunRecord) -> float | None:
    """LoadGen's figure for Offline; else samples over the span from the first begin to the last end."""
    offline = record.values.get("loadgen", {}).get("result_samples_per_second")
    if offline:
        return float(offline)
    if not record.batches:
        return None
    begin = min(batch.begin_ns for batch in record.batches)
    end = max(batch.end_ns for batch in record.batches)
    return sum(batch.samples for batch in record.batches) * 1e9 / (end - begin) if end > begin else None


def _latency_ms(loadgen: dict[str, Any], record: RunRecord) -> dict[str, float] | None:
    """Latency of a query as LoadGen has it; Offline is one query, as long as the run."""
    if record["scenario"] == "offline":
        if "window_ns" not in record.values or not record.batches:
            return None
        begin_ns, _ = record["window_ns"]
        whole = (max(batch.end_ns for batch in record.batches) - begin_ns) / 1e6
        return dict.fromkeys(("mean", "p50", "p90", "p99"), whole)
    names = {
        "mean": "result_mean_latency_ns",
        "p50": "result_50.00_percentile_latency_ns",
        "p90": "result_90.00_percentile_latency_ns",
        "p99": "result_99.00_percentile_latency_ns",
    }
    if any(name not in loadgen for name in names.values()):
        return None
    return {key: loadgen[name] / 1e6 for key, name in names.items()}


def _copied_per_sample(record: RunRecord) -> float | None:
    samples = sum(batch.samples for batch in record.batches)
    copied = record.values.get("copied_bytes")
    return copied / samples if copied is not None and samples else None


def batch_latencies_ms(record: RunRecord, accelerator: str) -> NDArray[Any]:
    """Return how long each work item of an accelerator took, in order."""
    return np.array([(b.end_ns - b.begin_ns) / 1e6 for b in record.batches if b.accelerator == accelerator])
