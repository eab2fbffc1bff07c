"""Fit the virtual Orin's parameters to published rows and show them, or write them with --write.

Closed forms: each parameter follows from the rows named beside it. Only ../shared/data/published_fit.csv and
mlperf_v3.0_gpu_only.csv are read; published_check.csv and mlperf_v2.0.csv never are.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import yaml
from common import SHARED

from orin.soc import AGX_ORIN_64GB_SOC as SOC
from orin.virtual.parameters import PARAMETERS_PATH

TOP = SOC.max_clocks
GPU_ACTIVATION_BYTES = 22e6  # DRAM bytes of one ResNet-50 image at batch 256, derived from published EMC readings
BENCH_GPU_MHZ = 1290.0  # what the trtexec rows say their GPU ran at
# v3.0 asked for 624.75 MHz, which its JetPack's table does not hold: it ran at 612
MAXQ = replace(TOP, gpu_mhz=612.0, emc_mhz=2133.0, cpu_mhz=576.0)


@dataclass(frozen=True)
class Fitted:
    """One parameter: where it lives in the file, its value and the rows behind it."""

    path: tuple[str, ...]
    value: float
    source: str


@dataclass(frozen=True)
class Rows:
    """The rows to fit on: published by id, MLPerf v3.0 mean latencies by (network, scenario)."""

    published: dict[str, dict[str, str]]
    mlperf: dict[tuple[str, str], dict[str, str]]

    def value(self, row: int) -> float:
        """Value of a published row."""
        return float(self.published[str(row)]["value"])

    def rail_w(self, row: int, rail: str) -> float:
        """Watts that a published row's notes give for a rail."""
        found = re.search(rf"{rail} ([\d.]+)", self.published[str(row)]["notes"])
        if found is None:
            raise SystemExit(f"row {row} names no watts for {rail}: is this the published_fit.csv that the fit knows?")
        return float(found[1])


def read_rows() -> Rows:
    """Read both fit tables."""
    with (SHARED / "published_fit.csv").open(encoding="utf-8") as file:
        published = {row["id"]: row for row in csv.DictReader(file)}
    with (SHARED / "mlperf_v3.0_gpu_only.csv").open(encoding="utf-8") as file:
        mlperf = {(row["benchmark"], row["scenario"]): row for row in csv.DictReader(file)}
    return Rows(published, mlperf)


def fit(rows: Rows, fixed: dict[str, Any]) -> list[Fitted]:
    """Return every fitted parameter; `fixed` is the parameter document, for priors and sourced constants."""
    dla = _fit_dla(rows, fixed)
    gpu = _fit_gpu(rows, fixed)
    return [*dla, *gpu, *_fit_power(rows, fixed, {f.path[-1]: f.value for f in (*dla, *gpu)})]


def _fit_dla(rows: Rows, fixed: dict[str, Any]) -> list[Fitted]:
    """a and b from two power modes (batch 2, both cores), the weights' part of b from its prior rate."""
    work = fixed["networks"]["resnet50"]["workload"]
    modes = [SOC.clocks("MAXN"), SOC.clocks("15W")]
    image_ms = np.array([2e3 / rows.value(17), 2e3 / rows.value(20)])
    dram = SOC.dram_peak_bytes_per_s(TOP)
    law = np.array([[1e3 / c.dla_mhz, dram / SOC.dram_peak_bytes_per_s(c)] for c in modes])
    compute_ms_ghz, memory_ms = np.linalg.solve(law, image_ms)
    weight_ms = work["weight_bytes"] / fixed["shared"]["dla_weight_gb_per_s"]["value"] * 1e-6
    activation_ms = memory_ms - weight_ms / 2
    single_ms = compute_ms_ghz * 1e3 / TOP.dla_mhz + activation_ms + weight_ms
    boundary_ms = (rows.value(102) - single_ms) / 2
    drawn = _emc_bytes(rows, 102, rows.value(103))
    share = (drawn - work["weight_bytes"]) / work["activation_bytes"]
    fp16 = (rows.value(100) - 2 * boundary_ms) / single_ms
    two_modes = "fitted on rows 17 and 20"
    net = ("networks", "resnet50", "fit")
    return [
        Fitted((*net, "dla_compute_ms_ghz"), compute_ms_ghz, two_modes),
        Fitted((*net, "dla_activation_ms"), activation_ms, f"{two_modes}, less half the weights (batch 2)"),
        Fitted((*net, "dla_weight_ms"), weight_ms, "weight bytes at the prior dla_weight_gb_per_s"),
        Fitted(("shared", "gpu_boundary_ms"), boundary_ms, "fitted on row 102 (two GPU layers in the DLA engine)"),
        Fitted(("shared", "dla_fp16_factor"), fp16, "fitted on row 100"),
        Fitted(
            ("shared", "dla_activation_share"), share, "row 102's EMC 15 %, less the weights; the rest stays in SRAM"
        ),
    ]


def _emc_bytes(rows: Rows, row: int, per_s: float) -> float:
    """DRAM bytes of one inference, from the EMC utilisation in a row's notes."""
    found = re.search(r"EMC (\d+)%", rows.published[str(row)]["notes"])
    assert found is not None
    return float(found[1]) / 100 * SOC.dram_peak_bytes_per_s(TOP) / per_s


def _fit_gpu(rows: Rows, fixed: dict[str, Any]) -> list[Fitted]:
    """image and s from the two MultiStream-less-SingleStream slopes, fixed and host from the two intercepts."""
    work = fixed["networks"]["resnet50"]["workload"]
    single, multi = (float(rows.mlperf["resnet50", s]["mean_latency_ms"]) for s in ("SingleStream", "MultiStream"))
    image_ms, intercept_ms = _affine(single, multi)
    maxq_image_ms, maxq_intercept_ms = _affine(rows.value(231), rows.value(232))
    gpu, host = TOP.gpu_mhz / MAXQ.gpu_mhz, TOP.cpu_mhz / MAXQ.cpu_mhz
    thinner = SOC.gpu_dram_bytes_per_s(TOP) / SOC.gpu_dram_bytes_per_s(MAXQ)
    share = (maxq_image_ms / image_ms - thinner) / (gpu - thinner)
    weights_ms = work["weight_bytes"] / SOC.gpu_dram_bytes_per_s(TOP) * 1e3
    rest = [intercept_ms - weights_ms, maxq_intercept_ms - weights_ms * thinner]
    fixed_ms, host_ms = np.linalg.solve(np.array([[1.0, 1.0], [gpu, host]]), np.array(rest))
    slopes = "fitted on v3.0 SS, MS and rows 231, 232 (MaxQ at 612/2133/576 MHz)"
    net = ("networks", "resnet50", "fit")
    drawn = _emc_bytes(rows, 98, rows.value(99))
    return [
        Fitted((*net, "gpu_image_ms"), image_ms, "fitted on v3.0 SS and MS"),
        Fitted((*net, "gpu_compute_share"), share, slopes),
        Fitted(("shared", "gpu_fixed_ms"), fixed_ms, slopes),
        Fitted(("shared", "host_ms"), host_ms, slopes),
        Fitted(
            ("shared", "gpu_activation_share"),
            GPU_ACTIVATION_BYTES / work["activation_bytes"],
            "22 MB per ResNet-50 image at batch 256 over its tensors' bytes: fusion and L2 keep the rest on the chip",
        ),
        Fitted(
            ("shared", "gpu_weight_share"),
            (drawn - GPU_ACTIVATION_BYTES) / work["weight_bytes"],
            "row 98's EMC 18 %, less the activations",
        ),
        *_fit_v31(rows, image_ms, weights_ms + fixed_ms, host_ms),
        *_fit_trtexec(rows, image_ms, weights_ms, fixed_ms * TOP.gpu_mhz / BENCH_GPU_MHZ),
    ]


def _affine(single_ms: float, multi_ms: float) -> tuple[float, float]:
    """Slope per image and intercept, from batches 1 and 8."""
    image_ms = (multi_ms - single_ms) / 7
    return image_ms, single_ms - image_ms


def _fit_v31(rows: Rows, image_ms: float, fixed_ms: float, host_ms: float) -> list[Fitted]:
    """v3.1 publishes percentiles: v3.0's ratio of mean to percentile turns them into means."""
    single, multi = rows.mlperf["resnet50", "SingleStream"], rows.mlperf["resnet50", "MultiStream"]
    single_ms = rows.value(177) * float(single["mean_latency_ms"]) / float(single["p90_ms"])
    multi_ms = rows.value(178) * float(multi["mean_latency_ms"]) / float(multi["p99_ms"])
    newer_image_ms, newer_intercept_ms = _affine(single_ms, multi_ms)
    stack = ("stacks", "mlperf-v3.1", "fit")
    source = "fitted on rows 177 and 178, as means through v3.0's percentiles"
    return [
        Fitted((*stack, "image_factor"), newer_image_ms / image_ms, source),
        Fitted((*stack, "host_factor"), (newer_intercept_ms - fixed_ms) / host_ms, source),
    ]


def _fit_trtexec(rows: Rows, image_ms: float, weights_ms: float, fixed_ms: float) -> list[Fitted]:
    """Batch 1 without CUDA graphs waits for launches: INT8 gives the floor, FP16 and FP32 rise above it."""
    at_clock = TOP.gpu_mhz / BENCH_GPU_MHZ
    shared = "shared"
    return [
        Fitted(("stacks", "trtexec-10.3", "fit", "launch_floor_ms"), rows.value(98), "fitted on row 98"),
        *(
            Fitted(
                (shared, f"gpu_{name}_image_factor"),
                (rows.value(row) - fixed_ms - width * weights_ms) / (image_ms * at_clock),
                f"fitted on row {row}",
            )
            for name, row, width in (("fp16", 96, 2), ("fp32", 94, 4))
        ),
    ]


def _fit_power(rows: Rows, fixed: dict[str, Any], speed: dict[str, float]) -> list[Fitted]:
    """Each rail by itself, from solo rows: idle, what follows DRAM traffic, what follows the accelerator, the host."""
    known = {name: entry["value"] for name, entry in fixed["power"].items()}
    gpu_gb, dla_gb = 0.18 * 204.736, 0.15 * 204.736  # EMC 18 % (row 98) and 15 % (row 102)
    gained = [rows.rail_w(98, "5V0") - known["idle_5v0_w"], rows.rail_w(102, "5V0") - known["idle_5v0_w"]]
    dram_5v0 = (gained[0] * gpu_gb + gained[1] * dla_gb) / (gpu_gb**2 + dla_gb**2)
    dram_soc = known["dram_w_per_gb_s"] - dram_5v0
    slower = (BENCH_GPU_MHZ / TOP.gpu_mhz) ** known["clock_exponent"]
    gpu_mj = (rows.rail_w(98, "CPU_CV") - known["idle_cpu_cv_w"]) / rows.value(99) * 1e3
    dla_mj = gpu_mj * 0.56 / 0.64  # CPU time of the two enqueues, same source
    dla_busy = 1 - 2 * speed["gpu_boundary_ms"] / rows.value(102)
    dla_cv = (rows.rail_w(102, "CPU_CV") - known["idle_cpu_cv_w"] - dla_mj * rows.value(103) * 1e-3) / dla_busy
    dla_soc = (rows.rail_w(102, "GPU_SOC") - known["idle_gpu_soc_w"] - dram_soc * dla_gb) / dla_busy
    gpu_w = {row: _gpu_w(rows, row, dram_soc, known["idle_gpu_soc_w"]) / slower for row in (98, 96, 94)}
    power = "power"
    return [
        Fitted(
            (power, "dram_5v0_w_per_gb_s"), dram_5v0, "fitted on VIN_SYS_5V0 of rows 98 and 102; the rest on GPU_SOC"
        ),
        Fitted((power, "gpu_w"), gpu_w[98], "fitted on VDD_GPU_SOC of row 98: INT8, all SMs at 1300.5 MHz"),
        Fitted((power, "gpu_fp16_factor"), gpu_w[96] / gpu_w[98], "fitted on VDD_GPU_SOC of row 96"),
        Fitted((power, "gpu_fp32_factor"), gpu_w[94] / gpu_w[98], "fitted on VDD_GPU_SOC of row 94"),
        Fitted((power, "dla_gpu_soc_w"), dla_soc - known["dla_any_gpu_soc_w"], "fitted on VDD_GPU_SOC of row 102"),
        Fitted((power, "dla_cpu_cv_w"), dla_cv, "fitted on VDD_CPU_CV of row 102: one core at 1600 MHz"),
        Fitted((power, "gpu_enqueue_mj"), gpu_mj, "fitted on VDD_CPU_CV of row 98 (0.64 ms of one CPU core)"),
        Fitted((power, "dla_enqueue_mj"), dla_mj, "gpu_enqueue_mj times 0.56/0.64, the CPU times of the two enqueues"),
    ]


def _gpu_w(rows: Rows, row: int, dram_soc: float, idle_w: float) -> float:
    """GPU's own watts on VDD_GPU_SOC, less idle and DRAM traffic (FP16 and FP32: 2 and 4 bytes an element)."""
    width = {98: 1, 96: 2, 94: 4}[row]
    traffic_gb = width * _emc_bytes(rows, 98, rows.value(99)) * rows.value(row + 1) * 1e-9
    return rows.rail_w(row, "GPU_SOC") - idle_w - dram_soc * traffic_gb


def apply(document: dict[str, Any], fitted: list[Fitted]) -> None:
    """Put fitted values and sources into a parameter document."""
    for parameter in fitted:
        place = document
        for key in parameter.path[:-1]:
            place = place[key]
        place[parameter.path[-1]] = {"value": float(f"{parameter.value:.6g}"), "source": parameter.source}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the values into orin/virtual/parameters.yaml")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args(argv)
    if not SHARED.is_dir():
        print(f"fit_virtual: no data at {SHARED}: the fit needs ../shared/data beside the checkout", file=sys.stderr)
        return 2
    text = PARAMETERS_PATH.read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    fitted = fit(read_rows(), document)
    if args.json:
        print(json.dumps({".".join(f.path): {"value": f.value, "source": f.source} for f in fitted}, indent=1))
    else:
        for f in fitted:
            print(f"{'.'.join(f.path):48} {f.value:10.5f}  {f.source}")
    if args.write:
        head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
        apply(document, fitted)
        body = yaml.safe_dump(document, sort_keys=False, width=118, default_flow_style=None)
        PARAMETERS_PATH.write_text(head + body, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
