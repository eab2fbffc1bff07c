"""What a host needs to flash a Jetson, found out without changing anything.

Sources: NVIDIA's developer guide (hosts, disk, NFS, IPv6, automounters) and public issues (hubs, virtual machines,
USB autosuspend).
"""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orin.doctor import Fact
from orin.flash.releases import Release
from orin.flash.usb import boards_on_usb, recovery_trouble

SPACE_BYTES = 40 * 10**9  # one BSP, its root file system and its images
PROGRAMS = ("tar", "bzip2", "sudo", "openssl", "timeout", "ssh-keyscan")
FOLDERS = ("usr/sbin", "usr/bin", "sbin", "bin", "usr/local/bin")
PACKAGES = {"ssh-keyscan": "openssh-client", "timeout": "coreutils"}


def _free_bytes(folder: Path) -> int:
    """Return what is free where a folder is or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


@dataclass(frozen=True)
class Host:
    """A host as seen through its files below `root`; machine and free space come from elsewhere."""

    root: Path = Path("/")
    machine: str = platform.machine()
    free_bytes: Callable[[Path], int] = _free_bytes

    def text(self, path: str) -> str:
        """Return a file's text; none where it cannot be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def has(self, program: str) -> bool:
        """Whether a program is installed."""
        return any((self.root / folder / program).is_file() for folder in FOLDERS)


def examine_host(host: Host, release: Release, storage: str, work: Path) -> list[Fact]:
    """Return what a flash needs of the host; `ok` is False where it cannot work, None with a mend where it may not."""
    facts = [_machine(host), _native(host), _system(host, release), _space(host, work), _programs(host)]
    facts += [_udev(host), _autosuspend(host), _hub(host), _automounter(host)]
    if "initrd" in release.commands[storage]:
        facts += [_ipv6(host), _nfs(host), _firewall(host), _vpn(host)]
    return facts


def examine_usb(host: Host, instance: str | None = None) -> Fact:
    """Return whether one AGX Orin waits in recovery mode."""
    boards = boards_on_usb(host.root)
    trouble = recovery_trouble(boards, instance)
    seen = "; ".join(map(str, boards)) or "no Jetson on USB"
    return Fact("board", seen, trouble is None, trouble)


def _machine(host: Host) -> Fact:
    ok = host.machine == "x86_64"
    return Fact("host", host.machine, ok, None if ok else "flash from an x86_64 machine: NVIDIA's tools are for it")


def _native(host: Host) -> Fact:
    name = "native Linux"
    mend = "flash from Linux on the metal: USB does not stay attached while the board changes its id"
    if re.search(r"microsoft|wsl", host.text("proc/version"), re.IGNORECASE):
        return Fact(name, "Windows' subsystem for Linux", False, mend)
    if (host.root / ".dockerenv").exists() or (host.root / "run/.containerenv").exists():
        return Fact(name, "a container", None, "start it with --privileged -v /dev:/dev --network host")
    if re.search(r"^flags\s*:.*\bhypervisor\b", host.text("proc/cpuinfo"), re.MULTILINE):
        return Fact(name, "a virtual machine", False, mend)
    return Fact(name, "yes", True)


def _system(host: Host, release: Release) -> Fact:
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', host.text("etc/os-release"), re.MULTILINE))
    seen = fields.get("PRETTY_NAME") or "unknown"
    ok = fields.get("ID") == "ubuntu" and fields.get("VERSION_ID") in release.hosts
    hosts = " or ".join(release.hosts)
    # others often work, so this alone is no reason to refuse
    return Fact("system", seen, True if ok else None, None if ok else f"{release} is for Ubuntu {hosts}")


def _space(host: Host, work: Path) -> Fact:
    free = host.free_bytes(work)
    ok = free >= SPACE_BYTES
    mend = f"{SPACE_BYTES / 1e9:.0f} GB are needed: free some, or name another folder with --work"
    return Fact("free space", f"{free / 1e9:.0f} GB for {work}", ok, None if ok else mend)


def _programs(host: Host) -> Fact:
    missing = [program for program in PROGRAMS if not host.has(program)]
    packages = " ".join(PACKAGES.get(program, program) for program in missing)
    value = f"missing: {', '.join(missing)}" if missing else "there"
    return Fact("programs", value, not missing, f"sudo apt install {packages}" if missing else None)


def _note(name: str, value: str, mend: str | None) -> Fact:
    """A thing that flashes have failed at, and that need not hinder this one."""
    return Fact(name, value, True if mend is None else None, mend)


def _udev(host: Host) -> Fact:
    runs = (host.root / "run/udev/control").exists()
    mend = "sudo systemctl start systemd-udevd: the board comes and goes on USB while it is flashed"
    return _note("udev", "runs" if runs else "does not run", None if runs else mend)


def _autosuspend(host: Host) -> Fact:
    path = "sys/module/usbcore/parameters/autosuspend"
    value = host.text(path)
    off = value in ("-1", "")
    mend = f"echo -1 | sudo tee /{path}"
    return _note("USB autosuspend", "off" if off else f"after {value} s", None if off else mend)


def _hub(host: Host) -> Fact:
    behind = [board for board in boards_on_usb(host.root) if board.behind_hub]
    value = f"{behind[0].port} is behind a hub" if behind else "none between"
    return _note("USB hub", value, "use a port of the host itself" if behind else None)


def _automounter(host: Host) -> Fact:
    runs = (host.root / "run/udisks2").exists()
    mend = "sudo systemctl stop udisks2 (or: gsettings set org.gnome.desktop.media-handling automount false)"
    return _note("automounter", "udisks2 runs" if runs else "none runs", mend if runs else None)


def _ipv6(host: Host) -> Fact:
    off = host.text("proc/sys/net/ipv6/conf/all/disable_ipv6") != "0"
    mend = "sudo sysctl net.ipv6.conf.all.disable_ipv6=0: the board is flashed over IPv6 on USB"
    return Fact("IPv6", "off" if off else "on", not off, mend if off else None)


def _nfs(host: Host) -> Fact:
    there = "nfsd" in host.text("proc/filesystems")
    mend = "sudo apt install nfs-kernel-server; sudo modprobe nfsd"
    return _note("NFS server", "there" if there else "not loaded", None if there else mend)


def _firewall(host: Host) -> Fact:
    on = re.search(r"^ENABLED=yes", host.text("etc/ufw/ufw.conf"), re.MULTILINE) is not None
    return _note("firewall", "ufw is on" if on else "off", "sudo ufw allow from fc00:1:1::/48" if on else None)


def _vpn(host: Host) -> Fact:
    links = (host.root / "sys/class/net").glob("*")
    tunnels = sorted(link.name for link in links if re.match(r"(tun|tap|wg|ppp)\d", link.name))
    return _note("VPN", ", ".join(tunnels) or "none", "stop it while flashing" if tunnels else None)
