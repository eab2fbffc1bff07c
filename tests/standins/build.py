"""`make standins`: compile the stand-in of libcuda, build the real pycuda on it, install TensorRT's stand-in.

What takes long is kept in the user's cache: CUDA's headers (from the package index; no CUDA toolkit is needed) and
pycuda's wheel, which pycuda's own setup.py makes from its sdist.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from tests.standins.install import FOLDER, install

SOURCE = Path(__file__).with_name("cuda")
PYCUDA = "2026.1"
HEADERS = "12.6.77"  # of JetPack 6.1 and 6.2, whose driver the stand-in claims to be
COMPILE = ("g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-pthread")
DECLARED = re.compile(r"\bCUresult\s+(cu\w+)\s*\(")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")


def build(folder: Path = FOLDER) -> None:
    """Make everything that the tests in tests/board need; what is there and current is left as it is."""
    (folder / "lib").mkdir(parents=True, exist_ok=True)
    include = cuda_headers()
    build_libcuda(folder / "lib", include)
    install_pycuda(folder, include)
    install(folder)


def cache() -> Path:
    """Return the folder for what is worth keeping between checkouts."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "orin-toolkit" / "standins"


def cuda_headers() -> Path:
    """Return the folder of CUDA's headers, fetched from the package index on first use."""
    target = cache() / f"cuda-{HEADERS}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            _download(f"nvidia-cuda-runtime-cu12=={HEADERS}", scratch, "--only-binary=:all:")
            shutil.unpack_archive(next(Path(scratch).glob("*.whl")), scratch, "zip")
            _keep(Path(scratch) / "nvidia" / "cuda_runtime" / "include", target)
    return target


def build_libcuda(lib: Path, include: Path) -> None:
    """Compile `libcuda.so.1`; every other function that CUDA's headers declare answers that it is not supported."""
    sources = sorted(SOURCE.glob("*.cpp"))
    parts = [*sources, *SOURCE.glob("*.h"), Path(__file__)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()
    target, stamp = lib / "libcuda.so.1", lib / "libcuda.sha256"
    if target.exists() and stamp.exists() and stamp.read_text() == digest:
        return
    with tempfile.TemporaryDirectory(dir=lib) as scratch:
        rest, made = Path(scratch) / "rest.cpp", Path(scratch) / target.name
        rest.write_text(_not_answered(include), encoding="utf-8")
        paths = [f"-I{SOURCE}", f"-I{include}", *map(str, sources), str(rest)]
        subprocess.run([*COMPILE, *paths, "-o", str(made), f"-Wl,-soname,{target.name}"], check=True)
        made.replace(target)
    stamp.write_text(digest)


def _not_answered(include: Path) -> str:
    """Return C++ with a weak definition of every function that the headers declare: the stand-in's own come first."""
    command = ["g++", "-E", "-x", "c++", f"-I{include}", str(SOURCE / "cudaProfiler.h")]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = sorted(set(DECLARED.findall(text)))
    weak = (f'__attribute__((weak)) int {name}() {{ return cuStandinNotAnswered("{name}"); }}\n' for name in names)
    return 'extern "C" {\nint cuStandinNotAnswered(const char*);\n' + "".join(weak) + "}\n"


def install_pycuda(folder: Path, include: Path) -> None:
    """Unpack pycuda's wheel, built first where the cache has none for this Python."""
    target = folder / "python" / "pycuda"
    if (target / f"_driver{sysconfig.get_config_var('EXT_SUFFIX')}").exists():
        return
    shutil.rmtree(target, ignore_errors=True)  # it was another Python's
    (folder / "python").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder / "python") as scratch:
        shutil.unpack_archive(_wheel(folder, include), scratch, "zip")
        (Path(scratch) / "pycuda").replace(target)


def _wheel(folder: Path, include: Path) -> Path:
    kept = cache() / f"pycuda-{PYCUDA}-{sys.implementation.cache_tag}-{platform.machine()}-cuda{HEADERS}"
    if not kept.exists():
        print(f"building pycuda {PYCUDA} once: about two minutes", flush=True)
        with tempfile.TemporaryDirectory(dir=cache()) as name:
            scratch = Path(name)
            _download(f"pycuda=={PYCUDA}", name, "--no-binary=pycuda")
            shutil.unpack_archive(next(scratch.glob("*.tar.gz")), scratch)
            source = scratch / f"pycuda-{PYCUDA}"
            (source / "siteconf.py").write_text(_configuration(scratch, folder, include), encoding="utf-8")
            subprocess.run([*PIP, "wheel", "--no-deps", "-w", str(scratch / "made"), str(source)], check=True)
            _keep(scratch / "made", kept)
    return next(kept.glob("*.whl"))


def _keep(made: Path, target: Path) -> None:
    """Move a folder into the cache, where another checkout's build may have been faster."""
    try:
        made.replace(target)
    except OSError:
        if not target.exists():
            raise


def _configuration(scratch: Path, folder: Path, include: Path) -> str:
    """Return pycuda's siteconf.py, which its configure.py writes; CURAND is left out: nothing here draws numbers."""
    (scratch / "libcuda.so").symlink_to(folder / "lib" / "libcuda.so.1")
    return (
        f"CUDA_INC_DIR = {[str(include), str(SOURCE)]!r}\nCUDADRV_LIB_DIR = {[str(scratch)]!r}\n"
        'CUDA_ENABLE_CURAND = False\nCXXFLAGS = ["-O1", "-g0", "-w"]\n'
    )


def _download(requirement: str, folder: str, *options: str) -> None:
    subprocess.run([*PIP, "download", "--no-deps", "-d", folder, *options, requirement], check=True)


if __name__ == "__main__":
    build()
