"""What this machine is, what it has and lacks, and the command that mends it.

Sources: the L4T to JetPack table is jetson_stats' and meta-tegra's release notes; which TensorRT has a DLA is NVIDIA's
"Working with DLA" and release notes (10.7 was the last 10.x with it; 11.4.1 on JetPack 7.2.2 is the next one).
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orin.boards import board_name, is_jetson

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
}
LAST_TRT_10_WITH_DLA = (10, 7)
FIRST_TRT_11_WITH_DLA = (11, 4, 1)
PROGRAM_TIMEOUT_S = 60.0

MODULES_WITH_DLA = ("p3701", "p3767-0000", "p3767-0001")  # AGX Orin, Orin NX 16 GB and 8 GB; Orin Nano has none
DLA_DEVICES = ("sys/devices/platform/*host1x/*.nvdla?", "sys/devices/platform/bus@0/*host1x/*.nvdla?")
DLA_COMPILERS = tuple(f"usr/lib/aarch64-linux-gnu/{part}/libnvdla_compiler.so" for part in ("nvidia", "tegra"))
VENV = "python3 -m venv --system-site-packages VENV"

_PROBE = """
import importlib, json, sys
from importlib import metadata
from pathlib import Path
name, distribution = sys.argv[1:]
try:
    module = importlib.import_module(name)
    found = {"path": module.__file__, "version": getattr(module, "__version__", None)}
    if found["version"] is None:
        try:
            found["version"] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found["version"] = "of unknown version"
    if name == "tensorrt":
        found["server_build"] = (Path(module.__file__).parents[1] / "tensorrt_libs").is_dir()
        try:
            found["dla_cores"] = module.Runtime(module.Logger(module.Logger.ERROR)).num_DLA_cores
        except Exception as error:
            found["dla_error"] = f"{type(error).__name__}: {error}"
except Exception as error:
    found = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps(found))
"""

Runner = Callable[[Sequence[str]], "str | None"]


@dataclass(frozen=True)
class Fact:
    """One thing found out: `ok` is None where it does not matter on this machine, `mend` the command that helps."""

    name: str
    value: str
    ok: bool | None = None
    mend: str | None = None


@dataclass(frozen=True)
class Machine:
    """Where facts come from: files below `root`, and programs through `run` (their stdout, None where one fails)."""

    root: Path
    run: Runner
    jetson: bool

    def needed(self, found: bool) -> bool | None:
        """Return whether something is in order that only a Jetson needs."""
        return found if self.jetson else None

    def text(self, path: str) -> str | None:
        """Return a file's text without the NULs that end device tree strings; None where it cannot be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
        except OSError:
            return None

    def module(self, name: str, distribution: str) -> dict[str, Any]:
        """Import a module in a process of its own, so that a crash there is a fact; returns what the probe printed."""
        printed = self.run([sys.executable, "-c", _PROBE, name, distribution]) or ""
        try:
            found: dict[str, Any] = json.loads(printed.splitlines()[-1])
        except (ValueError, IndexError):
            return {"error": "the import ends in a crash"}
        return found


def run_program(command: Sequence[str]) -> str | None:
    """Run a program without a shell or input and return its stdout; None where it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PROGRAM_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def examine(root: Path = Path("/"), run: Runner = run_program) -> list[Fact]:
    """Return what there is to know about a machine before `orin bench` runs on it."""
    machine = Machine(root, run, is_jetson(root))
    tensorrt = machine.module("tensorrt", "tensorrt")
    return [
        *_identity(machine),
        _python(),
        *_dla(machine, tensorrt),
        *_power(machine),
        *_packages(machine),
        _bench(root),
    ]


def healthy(facts: Sequence[Fact]) -> bool:
    """Return whether nothing that this machine needs is missing."""
    return all(fact.ok is not False for fact in facts)


def _identity(machine: Machine) -> list[Fact]:
    if not machine.jetson:
        here = f"{platform.machine()} PC, no Jetson: the virtual board is what runs here, and its figures are SIMULATED"
        return [Fact("machine", here)]
    model = machine.text("proc/device-tree/model") or "Jetson of unknown model"
    return [
        Fact("machine", model, ok=True),
        Fact("module", module_number(machine) or "unknown"),
        Fact("system", jetpack(l4t_version(machine))),
    ]


def module_number(machine: Machine) -> str | None:
    """Return the module's number, e.g. "p3701-0005"; the device tree names the carrier before it."""
    numbers = re.findall(r"p\d{4}-\d{4}", machine.text("proc/device-tree/compatible") or "")
    return numbers[-1] if numbers else None


def l4t_version(machine: Machine) -> str | None:
    """Return the L4T release, e.g. "36.4.4"; containers may have neither the file nor the package."""
    text = machine.text("etc/nv_tegra_release") or ""
    if match := re.search(r"R(\d+) \(release\), REVISION: (\d+)\.(\d+)", text):
        return ".".join(match.groups())
    package = machine.run(["dpkg-query", "-W", "-f=${Version}", "nvidia-l4t-core"]) or ""
    return match[0] if (match := re.match(r"\d+\.\d+\.\d+", package)) else None


def jetpack(l4t: str | None) -> str:
    """Return L4T and JetPack in words; a release that the table lacks is no error."""
    if l4t is None:
        return "L4T unknown (JetPack unknown)"
    known = JETPACK_BY_L4T.get(l4t)
    return f"L4T {l4t} (JetPack {known or 'unknown'})"


def _python() -> Fact:
    return Fact("Python", f"{platform.python_version()}, {sys.executable}", ok=True)


def _dla(machine: Machine, tensorrt: dict[str, Any]) -> list[Fact]:
    """TensorRT, and the four things that a DLA needs, each for itself."""
    if not machine.jetson:
        return [_tensorrt(machine, tensorrt), *(Fact(name, "none: no Jetson") for name in _DLA_NAMES)]
    devices = [path for pattern in DLA_DEVICES for path in sorted(machine.root.glob(pattern))]
    drivers = [path for path in devices if (path / "driver").exists()]
    compiler = next((path for name in DLA_COMPILERS if (path := machine.root / name).is_file()), None)
    stub = compiler is not None and not compiler.stat().st_size
    said = "missing" if compiler is None else f"{compiler} is empty: a stub" if stub else str(compiler)
    built = compiler is not None and not stub
    hardware, driver, library, cores = _DLA_NAMES
    facts = [
        _fact(hardware, f"{len(devices)} cores", bool(devices), "none seen: run with --dla-cores 0"),
        _fact(driver, f"bound to {len(drivers)} of {len(devices)}", bool(drivers), "sudo modprobe nvhost-nvdla"),
        _fact(library, said, built, "sudo apt install --reinstall nvidia-l4t-dla-compiler"),
        _fact(cores, _cores_seen(tensorrt), bool(tensorrt.get("dla_cores")), _cores_mend(tensorrt)),
    ]
    module = module_number(machine) or MODULES_WITH_DLA[0]
    if not module.startswith(MODULES_WITH_DLA):  # nothing is missing: this module has none
        facts = [Fact(fact.name, f"{fact.value}: module {module} has no DLA") for fact in facts]
    return [_tensorrt(machine, tensorrt), *facts]


_DLA_NAMES = ("DLA hardware", "DLA driver", "DLA compiler", "DLA in TensorRT")


def _fact(name: str, value: str, ok: bool, mend: str | None) -> Fact:
    return Fact(name, value, ok, None if ok else mend)


def _tensorrt(machine: Machine, found: dict[str, Any]) -> Fact:
    name = "TensorRT"
    apt = f"sudo apt install python3-libnvinfer, then use a venv made with: {VENV}"
    if "error" in found:
        missing = found["error"].startswith("ModuleNotFoundError")
        value = "not installed" if missing else f"cannot be imported: {found['error']}"
        return Fact(name, value, machine.needed(False), apt if machine.jetson else None)
    value = f"{found['version']}, {found['path']}"
    if machine.jetson and found.get("server_build"):
        remove = "python3 -m pip uninstall -y tensorrt tensorrt_cu12 tensorrt_cu12_bindings tensorrt_cu12_libs"
        return Fact(name, f"{value}: pip's server build, which has no DLA", False, f"{remove}; {apt}")
    return Fact(name, value, machine.needed(True))


def _cores_seen(tensorrt: dict[str, Any]) -> str:
    if "dla_cores" in tensorrt:
        return f"{tensorrt['dla_cores']} cores"
    return f"not known: {tensorrt.get('dla_error') or 'TensorRT cannot be imported'}"


def has_dla(tensorrt_version: str) -> bool:
    """Return whether a TensorRT release can build for the DLA of an Orin at all."""
    version = tuple(map(int, re.findall(r"\d+", tensorrt_version)[:3]))
    return version[:2] <= LAST_TRT_10_WITH_DLA or version >= FIRST_TRT_11_WITH_DLA


def _cores_mend(tensorrt: dict[str, Any]) -> str:
    version = tensorrt.get("version") or ""
    if re.match(r"\d", version) and not has_dla(version):
        return (
            f"TensorRT {version} has no DLA: flash JetPack 6.1 to 6.2.x (TensorRT 10.3), or JetPack 7.2.2 with "
            "TensorRT 11.4.1 (AGX Orin only)"
        )
    return "mend what is missing above, then run orin doctor again"


def _power(machine: Machine) -> list[Fact]:
    if not machine.jetson:
        return [Fact("tegrastats", "none: no Jetson; the virtual board brings its own")]
    tegrastats = next((p for n in ("usr/bin", "home/nvidia") if (p := machine.root / n / "tegrastats").is_file()), None)
    mend = "sudo apt install nvidia-l4t-tools (container: docker run -v /usr/bin/tegrastats:/usr/bin/tegrastats)"
    readable = os.access(machine.root / "etc/nvpmodel.conf", os.R_OK)
    return [
        _fact("tegrastats", str(tegrastats or "missing"), tegrastats is not None, mend),
        Fact("power modes", "/etc/nvpmodel.conf " + ("can be read" if readable else "cannot be read")),
        _rights(machine),
    ]


def _rights(machine: Machine) -> Fact:
    """Whether --mode can work; only asked of sudo, never tried."""
    programs = ("/usr/sbin/nvpmodel", "/usr/bin/jetson_clocks")
    name = "rights"
    if os.geteuid() == 0 or all(machine.run(["sudo", "-n", "-l", program]) for program in programs):
        return Fact(name, "nvpmodel and jetson_clocks may be run")
    mend = f'echo "$USER ALL=(root) NOPASSWD: {", ".join(programs)}" | sudo tee /etc/sudoers.d/orin-toolkit'
    return Fact(name, "nvpmodel and jetson_clocks need a password: no --mode, no locked clocks", mend=mend)


def _packages(machine: Machine) -> list[Fact]:
    base = (
        ("ONNX Runtime", "onnxruntime", "onnxruntime"),
        ("LoadGen", "mlperf_loadgen", "mlcommons-loadgen"),
        ("OpenCV", "cv2", "opencv-python-headless"),
    )
    facts = [_package(title, machine.module(name, package), True, package) for title, name, package in base]
    return [*facts, _package("pycuda", machine.module("pycuda.driver", "pycuda"), machine.needed(True), "pycuda")]


def _package(title: str, found: dict[str, Any], needed: bool | None, package: str) -> Fact:
    if "error" not in found:
        return Fact(title, f"{found['version']}, {found['path']}", needed)
    missing = found["error"].startswith("ModuleNotFoundError")
    value = "not installed" if missing else f"cannot be imported: {found['error']}"
    if not needed:
        return Fact(title, f"{value}; not needed here")
    again = "" if missing else "--force-reinstall --no-deps "
    return Fact(title, value, False, f"{sys.executable} -m pip install {again}{package}")


def _bench(root: Path) -> Fact:
    name = board_name(None, lambda _: None, root)
    return Fact("orin bench uses", name if name == "jetson" else f"{name} (simulated)")
