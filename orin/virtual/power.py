"""Power per rail of the module: idle, plus what runs, plus what moves through DRAM. No carrier board, no supply."""

from __future__ import annotations

from collections.abc import Mapping

from orin.soc import AGX_ORIN_64GB_SOC as REFERENCE
from orin.soc import Clocks, Soc
from orin.virtual.parameters import Parameters

HOST_RAILS = ("VDD_CPU_CV", "VDD_CPU_GPU_CV", "VDD_IN")  # those that feed the CPU, AGX Orin's and Orin NX's
AGX_TOTAL = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")


class RailModel:
    """Watts of each rail (in the order of the board's rails) at given clocks."""

    def __init__(self, soc: Soc, clocks: Clocks, parameters: Parameters) -> None:
        power = parameters.power
        top = REFERENCE.max_clocks
        exponent = power["clock_exponent"]
        gpu_scale = (clocks.gpu_mhz / top.gpu_mhz) ** exponent * clocks.sms / top.sms
        dla_scale = (clocks.dla_mhz / top.dla_mhz) ** exponent
        self.rails = tuple(rail.name for rail in soc.board.rails)
        self._power = power
        self._gpu_w = power["gpu_w"] * gpu_scale
        self._dla_soc_w = power["dla_gpu_soc_w"] * dla_scale
        self._dla_cv_w = power["dla_cpu_cv_w"] * dla_scale
        self._host_rails = [i for i, name in enumerate(self.rails) if name in HOST_RAILS]

    def watts(self, gpu_activity: float, dlas: int, dram_gb_per_s: float) -> tuple[float, ...]:
        """Return watts per rail: GPU activity 1 is a kernel that multiplies nothing, `dlas` the DLA cores at work."""
        power = self._power
        dram_5v0_w = power["dram_5v0_w_per_gb_s"] * dram_gb_per_s
        dram_soc_w = power["dram_w_per_gb_s"] * dram_gb_per_s - dram_5v0_w
        any_dla_w = power["dla_any_gpu_soc_w"] if dlas else 0.0
        gpu_w = self._gpu_w * gpu_activity
        soc_w = power["idle_gpu_soc_w"] + self._dla_soc_w * dlas + any_dla_w + dram_soc_w
        by_rail = {
            "VDD_GPU_SOC": soc_w + gpu_w,
            "VDD_CPU_CV": power["idle_cpu_cv_w"] + self._dla_cv_w * dlas,
            "VIN_SYS_5V0": power["idle_5v0_w"] + dram_5v0_w,
            "VDDQ_VDD2_1V8AO": power["idle_vddq_w"] + power["vddq_share"] * dram_5v0_w,
            "VDD_SOC": soc_w,
        }
        by_rail["VDD_CPU_GPU_CV"] = by_rail["VDD_CPU_CV"] + gpu_w
        by_rail["VDD_IN"] = sum(by_rail[name] for name in AGX_TOTAL)
        return tuple(by_rail[name] for name in self.rails)

    def with_host(self, rail_j: list[float], host_mj: float) -> Mapping[str, float]:
        """Return joules by rail, with what the host spent on enqueues added to the CPU's."""
        rail_j = list(rail_j)
        for rail in self._host_rails:
            rail_j[rail] += host_mj * 1e-3
        return dict(zip(self.rails, rail_j))
