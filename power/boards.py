"""Rails and power modes of each board, each fact once, with its source.

Sources: NVIDIA Jetson Linux Developer Guide R32, R35 and R36, "Software-Based Power Consumption Modeling" (rails);
NVIDIA forum 81016 and 75574 (AGX Xavier), 200883 (Orin NX and Nano), 366461 (Thor); upstream Linux
`arch/arm64/boot/dts/nvidia/tegra234-p3701.dtsi` (2 milliohm shunts, channels) and `tegra234-p3767.dtsi` (5 milliohm);
TI SBOS576 (INA3221: 40 uV and 8 mV steps, gain 0.25 % and offset 80 uV at most, exponential filter); NVIDIA's
`nvpower.sh` for tegra194 and tegra234 (512 samples, 3 channels, 140 us + 140 us); nvpmodel_p3701_0000.conf and _0004
as shipped in LineageOS' device tree (modes), nvpmodel_p3767_0000.conf and _0000_super.conf from the same place, the
TPCs of its modes as torch.add STREAM found them (branes-ai/graphs b6c5e82); `jetson_clocks --show` on a 64 GB devkit,
R39.2 (what MAXN resolves to).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from power.errors import PowerError

SHUNT_STEP_V = 40e-6  # one step of the INA3221's shunt register
OFFSET_STEPS = 2  # shunt offset of 80 uV, at most
GAIN_ERROR = 0.0035  # shunt and bus gain, 0.25 % each at most, in quadrature
INA3221_TAU_S = 512 * 3 * 280e-6  # of the exponential filter, as NVIDIA sets the chip up

UNKNOWN = math.nan  # a figure that no source gives: what is computed from it is unknown, too


def ina3221_step_w(shunt_ohm: float, supply_v: float) -> float:
    """Return the watts of one step of an INA3221 at a rail's voltage."""
    return SHUNT_STEP_V / shunt_ohm * supply_v


@dataclass(frozen=True)
class Rail:
    """One power rail as tegrastats names it; `in_total` if it counts in the module, `optional` if releases drop it.

    `step_w` is one step of its sensor, NaN where its shunt is not published.
    """

    name: str
    meaning: str
    step_w: float = UNKNOWN
    in_total: bool = False
    optional: bool = False

    @property
    def offset_w(self) -> float:
        """Largest constant offset of a reading, in watts."""
        return OFFSET_STEPS * self.step_w


@dataclass(frozen=True)
class TotalRule:
    """How a log of an unnamed board tells its kind of module: the rails it prints, and which of them sum to it."""

    modules: str
    rails: tuple[Rail, ...]
    filter_tau_s: float = UNKNOWN

    @cached_property
    def total(self) -> tuple[str, ...]:
        """Rails whose sum is the module; none where no sum is established."""
        return tuple(rail.name for rail in self.rails if rail.in_total)

    @cached_property
    def parts(self) -> frozenset[str]:
        """Rails that are measured inside the total."""
        return frozenset(rail.name for rail in self.rails if self.total and not rail.in_total)

    def fits(self, names: Collection[str]) -> bool:
        """Return whether the printed rails are this rule's, all of them (but for optional ones) and no other."""
        needed = {rail.name for rail in self.rails if not rail.optional}
        return needed <= set(names) <= {rail.name for rail in self.rails}


@dataclass(frozen=True)
class PowerMode:
    """One nvpmodel mode: caps in MHz (None: the chip's own maximum), TPCs and CPUs that stay on.

    `dla_mhz` caps both DLA cores, unless `dla1_mhz` has another cap for the second; a NaN is a cap that no source
    gives.
    """

    id: int
    name: str
    cpus: int
    tpcs: int
    cpu_mhz: float | None
    gpu_mhz: float | None
    emc_mhz: float | None
    dla_mhz: float | None
    dla_falcon_mhz: float | None
    dla1_mhz: float | None = None


@dataclass(frozen=True)
class BoardFacts:
    """What is fixed about a board: module number, rails, sensor filter (NaN if not published), power modes.

    `modes` is empty where the board's own /etc/nvpmodel.conf is the only source.
    """

    name: str
    title: str
    module: str
    rails: tuple[Rail, ...]
    filter_tau_s: float = UNKNOWN
    modes: tuple[PowerMode, ...] = ()
    default_mode: str = ""

    def mode(self, name: str) -> PowerMode:
        """Return a mode by name, with or without the `MODE_` that some files put before it."""
        wanted = name.upper().removeprefix("MODE_")
        for mode in self.modes:
            if mode.name == wanted:
                return mode
        known = ", ".join(mode.name for mode in self.modes)
        raise PowerError(
            f"power mode {name!r} is not one of {self.name}'s: {known or 'see /etc/nvpmodel.conf on the board'}"
        )

    @cached_property
    def rule(self) -> TotalRule:
        """Which of its rails sum to the module."""
        return TotalRule(self.title, self.rails, self.filter_tau_s)

    def total_rails(self) -> tuple[Rail, ...]:
        """Return the rails whose sum is the module's power; none where no sum is established."""
        return tuple(rail for rail in self.rails if rail.in_total)


# On an AGX Orin the DLA's energy hides in VDD_CPU_CV (with CPU and PVA), its memory traffic in the other two rails.
# The steps are those on the devkit's 20 V adapter: a 12 V supply makes them 0.24 W.
AGX_ORIN_RAILS = (
    Rail(
        "VDD_GPU_SOC", "GPU and SoC core (memory controller, codecs, ...)", ina3221_step_w(0.002, 19.9), in_total=True
    ),
    Rail("VDD_CPU_CV", "CPU, DLA and PVA", ina3221_step_w(0.002, 19.9), in_total=True),
    Rail(
        "VIN_SYS_5V0",
        "system 5 V: DRAM and I/O, VDDQ_VDD2_1V8AO included",
        ina3221_step_w(0.002, 5.0),
        in_total=True,
    ),
    Rail(
        "VDDQ_VDD2_1V8AO",
        "DRAM core and I/O, always-on 1.8 V: a part of VIN_SYS_5V0",
        ina3221_step_w(0.002, 5.0),
        optional=True,  # R36.4 and later print it no more
    ),
)

# On these modules the DLA hides in VDD_CPU_GPU_CV.
P3767_RAILS = (
    Rail("VDD_IN", "the module's input", ina3221_step_w(0.005, 5.0), in_total=True),
    Rail("VDD_CPU_GPU_CV", "CPU, GPU, DLA and PVA: a part of VDD_IN", ina3221_step_w(0.005, 5.0)),
    Rail("VDD_SOC", "SoC core, memory subsystem, codecs: a part of VDD_IN", ina3221_step_w(0.005, 5.0)),
)
XAVIER_NX_RAILS = (
    Rail("VDD_IN", "the module's input", in_total=True),
    Rail("VDD_CPU_GPU_CV", "CPU, GPU, DLA and PVA: a part of VDD_IN"),
    Rail("VDD_SOC", "SoC core and memory subsystem: a part of VDD_IN"),
)
AGX_XAVIER_RAILS = (
    Rail("GPU", "GPU", in_total=True),
    Rail("CPU", "CPU", in_total=True),
    Rail("SOC", "SoC core", in_total=True),
    Rail("CV", "DLA and PVA", in_total=True),
    Rail("VDDRQ", "DRAM", in_total=True),
    Rail("SYS5V", "system 5 V", in_total=True),
)
_TX2_IN = Rail("VDD_IN", "the module's input", in_total=True)
_TX2_PARTS = tuple(
    Rail(name, f"{meaning}: a part of VDD_IN")
    for name, meaning in (
        ("VDD_CPU", "CPU"),
        ("VDD_GPU", "GPU"),
        ("VDD_SOC", "SoC core"),
        ("VDD_WIFI", "Wi-Fi"),
        ("VDD_DDR", "DRAM"),
    )
)
_TX2_R28_PARTS = tuple(
    Rail(name, f"{meaning}: a part of VDD_IN")
    for name, meaning in (
        ("VDD_SYS_CPU", "CPU"),
        ("VDD_SYS_GPU", "GPU"),
        ("VDD_SYS_SOC", "SoC core"),
        ("VDD_SYS_DDR", "DRAM"),
        ("VDD_4V0_WIFI", "Wi-Fi"),
    )
)
TX2_NX_RAILS = (
    _TX2_IN,
    Rail("VDD_CPU_GPU", "CPU and GPU: a part of VDD_IN"),
    Rail("VDD_SOC", "SoC core: a part of VDD_IN"),
)
NANO_RAILS = (
    Rail("POM_5V_IN", "the module's input", in_total=True),
    Rail("POM_5V_GPU", "GPU: a part of POM_5V_IN"),
    Rail("POM_5V_CPU", "CPU: a part of POM_5V_IN"),
)
# No sum is established: loaded, the three rails say 83.5 W where VIN says 124.5 W.
THOR_RAILS = (
    Rail("VDD_GPU", "GPU"),
    Rail("VDD_CPU_SOC_MSS", "CPU, SoC core and memory subsystem"),
    Rail("VIN_SYS_5V0", "system 5 V"),
    Rail("VIN", "the whole board's input", optional=True),  # R38.4 has builds without it
)


def _modes_p3701(tpcs: int, cpus: int, top: PowerMode) -> tuple[PowerMode, ...]:
    """Return the modes of an AGX Orin: both files agree but for the chip's size and the mode below MAXN."""
    return (
        PowerMode(0, "MAXN", cpus, tpcs, None, None, None, None, None),
        PowerMode(1, "15W", 4, 3, 1113.6, 408.0, 2133.0, 614.4, 294.4),
        PowerMode(2, "30W", 8, 4, 1728.0, 612.0, None, 1369.6, 729.6),
        top,
    )


AGX_ORIN_64GB = BoardFacts(
    name="agx-orin-64gb",
    title="Jetson AGX Orin 64 GB",
    module="p3701-0005",
    rails=AGX_ORIN_RAILS,
    filter_tau_s=INA3221_TAU_S,
    modes=_modes_p3701(8, 12, PowerMode(3, "50W", 12, 8, 1497.6, 816.0, None, 1369.6, 729.6)),
    default_mode="30W",
)
AGX_ORIN_32GB = BoardFacts(
    name="agx-orin-32gb",
    title="Jetson AGX Orin 32 GB",
    module="p3701-0004",
    rails=AGX_ORIN_RAILS,
    filter_tau_s=INA3221_TAU_S,
    modes=_modes_p3701(7, 8, PowerMode(3, "40W", 8, 7, 1497.6, 816.0, None, 1228.8, 652.8)),
    default_mode="30W",
)

# The module is flashed with one of two configurations: both number their fullest mode 0, the super one calls it
# MAXN_SUPER and lets GPU and DLA run faster. Its 15W is the newer file's.
ORIN_NX_16GB = BoardFacts(
    name="orin-nx-16gb",
    title="Jetson Orin NX 16 GB",
    module="p3767-0000",
    rails=P3767_RAILS,
    filter_tau_s=INA3221_TAU_S,
    modes=(
        PowerMode(0, "MAXN", 8, 4, None, None, None, None, None),
        PowerMode(1, "10W", 4, 2, 1190.4, 612.0, 2133.0, 153.6, UNKNOWN, dla1_mhz=115.2),
        PowerMode(2, "15W", 4, 2, 1651.2, 612.0, None, 614.4, UNKNOWN),
        PowerMode(3, "25W", 8, 4, 1497.6, 408.0, None, 614.4, UNKNOWN),
    ),
    default_mode="15W",
)
ORIN_NX_16GB_SUPER = replace(
    ORIN_NX_16GB,
    name="orin-nx-16gb-super",
    title="Jetson Orin NX 16 GB, super configuration",
    modes=(
        PowerMode(0, "MAXN_SUPER", 8, 4, None, None, None, None, None),
        ORIN_NX_16GB.modes[1],
        PowerMode(2, "15W", 4, 2, 1420.8, 612.0, None, 614.4, UNKNOWN, dla1_mhz=115.2),
        ORIN_NX_16GB.modes[3],
        PowerMode(4, "40W", 8, 4, 1497.6, 1173.0, None, 908.8, 435.2),
    ),
    default_mode="40W",
)

BOARDS = {
    board.name: board
    for board in (
        AGX_ORIN_64GB,
        AGX_ORIN_32GB,
        replace(
            AGX_ORIN_64GB, name="agx-orin-devkit", title="Jetson AGX Orin devkit (p3701-0000)", module="p3701-0000"
        ),
        # Its carrier's CVB_ATX_12V, _3V3 and _5V are inputs of the carrier, no part of the module.
        BoardFacts("agx-orin-industrial", "Jetson AGX Orin Industrial", "p3701-0008", AGX_ORIN_RAILS, INA3221_TAU_S),
        ORIN_NX_16GB,
        ORIN_NX_16GB_SUPER,
        BoardFacts("orin-nx-8gb", "Jetson Orin NX 8 GB", "p3767-0001", P3767_RAILS, INA3221_TAU_S),
        BoardFacts("orin-nano-8gb", "Jetson Orin Nano 8 GB", "p3767-0003", P3767_RAILS, INA3221_TAU_S),
        BoardFacts("orin-nano-4gb", "Jetson Orin Nano 4 GB", "p3767-0004", P3767_RAILS, INA3221_TAU_S),
        BoardFacts("agx-xavier", "Jetson AGX Xavier", "p2888-0001", AGX_XAVIER_RAILS, INA3221_TAU_S),
        BoardFacts("xavier-nx", "Jetson Xavier NX", "p3668-0000", XAVIER_NX_RAILS, INA3221_TAU_S),
        BoardFacts("tx2", "Jetson TX2", "p3310-1000", (_TX2_IN, *_TX2_PARTS, *_TX2_R28_PARTS)),
        BoardFacts("tx2-nx", "Jetson TX2 NX", "p3636-0001", TX2_NX_RAILS),
        BoardFacts("nano", "Jetson Nano", "p3448-0000", NANO_RAILS),
        BoardFacts("agx-thor", "Jetson AGX Thor", "p3834-0008", THOR_RAILS),
    )
}


def board(name: str) -> BoardFacts:
    """Return a board's facts by its name; PowerError names the known ones."""
    try:
        return BOARDS[name]
    except KeyError:
        raise PowerError(f"board {name!r} is not known; known: {', '.join(BOARDS)}") from None


# No two share all their rails, so that a set of rails has one rule at most; of the modules that do share them (Orin
# NX, Orin Nano, Xavier NX) the steps differ or are not published, so an unnamed one has unknown steps.
TOTAL_RULES = (
    TotalRule("AGX Orin", AGX_ORIN_RAILS, INA3221_TAU_S),
    TotalRule("Orin NX, Orin Nano, Xavier NX", XAVIER_NX_RAILS, INA3221_TAU_S),
    TotalRule("AGX Xavier", AGX_XAVIER_RAILS, INA3221_TAU_S),
    TotalRule("TX2", (_TX2_IN, *_TX2_PARTS)),
    TotalRule("TX2, R28", (_TX2_IN, *_TX2_R28_PARTS)),
    TotalRule("TX2 NX", TX2_NX_RAILS),
    TotalRule("Nano", NANO_RAILS),
    TotalRule("AGX Thor", THOR_RAILS),
)


def total_rule(rails: Collection[str]) -> TotalRule | None:
    """Return the rule whose rails are exactly those printed; None where no known module prints them."""
    return _rule(frozenset(rails))


@lru_cache(256)
def _rule(rails: frozenset[str]) -> TotalRule | None:
    return next((rule for rule in TOTAL_RULES if rule.fits(rails)), None)


def no_total_reason(rails: Collection[str], board: BoardFacts | None = None) -> str | None:
    """Return in one line why these rails have no known sum; None where they have one."""
    if not rails:
        return "no rail is printed: JetPack 5 and earlier print them to root alone"
    rule = total_rule(rails) if board is None else board.rule
    if rule is None:
        return f"no known module prints just these rails: {', '.join(sorted(rails))}; name the board"
    if not rule.total:
        return f"{rule.modules}: no source says which of its rails sum to the module"
    missing = [name for name in rule.total if name not in rails]
    return f"{rule.modules}: not printed: {', '.join(missing)}" if missing else None
