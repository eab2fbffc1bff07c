"""A whole flash, its scripts run by a real shell: from archives to a board that answers, stopped, resumed, undone."""

import hashlib
import json
import shutil
import subprocess
from dataclasses import replace

import pytest

from orin.errors import OrinError
from orin.flash.releases import find_release
from orin.flash.steps import AGAIN, Flash, User, flash_steps
from orin.flash.usb import boards_on_usb, recovery_trouble
from orin.setup.place import local_job
from tests.orin.commands import command
from tests.orin.flash.kit import BSP, RELEASE, ROOTFS, lay_out, usb
from tests.orin.setup.programs import PASSWORD, files_below

STEPS = "bsp rootfs unpack rootfs-tree prerequisites binaries user password key identify flash boot".split()
SECRET = "the board's own pass|word & \\1"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 me@host"


@pytest.fixture
def place(tmp_path, monkeypatch):
    lay_out(tmp_path, monkeypatch)
    return tmp_path


def wanted(place, **changes):
    user = User("nv", lambda: SECRET.encode() + b"\n", "orin01", KEY)
    values = {"download": True, "user": user, "accept_license": True, "root": place / "root", **changes}
    return Flash(find_release(RELEASE), values.pop("storage", "emmc"), **values)


def flashed(place, run=lambda job: job.run(), **changes):
    said = []
    with local_job(
        flash_steps(wanted(place, **changes)), place / "work", "flash", said.append, lambda _: PASSWORD
    ) as job:
        return run(job), said


def test_from_archives_to_a_board_that_answers(place):
    taken, _ = flashed(place)
    assert [entry.name for entry in taken] == STEPS
    assert {entry.status for entry in taken} == {"changed"}
    tree = place / "work/Linux_for_Tegra/rootfs"
    assert "R36 (release), REVISION: 4.4" in (tree / "etc/nv_tegra_release").read_text()
    assert (tree / "home/nv/.ssh/authorized_keys").read_text() == KEY + "\n"
    assert (tree / "home/nv/.ssh").stat().st_mode & 0o777 == 0o700
    assert (tree / "etc/hostname").read_text() == "orin01\n"
    assert str(boards_on_usb(place / "root")[0]) == "0955:7020 at 1-3: a running Jetson, not in recovery mode"


def test_the_password_is_set_and_seen_nowhere(place):
    flashed(place)
    shadow = (place / "work/Linux_for_Tegra/rootfs/etc/shadow").read_text().splitlines()
    name, digest, *rest = next(line for line in shadow if line.startswith("nv:")).split(":")
    salt = digest.split("$")[2]
    again = subprocess.run(
        ["openssl", "passwd", "-6", "-salt", salt, "-stdin"], input=SECRET, capture_output=True, text=True, check=True
    )
    assert digest == again.stdout.strip() and rest == "19000:0:99999:7:::".split(":")
    assert next(line for line in shadow if line.startswith("root:")) == "root:*:19000:0:99999:7:::"
    for path in [*(place / "work").glob("*.json"), *(place / "work/logs").iterdir()]:
        assert SECRET not in path.read_text() and PASSWORD not in path.read_text() and digest not in path.read_text()


def test_a_second_run_does_nothing_again(place):
    flashed(place)
    before = files_below(place / "work/Linux_for_Tegra")
    taken, said = flashed(place)
    assert {entry.status for entry in taken} == {"done"}
    assert said == [f"{name}: done already" for name in STEPS]
    assert files_below(place / "work/Linux_for_Tegra") == before


def test_a_run_that_is_cut_off_in_every_step_goes_on_each_time(place):
    for index, name in enumerate(STEPS):
        steps = flash_steps(wanted(place))
        steps[index] = replace(steps[index], change=f"{steps[index].change}\necho the power went; exit 7")
        if name == "identify":  # its own way of ending has the last word
            steps[index] = replace(steps[index], change="echo the power went; exit 7")
        with local_job(steps, place / "work", "flash", lambda _: None, lambda _: PASSWORD) as job:
            with pytest.raises(OrinError, match=f"{name} failed .exit code 7.*the power went"):
                job.run()
        if name == "flash":
            usb(place / "root", "1-3", "7023")
    taken, _ = flashed(place)
    assert [entry.status for entry in taken] == ["done"] * (len(STEPS) - 1) + ["changed"]
    assert not (place / "work/unpacking").exists()


def test_undo_leaves_what_was_there_before(place):
    flashed(place)
    undone, _ = flashed(place, lambda job: job.undo())
    assert [entry.name for entry in undone] == STEPS[::-1]
    assert {entry.status.split(":")[0] for entry in undone} == {"undone", "stays"}
    left = {name for name in files_below(place / "work") if not name.startswith(("logs", "flash.json", ".flash.lock"))}
    assert left == {"downloads"}
    assert flashed(place, lambda job: job.undo())[0] == []


def test_undo_never_deletes_through_a_mount(place, monkeypatch):
    flashed(place)
    mounts = f"dev {place}/work/Linux_for_Tegra/rootfs/dev devtmpfs rw 0 0"
    (place / "programs/grep").write_text(
        f'#!/bin/sh\nif [ "$3" = /proc/mounts ]; then echo "{mounts}" | /bin/grep "$1" "$2"; else /bin/grep "$@"; fi\n'
    )
    (place / "programs/grep").chmod(0o755)
    with pytest.raises(OrinError, match="unpack is not undone: .*still mounted below"):
        flashed(place, lambda job: job.undo())
    assert (place / "work/Linux_for_Tegra/flash.sh").exists()


def test_another_board_with_the_same_tree(place):
    flashed(place)
    usb(place / "root", "1-3", "7023")

    def again(job):
        job.forget(AGAIN)
        return job.run()

    taken, _ = flashed(place, again)
    assert [entry.name for entry in taken if entry.status == "changed"] == list(AGAIN)


def test_nothing_is_downloaded_without_leave(place):
    (place / "programs/curl").write_text("#!/bin/sh\necho asked >>" + str(place / "asked"))
    with pytest.raises(OrinError, match=r"bsp: .* is not there: --download fetches it from https://developer.nvidia"):
        flashed(place, download=False)
    own = (place / "nvidia" / BSP, place / "nvidia" / ROOTFS)
    with pytest.raises(OrinError, match="prerequisites: Ubuntu packages are missing on this host: --download"):
        flashed(place, download=False, files=own)
    assert not (place / "asked").exists()


def test_files_whose_names_are_not_known_have_to_be_named(place):
    steps = flash_steps(Flash(find_release("7.2.2"), "emmc", download=True, root=place / "root"))
    with local_job(steps, place / "work", "flash", lambda _: None, lambda _: PASSWORD) as job:
        with pytest.raises(OrinError, match="bsp: NVIDIA's names for JetPack 7.2.2 .* name it with --bsp"):
            job.run()


def test_own_files_are_used_where_they_lie(place):
    own = (place / "nvidia" / BSP, place / "nvidia" / ROOTFS)
    taken, _ = flashed(place, files=own)
    assert [entry.status for entry in taken[:2]] == ["done", "done"]
    assert not (place / "work/downloads").exists()
    flashed(place, lambda job: job.undo(), files=own)
    assert all(path.exists() for path in own)


def test_files_are_checked_against_published_hashes(place):
    right = {name: hashlib.sha256((place / "nvidia" / name).read_bytes()).hexdigest() for name in (BSP, ROOTFS)}
    taken, _ = flashed(place, digests=right)
    assert [entry.result for entry in taken[:2]] == list(right.values())
    shutil.rmtree(place / "work")
    usb(place / "root", "1-3", "7023")
    with pytest.raises(OrinError, match="bsp failed"):
        flashed(place, digests={**right, BSP: "0" * 64})
    assert not (place / "work/downloads" / BSP).exists()
    own = (place / "nvidia" / BSP, place / "nvidia" / ROOTFS)
    with pytest.raises(OrinError, match="does not have the published hash 0000"):
        shutil.rmtree(place / "work")
        flashed(place, digests={**right, BSP: "0" * 64}, files=own)


def test_another_releases_tree_is_noticed(place):
    scripts = place / "work/Linux_for_Tegra"
    flashed(place, lambda job: job.survey())
    with pytest.raises(OrinError, match="binaries: ended well, yet it is 36.4.4, expected 36.5.0"):
        other = Flash(find_release("6.2.2"), "emmc", (place / "nvidia" / BSP, place / "nvidia" / ROOTFS), download=True)
        with local_job(flash_steps(other), place / "work", "flash", lambda _: None, lambda _: PASSWORD) as job:
            job.run()
    assert scripts.exists()


def test_another_board_is_not_flashed(place):
    (place / "board-id").write_text("3767")
    with pytest.raises(OrinError, match="identify failed .*board ID 3767, expected 3701"):
        flashed(place)
    assert boards_on_usb(place / "root")[0].product == "7023"


@pytest.mark.parametrize(
    "devices,says",
    [
        ({}, "no Jetson on USB, expected one in recovery mode"),
        ({"1-3": "7020"}, "a running Jetson, not in recovery mode; on the board: sudo reboot --force forced-recovery"),
        ({"1-3": "7023", "2-1": "7223"}, "2 boards are in recovery mode, at 1-3, 2-1: name one with --usb-instance"),
        ({"1-3": "7323"}, "Orin NX 16 GB in recovery mode, and this is for the AGX Orin developer kit"),
        ({"1-3": "7026"}, "Thor in recovery mode"),
        ({"1-3": "7e19"}, "AGX Xavier or Xavier NX in recovery mode"),
    ],
)
def test_only_one_agx_orin_in_recovery_mode_is_flashed(tmp_path, devices, says):
    for port, product in devices.items():
        usb(tmp_path, port, product)
    usb(tmp_path, "3-1", "7023", vendor="1d6b")
    assert says in recovery_trouble(boards_on_usb(tmp_path))


def test_the_board_is_looked_for_again_before_it_is_flashed(place):
    steps = flash_steps(wanted(place))
    left = replace(steps[STEPS.index("identify")], change=f"echo 7020 >{place}/root/sys/bus/usb/devices/1-3/idProduct")
    steps[STEPS.index("identify")] = left
    with local_job(steps, place / "work", "flash", lambda _: None, lambda _: PASSWORD) as job:
        with pytest.raises(OrinError, match="flash: no Orin in recovery mode .0955:7X23.: 0955:7020 at 1-3"):
            job.run()


def test_one_of_several_boards_by_its_port(place):
    usb(place / "root", "2-1.4", "7223")
    (place / "flash-arguments").write_text("--usb-instance 1-3 jetson-agx-orin-devkit internal")
    assert flashed(place, instance="1-3")[0][-1].status == "changed"


def test_a_known_message_is_explained_in_the_error(place):
    (place / "fault").write_text("Sending bct_br\nError: Return value 8\nReading board information failed.\n")
    with pytest.raises(OrinError) as caught:
        flashed(place)
    message = str(caught.value)
    assert message.startswith("flash failed (exit code 3). the USB link broke off") and "autosuspend" in message
    log = next((place / "work/logs").iterdir())
    assert f"Log: {log}" in message and "Error: Return value 8" in log.read_text()


def test_a_board_that_does_not_come_back(place, monkeypatch):
    monkeypatch.setattr("orin.flash.steps.BOOT_TRIES", 2)
    (place / "ssh-answers").unlink()
    with pytest.raises(OrinError, match="boot failed .*the board does not listen for ssh"):
        flashed(place)


def test_flash_sh_is_not_run_in_a_tree_of_initrd_flash(place):
    flashed(place)
    (place / "work/Linux_for_Tegra/tools/kernel_flash/images").mkdir(parents=True)
    with pytest.raises(OrinError, match="flash: l4t_initrd_flash.sh has used Linux_for_Tegra"):
        flashed(place, lambda job: [job.forget(AGAIN), usb(place / "root", "1-3", "7023"), job.run()])


def test_the_wrong_password_and_no_terminal(place):
    steps = flash_steps(wanted(place))
    for ask, says in (
        (lambda _: "wrong", "sudo on this machine refuses: sudo: 1 incorrect"),
        (None, "no terminal to ask"),
    ):
        with local_job(steps, place / "work", "flash", lambda _: None, ask) as job:
            with pytest.raises(OrinError, match=says):
                job.run()


def test_only_one_run_at_a_time_in_a_folder(place):
    def second(_):
        return flashed(place)

    with pytest.raises(OrinError, match="in use by another run"):
        flashed(place, second)


# -- the command ------------------------------------------------------------------------------------------------------


def run(place, capsys, *words):
    code = command(["flash", *map(str, words), "--root", str(place / "root"), "--work", str(place / "work"), "--quiet"])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_list_changes_nothing_and_shows_all(place, capsys):
    code, out, _ = run(place, capsys, RELEASE, "--dry-run", "--user", "nv", "--despite", "free space")
    assert "sudo" not in out.split("as root")[0]
    for text in (
        "tar xpf downloads/Tegra_Linux_Sample-Root-Filesystem_r36.4.4_aarch64.tbz2 -C Linux_for_Tegra/rootfs/",
        "cd Linux_for_Tegra && ./apply_binaries.sh",
        "cd Linux_for_Tegra && ./flash.sh jetson-agx-orin-devkit internal",
        "needs   one AGX Orin in recovery mode (0955:7X23)",
        "undo    none: what was on the board is gone",
    ):
        assert text in out
    assert not (place / "work/R36.4.4/Linux_for_Tegra").exists() and not (place / "work/R36.4.4/flash.json").exists()
    assert code in (0, 1)  # the free space is this machine's


def test_tables_fit_100_columns(place, capsys):
    _, out, _ = run(place, capsys, RELEASE)
    assert max(map(len, out.splitlines())) <= 100
    code, out, _ = run(place, capsys)
    assert code == 0 and max(map(len, out.splitlines())) <= 100
    assert "for Thor only" in out and "no DLA" in out and "0955:7023 at 1-3" in out


def test_the_plan_as_json(place, capsys):
    _, out, err = run(place, capsys, RELEASE, "--storage", "nvme", "--json")
    plan = json.loads(out)
    assert err == "" and [step["name"] for step in plan["steps"]] == [
        s for s in STEPS if s not in ("user", "password", "key")
    ]
    flash = next(step for step in plan["steps"] if step["name"] == "flash")
    assert flash["change"] == (
        "cd Linux_for_Tegra && ./tools/kernel_flash/l4t_initrd_flash.sh --external-device nvme0n1p1 "
        "-c tools/kernel_flash/flash_l4t_t234_nvme.xml --showlogs --network usb0 jetson-agx-orin-devkit external"
    )
    assert flash["as_root"] and flash["status"] == "to do" and flash["undo"] is None


@pytest.mark.parametrize("storage,erases", [("emmc", True), ("nvme", False)])
def test_jetpack_7_2_2_has_its_own_commands(place, capsys, storage, erases):
    _, out, _ = run(place, capsys, "7.2.2", "--storage", storage, "--json")
    change = next(step["change"] for step in json.loads(out)["steps"] if step["name"] == "flash")
    assert "./l4t_initrd_flash.sh " in change and ("--erase-all" in change) == erases


@pytest.mark.parametrize(
    "words,says",
    [
        (["7.2"], "JetPack 7.2 (L4T 39.2.0) is not flashed: no DLA"),
        (["7.2.1"], "no DLA"),
        (["7.0"], "for Thor only"),
        (["7.1"], "for Thor only"),
        (["5.1.2"], "older than this toolkit takes"),
        (["6.1"], "6.2.x has replaced it"),
        (["6.9"], "JetPack '6.9' is not in the table; those that can be flashed: 6.2, 6.2.1, 6.2.2, 7.2.2"),
        ([RELEASE, "--user", "Root!", "--json"], "--user is 'Root!'"),
        ([RELEASE, "--hashes", "/no/such"], "list of hashes /no/such cannot be read"),
        (["--explain", "/no/such"], "/no/such: No such file"),
    ],
)
def test_mistakes_are_one_line(place, capsys, words, says):
    code, out, err = run(place, capsys, *words)
    assert code == 2 and out == "" and says in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "text,says",
    [
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n", "has 2 lines, expected one"),
        ("PRIVATE KEY\n", "is a private key, expected the public one"),
        ("", "has 0 lines, expected one"),
    ],
)
def test_a_key_that_is_none_is_refused(place, capsys, text, says):
    (place / "key").write_text(text)
    code, out, err = run(place, capsys, RELEASE, "--user", "nv", "--ssh-key", place / "key")
    assert code == 2 and out == "" and says in err and err.count("\n") == 1


def test_a_password_needs_a_terminal_or_a_file(place, capsys):
    (place / "sudo-is-free").write_text("")
    words = [RELEASE, "--yes", "--download", "--user", "nv", "--accept-license", "--despite", "free space"]
    code, _, err = run(place, capsys, *words, "--despite", "host")
    assert code == 2 and "--user needs a password, and here is no terminal to ask on" in err


def test_a_host_that_cannot_flash_is_refused(place, capsys):
    (place / "root/proc/version").write_text("Linux version 5.15.153.1-microsoft-standard-WSL2")
    code, out, err = run(place, capsys, RELEASE, "--yes", "--despite", "free space")
    assert code == 2 and "native Linux: Windows' subsystem for Linux" in err and err.count("\n") == 1


def test_the_command_flashes_with_leave(place, capsys):
    (place / "sudo-is-free").write_text("")
    (place / "key.pub").write_text(KEY + "\n")
    (place / "secret").write_text(SECRET + "\n")
    words = [RELEASE, "--yes", "--download", "--user", "nv", "--ssh-key", place / "key.pub"]
    words += ["--password-file", place / "secret", "--accept-license", "--despite", "free space", "--despite", "host"]
    code, out, err = run(place, capsys, *words, "--json")
    assert code == 0, err
    assert [step["name"] for step in json.loads(out)["steps"]] == STEPS
    code, out, _ = run(place, capsys, *words)
    assert code == 0 and "Next: orin provision --host nv@192.168.55.1" in out
    code, out, _ = run(place, capsys, RELEASE, "--undo")
    assert code == 0 and "rm -rf --one-file-system Linux_for_Tegra" in out
    assert (place / "work/R36.4.4/Linux_for_Tegra").exists()
    code, out, _ = run(place, capsys, RELEASE, "--undo", "--yes")
    assert code == 0 and out.startswith("undone") and not (place / "work/R36.4.4/Linux_for_Tegra").exists()


def test_a_log_is_explained(place, capsys):
    (place / "flash.log").write_text("...\n*** Error: ECID read failed\n")
    code, out, _ = run(place, capsys, "--explain", place / "flash.log")
    assert code == 1 and "boot ROM half way" in out
    (place / "flash.log").write_text("all well\n")
    assert run(place, capsys, "--explain", place / "flash.log")[0] == 0
