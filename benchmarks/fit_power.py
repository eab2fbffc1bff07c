"""The virtual Orin's watts from published rows: rail by rail from solo trtexec runs, the GPU's also from v3.0's plug.

Closed forms, but for what follows the GPU and DRAM traffic: the watts of any kernel, of arithmetic, of multiplications,
of bytes, and what v3.0's supply adds are the unknowns of a small linear least squares over VDD_GPU_SOC of rows 98 and
96 and v3.0's MaxQ runs, each with a prior but the first.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import SHARED
from numpy.typing import NDArray

from orin.published import published
from orin.published.observed import observation
from orin.soc import AGX_ORIN_64GB_SOC
from orin.virtual.fit import Observation
from orin.virtual.model import ELEMENT_BYTES, CostModel
from orin.virtual.parameters import Parameters

TOP = AGX_ORIN_64GB_SOC.max_clocks
BENCH = {98: "gpu INT8 MAXN", 96: "gpu FP16 MAXN", 94: "gpu FP32 MAXN"}  # rows of the fit set, in orin/published
GPU_GB_PER_S, DLA_GB_PER_S = 0.18 * 204.736, 0.15 * 204.736  # EMC 18 % in row 98, 15 % in row 102
WALL_SD, RAIL_SD = 0.05, 0.02  # of a reading
# Median and standard deviation. Arithmetic: both together 24 W beside 15 of any kernel, for 40 W of a fully used GPU.
# Bytes: 70 to 115 pJ each, published fit of four solo rows. Supply: v3.0's whole board idles below a devkit's module.
PRIORS = {
    "gpu_w": (0.0, np.inf),
    "gpu_arithmetic_w": (12.0, 8.0),
    "gpu_multiply_w": (12.0, 8.0),
    "dram_w_per_gb_s": (0.0925, 0.0176),
    "supply_w": (0.0, 1.5),
}


@dataclass(frozen=True)
class Draw:
    """Watts of a run above idle, and how much it holds of each unknown's, float64 [5] in the order of `PRIORS`."""

    parts: NDArray[Any]
    seen_w: float
    sd_w: float


def fit_power(fixed: dict[str, Any], parameters: Parameters) -> dict[str, tuple[float, str]]:
    """Return each constant of power and where it is from; `fixed` holds those that are not fitted."""
    rows = _bench_rows()
    known = {name: entry["value"] for name, entry in fixed.items()}
    gained = [_rail_w(rows, row, "5V0") - known["idle_5v0_w"] for row in (98, 102)]
    dram_5v0 = (gained[0] * GPU_GB_PER_S + gained[1] * DLA_GB_PER_S) / (GPU_GB_PER_S**2 + DLA_GB_PER_S**2)
    gpu_mj = (_rail_w(rows, 98, "CPU_CV") - known["idle_cpu_cv_w"]) / _value(rows, 99) * 1e3
    dla_mj = gpu_mj * 0.56 / 0.64  # CPU time of the two enqueues, same source
    known = {**known, "dram_5v0_w_per_gb_s": dram_5v0, "gpu_enqueue_mj": gpu_mj}
    benches = {row: _bench_draw(rows, row, known, parameters) for row in BENCH}
    solved = solve([benches[98], benches[96], *_wall_draws(known, parameters)])
    fp32 = _bench_factor(benches[94], solved)
    dla_busy = 1 - 2 * parameters.shared["gpu_boundary_ms"] / _value(rows, 102)
    dla_cv = (_rail_w(rows, 102, "CPU_CV") - known["idle_cpu_cv_w"] - dla_mj * _value(rows, 103) * 1e-3) / dla_busy
    dram_soc_w = (solved["dram_w_per_gb_s"] - dram_5v0) * DLA_GB_PER_S
    dla_soc = (_rail_w(rows, 102, "GPU_SOC") - known["idle_gpu_soc_w"] - dram_soc_w) / dla_busy
    together = "fitted on VDD_GPU_SOC of rows 98 and 96 and v3.0's plug: "
    return {
        "dram_w_per_gb_s": (
            solved["dram_w_per_gb_s"],
            together + "all rails; prior 70 to 115 pJ per byte, published fit",
        ),
        "dram_5v0_w_per_gb_s": (dram_5v0, "fitted on VIN_SYS_5V0 of rows 98 and 102; the rest on GPU_SOC"),
        "gpu_w": (solved["gpu_w"], together + "any kernel, 1300.5 MHz"),
        "gpu_arithmetic_w": (solved["gpu_arithmetic_w"], together + "arithmetic all the time, on top of it"),
        "gpu_multiply_w": (solved["gpu_multiply_w"], together + "multiplications at the peak rate, on top of both"),
        "gpu_fp32_factor": (fp32, "fitted on VDD_GPU_SOC of row 94, over what its arithmetic explains"),
        "dla_gpu_soc_w": (dla_soc - known["dla_any_gpu_soc_w"], "fitted on VDD_GPU_SOC of row 102"),
        "dla_cpu_cv_w": (dla_cv, "fitted on VDD_CPU_CV of row 102: one core at 1600 MHz"),
        "gpu_enqueue_mj": (gpu_mj, "fitted on VDD_CPU_CV of row 98 (0.64 ms of one CPU core)"),
        "dla_enqueue_mj": (dla_mj, "gpu_enqueue_mj times 0.56/0.64, the CPU times of the two enqueues"),
    }


def solve(draws: list[Draw]) -> dict[str, float]:
    """Return the unknowns, by name, that explain the draws best given their priors."""
    medians, sds = np.array(list(PRIORS.values())).T
    law = np.vstack([*(draw.parts / draw.sd_w for draw in draws), np.diag(1 / sds)])
    seen = np.array([*(draw.seen_w / draw.sd_w for draw in draws), *(medians / sds)])
    return dict(zip(PRIORS, np.linalg.lstsq(law, seen, rcond=None)[0].tolist()))


def _bench_rows() -> dict[str, dict[str, str]]:
    with (SHARED / "published_fit.csv").open(encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def _value(rows: dict[str, dict[str, str]], row: int) -> float:
    return float(rows[str(row)]["value"])


def _rail_w(rows: dict[str, dict[str, str]], row: int, rail: str) -> float:
    """Watts that a published row's notes give for a rail."""
    found = re.search(rf"{rail} ([\d.]+)", rows[str(row)]["notes"])
    if found is None:
        raise SystemExit(f"row {row} names no watts for {rail}: is this the published_fit.csv that the fit knows?")
    return float(found[1])


def _bench_draw(rows: dict[str, dict[str, str]], row: int, known: dict[str, float], parameters: Parameters) -> Draw:
    """VDD_GPU_SOC above idle, with the DRAM's part of VIN_SYS_5V0 (FP16 and FP32: 2 and 4 bytes an element)."""
    one = next(observation(entry) for entry in published("trtexec").rows if entry.id == BENCH[row])
    gb_per_s = ELEMENT_BYTES[one.shape.precision] * GPU_GB_PER_S * _value(rows, row + 1) / _value(rows, 99)
    rail_w = _rail_w(rows, row, "GPU_SOC") - known["idle_gpu_soc_w"]
    return _draw(one, parameters, gb_per_s, 0.0, (rail_w + known["dram_5v0_w_per_gb_s"] * gb_per_s, RAIL_SD * rail_w))


def _bench_factor(draw: Draw, solved: dict[str, float]) -> float:
    """What the GPU drew over what its arithmetic explains."""
    dram_w = draw.parts[3] * solved["dram_w_per_gb_s"]
    return float((draw.seen_w - dram_w) / (draw.parts @ list(solved.values()) - dram_w))


def _wall_draws(known: dict[str, float], parameters: Parameters) -> list[Draw]:
    """MLPerf v3.0's runs with watts at the plug, less idle and the host."""
    idle_w = known["idle_gpu_soc_w"] + known["idle_cpu_cv_w"] + known["idle_5v0_w"]
    found = []
    for row in published("mlperf-v3.0").rows:
        if row.wall_w:
            one = observation(row)
            cost = CostModel(one.soc, one.clocks, one.stack, parameters).cost(one.shape, one.samples)
            above_w = row.wall_w - idle_w - known["gpu_enqueue_mj"] * 1e-3 / _enqueue_s(one)
            gb_per_s = cost.dram_bytes * 1e-9 / _enqueue_s(one)
            found.append(_draw(one, parameters, gb_per_s, 1.0, (above_w, WALL_SD * row.wall_w)))
    return found


def _draw(
    one: Observation, parameters: Parameters, gb_per_s: float, supplies: float, seen_sd_w: tuple[float, float]
) -> Draw:
    """The shares of a published time that the GPU had a kernel and did arithmetic, and its rate over the peak."""
    model = CostModel(one.soc, one.clocks, one.stack, parameters)
    busy = min(1.0, model.cost(one.shape, one.samples).solo_ns * 1e-9 / _enqueue_s(one))
    share = min(busy, sum(layer.compute_ns for layer in model.layers(one.shape, one.samples)) * 1e-9 / _enqueue_s(one))
    operations = 2 * one.samples * one.shape.workload.macs * ELEMENT_BYTES[one.shape.precision]
    rate = operations / _enqueue_s(one) / one.soc.gpu_peak_ops(one.clocks)
    scale = (one.clocks.gpu_mhz / TOP.gpu_mhz) ** parameters.power["clock_exponent"] * one.clocks.sms / TOP.sms
    return Draw(np.array([scale * busy, scale * share, scale * rate, gb_per_s, supplies]), *seen_sd_w)


def _enqueue_s(one: Observation) -> float:
    return one.milliseconds * 1e-3 / one.enqueues
