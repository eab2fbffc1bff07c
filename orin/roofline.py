"""The ceiling of a plan: arithmetic peaks of its accelerators, and DRAM traffic at the most that DRAM streams."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from orin.plan import Plan
from orin.soc import GPU, GPU_STREAM_SHARE, Clocks, Soc

BYTES = {"int8": 1, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Roofline:
    """Samples per second that arithmetic and DRAM allow; None where MACs or traffic are not known."""

    compute_samples_per_s: float | None
    dram_samples_per_s: float | None

    @property
    def samples_per_s(self) -> float | None:
        """The lower of the two."""
        return min((part for part in (self.compute_samples_per_s, self.dram_samples_per_s) if part), default=None)

    @property
    def bound(self) -> str:
        """Which of the two it is."""
        return "DRAM" if self.samples_per_s == self.dram_samples_per_s else "arithmetic"

    def as_json(self) -> dict[str, Any]:
        """Return both parts."""
        return asdict(self)


def roofline(plan: Plan, soc: Soc, clocks: Clocks, macs: int, dram_bytes: float) -> Roofline:
    """Return a plan's ceiling: `macs` and the least `dram_bytes` of one sample; 0 where not known."""
    peaks = (soc.gpu_peak_ops(clocks) if name == GPU else soc.dla_peak_ops(clocks) for name in plan.accelerators)
    compute = sum(peaks) / BYTES[plan.precision] / (2 * macs) if macs else None
    dram = GPU_STREAM_SHARE * soc.dram_peak_bytes_per_s(clocks) / dram_bytes if dram_bytes else None
    return Roofline(compute, dram)
