"""The CUDA kernels compiled by g++, and run thread by thread."""

import ctypes
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np

from engines.volumes.kernels import SOURCE, Buffers

SHIM = Path(__file__).with_name("shim")
COMPILER = shutil.which("g++")
FLAGS = ("-x", "c++", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")


@cache
def compiled(folder, options):
    """Compile the kernels with their options; warnings are errors."""
    made = folder / f"kernels-{abs(hash(options))}.so"
    source = (f'-DKERNELS="{SOURCE}"', f"-I{SHIM}", str(SHIM / "launch.cpp"))
    subprocess.run([COMPILER, *options, *FLAGS, *source, "-o", str(made)], check=True)
    return ctypes.CDLL(str(made))


def aligned(shape, dtype, fill=0):
    """An array that begins on 16 bytes, as GPU memory does."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    raw = np.empty(count * dtype.itemsize + 16, np.uint8)
    start = -raw.ctypes.data % 16
    array = raw[start : start + count * dtype.itemsize].view(dtype).reshape(shape)
    array[...] = fill
    return array


def buffers(**arrays):
    """Addresses of arrays, 0 of those that are not given."""
    names = ("volume", "windows", "logits", "weights", "sums", "labels")
    return Buffers(*(arrays[name].ctypes.data if name in arrays else 0 for name in names))


def run(library, launch, backwards=False, windows=None):
    """Run the threads of a launch, in order or in the opposite one: all, or those of the last few windows."""
    size = getattr(library, "size_of_" + launch.kernel.removesuffix("32"))()
    assert size == launch.job.itemsize, "the structures of kernels.cu and kernels.py differ"
    corners = [(ctypes.c_uint * 3)(*triple) for triple in (launch.grid, launch.block)]
    skipped = launch.grid[2] - windows if windows else 0
    getattr(library, f"launch_{launch.kernel}")(launch.job.tobytes(), *corners, skipped, int(backwards))
