"""Holding a mode on a Jetson in a folder: proven, put back, and every fault with its line and its clocks."""

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from power import stamp as stamp_module
from power.commands import Command, DryRunner, SystemRunner
from power.errors import PowerError
from power.hold import HoldRules, hold_mode, left_behind, rehearse, restore, restore_steps
from power.nvpmodel import Caps
from tests.power.fakes import Fakes, Killed

ROOT = Path(__file__).resolve().parents[2]
W30 = ("1728000", "612000000", "0", "1369600000")
W50 = ("1497600", "816000000", "0", "1369600000")


@pytest.fixture
def board(tmp_path):
    return Fakes(tmp_path / "board")


@pytest.fixture
def said():
    return []


@pytest.fixture
def rules(board, said):
    return HoldRules(state=board.state, say=said.append, sleep=lambda _: None, utc=lambda: "2024-05-06T07:08:09+00:00")


def hold(board, rules, wanted="50W", runner=None):
    return hold_mode(wanted, board.root, runner or board, rules)


@pytest.fixture
def begun(board, rules):
    """A hold that never ends, as of a process that was killed."""
    context = hold(board, rules)
    context.__enter__()
    yield context  # referenced: a generator that is collected ends
    board.state.joinpath("held.json").unlink(missing_ok=True)
    board.fault("sudo", "refuse")


def test_in_force_inside_and_put_back_after(board, rules, said):
    before = board.everything()
    with hold(board, rules) as found:
        assert board.clocks() == W50
        assert found.held and found.proof.in_force and found.missing == ()
        assert found.mhz == {"gpu": 816.0, "dla": 1369.6, "cpu": 1497.6}
        assert found.as_json()["mode"]["name"] == "MODE_50W" and found.as_json()["proven"] is True
    assert board.everything() == before and not said
    assert not (board.state / "held.json").exists() and not list(board.state.glob("*.conf"))


def test_put_back_on_an_exception(board, rules):
    before = board.everything()
    with pytest.raises(ZeroDivisionError), hold(board, rules):
        raise ZeroDivisionError
    assert board.everything() == before


def test_nothing_is_run_that_changes_where_the_mode_is_in_force_already(board, rules):
    with hold(board, rules, "30W") as found:
        assert found.held and found.proof.in_force
    assert not any(" -m " in command or "jetson_clocks" in command for command in board.ran)


def test_a_mode_that_only_bears_the_name_is_entered_again(board, rules):
    board.put("/sys/kernel/nvpmodel_clk_cap/emc", 204000000)
    with hold(board, rules, "30W") as found:
        assert found.proof.in_force and board.clocks() == W30


def test_caps_make_a_mode_of_their_own(board, rules):
    before = board.everything()
    with hold(board, rules, Caps(gpu_mhz=510, dla_mhz=780.2, emc_mhz=2133, cpu_mhz=1113.6, cpus=2)) as found:
        assert board.clocks() == ("1113600", "510000000", "2133000000", "780200000")
        assert [board.get(f"/sys/devices/system/cpu/cpu{core}/online") for core in range(4)] == ["1", "1", "0", "0"]
        assert found.mhz == {"gpu": 510.0, "dla": 780.2, "emc": 2133.0, "cpu": 1113.6}
    assert board.everything() == before and not list(board.state.glob("*.conf"))


def test_lock_takes_the_clocks_to_their_top_and_back(board, rules):
    before = board.everything()
    with hold(board, replace(rules, lock=True), "30W") as found:
        assert board.get("/sys/kernel/locked") == "1" and found.missing == ()
    assert board.everything() == before
    board.fault("jetson_clocks", "lie")
    with hold(board, replace(rules, lock=True), "30W") as found:
        assert found.missing == ("clocks are not locked: the GPU's goes from 306 to 1300.5 MHz",)


def test_holds_nest(board, rules):
    before = board.everything()
    with hold(board, rules):
        with hold(board, rules, Caps(gpu_mhz=408)):
            with hold(board, rules, Caps(gpu_mhz=306)):
                assert board.clocks()[1] == "306000000"
            assert board.clocks()[1] == "408000000"
        assert board.clocks() == W50
    assert board.everything() == before


def test_exit_255_that_worked(board, rules):
    board.fault("nvpmodel", "255")
    with hold(board, rules) as found:
        assert found.held and found.proof.in_force and board.clocks() == W50
    assert board.clocks() == W30


def test_exit_0_that_did_not(board, rules):
    board.fault("nvpmodel", "lie")
    before = board.everything()
    with pytest.raises(PowerError) as error, hold(board, rules):
        raise AssertionError("the mode is not in force")
    assert "50W did not come into force, nvpmodel ended with exit code 0" in str(error.value)
    assert "CPU_A78_0 MAX_FREQ is 1728000, asked 1497600" in str(error.value)
    assert "the board is in 30W again" in str(error.value)
    assert board.everything() == before and not left_behind(rules)


def test_change_refused_by_nvpmodel(board, rules):
    board.fault("nvpmodel", "error")
    with pytest.raises(PowerError, match="exit code 1 .NVPM ERROR: failed to set power mode 7.*30W again"):
        hold(board, rules).__enter__()
    assert board.clocks() == W30


def test_change_that_asks_for_a_reboot(board, rules):
    board.fault("nvpmodel", "reboot")
    with pytest.raises(PowerError, match="needs a reboot: run `sudo nvpmodel -m 7`, answer YES"):
        hold(board, rules).__enter__()


def test_reboot_changes_are_said_beforehand(board, rules):
    with pytest.raises(PowerError, match="from 30W to 15W changes TPC_PG_MASK 0 -> 248.*--reboot-ok"):
        hold(board, rules, "15W").__enter__()
    assert not any(" -m " in command for command in board.ran)
    before = board.everything()
    with hold(board, replace(rules, reboot_ok=True), "15W") as found:
        assert found.proof.in_force
    assert board.everything() == before


def test_without_rights_the_run_goes_on_and_says_what_is_missing(board, rules):
    board.fault("sudo", "refuse")
    with hold(board, rules) as found:
        assert not found.held and found.setting.name == "MODE_30W" and found.proof.in_force
        assert found.mhz["gpu"] == 612.0
        (line,) = found.missing
        assert "power mode 50W is not held: sudo -n refuses (sudo: a password is required)" in line
    assert board.clocks() == W30 and not left_behind(rules)
    with pytest.raises(PowerError, match="not held: sudo -n refuses"):
        hold(board, replace(rules, required=True)).__enter__()


def test_rights_lost_midway_are_said_and_can_be_undone_later(board, rules, said):
    before = board.everything()
    with hold(board, rules):
        board.fault("sudo", "refuse")
    assert board.clocks() == W50
    assert said == [
        "the board does not go back to 30W (CPU_A78_0 MAX_FREQ is 1497600, asked 1728000): sudo -n refuses "
        "(sudo: a password is required); mend that and run `orin power restore`"
    ]
    killed = replace(rules, processes=Killed())
    with pytest.raises(PowerError, match="a killed run left MODE_50W behind: .*sudo -n refuses"):
        restore(board.root, board, killed)
    board.mend("sudo")
    assert [level.target.name for level in restore(board.root, board, killed)] == ["MODE_50W"]
    assert board.everything() == before and restore(board.root, board, killed) == ()


def test_the_next_hold_undoes_what_a_killed_one_left(board, rules, begun):
    assert board.clocks() == W50
    with hold(board, replace(rules, processes=Killed()), Caps(gpu_mhz=306)):
        assert board.clocks()[1] == "306000000"
    assert board.clocks() == W30 and not left_behind(rules)


def test_after_a_reboot_the_mode_is_put_back_but_not_the_clocks(board, rules, begun):
    class Rebooted(Killed):
        def boot(self):
            return "another boot"

    board.ran.clear()
    restore(board.root, board, replace(rules, processes=Rebooted()))
    assert board.clocks() == W30 and not any("jetson_clocks" in command for command in board.ran)


def test_stamp_that_finds_no_room_changes_nothing(board, rules, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stamp_module, "write_durably", full)
    before = board.everything()
    with pytest.raises(PowerError, match="held.json cannot be written: No space left on device; .* no mode is"):
        hold(board, rules).__enter__()
    assert board.everything() == before and not any(" -m " in command for command in board.ran)


def test_damaged_stamp_is_said(board, rules):
    board.state.mkdir()
    (board.state / "held.json").write_text('{"version": 1, "lev')
    with pytest.raises(PowerError, match="held.json is damaged"):
        restore(board.root, board, rules)


def test_another_process_holds(board, rules, begun):
    class Others(type(rules.processes)):
        def lives(self, process):
            return True

        def is_ours(self, process):
            return False

    others = replace(rules, processes=Others())
    with pytest.raises(PowerError, match="50W is held by process .* since 2024-05-06T07:08:09"):
        hold(board, others, "MAXN").__enter__()
    assert board.clocks() == W50


def test_clocks_that_cannot_be_stored_are_said(board, rules):
    board.fault("jetson_clocks", "error")
    with hold(board, rules) as found:
        assert found.held and found.missing == ("clocks are not stored: Error: clocks cannot be stored",)
    assert board.clocks() == W30


def test_no_mode_named(board, rules):
    board.fault("nvpmodel", "silent")
    with pytest.raises(PowerError, match="names no power mode .NVPM ERROR: failed to read PM_CONFIG"):
        hold(board, rules).__enter__()


def test_proof_by_the_files_where_nvpmodel_shows_no_values(board, rules):
    board.fault("nvpmodel", "no-verbose")
    with hold(board, rules) as found:
        assert found.proof.in_force and not found.proof.unseen


def test_dry_run_says_every_command_and_changes_nothing(board, rules):
    before = board.everything()
    steps = rehearse("50W", board.root, DryRunner(board, print), replace(rules, lock=True))
    conf, store = board.root / "etc/nvpmodel.conf", board.state / f"clocks-{os.getpid()}-0.conf"
    assert [str(command) for command in steps.enter] == [
        f"sudo -n jetson_clocks --store {store}",
        f"sudo -n nvpmodel -f {conf} -m 7",
        "sudo -n jetson_clocks",
    ]
    assert [str(command) for command in steps.leave] == [
        f"sudo -n nvpmodel -f {conf} -m 2",
        f"sudo -n jetson_clocks --restore {store}",
    ]
    assert board.everything() == before and not any(" -m " in command for command in board.ran)


def test_dry_runner_runs_what_only_reads(board):
    lines = []
    runner = DryRunner(board, lines.append)
    assert "MODE_30W" in runner.run(Command("nvpmodel", ("-q",), as_root=False)).text
    assert runner.run(Command("nvpmodel", ("-m", "7"), changes=True)).code == 0
    assert lines == ["sudo -n nvpmodel -m 7"] and board.clocks() == W30


def test_real_programs_through_sudo(board, rules):
    board.programs()
    before = board.everything()
    runner = SystemRunner(board.root, is_root=False)
    with hold(board, rules, runner=runner) as found:
        assert found.held and found.proof.in_force and board.clocks() == W50
        board.fault("sudo", "refuse")
        with hold(board, rules, Caps(gpu_mhz=408), runner) as inner:
            assert not inner.held and "a password is required" in inner.missing[0]
        board.mend("sudo")
    assert board.everything() == before


def test_a_machine_without_sudo_refuses(board, rules):
    board.programs()
    (board.root / "usr/bin/sudo").unlink()
    with hold(board, rules, runner=SystemRunner(board.root, is_root=False)) as found:
        assert not found.held and "sudo: not on this machine" in found.missing[0]


def test_program_that_hangs_is_ended(board):
    board.programs()
    board.fault("nvpmodel", "hang")
    done = SystemRunner(board.root, timeout_s=0.2, is_root=True).run(Command("nvpmodel", ("-m", "7")))
    assert done.code is None and not done.refused and done.last_line == "it did not end in time"


def test_mode_change_that_hangs_is_put_back(board, rules):
    board.fault("nvpmodel", "hang")
    with pytest.raises(PowerError, match="50W did not come into force, nvpmodel did not end in time"):
        hold(board, rules).__enter__()
    assert board.clocks() == W30


def test_program_that_is_not_there(board, rules):
    with pytest.raises(PowerError, match="nvpmodel is not on this machine"):
        hold(board, rules, runner=SystemRunner(board.root)).__enter__()


def test_only_two_programs_ever_run_as_root(tmp_path):
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/sh").write_text("")
    with pytest.raises(PowerError, match="'sh' is not one of the programs that run as root: nvpmodel, jetson_clocks"):
        SystemRunner(tmp_path, is_root=False).run(Command("sh", ("-c", "true")))


CHILD = """
import sys
from pathlib import Path
from power.commands import SystemRunner
from power.hold import HoldRules, hold_mode
root = Path(sys.argv[1])
with hold_mode(sys.argv[2], root, SystemRunner(root, is_root=False), HoldRules(state=root / "state")):
    print("held", flush=True)
    sys.stdin.read()
"""


def holding(board, mode):
    """A process that holds a mode until its stdin ends."""
    board.programs()
    words = [sys.executable, "-c", CHILD, str(board.root), mode]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)


def test_a_process_that_a_hold_starts_may_hold_too(board, rules):
    before = board.everything()
    with hold(board, rules):
        with holding(board, "MAXN") as child:
            assert child.stdout.readline() == "held\n"
            assert board.clocks()[1] == "1300500000"
            child.stdin.close()
            assert child.wait() == 0
        assert board.clocks() == W50
    assert board.everything() == before


def test_kill_9_while_a_mode_is_held(board, rules):
    before = board.everything()
    with holding(board, "50W") as child:
        assert child.stdout.readline() == "held\n"
        assert board.clocks() == W50
        assert left_behind(rules) == (), "it still lives"
        with pytest.raises(PowerError, match=f"held by process {child.pid}"):
            hold(board, rules, "MAXN").__enter__()
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert board.clocks() == W50
    (level,) = left_behind(rules)
    assert [str(command).split()[2] for command in restore_steps(level)] == ["nvpmodel", "jetson_clocks"]
    assert restore(board.root, board, rules) == (level,)
    assert board.everything() == before and not (board.state / "held.json").exists()
