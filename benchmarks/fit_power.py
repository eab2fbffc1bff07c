"""The virtual Orin's watts from published rows: rail by rail from solo trtexec runs, the GPU's also from v3.0's plug.

Closed forms, but for the GPU: what it draws for any kernel and for multiplying, and what v3.0's supply adds, are the
unknowns of a small linear least squares over the rail of row 98 and the MaxQ runs of MLPerf v3.0 in INT8.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import SHARED

from orin.observed import observation
from orin.published import Row, published
from orin.soc import AGX_ORIN_64GB_SOC as SOC
from orin.virtual.fit import Observation
from orin.virtual.model import CostModel
from orin.virtual.parameters import Parameters

TOP = SOC.max_clocks
BENCH_GPU_MHZ = 1290.0  # what the trtexec rows say their GPU ran at
WALL_SD, RAIL_SD = 0.05, 0.02  # of a reading
SUPPLY_SD_W = 1.5  # of what v3.0's supply adds, around 0


@dataclass(frozen=True)
class Draw:
    """GPU watts of a run, and how much of a kernel's and of full arithmetic's watts at full clocks they hold."""

    kernel: float
    arithmetic: float
    gpu_w: float
    sd_w: float


def fit_power(fixed: dict[str, Any], parameters: Parameters) -> dict[str, tuple[float, str]]:
    """Each rail by itself, from solo rows: idle, what follows DRAM traffic, what follows the accelerator, the host."""
    rows = _bench_rows()
    known = {name: entry["value"] for name, entry in fixed.items()}
    gpu_gb, dla_gb = 0.18 * 204.736, 0.15 * 204.736  # EMC 18 % (row 98) and 15 % (row 102)
    gained = [_rail_w(rows, 98, "5V0") - known["idle_5v0_w"], _rail_w(rows, 102, "5V0") - known["idle_5v0_w"]]
    dram_5v0 = (gained[0] * gpu_gb + gained[1] * dla_gb) / (gpu_gb**2 + dla_gb**2)
    dram_soc = known["dram_w_per_gb_s"] - dram_5v0
    gpu_mj = (_rail_w(rows, 98, "CPU_CV") - known["idle_cpu_cv_w"]) / _value(rows, 99) * 1e3
    dla_mj = gpu_mj * 0.56 / 0.64  # CPU time of the two enqueues, same source
    dla_busy = 1 - 2 * parameters.shared["gpu_boundary_ms"] / _value(rows, 102)
    dla_cv = (_rail_w(rows, 102, "CPU_CV") - known["idle_cpu_cv_w"] - dla_mj * _value(rows, 103) * 1e-3) / dla_busy
    dla_soc = (_rail_w(rows, 102, "GPU_SOC") - known["idle_gpu_soc_w"] - dram_soc * dla_gb) / dla_busy
    known = {**known, "dram_5v0_w_per_gb_s": dram_5v0, "gpu_enqueue_mj": gpu_mj}
    alone = {row: _bench_draw(rows, row, known, parameters) for row in (98, 96, 94)}
    walls = [_wall_draw(row, known, parameters) for row in _wall_rows()]
    kernel_w, arithmetic_w, _ = solve(alone[98], walls)
    over = {
        row: alone[row].gpu_w / (alone[row].kernel * kernel_w + alone[row].arithmetic * arithmetic_w) for row in alone
    }
    return {
        "dram_5v0_w_per_gb_s": (dram_5v0, "fitted on VIN_SYS_5V0 of rows 98 and 102; the rest on GPU_SOC"),
        "gpu_w": (
            kernel_w,
            "fitted on VDD_GPU_SOC of row 98 and v3.0's plug: any kernel, 1300.5 MHz",
        ),
        "gpu_arithmetic_w": (arithmetic_w, "fitted with gpu_w: INT8 at the peak rate, on top of it"),
        "gpu_fp16_factor": (over[96], "fitted on VDD_GPU_SOC of row 96, over what its arithmetic explains"),
        "gpu_fp32_factor": (over[94], "fitted on VDD_GPU_SOC of row 94, over what its arithmetic explains"),
        "dla_gpu_soc_w": (dla_soc - known["dla_any_gpu_soc_w"], "fitted on VDD_GPU_SOC of row 102"),
        "dla_cpu_cv_w": (dla_cv, "fitted on VDD_CPU_CV of row 102: one core at 1600 MHz"),
        "gpu_enqueue_mj": (gpu_mj, "fitted on VDD_CPU_CV of row 98 (0.64 ms of one CPU core)"),
        "dla_enqueue_mj": (dla_mj, "gpu_enqueue_mj times 0.56/0.64, the CPU times of the two enqueues"),
    }


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
    """GPU's own watts on VDD_GPU_SOC, less idle and DRAM traffic (FP16 and FP32: 2 and 4 bytes an element)."""
    width = {98: 1, 96: 2, 94: 4}[row]
    traffic_gb = width * 0.18 * 204.736 / _value(rows, 99) * _value(rows, row + 1)  # EMC 18 % (row 98)
    dram_w = (known["dram_w_per_gb_s"] - known["dram_5v0_w_per_gb_s"]) * traffic_gb
    slower = (BENCH_GPU_MHZ / TOP.gpu_mhz) ** known["clock_exponent"]
    macs = 4_089_184_256  # ResNet-50
    rate = 2 * macs * width / (_value(rows, row) * 1e-3) / SOC.gpu_peak_ops(TOP) * TOP.gpu_mhz / BENCH_GPU_MHZ
    watts = _rail_w(rows, row, "GPU_SOC") - known["idle_gpu_soc_w"] - dram_w
    return Draw(slower, slower * rate, watts, RAIL_SD * watts)


def _wall_rows() -> list[Row]:
    """MLPerf v3.0's INT8 runs with watts at the plug."""
    return [row for row in published("mlperf-v3.0").rows if row.wall_w and row.plan.precision == "int8"]


def _wall_draw(row: Row, known: dict[str, float], parameters: Parameters) -> Draw:
    """GPU's own watts in a run and the supply's: the plug's less idle, DRAM traffic and the host."""
    one: Observation = observation(row)
    cost = CostModel(one.soc, one.clocks, one.stack, parameters).cost(one.shape, one.samples)
    seconds = one.milliseconds * 1e-3 / one.enqueues
    busy = min(1.0, cost.solo_ns * 1e-9 / seconds)
    rate = 2 * one.samples * one.shape.workload.macs / seconds / one.soc.gpu_peak_ops(one.clocks)
    scale = (one.clocks.gpu_mhz / TOP.gpu_mhz) ** known["clock_exponent"] * one.clocks.sms / TOP.sms
    idle_w = known["idle_gpu_soc_w"] + known["idle_cpu_cv_w"] + known["idle_5v0_w"]
    others_w = known["dram_w_per_gb_s"] * cost.dram_bytes * 1e-9 / seconds + known["gpu_enqueue_mj"] * 1e-3 / seconds
    assert row.wall_w is not None
    watts = row.wall_w - idle_w - others_w
    return Draw(scale * busy, scale * rate, watts, WALL_SD * row.wall_w)


def solve(alone: Draw, walls: list[Draw]) -> tuple[float, float, float]:
    """Return the watts of any kernel, of full arithmetic, and of the supply behind the plug."""
    law = [[alone.kernel / alone.sd_w, alone.arithmetic / alone.sd_w, 0.0], [0.0, 0.0, 1 / SUPPLY_SD_W]]
    law += [[draw.kernel / draw.sd_w, draw.arithmetic / draw.sd_w, 1 / draw.sd_w] for draw in walls]
    seen = [alone.gpu_w / alone.sd_w, 0.0, *(draw.gpu_w / draw.sd_w for draw in walls)]
    kernel_w, arithmetic_w, supply_w = np.linalg.lstsq(np.array(law), np.array(seen), rcond=None)[0].tolist()
    return kernel_w, arithmetic_w, supply_w
