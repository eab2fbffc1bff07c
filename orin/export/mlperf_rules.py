"""What an MLPerf Inference v6.1 submission (closed, edge) has to hold: files, fields, scenarios, limits.

Source: mlcommons/inference, tools/submission/submission_checker (v6.1) and compliance/, at b66003e1 (20 Aug 2026); the
50 MB limit is in the rules, the checker does not apply it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from orin.loadgen import SEEDS
from orin.mlperf import OFFICIAL_SECONDS

ROUND = "v6.1"
SEED_KEYS = {f"effective_{name}_rng_seed": seed for name, seed in zip(("qsl", "sample_index", "schedule"), SEEDS)}
MIN_DURATION_MS = OFFICIAL_SECONDS * 1000
ACCURACY_LOG_BYTES = 10 * 1024
VIEWABLE_BYTES = 4096
FILE_BYTES = 50 * 1024 * 1024
STATUSES = ("available", "preview", "rdi")
MEASUREMENTS = (
    "input_data_types",
    "retraining",
    "starting_weights_filename",
    "weight_data_types",
    "weight_transformations",
)
LOGS = ("mlperf_log_summary.txt", "mlperf_log_detail.txt")
ACCURACY_FILES = (*LOGS, "accuracy.txt", "mlperf_log_accuracy.json")
POWER_PLACES = ("performance/power", "performance/ranging", "performance/run_1/spl.txt")
VERIFIED: Mapping[str, str] = {"verify_accuracy.txt": "TEST PASS", "verify_performance.txt": "TEST PASS"}
TEST_FILES: Mapping[str, tuple[str, ...]] = {
    "TEST01": (*VERIFIED, "accuracy/mlperf_log_accuracy.json", *(f"performance/run_1/{name}" for name in LOGS)),
    "TEST04": ("verify_performance.txt", *(f"performance/run_1/{name}" for name in LOGS)),
}

# Fields of systems/<system>.json that have to say something, then those that have to be there.
SYSTEM_SAYING = (
    "division",
    "submitter",
    "status",
    "system_type",
    "system_name",
    "number_of_nodes",
    "host_processors_per_node",
    "host_processor_model_name",
    "host_processor_core_count",
    "host_memory_capacity",
    "host_storage_type",
    "host_storage_capacity",
    "accelerators_per_node",
    "accelerator_model_name",
    "accelerator_memory_capacity",
    "framework",
    "operating_system",
)
SYSTEM_PRESENT = (
    "host_processor_frequency",
    "host_processor_caches",
    "host_processor_interconnect",
    "host_networking",
    "host_network_card_count",
    "host_networking_topology",
    "host_memory_configuration",
    "accelerator_host_interconnect",
    "accelerator_frequency",
    "accelerator_on-chip_memories",
    "accelerator_memory_configuration",
    "accelerator_interconnect",
    "accelerator_interconnect_topology",
    "cooling",
    "hw_notes",
    "other_software_stack",
    "sw_notes",
    "system_type_detail",
)


@dataclass(frozen=True)
class Benchmark:
    """One benchmark on the edge: scenarios, compliance tests, accuracy, and the least samples of an Offline query."""

    scenarios: tuple[str, ...]
    tests: tuple[str, ...]
    accuracy: re.Pattern[str]
    least_accuracy: float
    offline_samples: int


_STREAMS = ("SingleStream", "MultiStream", "Offline")
_UNET = (("SingleStream", "Offline"), ("TEST01",), re.compile(r"Accuracy: mean = ([\d.]+)"))
_BERT = (("SingleStream", "Offline"), ("TEST01",), re.compile(r'"f1": ([\d.]+)'))
BENCHMARKS: Mapping[str, Benchmark] = {
    "resnet": Benchmark(_STREAMS, ("TEST01", "TEST04"), re.compile(r"accuracy=([\d.]+)"), 76.46 * 0.99, 24576),
    "3d-unet-99": Benchmark(*_UNET, 0.86170 * 0.99, 43),
    "3d-unet-99.9": Benchmark(*_UNET, 0.86170 * 0.999, 43),
    "bert-99": Benchmark(*_BERT, 90.874 * 0.99, 24576),
    "bert-99.9": Benchmark(*_BERT, 90.874 * 0.999, 24576),
}
