"""Which machine this is, from its device tree, its release file and its programs; nothing vendor's is imported.

Sources: the L4T to JetPack table is jetson_stats' and meta-tegra's release notes; module numbers are those of NVIDIA's
flashing guides, jetson_stats' module table and the device trees; which TensorRT has a DLA is NVIDIA's "Working with
DLA" and release notes (10.7 was the last 10.x with it; 11.4.1 on JetPack 7.2.2 is the next one).
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orin.errors import OrinError
from orin.soc import AGX_ORIN_64GB_SOC, SOCS, Soc
from power import commands

JETPACK_BY_L4T = {
    "34.1.0": "5.0 DP",
    "34.1.1": "5.0.1 DP",
    "35.1.0": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6.0": "5.1.4",
    "35.6.1": "5.1.5",
    "35.6.2": "5.1.5",
    "35.6.3": "5.1.5",
    "35.6.4": "5.1.6",
    "36.2.0": "6.0 DP",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "36.5.2": "6.2.3",
    "38.2.0": "7.0",
    "38.4.0": "7.1",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
    "39.2.2": "7.2.2",
}
LAST_TRT_10_WITH_DLA = (10, 7)
FIRST_TRT_11_WITH_DLA = (11, 4, 1)
NVPMODEL_CONF = "etc/nvpmodel.conf"
L4T_WITHOUT_DLA = ((38, 0, 0), (39, 2, 1))  # JetPack 7.0 to 7.2.1; 7.2.2 has it again, on AGX Orin
FLASH = "flash JetPack 6.1 to 6.2.x (TensorRT 10.3), or JetPack 7.2.2 with TensorRT 11.4.1 (AGX Orin only)"
PROGRAM_TIMEOUT_S = 60.0

DLA_DEVICES = ("sys/devices/platform/*host1x/*.nvdla?", "sys/devices/platform/bus@0/*host1x/*.nvdla?")
DLA_COMPILERS = tuple(f"usr/lib/aarch64-linux-gnu/{part}/libnvdla_compiler.so" for part in ("nvidia", "tegra"))
DLA_COMPILER_MEND = "sudo apt install --reinstall nvidia-l4t-dla-compiler"
GPU_NODES = ("dev/nvmap", "dev/nvhost-gpu", "dev/nvhost-ctrl")  # what CUDA opens on a Tegra
GPU_NODES_MEND = 'sudo usermod -aG video,render "$USER", then log in again'


@dataclass(frozen=True)
class Module:
    """One Jetson module: how many DLA cores it has, and what its facts are called where `orin.soc` has them."""

    title: str
    dla_cores: int
    soc: str | None = None


MODULES = {
    "p3701-0000": Module("Jetson AGX Orin, developer kit", 2, "agx-orin-64gb"),
    "p3701-0004": Module("Jetson AGX Orin 32 GB", 2, "agx-orin-32gb"),
    "p3701-0005": Module("Jetson AGX Orin 64 GB", 2, "agx-orin-64gb"),
    "p3701-0008": Module("Jetson AGX Orin Industrial", 2),
    "p3767-0000": Module("Jetson Orin NX 16 GB", 2, "orin-nx-16gb"),
    "p3767-0001": Module("Jetson Orin NX 8 GB", 1),
    "p3767-0003": Module("Jetson Orin Nano 8 GB", 0),
    "p3767-0004": Module("Jetson Orin Nano 4 GB", 0),
    "p3767-0005": Module("Jetson Orin Nano, developer kit", 0),
    "p2888": Module("Jetson AGX Xavier", 2),
    "p3668": Module("Jetson Xavier NX", 2),
    "p3834": Module("Jetson AGX Thor", 0),
}

Runner = Callable[[Sequence[str]], "str | None"]


def run_program(command: Sequence[str]) -> str | None:
    """Run a program without a shell or input and return its stdout; None where it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PROGRAM_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


@dataclass(frozen=True)
class Machine:
    """Where facts come from: files below `root`, and programs through `run` (their stdout, None where one fails).

    `power` runs nvpmodel and jetson_clocks; without it, those below `root` are.
    """

    root: Path = Path("/")
    run: Runner = run_program
    power: commands.Runner | None = None

    @property
    def jetson(self) -> bool:
        """Whether this machine is a Jetson; the device tree says so, inside containers too."""
        return "nvidia,tegra" in (self.text("proc/device-tree/compatible") or "")

    def text(self, path: str) -> str | None:
        """Return a file's text without the NULs that end device tree strings; None where it cannot be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
        except OSError:
            return None

    @property
    def number(self) -> str | None:
        """The module's number, e.g. "p3701-0005"; the device tree names the carrier before it."""
        numbers = re.findall(r"p\d{4}-\d{4}", self.text("proc/device-tree/compatible") or "")
        return numbers[-1] if numbers else None

    @property
    def module(self) -> Module | None:
        """What is known about the module; None for a number that the table lacks."""
        number = self.number or ""
        return MODULES.get(number) or MODULES.get(number.partition("-")[0])

    @property
    def soc(self) -> Soc | None:
        """The facts of the module's SoC, with the clocks of Super modes where it has them; None where none are known.

        A module keeps its number when it is flashed for JetPack 6.2's Super modes: nvpmodel's file tells.
        """
        name = self.module.soc if self.module else None
        if name is None:
            return None
        is_super = "_SUPER" in (self.text(NVPMODEL_CONF) or "")
        return (SOCS.get(f"{name}-super") if is_super else None) or SOCS.get(name)

    @property
    def l4t(self) -> str | None:
        """The L4T release, e.g. "36.4.4"; containers may have neither the file nor the package."""
        text = self.text("etc/nv_tegra_release") or ""
        if match := re.search(r"R(\d+) \(release\), REVISION: (\d+)\.(\d+)", text):
            return ".".join(match.groups())
        package = self.run(["dpkg-query", "-W", "-f=${Version}", "nvidia-l4t-core"]) or ""
        return match[0] if (match := re.match(r"\d+\.\d+\.\d+", package)) else None

    @property
    def dla_devices(self) -> list[Path]:
        """The DLA cores that the kernel knows, whether a driver is bound to them or not."""
        return [path for pattern in DLA_DEVICES for path in sorted(self.root.glob(pattern))]

    @property
    def dla_compiler(self) -> Path | None:
        """The library that TensorRT compiles loadables with; containers may hold an empty file in its place."""
        return next((path for name in DLA_COMPILERS if (path := self.root / name).is_file()), None)

    @property
    def closed_nodes(self) -> list[Path]:
        """Device nodes that are there and that this user may not open."""
        nodes = [self.root / name for name in GPU_NODES]
        return [node for node in nodes if node.exists() and not os.access(node, os.R_OK | os.W_OK)]


def jetpack(l4t: str | None) -> str:
    """Return L4T and JetPack in words; a release that the table lacks is no error."""
    if l4t is None:
        return "L4T unknown (JetPack unknown)"
    return f"L4T {l4t} (JetPack {JETPACK_BY_L4T.get(l4t, 'unknown')})"


def has_dla(tensorrt_version: str) -> bool:
    """Return whether a TensorRT release can build for the DLA of an Orin at all."""
    version = _numbers(tensorrt_version)
    return version[:2] <= LAST_TRT_10_WITH_DLA or version >= FIRST_TRT_11_WITH_DLA


def release_has_dla(l4t: str | None) -> bool | None:
    """Return whether an L4T release comes with DLA software; None where the release is not known."""
    if l4t is None:
        return None
    first, last = L4T_WITHOUT_DLA
    return not first <= _numbers(l4t) <= last


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def attached_soc(machine: Machine) -> Soc:
    """Return the SoC of the Jetson that this program runs on; OrinError where it is none that the toolkit drives."""
    virtual = f"use --board virtual:{AGX_ORIN_64GB_SOC.name}"
    if not machine.jetson:
        raise OrinError(f"--board jetson: this machine is no Jetson (no nvidia,tegra in /proc/device-tree); {virtual}")
    module, soc = machine.module, machine.soc
    if soc is None:
        known = ", ".join(number for number, entry in MODULES.items() if entry.soc in SOCS)
        name = f"module {machine.number or 'unknown'}" + (f" ({module.title})" if module else "")
        raise OrinError(f"--board jetson: {name} is not driven by this version, which knows {known}; {virtual}")
    if closed := machine.closed_nodes:
        raise OrinError(f"--board jetson: no right to open {closed[0]}: {GPU_NODES_MEND}")
    return soc


def dla_trouble(machine: Machine) -> str | None:
    """Say in one line why no engine can run on a DLA here, and what to do; None where nothing is seen missing.

    TensorRT's own count of cores has the last word; this is what explains a zero.
    """
    module, l4t = machine.module, machine.l4t
    if module is not None and not module.dla_cores:
        return f"{module.title} has no DLA: set dla_cores to 0"
    if release_has_dla(l4t) is False:
        return f"{jetpack(l4t)} has no DLA software: {FLASH}"
    if not machine.dla_devices:
        return "the kernel shows no DLA device (a container without them?): run on the host, or set dla_cores to 0"
    compiler = machine.dla_compiler
    if compiler is None or not compiler.stat().st_size:
        state = "is missing" if compiler is None else "is an empty file"
        return f"the DLA's compiler libnvdla_compiler.so {state}: {DLA_COMPILER_MEND}"
    return None
