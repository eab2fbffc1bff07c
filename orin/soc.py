"""The SoC as facts: what can compute, how fast, and what each power mode leaves of it.

Sources: NVIDIA Jetson AGX Orin and Orin NX data sheets and technical brief (SMs, DLA, DRAM, clocks; a DLA's highest
clock on the smaller modules is what their sparse INT8 TOPS come to); `jetson_clocks --show` on a 64 GB devkit (its
clocks); EMC clocks that tegrastats logs of Orin modules print (steps); torch.add STREAM on AGX Orin and Orin NX at
eight clocks, branes-ai/graphs b6c5e82 (what the GPU can draw from DRAM). Rails and power modes are `power.boards`'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from orin.errors import OrinError
from power.boards import AGX_ORIN_32GB, AGX_ORIN_64GB, ORIN_NX_16GB, ORIN_NX_16GB_SUPER, BoardFacts

GPU = "gpu"
DLAS = ("dla0", "dla1")
ACCELERATORS = (GPU, *DLAS)

GPU_STREAM_SHARE = 0.924  # of the DRAM peak, the most the GPU streams at any clock
GPU_BYTES_PER_CLK_PER_GPC = 104.4  # below about 0.9 GHz the GPU cannot ask for more
DRAM_SUSTAINED_SHARE = 0.85  # of the DRAM peak, what convolution kernels sustain together
GPU_LOWEST_MHZ, GPU_STEP_MHZ = 306.0, 102.0  # of Orin's GPU, as its devfreq lists its frequencies
EMC_STEPS_MHZ = (204.0, 665.6, 2133.0, 3199.0)
ROUNDING = 1.005  # published clocks are rounded: 1300, 3200 MHz


@dataclass(frozen=True)
class Clocks:
    """Clocks in force, in MHz, and how many SMs and CPU cores are on."""

    gpu_mhz: float
    dla_mhz: float
    emc_mhz: float
    cpu_mhz: float
    sms: int
    cpus: int

    def as_mhz(self) -> dict[str, float]:
        """Return the clocks as a plan's `clocks_mhz` holds them."""
        return {"gpu": self.gpu_mhz, "dla": self.dla_mhz, "emc": self.emc_mhz, "cpu": self.cpu_mhz}


@dataclass(frozen=True)
class Soc:
    """One Orin module: arithmetic and memory limits at full clocks, and its board's rails and modes."""

    board: BoardFacts
    sms: int
    gpcs: int
    int8_ops_per_sm_per_clk: int
    dla_cores: int
    dla_int8_macs_per_clk: int
    dla_sram_bytes: int
    loadables_per_dla: int
    dram_bytes: int
    dram_bytes_per_clk: float
    max_clocks: Clocks
    emc_steps_mhz: tuple[float, ...] = EMC_STEPS_MHZ

    @property
    def name(self) -> str:
        """The board's name, as `--board` takes it."""
        return self.board.name

    @property
    def accelerators(self) -> tuple[str, ...]:
        """Names of the accelerators: the GPU first, then the DLA cores."""
        return (GPU, *DLAS[: self.dla_cores])

    def clocks(self, mode: str) -> Clocks:
        """Return what a power mode resolves to on this module."""
        caps = self.board.mode(mode)
        top = self.max_clocks
        return replace(
            top,
            gpu_mhz=caps.gpu_mhz or top.gpu_mhz,
            dla_mhz=caps.dla_mhz or top.dla_mhz,
            emc_mhz=caps.emc_mhz or top.emc_mhz,
            cpu_mhz=caps.cpu_mhz or top.cpu_mhz,
            sms=2 * caps.tpcs,
            cpus=caps.cpus,
        )

    @property
    def fullest_mode(self) -> str:
        """Name of the mode without caps: MAXN, or MAXN_SUPER on a module flashed so."""
        return self.board.modes[0].name

    def free_clocks(self, clocks_mhz: Mapping[str, float]) -> Clocks:
        """Return the clocks that values for some of gpu, dla, emc, cpu come to; what is not named runs at its highest.

        The EMC has few steps and takes the one below. A value is where a clock is locked, or a cap that it reaches
        under load. OrinError for an unknown clock or value.
        """
        top = self.max_clocks.as_mhz()
        for name, mhz in clocks_mhz.items():
            if name not in top:
                raise OrinError(f"plan field clocks_mhz has {name!r}; clocks are {', '.join(top)}")
            if isinstance(mhz, bool) or not isinstance(mhz, (int, float)) or not 0 < mhz <= top[name] * ROUNDING:
                raise OrinError(f"plan field clocks_mhz has {name}: {mhz!r}, expected MHz up to {top[name]}")
        chosen = {**top, **clocks_mhz}
        emc_mhz = self._emc_step(chosen["emc"])
        return replace(
            self.max_clocks, gpu_mhz=chosen["gpu"], dla_mhz=chosen["dla"], emc_mhz=emc_mhz, cpu_mhz=chosen["cpu"]
        )

    def gpu_steps_mhz(self, cap_mhz: float) -> tuple[float, ...]:
        """Return the clocks that a GPU's governor can choose from below a cap, ascending; the cap is the last."""
        steps: list[float] = []
        while (mhz := GPU_LOWEST_MHZ + len(steps) * GPU_STEP_MHZ) < cap_mhz:
            steps.append(mhz)
        return (*steps, cap_mhz)

    def _emc_step(self, mhz: float) -> float:
        below = [step for step in self.emc_steps_mhz if step <= mhz * ROUNDING]
        if not below:
            steps = ", ".join(f"{step:g}" for step in self.emc_steps_mhz)
            raise OrinError(f"plan field clocks_mhz has emc: {mhz!r}, expected at least the lowest of {steps} MHz")
        return below[-1]

    def notes(self, mode: str) -> tuple[str, ...]:
        """Say in words what a mode's clocks do not show."""
        caps = self.board.mode(mode)
        if caps.dla1_mhz is None or self.dla_cores < 2:
            return ()
        return (f"{caps.name} caps dla1 at {caps.dla1_mhz:g} MHz: the model gives both cores dla0's {caps.dla_mhz:g}",)

    def gpu_peak_ops(self, clocks: Clocks) -> float:
        """INT8 operations per second of the GPU, dense."""
        return clocks.sms * self.int8_ops_per_sm_per_clk * clocks.gpu_mhz * 1e6

    def dla_peak_ops(self, clocks: Clocks) -> float:
        """INT8 operations per second of one DLA core, dense."""
        return 2 * self.dla_int8_macs_per_clk * clocks.dla_mhz * 1e6

    def dram_peak_bytes_per_s(self, clocks: Clocks) -> float:
        """Theoretical DRAM bandwidth."""
        return self.dram_bytes_per_clk * clocks.emc_mhz * 1e6

    def gpu_dram_bytes_per_s(self, clocks: Clocks) -> float:
        """Most that the GPU alone draws from DRAM: a share of the peak, or its own clock's limit (MAPE 2.5 %)."""
        own = GPU_BYTES_PER_CLK_PER_GPC * self.gpcs * clocks.gpu_mhz * 1e6
        return min(GPU_STREAM_SHARE * self.dram_peak_bytes_per_s(clocks), own)


AGX_ORIN_64GB_SOC = Soc(
    board=AGX_ORIN_64GB,
    sms=16,
    gpcs=2,
    int8_ops_per_sm_per_clk=4096,
    dla_cores=2,
    dla_int8_macs_per_clk=8192,
    dla_sram_bytes=1 << 20,
    loadables_per_dla=16,
    dram_bytes=64 << 30,
    dram_bytes_per_clk=64.0,  # 256 bit, both edges
    max_clocks=Clocks(gpu_mhz=1300.5, dla_mhz=1600.0, emc_mhz=3199.0, cpu_mhz=2201.6, sms=16, cpus=12),
)

AGX_ORIN_32GB_SOC = replace(
    AGX_ORIN_64GB_SOC,
    board=AGX_ORIN_32GB,
    sms=14,
    dram_bytes=32 << 30,
    max_clocks=Clocks(gpu_mhz=930.75, dla_mhz=1408.0, emc_mhz=3199.0, cpu_mhz=2201.6, sms=14, cpus=8),
)
ORIN_NX_16GB_SOC = replace(
    AGX_ORIN_64GB_SOC,
    board=ORIN_NX_16GB,
    sms=8,
    gpcs=1,
    dram_bytes=16 << 30,
    dram_bytes_per_clk=32.0,  # 128 bit, both edges
    max_clocks=Clocks(gpu_mhz=918.0, dla_mhz=614.4, emc_mhz=3199.0, cpu_mhz=1984.0, sms=8, cpus=8),
)
ORIN_NX_16GB_SUPER_SOC = replace(
    ORIN_NX_16GB_SOC,
    board=ORIN_NX_16GB_SUPER,
    max_clocks=replace(ORIN_NX_16GB_SOC.max_clocks, gpu_mhz=1173.0, dla_mhz=1228.8),
)

SOCS = {soc.name: soc for soc in (AGX_ORIN_64GB_SOC, AGX_ORIN_32GB_SOC, ORIN_NX_16GB_SOC, ORIN_NX_16GB_SUPER_SOC)}


def soc(name: str) -> Soc:
    """Return a SoC by its board name; OrinError names the known ones."""
    try:
        return SOCS[name]
    except KeyError:
        raise OrinError(f"SoC {name!r} is not known; known: {', '.join(SOCS)}") from None
