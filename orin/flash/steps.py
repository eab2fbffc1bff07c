"""The steps of a flash: from NVIDIA's files to a board that answers, each as the command that NVIDIA's guides give.

Sources: NVIDIA's Jetson Linux developer guide (quick start, flashing support), the flashing skills that NVIDIA's Jetson
team publishes, and public issues. All paths are relative to the work folder, which is the scripts' folder.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orin.errors import OrinError
from orin.flash.releases import HASH_PROGRAMS, File, Release, archive_url
from orin.flash.usb import DEVICES, RUNNING, boards_on_usb, recovery_trouble
from orin.setup.shell import Shell
from orin.setup.step import Feed, Need, Step, holds

TREE = "Linux_for_Tegra"
DOWNLOADS = "downloads"
USB_ADDRESS = "192.168.55.1"  # the board's, on its USB network
AGX_ORIN_ID = "3701"  # what its EEPROM says
BOOT_TRIES, PAUSE_S = 180, 5  # a first boot takes minutes
TIMES_OUT_S = BOOT_TRIES * (PAUSE_S + 10.0)
AGAIN = ("identify", "flash", "boot")  # the steps that another board needs once more


@dataclass(frozen=True)
class User:
    """The board's first user: `password` asks for one when it is set, `key` is a public ssh key."""

    name: str
    password: Callable[[], bytes]
    hostname: str = "orin"
    key: str | None = None


@dataclass(frozen=True)
class Flash:
    """What to flash and from what.

    `files` are NVIDIA's two archives where the user has them, `digests` their published hashes by name. `download` and
    `accept_license` are the user's leave; `instance` is a USB port, as Linux names it.
    """

    release: Release
    storage: str
    files: tuple[Path | None, Path | None] = (None, None)
    digests: dict[str, str] | None = None
    download: bool = False
    user: User | None = None
    accept_license: bool = False
    instance: str | None = None
    root: Path = Path("/")


def flash_steps(flash: Flash) -> list[Step]:
    """Return the steps in their order."""
    bsp, rootfs = (_archive(flash, kind) for kind in ("bsp", "rootfs"))
    people = _user_steps(flash, flash.user) if flash.user else []
    return [
        bsp.step,
        rootfs.step,
        _unpack(bsp.path),
        _sample(rootfs.path),
        _prerequisites(flash),
        _binaries(flash),
        *people,
        _identify(flash),
        _flash(flash),
        _boot(flash),
    ]


# -- the files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Archive:
    path: str  # quoted for a shell
    step: Step


def _archive(flash: Flash, kind: str) -> _Archive:
    """Return one of the two archives: the user's own file, or NVIDIA's, which is only fetched with leave."""
    own = flash.files[("bsp", "rootfs").index(kind)]
    known: File | None = getattr(flash.release, kind)
    name = own.name if own else known.name if known else f"{kind} of L4T {flash.release.l4t}"
    path = shlex.quote(str(own.absolute()) if own else f"{DOWNLOADS}/{name}")
    digest = (flash.digests or {}).get(name) or (known.sha256 if known and known.name == name else None)
    if digest is None:
        read, wanted, checked = f"test -s {path} && echo here || echo missing", "here", ""
    else:
        program = HASH_PROGRAMS[len(digest)]
        read, wanted = f"{program} -- {path} | cut -d ' ' -f 1", digest
        checked = f"echo {digest}  {path}.part | {program} --check --quiet -\n"
    fetch = "false" if own or known is None else f"curl --fail --location --output {path}.part {shlex.quote(known.url)}"
    step = Step(
        name=kind,
        title=f"fetch {name}",
        read=read,
        wanted=(wanted,),
        change=f"set -e\nmkdir -p {DOWNLOADS}\n{fetch}\n{checked}mv {path}.part {path}",
        undo=f"rm -f {path} {path}.part",
        needs=(Need("leave to download it", lambda _: _fetch_trouble(flash, kind, own, digest)),),
        as_root=False,
    )
    return _Archive(path, step)


def _fetch_trouble(flash: Flash, kind: str, own: Path | None, digest: str | None) -> str | None:
    known: File | None = getattr(flash.release, kind)
    if own is not None:
        seen = "does not have the published hash" if digest and own.is_file() else "is not there"
        return f"--{kind} {own} {seen}{f' {digest}' if digest else ''}: fetch it again from {archive_url()}"
    if known is None:
        return (
            f"NVIDIA's names for {flash.release} are not in the table: see {archive_url()}, and name it with --{kind}"
        )
    if not flash.download:
        return f"{known.name} is not there: --download fetches it from {known.url}, --{kind} names a file that you have"
    return None


def _unpack(bsp: str) -> Step:
    safe = f'! grep -qF " $PWD/{TREE}/" /proc/mounts || {{ echo "something is still mounted below {TREE}"; exit 1; }}'
    return Step(
        name="unpack",
        title="unpack NVIDIA's tools and drivers",
        read=f"test -x {TREE}/apply_binaries.sh && echo unpacked || echo missing",
        wanted=("unpacked",),
        change=f"set -e\nrm -rf unpacking\nmkdir unpacking\ntar xf {bsp} -C unpacking\n"
        f"test -x {TREE}/apply_binaries.sh || mv -T unpacking/{TREE} {TREE}\nrm -rf unpacking",
        undo=f"{safe}\nrm -rf --one-file-system {TREE} unpacking",
        as_root=False,
        undo_as_root=True,  # later steps leave root's files in it
    )


def _sample(rootfs: str) -> Step:
    return Step(
        name="rootfs-tree",
        title="unpack the sample root file system, with its owners",
        read=f"test -e {TREE}/rootfs/etc/passwd && echo unpacked || echo missing",
        wanted=("unpacked",),
        change=f"tar xpf {rootfs} -C {TREE}/rootfs/",
        lasting="goes with the tree",
        needs=(holds("the tree", f"test -d {TREE}/rootfs", f"{TREE}/rootfs is missing: undo, and start afresh"),),
    )


def _prerequisites(flash: Flash) -> Step:
    programs = "abootimg cpio dtc lbzip2 openssl qemu-aarch64-static rsync sshpass xmllint zstd"

    def leave(_: Shell) -> str | None:
        return None if flash.download else "Ubuntu packages are missing on this host: --download lets apt install them"

    return Step(
        name="prerequisites",
        title="install the host packages that NVIDIA's tools use",
        read=f'for program in {programs}; do command -v "$program" >/dev/null || echo "$program"; done',
        change=f"cd {TREE} && ./tools/l4t_flash_prerequisites.sh",
        lasting="the host keeps the packages",
        needs=(Need("leave to download packages", leave),),
    )


def _binaries(flash: Flash) -> Step:
    release = r"s/^# R\([0-9]*\) (release), REVISION: \([0-9.]*\).*/\1.\2/p"
    return Step(
        name="binaries",
        title="put NVIDIA's drivers into the root file system",
        read=f"sed -n '{release}' {TREE}/rootfs/etc/nv_tegra_release",
        wanted=(flash.release.l4t,),
        change=f"cd {TREE} && ./apply_binaries.sh",
        lasting="goes with the tree",
    )


# -- the first user ---------------------------------------------------------------------------------------------------


def _user_steps(flash: Flash, user: User) -> list[Step]:
    check_name(user.name, "--user")
    check_name(user.hostname, "--hostname")
    steps = [_user(flash, user), _password(user)]
    return [*steps, _key(user, user.key)] if user.key else steps


def check_name(name: str, option: str) -> str:
    """Return a user's or host's name; OrinError where it is none that Linux takes."""
    plain = name.isascii() and name[:1].isalpha() and name.replace("-", "").isalnum() and name == name.lower()
    if not plain or len(name) > 32:
        raise OrinError(f"{option} is {name!r}, expected lower-case letters, digits and dashes, e.g. orin01")
    return name


def _user(flash: Flash, user: User) -> Step:
    def leave(_: Shell) -> str | None:
        return None if flash.accept_license else "a user without NVIDIA's first-boot dialogue needs --accept-license"

    # The tool takes a password on its command line only: it gets one that the next step replaces.
    once = '"$(openssl rand -hex 16)"'
    return Step(
        name="user",
        title=f"create the user {user.name} on {user.hostname}, so that the first boot asks nothing",
        read=f"awk -F: '$3 >= 1000 && $3 < 60000 {{ print $1 }}' {TREE}/rootfs/etc/passwd",
        wanted=(user.name,),
        change=f"cd {TREE} && ./tools/l4t_create_default_user.sh -u {user.name} -p {once} -n {user.hostname} "
        "--accept-license",
        lasting="goes with the tree",
        needs=(
            Need("NVIDIA's licence accepted", leave),
            holds("the drivers", f"test -e {TREE}/rootfs/etc/nv_tegra_release", "binaries are not applied yet"),
        ),
    )


def _password(user: User) -> Step:
    """The hash goes from openssl to sed through pipes, so that no process list shows it."""
    shadow = f"{TREE}/rootfs/etc/shadow"
    return Step(
        name="password",
        title=f"set the password of {user.name}",
        change=f"set -e\nhash=$(openssl passwd -6 -stdin)\n"
        f"printf 's|^{user.name}:[^:]*:|{user.name}:%s:|\\n' \"$hash\" | sed -i -f /dev/stdin {shadow}\n"
        f"grep -q '^{user.name}:[$]6[$]' {shadow}",
        lasting="goes with the tree",
        feed=Feed("the password, shown and kept nowhere", user.password),
    )


def _key(user: User, key: str) -> Step:
    folder = f"{TREE}/rootfs/home/{user.name}"
    return Step(
        name="key",
        title=f"let {user.name} in with your ssh key",
        change=f"set -e\ninstall -d -m 700 {folder}/.ssh\n"
        f"printf '%s\\n' {shlex.quote(key)} >{folder}/.ssh/authorized_keys\n"
        f"chmod 600 {folder}/.ssh/authorized_keys\nchown -R --reference={folder} {folder}/.ssh",
        lasting="goes with the tree",
    )


# -- the board --------------------------------------------------------------------------------------------------------


def _in_recovery(flash: Flash) -> Need:
    def trouble(_: Shell) -> str | None:
        return recovery_trouble(boards_on_usb(flash.root), flash.instance)

    return Need("one AGX Orin in recovery mode (0955:7X23)", trouble)


def _identify(flash: Flash) -> Step:
    """NVIDIA's own look at the EEPROM, which flashes nothing; a board that it does not print is left to the USB id."""
    return Step(
        name="identify",
        title="read the board's EEPROM",
        change=f"cd {TREE} || exit\nsaid=$(./nvautoflash.sh --print_boardid 2>&1); code=$?\n"
        "printf '%s\\n' \"$said\"\n"
        'id=$(printf \'%s\\n\' "$said" | sed -n "s/.*Parsing board ID (\\([0-9]*\\)).*/\\1/p")\n'
        f'[ "${{id:-{AGX_ORIN_ID}}}" = {AGX_ORIN_ID} ] || {{ echo "Error: board ID $id, expected {AGX_ORIN_ID} '
        '(AGX Orin): nothing is flashed"; exit 1; }\nexit "$code"',
        lasting="changed nothing",
        needs=(_in_recovery(flash),),
        limit_s=300.0,
    )


def _flash(flash: Flash) -> Step:
    instance = f"--usb-instance {shlex.quote(flash.instance)} " if flash.instance else ""
    command = flash.release.commands[flash.storage].format(instance=instance)
    fresh = holds(
        "a tree that initrd flash has not used",
        f"! test -e {TREE}/tools/kernel_flash/images",
        f"l4t_initrd_flash.sh has used {TREE}, and flash.sh fails there: undo, and start with a fresh tree",
    )
    return Step(
        name="flash",
        title=f"ERASE the board's {flash.storage} and write {flash.release}",
        change=f"cd {TREE} && {command}",
        lasting="what was on the board is gone; flash another release instead",
        needs=(_in_recovery(flash), *((fresh,) if command.startswith("./flash.sh") else ())),
    )


def _boot(flash: Flash) -> Step:
    """The board is flashed when it is back on USB as a running one, and answers where it has a user."""
    products = f"{shlex.quote(str(flash.root / DEVICES))}/*/idProduct"
    waits = [_until(f"grep -qsx {RUNNING} {products}", "no running board (0955:7020) came up on USB")]
    if flash.user:
        waits.append(_until(f"ssh-keyscan -T 5 {USB_ADDRESS} | grep -q .", "the board does not listen for ssh"))
    return Step(
        name="boot",
        title="wait until the board has booted" + (f" and listens at {USB_ADDRESS}" if flash.user else ""),
        change="\n".join(waits),
        lasting="changed nothing",
        as_root=False,
        limit_s=TIMES_OUT_S,
    )


def _until(test: str, otherwise: str) -> str:
    return (
        f"tries=0\nuntil {test}; do\n  tries=$((tries + 1))\n"
        f'  [ "$tries" -lt {BOOT_TRIES} ] || {{ echo "Error: {otherwise}"; exit 1; }}\n  sleep {PAUSE_S}\ndone'
    )
