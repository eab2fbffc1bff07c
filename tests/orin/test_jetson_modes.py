"""The clocks of an attached board, on recorded files and programs that hold power modes."""

from dataclasses import replace

import pytest

from orin.jetson.detect import Machine
from orin.jetson.modes import clocks_in_force
from orin.soc import AGX_ORIN_64GB_SOC
from power.boards import AGX_ORIN_64GB
from power.hold import HoldRules, hold_mode
from power.modes import board_modes
from power.nvpmodel import Caps
from tests.orin.machines import machine
from tests.power.fakes import Fakes


@pytest.fixture
def board(tmp_path):
    """An AGX Orin 64 GB in 30W."""
    return Fakes(machine(tmp_path, "agx-orin-64gb"), board_modes(AGX_ORIN_64GB).dumps())


@pytest.fixture
def clocks(board):
    return lambda held=None: clocks_in_force(AGX_ORIN_64GB_SOC, Machine(board.root, power=board), held)


def blind(board):
    """Nothing of what the mode sets can be read."""
    for path in sorted((board.root / "sys").rglob("*")):
        if path.is_file():
            path.unlink()


def test_clocks_are_those_of_the_mode_where_nothing_can_be_read(board, clocks):
    blind(board)
    assert clocks() == AGX_ORIN_64GB_SOC.clocks("30W")
    board.fault("nvpmodel", "silent")
    assert clocks() == AGX_ORIN_64GB_SOC.max_clocks


def test_a_machine_without_nvpmodel_has_the_modules_own_clocks(tmp_path):
    root = machine(tmp_path, "agx-orin-64gb")
    assert clocks_in_force(AGX_ORIN_64GB_SOC, Machine(root)) == AGX_ORIN_64GB_SOC.max_clocks


def test_clocks_that_can_be_read_are_read(board, clocks):
    board.put("sys/class/devfreq/17000000.gpu/max_freq", "816000000\n")
    board.put("sys/kernel/nvpmodel_clk_cap/emc", "2133000000\n")
    board.put("sys/devices/platform/bus@0/13e00000.host1x/15880000.nvdla0/clk_cap/dla0_core", "614400000\n")
    board.put("sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "1113600\n")
    board.put("sys/devices/platform/gpu.0/tpc_pg_mask", "248\n")
    board.put("sys/devices/system/cpu/online", "0-3,8\n")
    found = clocks()
    assert (found.gpu_mhz, found.emc_mhz, found.dla_mhz, found.cpu_mhz) == (816.0, 2133.0, 614.4, 1113.6)
    assert (found.sms, found.cpus) == (6, 5)


@pytest.mark.parametrize("text", ["-1\n", "0\n", "\n", "none\n", "9223372036854775807\n"])
def test_files_that_say_no_cap(board, clocks, text):
    board.put("sys/kernel/nvpmodel_clk_cap/emc", text)
    assert clocks().emc_mhz == 3199.0


def test_what_a_hold_saw_counts_where_the_files_are_closed(board, clocks):
    """The CPU's limit lies in another file than those that are tried."""
    rules = HoldRules(state=board.state, reboot_ok=True, sleep=lambda _: None)
    with hold_mode(Caps(gpu_mhz=510, dla_mhz=780.2, cpu_mhz=1113.6), board.root, board, rules) as held:
        blind(board)
        wanted = {"gpu_mhz": 510.0, "dla_mhz": 780.2, "cpu_mhz": 1113.6}
        assert clocks(held) == replace(AGX_ORIN_64GB_SOC.max_clocks, **wanted)
