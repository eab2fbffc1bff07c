"""The CUDA kernels on a real GPU: against float64 NumPy, and under compute-sanitizer."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engines.volumes.nvcc import find_nvcc

from .by_hand import merged_and_sure, padded_windows
from .on_gpu import CASES, answer, context, segmented

ROOT = Path(__file__).resolve().parents[3]


def has_gpu():
    try:
        import pycuda.driver as cuda

        cuda.init()
        find_nvcc()
        return cuda.Device.count() > 0
    except Exception:
        return False


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_gpu(), reason="no NVIDIA GPU with pycuda and nvcc"),
]


@pytest.fixture(scope="module")
def cuda():
    with context() as driver:
        yield driver


@pytest.mark.parametrize("name", CASES)
def test_labels_on_a_gpu_are_the_arg_max_of_the_weighed_sum(cuda, name):
    kernels, volume, labels = segmented(name)
    logits = answer(padded_windows(kernels.plan, volume, kernels.pad))
    margin = 1e-5 if kernels.sums == "float32" else 4e-3
    expected, sure = merged_and_sure(kernels, logits, margin)
    assert sure.mean() > 0.5
    assert np.array_equal(labels[sure], expected[sure])


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool):
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    command = (sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "tests.engines.volumes.on_gpu")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(CASES)} volumes segmented" in done.stdout
