"""A Jetson board for tests: recorded files below a root, programs that hold power modes, a tegrastats that prints."""

import gc
import sys
from contextlib import contextmanager

from orin.jetson.board import JetsonBoard
from orin.jetson.detect import Machine
from orin.soc import AGX_ORIN_64GB_SOC
from power.boards import AGX_ORIN_64GB
from power.hold import HoldRules
from power.modes import board_modes
from tests.orin.machines import machine
from tests.power.fakes import Fakes
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
def attached(root, **options):
    """An AGX Orin 64 GB in 30W; closed in the end, and then nothing of it is left on the native side.

    `options` are more of `HoldRules`.
    """
    gc.collect()
    libcuda.reset()
    before = (libcuda.live(), control.live())
    programs = Fakes(machine(root, "agx-orin-64gb"), board_modes(AGX_ORIN_64GB).dumps())
    rules = HoldRules(state=programs.state, reboot_ok=True, sleep=lambda _: None, **options)
    tegrastats = (sys.executable, "-c", TEGRASTATS)
    board = JetsonBoard(AGX_ORIN_64GB_SOC, Machine(root, lambda command: None, programs), tegrastats, rules)
    yield board
    board.close()
    del board
    gc.collect()
    assert (libcuda.live(), control.live()) == before
    assert control.errors() == [] and libcuda.unanswered() == "" and libcuda.left_behind() == 0
