"""What is found out about a host and its USB, on hosts made of files; and the table of releases."""

from pathlib import Path

import pytest

from orin.errors import OrinError
from orin.flash.host import Host, examine_host, examine_usb
from orin.flash.releases import find_release, listed_hashes, releases
from orin.flash.usb import UsbBoard
from orin.jetson.detect import release_has_dla
from tests.orin.flash.kit import host, usb

RELEASE = find_release("6.2.2")


def facts(root, storage="nvme", release=RELEASE, machine="x86_64", free_bytes=10**11):
    seen = Host(root, machine, lambda _: free_bytes)
    return {fact.name: fact for fact in examine_host(seen, release, storage, Path("/work"))}


@pytest.fixture
def root(tmp_path):
    host(tmp_path)
    return tmp_path


def test_a_good_host_lacks_nothing(root):
    found = facts(root)
    assert all(fact.ok for fact in found.values()) and all(fact.mend is None for fact in found.values())
    assert found["system"].value == "Ubuntu 22.04.5 LTS" and found["free space"].value == "100 GB for /work"


FAULTS = [
    ("native Linux", "proc/version", "Linux version 5.15.153.1-microsoft-standard-WSL2", False, "Windows"),
    ("native Linux", "proc/cpuinfo", "flags\t\t: fpu hypervisor lahf_lm\n", False, "a virtual machine"),
    ("native Linux", ".dockerenv", "", None, "a container"),
    ("system", "etc/os-release", 'ID=debian\nPRETTY_NAME="Debian GNU/Linux 12"\nVERSION_ID="12"\n', None, "Debian"),
    ("system", "etc/os-release", 'ID=ubuntu\nPRETTY_NAME="Ubuntu 24.04"\nVERSION_ID="24.04"\n', None, "Ubuntu 24.04"),
    ("programs", "usr/bin/openssl", None, False, "missing: openssl"),
    ("udev", "run/udev/control", None, None, "does not run"),
    ("USB autosuspend", "sys/module/usbcore/parameters/autosuspend", "2\n", None, "after 2 s"),
    ("automounter", "run/udisks2/x", "", None, "udisks2 runs"),
    ("IPv6", "proc/sys/net/ipv6/conf/all/disable_ipv6", "1\n", False, "off"),
    ("NFS server", "proc/filesystems", "\text4\n", None, "not loaded"),
    ("firewall", "etc/ufw/ufw.conf", "# ufw\nENABLED=yes\n", None, "ufw is on"),
    ("VPN", "sys/class/net/wg0/x", "", None, "wg0"),
]


@pytest.mark.parametrize("name,path,text,ok,value", FAULTS)
def test_each_fault_is_named_with_what_mends_it(root, name, path, text, ok, value):
    if text is None:
        (root / path).unlink()
    else:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    found = facts(root)
    assert found[name].ok is ok and value in found[name].value and found[name].mend
    assert [fact.name for fact in found.values() if fact.mend] == [name]


def test_what_is_no_matter_of_files(root):
    assert facts(root, machine="aarch64")["host"].ok is False
    little = facts(root, free_bytes=39 * 10**9)["free space"]
    assert little.ok is False and "40 GB are needed" in little.mend
    usb(root, "1-3.2", "7023")
    assert facts(root)["USB hub"].value == "1-3.2 is behind a hub"


def test_emmc_with_flash_sh_needs_no_network_on_usb(root):
    needs_network = {"IPv6", "NFS server", "firewall", "VPN"}
    assert needs_network.isdisjoint(facts(root, "emmc"))
    assert needs_network <= set(facts(root, "emmc", find_release("7.2.2")))


def test_the_board_is_one_of_the_checks(root):
    assert examine_usb(Host(root)).ok is False
    usb(root, "1-3", "7223")
    fact = examine_usb(Host(root))
    assert fact.ok and fact.value == "0955:7223 at 1-3: AGX Orin 32 GB in recovery mode"
    assert "at 2-1" in examine_usb(Host(root), "2-1").mend


@pytest.mark.parametrize(
    "product,recovery,title",
    [
        ("7023", True, "AGX Orin (64 GB"),
        ("7a23", True, "an Orin of unknown kind"),
        ("7020", False, "a running Jetson"),
        ("7035", False, "in the middle of a flash"),
        ("7026", False, "Thor"),
        ("7019", False, "Xavier"),
        ("cf09", False, "no table knows"),
    ],
)
def test_ids_are_told_apart(product, recovery, title):
    board = UsbBoard("1-3", product)
    assert board.recovery is recovery and title in board.title


# -- releases ---------------------------------------------------------------------------------------------------------


def test_what_is_flashed_has_a_dla_and_what_is_not_says_why():
    flashed = [release for release in releases() if release.why_not is None]
    assert [release.jetpack for release in flashed] == ["6.2", "6.2.1", "6.2.2", "7.2.2"]
    assert all(release_has_dla(release.l4t) for release in flashed)
    assert all(set(release.commands) == {"emmc", "nvme"} for release in flashed)
    without = {release.jetpack for release in releases() if release_has_dla(release.l4t) is False}
    assert without == {"7.0", "7.1", "7.2", "7.2.1"}


def test_file_names_are_nvidias_own():
    urls = {release.l4t: release.bsp.url for release in releases() if release.bsp}
    assert urls["36.4.4"] == (
        "https://developer.nvidia.com/downloads/embedded/l4t/r36_release_v4.4/release/Jetson_Linux_r36.4.4_aarch64.tbz2"
    )
    assert find_release("R36.5.0") is find_release("6.2.2") and find_release("7.2.2").bsp is None


def test_lists_of_hashes(tmp_path):
    path = tmp_path / "release_sha_hashes.txt"
    path.write_text(f"# L4T 36.4.4\n{'A' * 64}  Jetson.tbz2\n{'b' * 40} *Rootfs.tbz2\n{'c' * 50}  other\n\n")
    assert listed_hashes(path) == {"Jetson.tbz2": "a" * 64, "Rootfs.tbz2": "b" * 40}
    path.write_text("nothing here\n")
    with pytest.raises(OrinError, match="names none, expected lines of a SHA-1"):
        listed_hashes(path)
