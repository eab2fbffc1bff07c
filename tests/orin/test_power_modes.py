"""`orin power modes`, `hold` and `restore` on a Jetson in a folder, and without one."""

import argparse
import json
import os
import signal
import sys

import pytest

from orin.cli import power_modes
from orin.errors import OrinError
from power.errors import PowerError
from tests.power.fakes import Fakes

SHOW = "import sys; print('inside'); sys.exit(3)"


@pytest.fixture
def board(tmp_path):
    fakes = Fakes(tmp_path / "board")
    fakes.programs()
    return fakes


@pytest.fixture
def power(board):
    before = {number: signal.getsignal(number) for number in power_modes.SIGNALS}

    def run(action, *words):
        parser = argparse.ArgumentParser(prog=f"orin power {action}")
        power_modes.configure(parser)
        options = parser.parse_args(["--root", str(board.root), "--quiet", *map(str, words)])
        return options.handler(options)

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def test_modes_of_the_boards_own_file(power, capsys):
    assert power("modes", "--board", "jetson", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["in_force"] == "30W" and found["default"] == 2
    assert [(mode["id"], mode["name"], mode["cpus"]) for mode in found["modes"]] == [
        (0, "MAXN", 4), (1, "15W", 2), (2, "30W", 4), (7, "50W", 4),
    ]  # fmt: skip
    assert found["modes"][1]["limits_mhz"] == {"gpu": 408.0, "dla": 614.4, "emc": 2133.0, "cpu": 1113.6}


def test_modes_of_a_board_that_is_not_there(power, capsys):
    assert power("modes", "--board", "virtual:agx-orin-64gb") == 0
    printed = capsys.readouterr().out
    assert "power modes of virtual:agx-orin-64gb (table), MHz" in printed and "in force" not in printed
    assert "2  30W   8      1728    612     1369.6  no cap  default" in printed.splitlines()


def test_modes_of_a_board_that_has_no_such_name(power):
    with pytest.raises(OrinError, match="--board is 'foo', expected jetson or virtual:NAME such as"):
        power("modes", "--board", "foo")


def test_hold_runs_the_command_and_gives_its_exit_code(power, board, capfd):
    before = board.everything()
    assert power("hold", "--state", board.state, "--mode", "50W", "--", sys.executable, "-c", SHOW) == 3
    assert capfd.readouterr().out == "inside\n" and board.everything() == before


def test_hold_in_json_keeps_stdout_for_one_object(power, board, capfd):
    words = ["--state", board.state, "--caps", "gpu=408,cpus=2", "--json", "--", sys.executable, "-c", SHOW]
    assert power("hold", *words) == 3
    printed = capfd.readouterr()
    found = json.loads(printed.out)
    assert found["in_force"]["held"] and found["in_force"]["mhz"]["gpu"] == 408.0 and found["exit_code"] == 3
    assert "inside" in printed.err


def test_hold_says_when_the_mode_could_not_be_put_back(power, board, capfd):
    lose_rights = f"from pathlib import Path; Path({str(board.root)!r}, 'faults/nvpmodel').write_text('error')"
    (board.root / "faults").mkdir()
    assert power("hold", "--state", board.state, "--mode", "50W", "--", sys.executable, "-c", lose_rights) == 2
    assert "orin power hold: the board does not go back to 30W" in capfd.readouterr().err


def test_a_polite_kill_puts_the_mode_back(power, board):
    before = board.everything()
    kill = f"import os, signal, time; os.kill({os.getpid()}, signal.SIGTERM); time.sleep(600)"
    with pytest.raises(SystemExit) as ended:
        power("hold", "--state", board.state, "--mode", "50W", "--", sys.executable, "-c", kill)
    assert ended.value.code == 128 + signal.SIGTERM and board.everything() == before


def test_dry_run_prints_what_would_be_run(power, board, capsys):
    before = board.everything()
    assert power("hold", "--state", board.state, "--mode", "50W", "--dry-run", "--", "sleep", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"sudo -n nvpmodel -f {board.root}/etc/nvpmodel.conf -m 7" and lines[2] == "# sleep 1"
    assert lines[3].endswith("-m 2") and len(lines) == 5
    assert board.everything() == before


def test_what_cannot_be_held(power, board):
    with pytest.raises(OrinError, match="has no command"):
        power("hold", "--mode", "50W")
    with pytest.raises(OrinError, match="--caps has 'gpu=x'"):
        power("hold", "--caps", "gpu=x", "--", "true")
    with pytest.raises(OrinError, match="'/no/such' cannot be run"):
        power("hold", "--state", board.state, "--mode", "50W", "--", "/no/such")
    with pytest.raises(PowerError, match="--reboot-ok"):
        power("hold", "--state", board.state, "--mode", "15W", "--", "true")


def test_restore_without_anything_to_undo(power, board, capsys):
    assert power("restore", "--state", board.state) == 0
    assert capsys.readouterr().out == "nothing to undo\n"
    assert power("restore", "--state", board.state, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"commands": []}


def test_unit_undoes_at_boot_as_the_user(power, board, capsys):
    assert power("restore", "--state", board.state, "--unit") == 0
    unit = capsys.readouterr().out
    assert f"ConditionPathExists={board.state}/held.json" in unit and "After=nvpmodel.service" in unit
    assert f"power restore --state {board.state}" in unit and "User=" in unit
