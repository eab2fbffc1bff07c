"""Rails and power modes of each board, each fact once, with its source.

Sources: NVIDIA Jetson Linux Developer Guide, "Software-Based Power Consumption Modeling" (rails); upstream Linux
`arch/arm64/boot/dts/nvidia/tegra234-p3701.dtsi` (sensor channels, 2 milliohm shunts); TI SBOS576 (INA3221: 40 uV and
8 mV steps, gain 0.25 % and offset 80 uV at most, exponential filter); NVIDIA's ina3221 settings (512 samples, 3
channels, 140 us + 140 us); nvpmodel_p3701_0000.conf as shipped in LineageOS' device tree (modes);
`jetson_clocks --show` on a 64 GB devkit, R39.2 (what MAXN resolves to).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from power.errors import PowerError

SHUNT_STEP_V = 40e-6  # one step of the INA3221's shunt register
GAIN_ERROR = 0.0035  # shunt and bus gain, 0.25 % each at most, in quadrature
OFFSET_V = 80e-6  # shunt offset, at most


@dataclass(frozen=True)
class Rail:
    """One power rail as tegrastats names it: shunt in ohm, supply in volt; `in_total` if it counts in the module."""

    name: str
    meaning: str
    shunt_ohm: float
    supply_v: float
    in_total: bool = True

    @property
    def step_w(self) -> float:
        """Watts of one step of the sensor."""
        return SHUNT_STEP_V / self.shunt_ohm * self.supply_v

    @property
    def offset_w(self) -> float:
        """Largest constant offset of a reading, in watts."""
        return OFFSET_V / self.shunt_ohm * self.supply_v


@dataclass(frozen=True)
class TotalRule:
    """How the log of an unnamed board tells its kind of module: the rails it prints, and which of them sum to it.

    `parts` are measured inside the total; `optional` ones are left out by some releases.
    """

    modules: str
    total: tuple[str, ...]
    parts: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()

    def fits(self, names: Collection[str]) -> bool:
        """Return whether the printed rails are this rule's, all of them and no other."""
        return self.parts.union(self.total) == set(names) - self.optional


@dataclass(frozen=True)
class PowerMode:
    """One nvpmodel mode: caps in MHz (None: the chip's own maximum), TPCs and CPUs that stay on."""

    id: int
    name: str
    cpus: int
    tpcs: int
    cpu_mhz: float | None
    gpu_mhz: float | None
    emc_mhz: float | None
    dla_mhz: float | None
    dla_falcon_mhz: float | None


@dataclass(frozen=True)
class BoardFacts:
    """What is fixed about a board: module number, rails, sensor filter, power modes."""

    name: str
    title: str
    module: str
    rails: tuple[Rail, ...]
    filter_tau_s: float
    modes: tuple[PowerMode, ...]
    default_mode: str

    def mode(self, name: str) -> PowerMode:
        """Return a mode by name, with or without the `MODE_` that some files put before it."""
        wanted = name.upper().removeprefix("MODE_")
        for mode in self.modes:
            if mode.name == wanted:
                return mode
        known = ", ".join(mode.name for mode in self.modes)
        raise PowerError(f"power mode {name!r} is not one of {self.name}'s: {known}")

    def total_rails(self) -> tuple[Rail, ...]:
        """Return the rails whose sum is the module's power."""
        return tuple(rail for rail in self.rails if rail.in_total)


# On an AGX Orin the DLA's energy hides in VDD_CPU_CV (with CPU and PVA), its memory traffic in the other two rails.
AGX_ORIN_RAILS = (
    Rail("VDD_GPU_SOC", "GPU and SoC core (memory controller, codecs, ...)", 0.002, 19.9),
    Rail("VDD_CPU_CV", "CPU, DLA and PVA", 0.002, 19.9),
    Rail("VIN_SYS_5V0", "system 5 V: DRAM and I/O, VDDQ_VDD2_1V8AO included", 0.002, 5.0),
    Rail("VDDQ_VDD2_1V8AO", "DRAM core and I/O, always-on 1.8 V: a part of VIN_SYS_5V0", 0.002, 5.0, in_total=False),
)

AGX_ORIN_64GB = BoardFacts(
    name="agx-orin-64gb",
    title="Jetson AGX Orin 64 GB",
    module="p3701-0005",
    rails=AGX_ORIN_RAILS,
    filter_tau_s=512 * 3 * 280e-6,
    modes=(
        PowerMode(0, "MAXN", 12, 8, None, None, None, None, None),
        PowerMode(1, "15W", 4, 3, 1113.6, 408.0, 2133.0, 614.4, 294.4),
        PowerMode(2, "30W", 8, 4, 1728.0, 612.0, None, 1369.6, 729.6),
        PowerMode(3, "50W", 12, 8, 1497.6, 816.0, None, 1369.6, 729.6),
    ),
    default_mode="30W",
)

BOARDS = {board.name: board for board in (AGX_ORIN_64GB,)}


def board(name: str) -> BoardFacts:
    """Return a board's facts by its name; PowerError names the known ones."""
    try:
        return BOARDS[name]
    except KeyError:
        raise PowerError(f"board {name!r} is not known; known: {', '.join(BOARDS)}") from None


# Sources: Jetson Linux Developer Guide R32 and R35 (VDD_IN, POM_5V_IN), NVIDIA forum 81016 and 75574 (AGX Xavier),
# 200883 (Orin NX and Nano). AGX Thor has none: three rails say 83.5 W where its input VIN says 124.5 W.
TOTAL_RULES = (
    TotalRule(
        "AGX Orin",
        total=tuple(rail.name for rail in AGX_ORIN_RAILS if rail.in_total),
        optional=frozenset(rail.name for rail in AGX_ORIN_RAILS if not rail.in_total),
    ),
    TotalRule("Orin NX, Orin Nano, Xavier NX", ("VDD_IN",), frozenset({"VDD_CPU_GPU_CV", "VDD_SOC"})),
    TotalRule("AGX Xavier", ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")),
    TotalRule("TX2", ("VDD_IN",), frozenset({"VDD_CPU", "VDD_GPU", "VDD_SOC", "VDD_WIFI", "VDD_DDR"})),
    TotalRule(
        "TX2, R28",
        ("VDD_IN",),
        frozenset({"VDD_SYS_CPU", "VDD_SYS_GPU", "VDD_SYS_SOC", "VDD_SYS_DDR", "VDD_4V0_WIFI"}),
    ),
    TotalRule("Nano", ("POM_5V_IN",), frozenset({"POM_5V_GPU", "POM_5V_CPU"})),
)


def total_rule(rails: Collection[str]) -> TotalRule | None:
    """Return the rule whose rails are exactly those printed; None where no rule is established."""
    return next((rule for rule in TOTAL_RULES if rule.fits(rails)), None)
