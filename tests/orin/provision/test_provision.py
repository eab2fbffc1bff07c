"""Provisioning a board made of files, locally and through ssh: listed, done, done once, resumed, undone."""

import json
import shutil
from dataclasses import replace

import pytest

from orin.errors import OrinError
from orin.provision.provision import STATE, Board, provision, survey, undo
from orin.provision.steps import NAMES, Provision, provision_steps
from orin.provision.target import look_at
from orin.setup.job import Job
from orin.setup.shell import Call, SshShell, SystemShell
from tests.orin.commands import command
from tests.orin.provision.board import environment, known, lay_out
from tests.orin.setup.programs import PASSWORD

REQUIREMENT = "orin-toolkit[jetson]==0.1.0"
WANTED = Provision(mode="MAXN", lock_clocks=True, toolkit=REQUIREMENT)
STEPS = "packages groups power-rules sudo mode clocks zram headless venv toolkit".split()
CHECKS = ["tensorrt", "dla-engine", "doctor"]
MISSING = "python3-venv\nbuild-essential\nnvidia-jetpack\nnvidia-l4t-dla-compiler"
BEFORE = {
    "packages": MISSING,
    "groups": "video\nrender",
    "power-rules": "",
    "sudo": "asks for a password",
    "mode": "30W",
    "clocks": "inactive",
    "zram": "enabled",
    "headless": "graphical.target",
    "venv": "missing",
    "toolkit": "",
}


def only(*names, **changes):
    """A provisioning of these steps alone."""
    return replace(WANTED, skip=tuple(name for name in NAMES if name not in names), **changes)


@pytest.fixture
def place(tmp_path, monkeypatch):
    lay_out(tmp_path, monkeypatch)
    return tmp_path


def local(place, ask=lambda _: PASSWORD):
    return Board(SystemShell("this machine", ask=ask), lambda _: None, place / "root", place / "logs")


@pytest.fixture
def server(place):
    if not shutil.which("ssh"):
        pytest.skip("no ssh on this machine")
    pytest.importorskip("asyncssh")
    from tests.orin.provision.server import Server

    with Server(place / "keys", environment()) as server:
        yield server


def remote(place, server, ask=lambda _: PASSWORD):
    shell = SshShell("nv@127.0.0.1", server.options, ask)
    return shell, Board(shell, lambda _: None, place / "root", place / "logs")


def test_what_would_change_is_listed_and_nothing_is(place):
    before = known(place)
    seen = survey(local(place, ask=None), WANTED)
    assert seen.target.title == "Jetson AGX Orin 64 GB, L4T 36.4.4 (JetPack 6.2.1), user nv"
    assert {entry.step.name: entry.before for entry in seen.found} == BEFORE
    assert {entry.status.value for entry in seen.found} == {"to do"}
    assert [entry.step.name for entry in seen.checks] == CHECKS
    assert known(place) == before and not (place / "home" / STATE).exists()


def test_over_ssh_once_then_nothing_then_undone(place, server):
    before = known(place)
    shell, board = remote(place, server)
    with shell:
        taken = provision(board, WANTED)
        assert [entry.name for entry in taken] == STEPS + CHECKS
        assert [entry.status for entry in taken] == ["changed"] * len(STEPS) + ["passed"] * len(CHECKS)
        assert taken[-2].result == "one convolution on the DLA alone, 13572 bytes, by tensorrt 10.3.0"
        assert (place / "mode").read_text() == "MAXN\n" and (place / "target").read_text() == "multi-user.target\n"
        assert sorted((place / "groups").read_text().split()) == ["adm", "nv", "render", "sudo", "video"]
        assert (place / "root/etc/sudoers.d/orin-toolkit").stat().st_mode & 0o777 == 0o440
        changed = known(place)
        again = provision(board, WANTED)
        assert {entry.status for entry in again[: len(STEPS)]} == {"done"} and known(place) == changed
        assert [entry.name for entry in undo(board)] == STEPS[::-1]
        assert known(place) == before and undo(board) == []
    assert server.logins == 3  # a new one after each provisioning, for the new groups


def test_no_secret_is_seen_by_anyone(place, server):
    shell, board = remote(place, server)
    with shell:
        provision(board, only("packages", "groups", "sudo"))
    seen = [
        *server.commands,
        (place / "home" / STATE).read_text(),
        *(p.read_text() for p in (place / "logs").iterdir()),
    ]
    assert any("apt-get install" in text for text in seen)
    assert not any(PASSWORD in text or PASSWORD[:15] in text for text in seen)
    assert PASSWORD not in repr(shell) + repr(Call("x", feed=PASSWORD.encode()))


def test_a_job_that_stops_at_every_step_goes_on_each_time_and_is_undone(place):
    before = known(place)
    board = local(place)
    target = look_at(board.shell, board.root)
    for index, name in enumerate(STEPS):
        steps = provision_steps(target, WANTED)
        half = steps[index].change + "\necho 'the power went'; exit 9"
        steps[index] = replace(steps[index], change=half)
        with pytest.raises(OrinError, match=f"{name} failed .exit code 9.*the power went"):
            Job(steps, board.shell, board.desk()).run()
    state = json.loads((place / "home" / STATE).read_text())["steps"]
    assert {name: step["before"] for name, step in state.items()} == BEFORE  # that of the first attempt
    taken = Job(provision_steps(target, WANTED), board.shell, board.desk()).run()
    assert [entry.status for entry in taken] == ["done"] * (len(STEPS) - 1) + ["changed"]
    undo(board)
    assert known(place) == before


def test_a_line_that_goes_dead_loses_nothing(place, server):
    before = known(place)
    server.cut_at = "usermod"
    shell, board = remote(place, server)
    with shell:
        with pytest.raises(OrinError, match="nv@127.0.0.1: run the same command again to go on"):
            provision(board, only("groups", "headless"))
    assert "broken off" in next((place / "logs").iterdir()).read_text()
    other, board = remote(place, server)
    with other:
        assert [entry.status for entry in provision(board, only("groups", "headless"))] == ["changed", "changed"]
        undo(board)
    assert known(place) == before


def test_only_what_is_missing_is_done_and_only_that_is_undone(place):
    (place / "groups").write_text("nv\nvideo\n")
    (place / "target").write_text("multi-user.target\n")
    (place / "mode").write_text("MAXN\n")
    before = known(place)
    board = local(place)
    taken = {entry.name: entry for entry in provision(board, only("groups", "power-rules", "headless", "mode"))}
    assert taken["groups"].before == "render" and taken["headless"].status == taken["mode"].status == "done"
    assert {"headless", "mode"}.isdisjoint(entry.name for entry in undo(board))
    assert known(place) == before


def test_new_groups_need_a_new_login(place):
    said = []
    board = replace(local(place), say=said.append)
    steps = only("groups", "venv", "toolkit")
    assert [entry.name for entry in provision(board, steps)] == ["groups", "venv", "toolkit"]
    assert "log in again" in said[-1]
    assert [entry.name for entry in provision(board, steps)] == ["groups", "venv", "toolkit", *CHECKS]


def test_a_wheel_is_copied_to_the_board(place, server):
    wheel = place / "orin_toolkit-0.2.0-py3-none-any.whl"
    wheel.write_bytes(bytes(range(256)) * 500)
    shell, board = remote(place, server)
    with shell:
        taken = {entry.name: entry for entry in provision(board, only("venv", "toolkit", toolkit=str(wheel)))}
    assert taken["toolkit"].result == "0.2.0" and (place / "wheel").read_bytes() == wheel.read_bytes()
    assert "zram" not in taken and (place / "target").read_text() == "graphical.target\n"


def test_a_folder_of_the_user_is_left_alone(place):
    (place / "home/orin").mkdir()
    (place / "home/orin/thesis.txt").write_text("years of work")
    with pytest.raises(
        OrinError, match="venv: .*/home/orin is there and does not see the system's packages: name another"
    ):
        provision(local(place), only("venv", "toolkit"))
    undo(local(place))
    assert (place / "home/orin/thesis.txt").read_text() == "years of work"


def test_a_fitting_environment_of_the_user_is_used_and_stays(place):
    (place / "home/orin/bin").mkdir(parents=True)
    (place / "home/orin/pyvenv.cfg").write_text("include-system-site-packages = true\n")
    shutil.copy(place / "programs/venv-python", place / "home/orin/bin/python")
    taken = {entry.name: entry.status for entry in provision(local(place), only("venv", "toolkit"))}
    assert taken["venv"] == "done" and taken["toolkit"] == "changed"
    undo(local(place))
    assert (place / "home/orin/bin/python").exists() and not (place / "home/orin/toolkit").exists()


def test_a_mode_that_wants_a_reboot_and_one_that_is_none(place):
    (place / "faults/nvpmodel").write_text(
        "NVPM WARN: Reboot required for changing to this power mode\nDO YOU WANT TO REBOOT NOW?"
    )
    with pytest.raises(OrinError, match="mode failed .*wants a reboot: sudo nvpmodel -m 0"):
        provision(local(place), only("mode"))
    with pytest.raises(OrinError, match="power mode 60W is not one of this board's: 0 MAXN 2 30W 3 50W"):
        provision(local(place), only("mode", mode="60W"))


def test_a_mode_that_does_not_come_into_force(place):
    (place / "faults/nvpmodel").write_text("")
    with pytest.raises(OrinError, match="mode: ended well, yet it is 30W, expected MAXN"):
        provision(local(place), only("mode"))


def test_a_disk_that_is_too_small(place):
    (place / "free-kb").write_text("5000000")
    with pytest.raises(OrinError, match="packages: less than 12 GB are free"):
        provision(local(place), only("packages"))
    (place / "packages").write_text("python3-venv\npython3-dev\nbuild-essential\nnvidia-jetpack\npython3-libnvinfer\n")
    nvcc = place / "root/usr/local/cuda/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    assert provision(local(place), only("packages"))[0].before == "nvidia-l4t-dla-compiler"


@pytest.mark.parametrize(
    "fault,text,says",
    [
        (
            "apt-get",
            "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1",
            "another apt is at work",
        ),
        ("pip", "/bin/sh: 1: nvcc: not found", "CUDA's compiler is not found"),
        (
            "tensorrt",
            "ImportError: libnvdla_compiler.so: cannot open shared object file",
            "the DLA's compiler is not inst",
        ),
    ],
)
def test_known_messages_are_explained(place, fault, text, says):
    (place / "faults" / fault).write_text(text)
    steps = ("packages",) if fault == "apt-get" else ("venv", "toolkit")
    with pytest.raises(OrinError, match=f"failed .exit code .*{says}.*Log: "):
        provision(local(place), only(*steps))


def test_a_pc_is_no_board(place):
    (place / "root/proc/device-tree/compatible").unlink()
    with pytest.raises(OrinError, match="this machine is no Jetson"):
        survey(local(place), WANTED)


# -- ssh and sudo -----------------------------------------------------------------------------------------------------


def test_what_ssh_says_is_told_apart(place, server):
    def says(host, *options):
        with SshShell(host, [*server.options, *options]) as shell, pytest.raises(OrinError) as caught:
            shell.run(Call("true"))
        return str(caught.value)

    (place / "keys/other").write_text("")
    assert "ssh-copy-id nv@127.0.0.1" in says("nv@127.0.0.1", "-o", "PubkeyAuthentication=no")
    (place / "keys/known").write_text("")
    assert "once by hand" in says("nv@127.0.0.1")
    key = (place / "keys/user.pub").read_text()
    (place / "keys/known").write_text(f"[127.0.0.1]:{server.port} {key}")
    assert "ssh-keygen -R 127.0.0.1" in says("nv@127.0.0.1")
    server._server.close()
    assert "nothing listens for ssh" in says("nv@127.0.0.1")
    with pytest.raises(OrinError, match="--host is '-oProxyCommand=x'"):
        SshShell("-oProxyCommand=x")


def test_exit_codes_and_limits_come_through(place, server):
    shell, _ = remote(place, server)
    with shell:
        assert shell.run(Call("echo out; echo err >&2; exit 3")).code == 3
        assert shell.run(Call("exit 255")).code == 254  # 255 is ssh's own
        assert shell.run(Call("cat", feed=b"fed \x00\n")).text == "fed \x00\n"
        assert shell.run(Call("exec sleep 60", limit_s=1.0)).code is None
    assert SystemShell("here").run(Call("exec sleep 60", limit_s=1.0)).code is None


def test_a_password_only_where_one_is_needed(place):
    def never(_):
        raise AssertionError("not needed")

    (place / "sudo-is-free").write_text("")
    assert local(place, never).shell.run(Call('echo "$AS_ROOT"', as_root=True)).text == "1\n"
    (place / "sudo-is-free").unlink()
    with pytest.raises(OrinError, match="sudo on this machine refuses: sudo: 1 incorrect"):
        local(place, lambda _: "wrong").shell.run(Call("true", as_root=True))
    with pytest.raises(OrinError, match="no terminal to ask on"):
        local(place, None).shell.run(Call("true", as_root=True))
    fed = local(place).shell.run(Call("cat", as_root=True, feed=b"not the password\n"))
    assert fed.text == "not the password\n"


def test_a_password_that_sudo_remembers_is_asked_for_all_the_same(place):
    """It would forget it in the middle of a job, and leave ours to the script while it does not."""
    (place / "sudo-is-fresh").write_text("")
    shell = local(place).shell
    assert shell.run(Call("cat", as_root=True, feed=b"fed")).text == "fed"
    (place / "sudo-is-fresh").unlink()
    assert shell.run(Call("cat", as_root=True, feed=b"fed")).text == "fed"


# -- the command ------------------------------------------------------------------------------------------------------


def run(place, capsys, *words):
    code = command(["provision", *map(str, words), "--root", str(place / "root"), "--quiet"])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command_lists_does_and_undoes(place, capsys, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "logs"))
    (place / "sudo-is-free").write_text("")
    words = ["--toolkit", REQUIREMENT, "--mode", "maxn", "--skip", "packages,power-rules,zram"]
    code, out, _ = run(place, capsys, *words)
    assert code == 0 and "Nothing was changed" in out and max(map(len, out.splitlines())) <= 100
    assert not (place / "home" / STATE).exists()
    code, out, _ = run(place, capsys, *words, "--dry-run")
    assert "visudo -c -f" in out and 'systemctl set-default "$BEFORE"' in out and "apt-get" not in out
    code, out, err = run(place, capsys, *words, "--yes", "--json")
    assert code == 0 and [step["name"] for step in json.loads(out)["steps"]] == [
        "groups",
        "sudo",
        "mode",
        "headless",
        "venv",
        "toolkit",
    ]
    code, out, _ = run(place, capsys, "--undo")
    assert code == 0 and "BEFORE=graphical.target" in out and "--undo --yes does it" in out
    code, out, _ = run(place, capsys, "--undo", "--yes")
    assert code == 0 and out.startswith("undone") and (place / "mode").read_text() == "MODE_30W\n"
    assert run(place, capsys, "--undo", "--yes")[1] == "nothing to undo\n"


@pytest.mark.parametrize(
    "words,says",
    [
        (["--mode", "MA XN", "--toolkit", REQUIREMENT], "--mode is 'MA XN'"),
        (["--skip", "zarm", "--toolkit", REQUIREMENT], "--skip names 'zarm', expected packages"),
        (["--venv", "../x", "--toolkit", REQUIREMENT], "--venv is '../x'"),
        (["--toolkit", "none.whl"], "--toolkit none.whl is no wheel"),
        (["--toolkit", "git+https://x"], "--toolkit is 'git+https://x'"),
        (["--host", "-x", "--toolkit", REQUIREMENT], "--host: expected one argument"),
    ],
)
def test_mistakes_are_one_line(place, capsys, words, says):
    try:
        code, out, err = run(place, capsys, *words)
    except SystemExit as ended:
        code, (out, err) = ended.code, capsys.readouterr()
    assert code == 2 and out == "" and says in err.splitlines()[-1]
