"""Power modes and clocks of an attached board, on recorded files and an nvpmodel that answers."""

import pytest

from orin.errors import OrinError
from orin.jetson.detect import Machine
from orin.jetson.modes import Mode, clocks_in_force, held_mode, mode_in_force, modes
from orin.soc import AGX_ORIN_64GB_SOC
from tests.orin.machines import machine
from tests.orin.nvpmodel import CONF, Nvpmodel


@pytest.fixture
def root(tmp_path):
    machine(tmp_path, "agx-orin-64gb")
    (tmp_path / "etc/nvpmodel.conf").write_text(CONF)
    return tmp_path


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_modes_are_the_boards_own(root):
    board = Machine(root, Nvpmodel())
    assert modes(board) == [Mode(0, "MAXN"), Mode(2, "30W"), Mode(3, "50W")]
    assert mode_in_force(board) == Mode(2, "30W")
    assert mode_in_force(Machine(root, lambda command: None)) is None


def test_clocks_are_those_of_the_mode_where_nothing_can_be_read(root):
    assert clocks_in_force(AGX_ORIN_64GB_SOC, Machine(root, Nvpmodel())) == AGX_ORIN_64GB_SOC.clocks("30W")
    assert clocks_in_force(AGX_ORIN_64GB_SOC, Machine(root, Nvpmodel(None))) == AGX_ORIN_64GB_SOC.max_clocks


def test_clocks_that_can_be_read_are_read(root):
    write(root, "sys/class/devfreq/17000000.gpu/max_freq", "816000000\n")
    write(root, "sys/kernel/nvpmodel_clk_cap/emc", "2133000000\n")
    write(root, "sys/devices/platform/bus@0/13e00000.host1x/15880000.nvdla0/clk_cap/dla0_core", "614400000\n")
    write(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "1113600\n")
    write(root, "sys/devices/platform/gpu.0/tpc_pg_mask", "248\n")
    write(root, "sys/devices/system/cpu/online", "0-3,8\n")
    found = clocks_in_force(AGX_ORIN_64GB_SOC, Machine(root, Nvpmodel()))
    assert (found.gpu_mhz, found.emc_mhz, found.dla_mhz, found.cpu_mhz) == (816.0, 2133.0, 614.4, 1113.6)
    assert (found.sms, found.cpus) == (6, 5)


@pytest.mark.parametrize("text", ["-1\n", "0\n", "\n", "none\n", "9223372036854775807\n"])
def test_files_that_say_no_cap(root, text):
    write(root, "sys/kernel/nvpmodel_clk_cap/emc", text)
    assert clocks_in_force(AGX_ORIN_64GB_SOC, Machine(root, Nvpmodel("MAXN"))).emc_mhz == 3199.0


def test_a_mode_is_held_and_given_back(root):
    board = Nvpmodel()
    with held_mode(Machine(root, board), "50W"):
        assert board.now == "MODE_50W"
    assert board.now == "MODE_30W"
    assert [command[-2:] for command in board.commands if "-m" in command] == [["-m", "3"], ["-m", "2"]]


def test_the_mode_in_force_is_not_entered_again(root):
    board = Nvpmodel()
    with held_mode(Machine(root, board), "MODE_30W"):
        pass
    assert not [command for command in board.commands if "-m" in command]


def test_a_mode_that_does_not_come_into_force_is_an_error(root):
    with pytest.raises(OrinError, match="50W did not come into force, the board is in 30W"):
        with held_mode(Machine(root, Nvpmodel(stuck=True)), "50W"):
            raise AssertionError("never inside")


def test_modes_that_the_board_lacks_and_boards_that_say_nothing(root):
    with pytest.raises(OrinError, match="'40W' is not one of this board's: MAXN, 30W, 50W"):
        with held_mode(Machine(root, Nvpmodel()), "40W"):
            pass
    with pytest.raises(OrinError, match="says no power mode"):
        with held_mode(Machine(root, Nvpmodel(None)), "50W"):
            pass


def test_a_mode_that_cannot_be_given_back_is_a_warning(root):
    board = Nvpmodel()
    with pytest.warns(UserWarning, match="stays in another power mode"), held_mode(Machine(root, board), "50W"):
        board.stuck = True
