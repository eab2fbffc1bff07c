"""The stand-ins as a folder that programs use: NVIDIA's real bindings, and libraries under the names that they load.

`lib/` holds the three TensorRT libraries of release 10.3 answered by the stand-in, those of release 11, which only
load, and the few calls of CUDA's runtime that Polygraphy makes. `python/tensorrt` are the real bindings 10.3.0,
`python-11/tensorrt` the real bindings 11.4.0, `polygraphy/` NVIDIA's Polygraphy.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tests.standins.nvinfer.slots import classes_source, makers_source, read_tables

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "standins"
SOURCE = Path(__file__).with_name("nvinfer")
PARSER_VERSION = 100  # NV_ONNX_PARSER_VERSION of release 10.3
LIBRARIES = ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin")
RUNTIME = "libcudart.so.12"
# Folder: the wheel, the package in it, and the name that programs import. An extension module of TensorRT knows itself
# as part of `tensorrt`, whatever the wheel calls it.
WHEELS = {
    "python": ("tensorrt-cu12-bindings==10.3.0", "tensorrt_bindings", "tensorrt"),
    "python-11": ("tensorrt-cu13-bindings==11.4.0.106", "tensorrt_bindings", "tensorrt"),
    "polygraphy": ("polygraphy==0.53.6", "polygraphy", "polygraphy"),
}
PYTHONS = "NVIDIA's bindings of TensorRT 10.3 exist for Python 3.8 to 3.12"
CUDA_LIBRARIES = ("libcuda.so.1", "libcurand.so.10")
COMPILE = ("g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra")


def install(folder: Path = FOLDER) -> None:
    """Compile the libraries and fetch the bindings: what is there and current is left as it is."""
    (folder / "lib").mkdir(parents=True, exist_ok=True)
    _build_libraries(folder / "lib")
    for name, (wheel, package, imported) in WHEELS.items():
        _install_wheel(folder / name / imported, wheel, package)


def is_installed(folder: Path = FOLDER) -> bool:
    """Tell whether the libraries and the bindings of 10.3 are there."""
    return (folder / "lib" / "libnvinfer.so.10").exists() and (folder / "python" / "tensorrt").exists()


def activate(folder: Path = FOLDER) -> None:
    """Let this process import the stand-ins: libraries already loaded are found by their names."""
    for name in (*CUDA_LIBRARIES, *(f"{library}.so.10" for library in LIBRARIES)):
        if (path := folder / "lib" / name).exists():
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    if str(folder / "python") not in sys.path:
        sys.path.insert(0, str(folder / "python"))


def environment(folder: Path = FOLDER, packages: Sequence[str] = ("python",)) -> dict[str, str]:
    """Return the environment of a child process that imports the stand-ins like a program on a board."""
    paths = [*(str(folder / name) for name in packages), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "LD_LIBRARY_PATH": str(folder / "lib"), "PYTHONPATH": os.pathsep.join(paths)}


def _build_libraries(lib: Path) -> None:
    source, runtime = ((SOURCE / name).read_text(encoding="utf-8") for name in ("nvinfer.cpp", "cudart.cpp"))
    tables = read_tables()
    parts = {
        "nvinfer.cpp": source,
        "cudart.cpp": runtime,
        "slots.inc": classes_source(tables),
        "makers.inc": makers_source(tables),
    }
    digest = hashlib.sha256("".join([*parts.values(), str(ROOT), *COMPILE]).encode()).hexdigest()
    stamp = lib / "libnvinfer.sha256"
    if stamp.exists() and stamp.read_text() == digest:
        return
    with tempfile.TemporaryDirectory(dir=lib) as name:
        scratch = Path(name)
        for part, text in parts.items():
            (scratch / part).write_text(text, encoding="utf-8")
        (scratch / "empty.cpp").write_text("")
        (scratch / "loads.cpp").write_text(_loads_only(source))
        _compile(scratch / "cudart.cpp", lib / RUNTIME)
        for library in LIBRARIES:
            routed = scratch / ("nvinfer.cpp" if library == "libnvinfer" else "empty.cpp")
            _compile(routed, lib / f"{library}.so.10", f'-DROOT="{ROOT}"', f"-DPARSER_VERSION={PARSER_VERSION}")
            _compile(scratch / "loads.cpp", lib / f"{library}.so.11")
    stamp.write_text(digest)


def _loads_only(source: str) -> str:
    """Return C++ whose functions only exist: enough for bindings of another release to be imported and inspected."""
    names = [line.split("(")[0].split()[-1].lstrip("*") for line in source.splitlines() if "_INTERNAL(" in line[:60]]
    more = ["getNvOnnxParserVersion", "getPluginRegistry", "getBuilderPluginRegistry", "initLibNvInferPlugins"]
    functions = dict.fromkeys([name for name in names if name.startswith("create")] + more)
    return "".join(f'extern "C" void* {name}() {{ return nullptr; }}\n' for name in functions)


def _compile(source: Path, target: Path, *options: str) -> None:
    made = source.with_name(target.name)
    soname = f"-Wl,-soname,{target.name}"
    subprocess.run([*COMPILE, *options, str(source), "-o", str(made), soname], check=True)
    made.replace(target)


def _install_wheel(target: Path, wheel: str, package: str) -> None:
    """Unpack a package of a wheel from the package index under the name that programs import it by."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
        if subprocess.run([*pip, "-d", scratch, wheel], check=False).returncode:
            raise SystemExit(f"{wheel} cannot be fetched for {sys.implementation.cache_tag}; {PYTHONS}")
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as archive:
            archive.extractall(scratch)
        (Path(scratch) / package).replace(target)


if __name__ == "__main__":
    install()
    print(f"stand-ins of TensorRT: {FOLDER}")
