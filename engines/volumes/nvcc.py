"""Compiling the kernels for the GPU at hand, with the CUDA toolkit that is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from engines.errors import EngineError
from engines.volumes.kernels import SOURCE

USUAL_PLACE = "/usr/local/cuda/bin"  # which JetPack leaves off PATH


def find_nvcc() -> str:
    """Return the path of nvcc; EngineError where there is none."""
    found = shutil.which("nvcc", path=os.pathsep.join((os.environ.get("PATH", os.defpath), USUAL_PLACE)))
    if found is None:
        raise EngineError(f"nvcc is not on PATH nor in {USUAL_PLACE}; install the CUDA toolkit of this JetPack")
    return found


@cache
def cubin(options: tuple[str, ...], architecture: str, source: Path = SOURCE) -> bytes:
    """Compile for an architecture such as sm_87, once in a process; EngineError with nvcc's first complaint."""
    with TemporaryDirectory() as folder:
        made = Path(folder) / "kernels.cubin"
        command = [find_nvcc(), *options, f"-arch={architecture}", "-cubin", "-o", str(made), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            first = next((line for line in lines if "error" in line), lines[0] if lines else "no reason given")
            raise EngineError(f"{source.name} does not compile for {architecture}: {first.strip()}")
        return made.read_bytes()
