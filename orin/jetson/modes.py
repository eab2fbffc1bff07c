"""The clocks that an attached board may reach now.

Source of the paths: NVIDIA's nvpmodel files of L4T 35 (kernel 5.10), 36 and 39.
"""

from __future__ import annotations

from dataclasses import replace

from orin.jetson.detect import Machine
from orin.soc import Clocks, Soc
from power.errors import PowerError
from power.hold import InForce, mode_in_force

GPU_MAX_HZ = (
    "sys/class/devfreq/17000000.gpu/max_freq",
    "sys/devices/platform/17000000.gpu/devfreq_dev/max_freq",
    "sys/class/devfreq/17000000.ga10b/max_freq",
    "sys/devices/17000000.ga10b/devfreq/17000000.ga10b/max_freq",
)
DLA_CAP_HZ = (
    "sys/devices/platform/bus@0/13e00000.host1x/15880000.nvdla0/clk_cap/dla0_core",
    "sys/devices/platform/13e40000.host1x/15880000.nvdla0/acm/clk_cap/dla0_core",
)
EMC_CAP_HZ = ("sys/kernel/nvpmodel_clk_cap/emc", "sys/kernel/nvpmodel_emc_cap/emc_iso_cap")
CPU_MAX_KHZ = tuple(f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_max_freq" for core in (0, 4, 8))
# A bit for each TPC that is off.
TPC_MASKS = ("sys/devices/platform/gpu.0/tpc_pg_mask", "sys/devices/gpu.0/tpc_pg_mask")
CPU_ONLINE = "sys/devices/system/cpu/online"
LIMITS = {  # files that hold a clock's limit, and how many of their units make a MHz
    "gpu": (GPU_MAX_HZ, 1e6),
    "dla": (DLA_CAP_HZ, 1e6),
    "emc": (EMC_CAP_HZ, 1e6),
    "cpu": (CPU_MAX_KHZ, 1e3),
}


def clocks_in_force(soc: Soc, machine: Machine, held: InForce | None = None) -> Clocks:
    """Return the clocks that the board may reach now, in MHz; `held` is the innermost hold of a mode.

    What can be read without being root is read; for the rest there is what the hold saw, then what the tables have of
    the mode in force, then the module without a cap.
    """
    top, by_mode = soc.max_clocks.as_mhz(), _by_mode(soc, machine, held)
    seen = by_mode.as_mhz() | (held.mhz if held else {})
    mhz = {name: _mhz(machine, *LIMITS[name]) or seen[name] for name in LIMITS}
    mask, online = _number(machine, TPC_MASKS), machine.text(CPU_ONLINE)
    return replace(
        by_mode,
        **{f"{name}_mhz": min(mhz[name], top[name]) for name in LIMITS},
        sms=by_mode.sms if mask is None else soc.sms - 2 * mask.bit_count(),  # two SMs are one TPC
        cpus=_cores(online) if online else by_mode.cpus,
    )


def _by_mode(soc: Soc, machine: Machine, held: InForce | None) -> Clocks:
    """What the tables have of the mode in force; the module's own clocks where they do not know it."""
    try:
        return soc.clocks((held.setting if held else mode_in_force(machine.root, machine.power)).name)
    except PowerError:
        return soc.max_clocks


def _number(machine: Machine, paths: tuple[str, ...]) -> int | None:
    """Return the first whole number that can be read; None where none can."""
    for text in filter(None, map(machine.text, paths)):
        try:
            return int(text, 0)
        except ValueError:
            continue
    return None


def _mhz(machine: Machine, paths: tuple[str, ...], per_mhz: float) -> float | None:
    """Return a clock's limit; None where none can be read, or a file says 0 or -1: no cap."""
    value = _number(machine, paths) or 0
    return value / per_mhz if value > 0 else None


def _cores(online: str) -> int:
    """Count a list of cores such as "0-3,8-11"."""
    ranges = (part.split("-") for part in online.split(","))
    return sum(int(ends[-1]) - int(ends[0]) + 1 for ends in ranges)
