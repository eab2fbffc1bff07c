"""The CUDA kernels compiled by nvcc for the board's GPU: registers, spills, shared memory, width of accesses."""

import re
import subprocess

import pytest

from engines.errors import EngineError
from engines.volumes.kernels import SOURCE, THREADS, Kernels
from engines.volumes.nvcc import cubin, find_nvcc
from engines.volumes.plan import plan_windows

try:
    NVCC = find_nvcc()
except EngineError:
    NVCC = None
ORIN = "sm_87"
REGISTERS_OF_A_THREAD = 65_536 // (5 * THREADS)  # five blocks are then at work on an SM: 20 warps
USED = re.compile(r"Compiling entry function '(\w+)'.*?(\d+) bytes stack.*?Used (\d+) registers(.*?)\n", re.DOTALL)
ACCESS = re.compile(r"\b(ld|st)\.global(?:\.nc)?(?:\.v(\d))?\.\w(\d+)\b")

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")

MLPERF = Kernels(plan_windows((128, 192, 320)))
SINGLE = Kernels(plan_windows((128, 192, 320)), logits="float32", sums="float32")
ODD = Kernels(plan_windows((130, 201, 333)))


def nvcc(kernels, folder, *words):
    done = subprocess.run(
        [NVCC, *kernels.options, f"-arch={ORIN}", "-Werror", "all-warnings", *words, str(SOURCE)],
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("kernels", [MLPERF, SINGLE, ODD], ids=["half", "float", "odd"])
def test_everything_stays_in_registers(kernels, tmp_path):
    said = nvcc(kernels, tmp_path, "-cubin", "-Xptxas", "-v", "-o", "kernels.cubin")
    found = {name: (int(stack), int(registers), rest) for name, stack, registers, rest in USED.findall(said)}
    assert set(found) == {"cut", "cut32", "merge"}
    assert said.count("0 bytes spill stores, 0 bytes spill loads") == 3
    for stack, registers, rest in found.values():
        assert stack == 0 and registers <= REGISTERS_OF_A_THREAD
        assert "smem" not in rest


def accesses(text):
    """(ld or st, bytes) of every access to global memory in PTX."""
    found = ACCESS.findall(text)
    return [(kind, int(count or 1) * int(bits) // 8) for kind, count, bits in found]


def test_loads_and_stores_are_wide(tmp_path):
    nvcc(MLPERF, tmp_path, "-ptx", "-o", "kernels.ptx")
    kernels = (tmp_path / "kernels.ptx").read_text().split(".entry ")[1:]
    seen = {text[: text.index("(")].strip(): accesses(text) for text in kernels}
    assert set(seen["cut"]) == {("ld", 8), ("st", 8)}  # eight voxels in one
    assert {access for access in seen["cut32"] if access[0] == "st"} == {("st", 16)}
    assert seen["merge"].count(("ld", 16)) == 3 + 3 + 2  # sums, logits and weights of eight voxels
    assert seen["merge"].count(("st", 16)) == 3
    assert [access for access in seen["merge"] if access[1] != 16] == [("ld", 4), ("ld", 4), ("st", 8)]


def test_what_does_not_compile_is_told_in_one_line(tmp_path):
    (tmp_path / "broken.cu").write_text("__global__ void broken() { missing(); }\n")
    with pytest.raises(EngineError, match=r"broken.cu does not compile for sm_87: .*\"missing\" is undefined$"):
        cubin((), ORIN, tmp_path / "broken.cu")
    assert cubin(MLPERF.options, ORIN)[:4] == b"\x7fELF"
