"""The power mode and the clocks in force on an attached board, and holding another mode for a while.

Sources: NVIDIA's nvpmodel files and `nvpmodel -q` as seen on boards (the same number means another mode on another
board, so modes go by name); paths of L4T 35 (kernel 5.10) and of L4T 36 and 39.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from orin.errors import OrinError
from orin.jetson.detect import Machine
from orin.soc import Clocks, Soc
from power.boards import BoardFacts
from power.errors import PowerError

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
TPC_MASKS = (
    "sys/devices/platform/gpu.0/tpc_pg_mask",
    "sys/devices/gpu.0/tpc_pg_mask",
)  # a bit for each TPC that is off
CPU_ONLINE = "sys/devices/system/cpu/online"
NVPMODEL = "/usr/sbin/nvpmodel"
ASK_MODE = ("sh", "-c", f"{NVPMODEL} -q 2>&1")  # some builds answer on stderr
CONF = "etc/nvpmodel.conf"


class Mode(NamedTuple):
    """A power mode as the board has it: its number there, and its name without the `MODE_` of some files."""

    id: int
    name: str


def modes(machine: Machine) -> list[Mode]:
    """Return the modes of the board's own nvpmodel file."""
    lines = (line for line in (machine.text(CONF) or "").splitlines() if not line.lstrip().startswith("#"))
    found = (re.match(r"\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", line) for line in lines)
    return [Mode(int(match[1]), _plain(match[2])) for match in found if match]


def mode_in_force(machine: Machine) -> Mode | None:
    """Return what `nvpmodel -q` says; None where it says nothing that can be read."""
    said = machine.run(ASK_MODE) or ""
    name = re.search(r"NV Power Mode: *(\S+)", said)
    numbers = re.findall(r"^ *(\d+) *$", said, re.MULTILINE)
    return Mode(int(numbers[-1]), _plain(name[1])) if name and numbers else None


def clocks_in_force(soc: Soc, machine: Machine) -> Clocks:
    """Return the clocks that the board may reach now, in MHz.

    Each that can be read without being root is read; the others are those of the mode in force, or of the module
    without a cap.
    """
    clocks = soc.max_clocks
    mode = mode_in_force(machine)
    if mode is not None and _known(soc.board, mode.name):
        clocks = soc.clocks(mode.name)
    mask, online, top = _number(machine, TPC_MASKS), machine.text(CPU_ONLINE), soc.max_clocks
    return replace(
        clocks,
        gpu_mhz=min(_mhz(machine, GPU_MAX_HZ, 1e6) or clocks.gpu_mhz, top.gpu_mhz),
        dla_mhz=min(_mhz(machine, DLA_CAP_HZ, 1e6) or clocks.dla_mhz, top.dla_mhz),
        emc_mhz=min(_mhz(machine, EMC_CAP_HZ, 1e6) or clocks.emc_mhz, top.emc_mhz),
        cpu_mhz=min(_mhz(machine, CPU_MAX_KHZ, 1e3) or clocks.cpu_mhz, top.cpu_mhz),
        sms=clocks.sms if mask is None else soc.sms - 2 * mask.bit_count(),  # two SMs are one TPC
        cpus=_cores(online) if online else clocks.cpus,
    )


@contextmanager
def held_mode(machine: Machine, name: str) -> Iterator[None]:
    """Hold a power mode by name and go back to the former one; OrinError where it does not come into force."""
    before = mode_in_force(machine)
    if before is None:
        raise OrinError(f"{NVPMODEL} -q says no power mode: is this a container? mount {NVPMODEL}, or leave --mode out")
    _enter(machine, name)
    try:
        yield
    finally:
        try:
            _enter(machine, before.name)
        except OrinError as error:  # what was measured is good all the same
            warnings.warn(f"the board stays in another power mode than before: {error}", stacklevel=2)


def _enter(machine: Machine, name: str) -> None:
    """Bring a mode into force; nvpmodel's exit code says little, so what is in force afterwards decides."""
    wanted = _plain(name)
    now = mode_in_force(machine)
    if now is not None and now.name == wanted:
        return
    number = next((mode.id for mode in modes(machine) if mode.name == wanted), None)
    if number is None:
        known = ", ".join(mode.name for mode in modes(machine)) or f"none in /{CONF}"
        raise OrinError(f"power mode {name!r} is not one of this board's: {known}")
    command = [*([] if os.geteuid() == 0 else ["sudo", "-n"]), NVPMODEL, "-m", str(number)]
    machine.run(command)
    now = mode_in_force(machine)
    if now is None or now.name != wanted:
        seen = now.name if now else "unknown"
        raise OrinError(
            f"power mode {wanted} did not come into force, the board is in {seen}: stop what uses the GPU and try "
            f"`sudo nvpmodel -m {number}` (some modes want a reboot; `orin doctor` says whether rights are missing)"
        )


def _plain(name: str) -> str:
    return name.upper().removeprefix("MODE_")


def _known(board: BoardFacts, mode: str) -> bool:
    try:
        board.mode(mode)
    except PowerError:
        return False
    return True


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
