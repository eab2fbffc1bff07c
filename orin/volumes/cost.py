"""What a volume costs on the GPU of an Orin, from its size: simulated.

A case takes `fixed + windows x window` milliseconds. For MLPerf's 3D-UNet both are solved from two published
percentiles of NVIDIA's SingleStream runs on AGX Orin (MaxP): the median case has 50 windows (192x384x384), the largest
of the set 144 (320x448x448). The rest of those rows is a check: p90 of v2.0 comes out at 108.0 windows, that of v3.0,
with one case more, at 125.0, and the two means at 2,636 windows in 42 cases and 2,760 in 43, which differ by that one
case. MaxQ rows give the part that follows the GPU's clock. Other networks have the virtual board's prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engines.engine import Workload
from engines.volumes.plan import WindowPlan
from orin.plan import Plan
from orin.soc import DRAM_SUSTAINED_SHARE, GPU, Clocks, Soc
from orin.virtual.model import REFERENCE, CostModel, EngineShape, clocks_of

MEDIAN_WINDOWS, MOST_WINDOWS = 50, 144
SPEED_U95 = 0.02  # of MLPerf's 3D-UNet at MAXN: the law's largest miss among the published figures is 0.7 %
PRIOR_U95 = 1.0  # of other networks: within a factor of two, as the virtual board's own
# Bytes of DRAM traffic around the network, as NVIDIA's FP16 kernels move them: a window's voxel is sliced (INT8 in and
# out), and three classes are read with their weight, added to what was there, and written; an answer's is reduced.
WINDOW_VOXEL_BYTES = 2 + 3 * (2 + 2 + 2) + 2
ANSWER_VOXEL_BYTES = 3 * 2 + 1


@dataclass(frozen=True)
class Published:
    """One round's SingleStream rows of 3D-UNet on AGX Orin: p50 and p99 of MaxP, and mean latencies at two clocks."""

    p50_ms: float
    p99_ms: float
    mean_ms: float
    maxq_mean_ms: float
    maxq_gpu_mhz: float

    @property
    def window_ms(self) -> float:
        """Milliseconds of a window at MAXN."""
        return (self.p99_ms - self.p50_ms) / (MOST_WINDOWS - MEDIAN_WINDOWS)

    @property
    def fixed_ms(self) -> float:
        """Milliseconds of a case without its windows."""
        return self.p50_ms - MEDIAN_WINDOWS * self.window_ms

    @property
    def clocked_share(self) -> float:
        """The part of the time that follows the GPU's clock; the memory clock is the same in both rows."""
        slower = REFERENCE.max_clocks.gpu_mhz / self.maxq_gpu_mhz
        return (self.maxq_mean_ms / self.mean_ms - 1) / (slower - 1)


# mlcommons/inference_results_v2.0 and v3.0, closed/NVIDIA, 3d-unet-99 SingleStream of AGX Orin, MaxP and MaxQ.
PUBLISHED = {
    "mlperf-v2.0": Published(1734.516937, 4943.341198, 2170.214547, 3109.790955, 828.75),
    "mlperf-v3.0": Published(1528.499642, 4351.627678, 1954.236495, 2654.7, 918.0),
}
NETWORK, INT8 = "unet3d", "int8"
NEWEST = "mlperf-v3.0"


@dataclass(frozen=True)
class VolumeCost:
    """Milliseconds of one case: in the network, around it (slice, weigh, add, arg-max), and fixed; u95 of the sum."""

    windows: int
    network_ms: float
    merge_ms: float
    fixed_ms: float
    u95_ms: float

    @property
    def latency_ms(self) -> float:
        """From the query to the label map."""
        return self.network_ms + self.merge_ms + self.fixed_ms

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "provenance": "simulated",
            "latency_ms": {"value": self.latency_ms, "u95": self.u95_ms},
            "network_ms": self.network_ms,
            "merge_ms": self.merge_ms,
            "fixed_ms": self.fixed_ms,
        }


def volume_cost(plan: Plan, soc: Soc, workload: Workload, windows: WindowPlan) -> VolumeCost:
    """Return what a volume costs under a plan's stack and clocks; OrinError where the plan's clocks are none.

    Rounds that published no 3D-UNet of their own have the figures of v3.0, trtexec's stacks too; those are of INT8, so
    that other precisions have the prior.
    """
    clocks, count = clocks_of(plan, soc), len(windows)
    merge_ms = _merge_ms(soc, clocks, windows)
    if plan.network != NETWORK or plan.precision != INT8:
        shape = EngineShape(plan.network, GPU, plan.gpu_batch, plan.precision, workload)
        model = CostModel(soc, clocks, plan.stack)
        network_ms = count * model.cost(shape, plan.gpu_batch).solo_ns * 1e-6 / plan.gpu_batch
        return VolumeCost(count, network_ms, merge_ms, 0.0, PRIOR_U95 * (network_ms + merge_ms))
    law = PUBLISHED.get(plan.stack, PUBLISHED[NEWEST])
    slower = _slower(law, soc, clocks)
    fixed_ms, window_ms = law.fixed_ms * slower, law.window_ms * slower
    whole_ms = fixed_ms + count * window_ms
    return VolumeCost(count, count * window_ms - merge_ms, merge_ms, fixed_ms, SPEED_U95 * whole_ms)


def _slower(law: Published, soc: Soc, clocks: Clocks) -> float:
    """Return by how much a SoC at its clocks is slower than an AGX Orin 64 GB at MAXN."""
    top = REFERENCE.max_clocks
    compute = REFERENCE.gpu_peak_ops(top) / soc.gpu_peak_ops(clocks)
    memory = REFERENCE.dram_peak_bytes_per_s(top) / soc.dram_peak_bytes_per_s(clocks)
    return law.clocked_share * compute + (1 - law.clocked_share) * memory


def _merge_ms(soc: Soc, clocks: Clocks, windows: WindowPlan) -> float:
    """Return what all but the network takes where its kernels are bound by DRAM."""
    depth, height, width = windows.window
    whole = windows.shape[0] * windows.shape[1] * windows.shape[2]
    moved = len(windows) * depth * height * width * WINDOW_VOXEL_BYTES + whole * ANSWER_VOXEL_BYTES
    return 1e3 * moved / (DRAM_SUSTAINED_SHARE * soc.dram_peak_bytes_per_s(clocks))
