"""What this machine is, what it has and lacks, and the command that mends it."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orin.boards import board_name
from orin.jetson.detect import (
    DLA_COMPILER_MEND,
    FLASH,
    GPU_NODES_MEND,
    NVPMODEL_CONF,
    Machine,
    Runner,
    has_dla,
    jetpack,
    release_has_dla,
    run_program,
)

VENV = "python3 -m venv --system-site-packages VENV"
JETSON_ONLY = "none: no Jetson"

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
    if name == "pycuda.driver":
        try:
            module.init()
            device = module.Device(0)
            found["gpu"] = f"{device.name()}, compute capability {'.'.join(map(str, device.compute_capability()))}"
        except Exception as error:
            found["gpu_error"] = f"{type(error).__name__}: {error}"
except Exception as error:
    found = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Fact:
    """One thing found out: `ok` is None where it does not matter on this machine, `mend` the command that helps."""

    name: str
    value: str
    ok: bool | None = None
    mend: str | None = None


def examine(root: Path = Path("/"), run: Runner = run_program) -> list[Fact]:
    """Return what there is to know about a machine before `orin bench` runs on it."""
    machine = Machine(root, run)
    tensorrt = probe(machine, "tensorrt", "tensorrt")
    return [
        *_identity(machine),
        _python(),
        *_dla(machine, tensorrt),
        *_power(machine),
        *_packages(machine),
        _bench(machine),
    ]


def healthy(facts: Sequence[Fact]) -> bool:
    """Return whether nothing that this machine needs is missing."""
    return all(fact.ok is not False for fact in facts)


def probe(machine: Machine, name: str, distribution: str) -> dict[str, Any]:
    """Import a module in a process of its own, so that a crash there is a fact; returns what the probe printed."""
    printed = machine.run([sys.executable, "-c", _PROBE, name, distribution]) or ""
    try:
        found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    except (ValueError, IndexError):
        return {"error": "the import ends in a crash"}
    return found


def _identity(machine: Machine) -> list[Fact]:
    if not machine.jetson:
        here = f"{platform.machine()} PC, no Jetson: the virtual board is what runs here, and its figures are SIMULATED"
        return [Fact("machine", here)]
    model = machine.text("proc/device-tree/model") or "Jetson of unknown model"
    known = machine.module
    return [
        Fact("machine", model, ok=True),
        Fact("module", f"{machine.number or 'unknown'}, {known.title if known else 'not in the table of modules'}"),
        Fact("system", jetpack(machine.l4t)),
    ]


def _python() -> Fact:
    return Fact("Python", f"{platform.python_version()}, {sys.executable}", ok=True)


def _dla(machine: Machine, tensorrt: dict[str, Any]) -> list[Fact]:
    """TensorRT, and the four things that a DLA needs, each for itself."""
    hardware, driver, library, cores = _DLA_NAMES
    if not machine.jetson:
        return [_tensorrt(machine, tensorrt), *(Fact(name, JETSON_ONLY) for name in _DLA_NAMES)]
    devices = machine.dla_devices
    drivers = [path for path in devices if (path / "driver").exists()]
    compiler = machine.dla_compiler
    stub = compiler is not None and not compiler.stat().st_size
    said = "missing" if compiler is None else f"{compiler} is empty: a stub" if stub else str(compiler)
    facts = [
        _fact(hardware, f"{len(devices)} cores", bool(devices), "none seen: run with --dla-cores 0"),
        _fact(driver, f"bound to {len(drivers)} of {len(devices)}", bool(drivers), "sudo modprobe nvhost-nvdla"),
        _fact(library, said, compiler is not None and not stub, DLA_COMPILER_MEND),
        _fact(cores, _cores_seen(tensorrt), bool(tensorrt.get("dla_cores")), _cores_mend(machine, tensorrt)),
    ]
    module = machine.module
    if module is not None and not module.dla_cores:  # nothing is missing: this module has none
        facts = [Fact(fact.name, f"{fact.value}: {module.title} has no DLA") for fact in facts]
    return [_tensorrt(machine, tensorrt), *facts]


_DLA_NAMES = ("DLA hardware", "DLA driver", "DLA compiler", "DLA in TensorRT")


def _needed(machine: Machine, found: bool) -> bool | None:
    """Return whether something is in order that only a Jetson needs."""
    return found if machine.jetson else None


def _fact(name: str, value: str, ok: bool, mend: str | None) -> Fact:
    return Fact(name, value, ok, None if ok else mend)


def _tensorrt(machine: Machine, found: dict[str, Any]) -> Fact:
    name = "TensorRT"
    apt = f"sudo apt install python3-libnvinfer, then use a venv made with: {VENV}"
    if "error" in found:
        missing = found["error"].startswith("ModuleNotFoundError")
        value = "not installed" if missing else f"cannot be imported: {found['error']}"
        return Fact(name, value, _needed(machine, False), apt if machine.jetson else None)
    value = f"{found['version']}, {found['path']}"
    if machine.jetson and found.get("server_build"):
        remove = "python3 -m pip uninstall -y tensorrt tensorrt_cu12 tensorrt_cu12_bindings tensorrt_cu12_libs"
        return Fact(name, f"{value}: pip's server build, which has no DLA", False, f"{remove}; {apt}")
    return Fact(name, value, _needed(machine, True))


def _cores_seen(tensorrt: dict[str, Any]) -> str:
    if "dla_cores" in tensorrt:
        return f"{tensorrt['dla_cores']} cores"
    return f"not known: {tensorrt.get('dla_error') or 'TensorRT cannot be imported'}"


def _cores_mend(machine: Machine, tensorrt: dict[str, Any]) -> str:
    version = tensorrt.get("version") or ""
    if re.match(r"\d", version) and not has_dla(version):
        return f"TensorRT {version} has no DLA: {FLASH}"
    if release_has_dla(machine.l4t) is False:
        return f"{jetpack(machine.l4t)} has no DLA software: {FLASH}"
    return "mend what is missing above, then run orin doctor again"


def _power(machine: Machine) -> list[Fact]:
    if not machine.jetson:
        return [Fact("tegrastats", f"{JETSON_ONLY}; the virtual board brings its own")]
    tegrastats = next((p for n in ("usr/bin", "home/nvidia") if (p := machine.root / n / "tegrastats").is_file()), None)
    mend = "sudo apt install nvidia-l4t-tools (container: docker run -v /usr/bin/tegrastats:/usr/bin/tegrastats)"
    readable = os.access(machine.root / NVPMODEL_CONF, os.R_OK)
    return [
        _fact("tegrastats", str(tegrastats or "missing"), tegrastats is not None, mend),
        Fact("power modes", "/etc/nvpmodel.conf " + ("can be read" if readable else "cannot be read")),
        _device_rights(machine),
        _rights(machine),
    ]


def _device_rights(machine: Machine) -> Fact:
    closed = machine.closed_nodes
    value = f"{', '.join(map(str, closed))} may not be opened" if closed else "the GPU's device nodes may be opened"
    return _fact("device rights", value, not closed, GPU_NODES_MEND)


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
    facts = [_package(title, probe(machine, name, package), True, package) for title, name, package in base]
    pycuda = probe(machine, "pycuda.driver", "pycuda")
    return [*facts, _package("pycuda", pycuda, _needed(machine, True), "pycuda"), _gpu(machine, pycuda)]


def _gpu(machine: Machine, pycuda: dict[str, Any]) -> Fact:
    name = "GPU in CUDA"
    if not machine.jetson:
        return Fact(name, pycuda.get("gpu", JETSON_ONLY))
    value = pycuda.get("gpu") or f"not seen: {pycuda.get('gpu_error') or 'pycuda cannot be imported'}"
    mend = f"mend what is missing above (container: docker run --runtime nvidia; rights: {GPU_NODES_MEND})"
    return _fact(name, value, "gpu" in pycuda, mend)


def _package(title: str, found: dict[str, Any], needed: bool | None, package: str) -> Fact:
    if "error" not in found:
        return Fact(title, f"{found['version']}, {found['path']}", needed)
    missing = found["error"].startswith("ModuleNotFoundError")
    value = "not installed" if missing else f"cannot be imported: {found['error']}"
    if not needed:
        return Fact(title, f"{value}; not needed here")
    again = "" if missing else "--force-reinstall --no-deps "
    return Fact(title, value, False, f"{sys.executable} -m pip install {again}{package}")


def _bench(machine: Machine) -> Fact:
    name = board_name(None, lambda _: None, machine.root)
    if name != "jetson":
        return Fact("orin bench uses", f"{name} (simulated)")
    if machine.soc is not None:
        return Fact("orin bench uses", name)
    return Fact("orin bench uses", "nothing: this version does not drive this module; --board virtual:NAME runs here")
