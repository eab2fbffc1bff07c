"""Volumes through the real pycuda, the kernels compiled by g++ as the stand-in's modules."""

import shutil
import stat
import sys

import numpy as np
import pycuda.driver as cuda
import pytest

from engines.errors import EngineError
from engines.volumes import nvcc
from engines.volumes.gpu import GpuVolume
from engines.volumes.kernels import Kernels
from engines.volumes.plan import plan_windows
from tests.engines.volumes import on_cpu
from tests.engines.volumes.by_hand import merged_and_sure, padded_windows
from tests.engines.volumes.on_gpu import CASES, answer
from tests.standins import libcuda

COMPILER = f"""#!{sys.executable}
import subprocess, sys
options, target, source = sys.argv[1:-5], sys.argv[-2], sys.argv[-1]
assert sys.argv[-5:-2] == ["-arch=sm_87", "-cubin", "-o"], sys.argv
sources = ['-DKERNELS="' + source + '"', {f"-I{on_cpu.SHIM}"!r}, {str(on_cpu.SHIM / "launch.cpp")!r}]
sys.exit(subprocess.run(["g++", *options, *{on_cpu.FLAGS!r}, *sources, "-o", target]).returncode)
"""


@pytest.fixture(autouse=True)
def compiler(tmp_path, monkeypatch):
    """An `nvcc` that compiles for the CPU."""
    program = tmp_path / "nvcc"
    program.write_text(COMPILER)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    nvcc.cubin.cache_clear()
    yield program
    nvcc.cubin.cache_clear()


def on_host(kernels):
    """The network of `on_gpu`, computed where the stand-in's memory lies."""

    def infer(windows, logits, count, stream):
        cuda.Context.synchronize()
        shape = (count, *kernels.plan.window)
        values = cuda.from_device(windows, (*shape, 32) if kernels.cdhw32 else shape, np.int8)
        said = answer(values[..., 0] if kernels.cdhw32 else values).astype(kernels.logits)
        cuda.memcpy_htod(logits, np.ascontiguousarray(said))

    return infer


@pytest.mark.parametrize("name", ["odd", "small"])
def test_a_volume_in_mapped_memory_is_segmented_with_nothing_copied(cuda_context, name):
    sizes, change = CASES[name]
    kernels = Kernels(plan_windows(*sizes), **change)
    gpu = GpuVolume(kernels)
    copies = libcuda.calls("cuMemcpyHtoD")
    gpu.volume[...] = np.random.default_rng(5).integers(-127, 128, kernels.plan.shape)
    labels = gpu.segment(on_host(kernels))
    batches = len(list(kernels.batches()))
    assert libcuda.calls("cuMemcpyHtoD") - copies == batches  # the network's own
    assert libcuda.calls("cuMemcpyHtoDAsync") == libcuda.calls("cuMemcpyDtoHAsync") == 0
    assert libcuda.calls("cuLaunchKernel") >= 2 * batches
    logits = answer(padded_windows(kernels.plan, gpu.volume, kernels.pad))
    expected, sure = merged_and_sure(kernels, logits, 1e-5 if kernels.sums == "float32" else 4e-3)
    assert sure.mean() > 0.5
    assert np.array_equal(labels[sure], expected[sure])


def test_nan_from_the_network_is_told_with_its_place(cuda_context):
    kernels = Kernels(plan_windows((8, 8, 8), (8, 8, 8)))

    def broken(windows, logits, count, stream):
        said = np.zeros((1, 3, 8, 8, 8), np.float16)
        said[0, 1, 2, 3, 4] = np.nan
        cuda.memcpy_htod(logits, said)

    with pytest.raises(EngineError, match=r"NaN at voxel \(2, 3, 4\)"):
        GpuVolume(kernels).segment(broken)


def test_memory_that_does_not_suffice_is_told(cuda_context):
    with pytest.raises(EngineError, match="volume kernels: .*out of memory"):
        GpuVolume(Kernels(plan_windows((64, 64, 64), (64, 64, 64)), batch=65_535))


def test_a_machine_without_nvcc_is_told(cuda_context, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(EngineError, match="nvcc is not on PATH"):
        GpuVolume(Kernels(plan_windows((8, 8, 8), (8, 8, 8))))
