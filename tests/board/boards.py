"""A Jetson board for tests: recorded files below a root, an nvpmodel that answers, a tegrastats that prints."""

import gc
import sys
from contextlib import contextmanager

from orin.jetson.board import JetsonBoard
from orin.jetson.detect import Machine
from orin.soc import AGX_ORIN_64GB_SOC
from tests.orin.machines import machine
from tests.orin.nvpmodel import CONF, Nvpmodel
from tests.standins import libcuda
from tests.standins.nvinfer import control

TEGRASTATS = """
import sys, time
rails = "VDD_GPU_SOC 3200mW/3200mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 4000mW/4000mW VDDQ_VDD2_1V8AO 900mW/900mW"
while True:
    print("RAM 1/2MB (lfb 1x4MB) CPU [0%@729]", rails, flush=True)
    time.sleep(0.02)
"""


@contextmanager
def attached(root):
    """An AGX Orin 64 GB in 30W; closed in the end, and then nothing of it is left on the native side."""
    gc.collect()
    libcuda.reset()
    before = (libcuda.live(), control.live())
    machine(root, "agx-orin-64gb")
    (root / "etc/nvpmodel.conf").write_text(CONF)
    board = JetsonBoard(AGX_ORIN_64GB_SOC, Machine(root, Nvpmodel()), (sys.executable, "-c", TEGRASTATS))
    yield board
    board.close()
    del board
    gc.collect()
    assert (libcuda.live(), control.live()) == before
    assert control.errors() == [] and libcuda.unanswered() == "" and libcuda.left_behind() == 0
