"""A board's mode file from the tables of `power.boards`, where its own /etc/nvpmodel.conf is not at hand.

A board's own file comes first wherever it can be read. This one holds the clocks that the tables know; PVA, fan and
what no source gives are left as they are. Paths: NVIDIA's mode files for tegra234 (kernel 5.10, and with `_KNEXT` 5.15
and later).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from power.boards import BoardFacts, PowerMode
from power.errors import PowerError
from power.nvpmodel import NEWER_KERNEL, Key, Mode, ModeFile, Parameter

CPU_LOWEST_KHZ = 729600  # in every mode of NVIDIA's files
CORES_PER_CLUSTER = 4
TPCS = 8  # of the chip: modules with fewer have the others switched off in every mode
NO_CAP = -1

_CPU = "/sys/devices/system/cpu"
_OLD_GPU = "/sys/devices/17000000.ga10b/devfreq/17000000.ga10b"
_NEW_GPU = "/sys/devices/platform/17000000.gpu/devfreq_dev"
_OLD_DLA = "/sys/devices/platform/13e40000.host1x/{address}/acm/clk_cap"
_NEW_DLA = "/sys/devices/platform/bus@0/13e00000.host1x/{address}/clk_cap"
_DLA_ADDRESSES = ("15880000.nvdla0", "158c0000.nvdla1")


def board_modes(board: BoardFacts) -> ModeFile:
    """Return a board's modes as a mode file; PowerError for a board whose modes no table holds."""
    if not board.modes:
        raise PowerError(f"no table holds the power modes of {board.name}: give its own /etc/nvpmodel.conf")
    cpus = max(mode.cpus for mode in board.modes)
    modes = tuple(_mode(mode, cpus) for mode in board.modes)
    default = next(mode.id for mode in board.modes if mode.name == board.default_mode)
    return ModeFile(tuple(_parameters(cpus)), modes, default)


def _parameters(cpus: int) -> Iterator[Parameter]:
    yield Parameter("FILE", "CPU_ONLINE", {f"CORE_{core}": f"{_CPU}/cpu{core}/online" for core in range(cpus)})
    masks = _both("TPC_PG_MASK", "/sys/devices/gpu.0/tpc_pg_mask", "/sys/devices/platform/gpu.0/tpc_pg_mask")
    yield Parameter("FILE", "TPC_POWER_GATING", masks)
    for first in range(0, cpus, CORES_PER_CLUSTER):
        yield _cpu_clock(first)
    files = {"FREQ_TABLE": "available_frequencies", "MAX_FREQ": "max_freq", "MIN_FREQ": "min_freq"}
    gpu = (_both(argument, f"{_OLD_GPU}/{file}", f"{_NEW_GPU}/{file}") for argument, file in files.items())
    yield Parameter("CLOCK", "GPU", {name: path for paths in gpu for name, path in paths.items()})
    emc = _both("MAX_FREQ", "/sys/kernel/nvpmodel_emc_cap/emc_iso_cap", "/sys/kernel/nvpmodel_clk_cap/emc")
    yield Parameter("CLOCK", "EMC", emc)
    for core, address in enumerate(_DLA_ADDRESSES):
        for clock in ("core", "falcon"):
            old, new = (f"{folder.format(address=address)}/dla{core}_{clock}" for folder in (_OLD_DLA, _NEW_DLA))
            yield Parameter("CLOCK", f"DLA{core}_{clock.upper()}", _both("MAX_FREQ", old, new))


def _cpu_clock(first: int) -> Parameter:
    folder = f"{_CPU}/cpufreq/policy{first}"
    files = {
        "FREQ_TABLE": "scaling_available_frequencies",
        "MAX_FREQ": "scaling_max_freq",
        "MIN_FREQ": "scaling_min_freq",
    }
    paths = {argument: f"{folder}/{file}" for argument, file in files.items()}
    return Parameter("CLOCK", _cluster(first), paths)


def _cluster(first: int) -> str:
    return f"CPU_A78_{first // CORES_PER_CLUSTER}"


def _both(argument: str, old: str, new: str) -> dict[str, str]:
    return {argument: old, argument + NEWER_KERNEL: new}


def _mode(mode: PowerMode, cpus: int) -> Mode:
    values: dict[Key, int] = {("CPU_ONLINE", f"CORE_{core}"): int(core < mode.cpus) for core in range(cpus)}
    values["TPC_POWER_GATING", "TPC_PG_MASK"] = _mask(mode.tpcs)
    for first in range(0, cpus, CORES_PER_CLUSTER):
        values[_cluster(first), "MIN_FREQ"] = CPU_LOWEST_KHZ
        values[_cluster(first), "MAX_FREQ"] = _cap(mode.cpu_mhz, 1e3)
    values["GPU", "MIN_FREQ"] = 0
    values["GPU", "MAX_FREQ"] = _cap(mode.gpu_mhz, 1e6)
    values["EMC", "MAX_FREQ"] = _cap(mode.emc_mhz, 1e6)
    for core, mhz in enumerate((mode.dla_mhz, mode.dla1_mhz or mode.dla_mhz)):
        values[f"DLA{core}_CORE", "MAX_FREQ"] = _cap(mhz, 1e6)
        if mode.dla_falcon_mhz is None or not math.isnan(mode.dla_falcon_mhz):
            values[f"DLA{core}_FALCON", "MAX_FREQ"] = _cap(mode.dla_falcon_mhz, 1e6)
    return Mode(mode.id, mode.name, {key: str(value) for key, value in values.items()})


def _mask(on: int) -> int:
    """A bit for each TPC that is off, the highest first: 4 on is 240."""
    return sum(1 << tpc for tpc in range(on, TPCS))


def _cap(mhz: float | None, per_mhz: float) -> int:
    return NO_CAP if mhz is None else round(mhz * per_mhz)
