"""The steps that make a flashed board ready: each with what it reads, what it changes, and how that is undone.

Sources: NVIDIA's Jetson Linux developer guide and TensorRT's documentation (packages, nvpmodel, jetson_clocks), the
published skills of NVIDIA's Jetson team (headless, zram), udev's and sudo's manuals.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from orin.errors import OrinError
from orin.provision.target import Target
from orin.setup.step import Feed, Step, holds
from power.commands import JETSON_CLOCKS, NVPMODEL
from power.nvpmodel import plain

DISTRIBUTION = "orin-toolkit"
JETPACK_KB = 12_000_000  # what apt wants free for the whole of JetPack, unpacked packages and downloads
GROUPS = ("video", "render")  # those of the GPU's and the DLA's device nodes
RULES = "etc/udev/rules.d/90-orin-toolkit.rules"
RULES_TEXT = """\
# Power sensors of the module that every user may read.
SUBSYSTEM=="hwmon", ATTR{name}=="ina3221|ina238", RUN+="/bin/chmod -R a+rX %S%p"
"""
SUDOERS = "etc/sudoers.d/orin-toolkit"
SUDO_PROGRAMS = {NVPMODEL: ("usr/sbin/nvpmodel", "-q"), JETSON_CLOCKS: ("usr/bin/jetson_clocks", "--show")}
CLOCKS_UNIT = "orin-clocks"
CLOCKS_UNIT_TEXT = """\
[Unit]
Description=CPU, GPU and memory clocks at their maximum, for measurements
After=nvpmodel.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStartPre=/bin/rm -f /var/lib/orin-toolkit-clocks
ExecStart=/usr/bin/jetson_clocks --store /var/lib/orin-toolkit-clocks
ExecStart=/usr/bin/jetson_clocks
ExecStop=/usr/bin/jetson_clocks --restore /var/lib/orin-toolkit-clocks

[Install]
WantedBy=multi-user.target
"""
NAMES = ("packages", "groups", "power-rules", "sudo", "mode", "clocks", "zram", "headless", "venv", "toolkit")


@dataclass(frozen=True)
class Provision:
    """What a board is to become; a power mode and locked clocks only where asked for, `skip` leaves steps out.

    `venv` is relative to the user's home; `toolkit` is a wheel on this machine, a requirement for pip, or None: the
    version that runs here.
    """

    mode: str | None = None
    lock_clocks: bool = False
    skip: tuple[str, ...] = ()
    venv: str = "orin"
    toolkit: str | None = None


def provision_steps(target: Target, wanted: Provision) -> list[Step]:
    """Return the steps in their order; OrinError for a name in `skip` that is none."""
    unknown = [name for name in wanted.skip if name not in NAMES]
    if unknown:
        raise OrinError(f"--skip names {unknown[0]!r}, expected {', '.join(NAMES)}")
    venv = _venv_path(target, wanted.venv)
    steps = [_packages(target), _groups(target), _rules(target), _sudo(target)]
    steps += [_mode(target, wanted.mode)] if wanted.mode else []
    steps += [_clocks(target)] if wanted.lock_clocks else []
    steps += [_zram(), _headless(), _venv(venv), _toolkit(target, venv, wanted.toolkit)]
    return [step for step in steps if step.name not in wanted.skip]


def check_steps(target: Target, wanted: Provision) -> list[Step]:
    """Return what proves that the board is ready: TensorRT, a DLA engine of one convolution, `orin doctor`."""
    python = shlex.quote(f"{_venv_path(target, wanted.venv)}/bin/python")
    checks = {
        "tensorrt": ("import TensorRT", "-c 'import tensorrt; print(tensorrt.__version__)'"),
        "dla-engine": ("build a DLA engine of one convolution", "-m orin.provision.first_engine"),
        "doctor": ("ask orin doctor", "-m orin.cli.main doctor"),
    }
    return [
        Step(
            name, title, f"cd && {python} {words}", lasting="changes nothing", as_root=False, limit_s=900.0, check=True
        )
        for name, (title, words) in checks.items()
    ]


# -- as root ----------------------------------------------------------------------------------------------------------


def _packages(target: Target) -> Step:
    """JetPack's parts as far as they are missing, and what pycuda and LoadGen are compiled with."""
    nvcc = shlex.quote(target.path("usr/local/cuda/bin/nvcc"))
    missing = (
        "has() { dpkg-query -W -f='${db:Status-Status}' \"$1\" 2>/dev/null | grep -qx installed; }\n"
        'for package in python3-venv python3-dev build-essential; do has "$package" || echo "$package"; done\n'
        f"{{ has python3-libnvinfer && test -x {nvcc}; }} || echo nvidia-jetpack"
    )
    if (target.l4t or "").startswith("36."):  # a package of its own there, and not on minimal systems
        compiler = shlex.quote(target.path("usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so"))
        missing += f"\ntest -s {compiler} || echo nvidia-l4t-dla-compiler"
    free = f"df -Pk {shlex.quote(target.path(''))} | awk 'NR == 2 {{ print $4 }}'"
    return Step(
        name="packages",
        title="install what is missing of JetPack, the DLA's compiler, and what compiles Python modules",
        read=missing,
        change=f"set -e\nexport DEBIAN_FRONTEND=noninteractive\nmissing=$({missing}\n)\n"
        "apt-get update\napt-get install -y $missing",
        undo="apt-get remove -y $BEFORE\necho 'what came with them goes by: sudo apt autoremove'",
        needs=(
            holds(
                f"{JETPACK_KB / 1e6:.0f} GB free where JetPack is missing",
                f'{{ {missing}\n}} | grep -qx nvidia-jetpack || exit 0\n[ "$({free})" -ge {JETPACK_KB} ]',
                f"less than {JETPACK_KB / 1e6:.0f} GB are free on the board's disk: free some, or use NVMe",
            ),
        ),
    )


def _groups(target: Target) -> Step:
    user = shlex.quote(target.user)
    missing = (
        f'for group in {" ".join(GROUPS)}; do\n  getent group "$group" >/dev/null || continue\n'
        f"  id -nG {user} | tr ' ' '\\n' | grep -qx \"$group\" || echo \"$group\"\ndone"
    )
    return Step(
        name="groups",
        title=f"put {target.user} into the groups of the GPU's device nodes ({', '.join(GROUPS)})",
        read=missing,
        change=f'set -e\nfor group in $({missing}\n); do usermod -aG "$group" {user}; done',
        undo=f'set -e\nfor group in $BEFORE; do gpasswd -d {user} "$group"; done',
    )


def _rules(target: Target) -> Step:
    file = f"file={shlex.quote(target.path(RULES))}"
    reload = "udevadm control --reload\nudevadm trigger --subsystem-match=hwmon"
    return Step(
        name="power-rules",
        title="let every user read the module's power sensors (a udev rule)",
        read=f"cat {shlex.quote(target.path(RULES))}",
        wanted=(RULES_TEXT.strip(),),
        change=f"set -e\n{file}\n{_written(RULES_TEXT)}\n{reload}",
        undo=f'set -e\n{file}\nif [ -n "$BEFORE" ]; then printf \'%s\\n\' "$BEFORE" >"$file"; else rm -f "$file"; fi\n'
        f"{reload}",
    )


def _written(text: str) -> str:
    """Return the script that replaces $file in one step."""
    return (
        f'mkdir -p "$(dirname "$file")"\nprintf %s {shlex.quote(text)} >"$file.part"\n'
        'chmod 644 "$file.part"\nmv "$file.part" "$file"'
    )


def _sudo(target: Target) -> Step:
    """Two programs by name, and nothing else; a list that sudo could not read would lock everyone out of it."""
    file = f"file={shlex.quote(target.path(SUDOERS))}"
    programs = {f"/{program}": word for program, word in SUDO_PROGRAMS.values()}
    line = f"{target.user} ALL=(root) NOPASSWD: {', '.join(programs)}"
    calls = "; ".join(f"sudo -k -n {program} {word}" for program, word in programs.items())
    refused = "password is required|not allowed|not in the sudoers|not found"
    return Step(
        name="sudo",
        title=f"let {target.user} run {' and '.join(SUDO_PROGRAMS)} without a password, and nothing else",
        read='if [ "$(id -u)" = 0 ]; then echo allowed\n'
        f"elif {{ {calls}; }} 2>&1 | grep -qE '{refused}'; then echo 'asks for a password'\nelse echo allowed; fi",
        wanted=("allowed",),
        change=f'set -e\n{file}\nmkdir -p "$(dirname "$file")"\numask 227\n'
        f"printf '%s\\n' {shlex.quote(line)} >\"$file~\"\n"  # sudo reads no file whose name ends with ~
        'visudo -c -f "$file~"\nmv "$file~" "$file"',
        undo=f'{file}\nrm -f "$file" "$file~"',
    )


def _mode(target: Target, name: str) -> Step:
    wanted = plain(name)
    if not re.fullmatch(r"\w+", wanted):
        raise OrinError(f"--mode is {name!r}, expected a power mode's name such as MAXN or 30W")
    conf = shlex.quote(target.path("etc/nvpmodel.conf"))
    numbers = r"s/^ *< *POWER_MODEL *ID=\([0-9]*\) *NAME=\(MODE_\)\{0,1\}\([^ >]*\) *>.*/\1 \3/p"
    enter = (
        f"modes() {{ sed -n '{numbers}' {conf}; }}\n"
        "id=$(modes | awk -v name=\"$mode\" '$2 == name { print $1; exit }')\n"
        '[ -n "$id" ] || { echo "Error: power mode $mode is not one of this board\'s:" $(modes); exit 1; }\n'
        'said=$(nvpmodel -m "$id" </dev/null 2>&1)  # its exit code says nothing\nprintf \'%s\\n\' "$said"\n'
        'case $said in *[Rr]eboot*)\n  echo "Error: mode $mode wants a reboot: sudo nvpmodel -m $id on the board, and '
        'the same command again"\n  exit 1;;\nesac'
    )
    return Step(
        name="mode",
        title=f"bring power mode {wanted} into force, for good",
        read=r"nvpmodel -q 2>&1 | sed -n 's/^.*NV Power Mode: *\(MODE_\)\{0,1\}//p'",
        wanted=(wanted,),
        change=f"mode={wanted}\n{enter}",
        undo=f"mode=$BEFORE\n{enter}",
        limit_s=120.0,
    )


def _clocks(target: Target) -> Step:
    file = f"file={shlex.quote(target.path(f'etc/systemd/system/{CLOCKS_UNIT}.service'))}"
    return Step(
        name="clocks",
        title="lock the clocks at their maximum now and at each boot (a systemd unit)",
        read=f"systemctl is-active {CLOCKS_UNIT}",
        wanted=("active",),
        change=f"set -e\n{file}\n{_written(CLOCKS_UNIT_TEXT)}\nsystemctl daemon-reload\n"
        f"systemctl enable --now {CLOCKS_UNIT}",
        undo=f'set -e\n{file}\n[ ! -e "$file" ] || systemctl disable --now {CLOCKS_UNIT}\n'
        'rm -f "$file"\nsystemctl daemon-reload',
        limit_s=120.0,
    )


def _zram() -> Step:
    return Step(
        name="zram",
        title="switch off memory compression, which disturbs measurements",
        read="systemctl is-enabled nvzramconfig",
        wanted=("disabled", "masked", "not-found", ""),
        change="set -e\nsystemctl disable --now nvzramconfig\n"
        'for device in $(awk \'$1 ~ "^/dev/zram" { print $1 }\' /proc/swaps); do swapoff "$device"; done',
        undo='[ "$BEFORE" != enabled ] || systemctl enable --now nvzramconfig',
        limit_s=300.0,
    )


def _headless() -> Step:
    return Step(
        name="headless",
        title="boot without a desktop from the next time on (frees most of 1 GB, and GPU time)",
        read="systemctl get-default",
        wanted=("multi-user.target",),
        change="systemctl set-default multi-user.target",
        undo='systemctl set-default "$BEFORE"',
        limit_s=60.0,
    )


# -- as the user ------------------------------------------------------------------------------------------------------


def _venv_path(target: Target, name: str) -> str:
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts:
        raise OrinError(f"--venv is {name!r}, expected a folder's name below the user's home, e.g. orin")
    return f"{target.home}/{name}"


def _venv(path: str) -> Step:
    """A mark in the folder tells one that was made here, half-made ones too, from one of the user's own."""
    folder, mark = shlex.quote(path), shlex.quote(f"{path}/.orin-toolkit")
    return Step(
        name="venv",
        title=f"make a virtual environment in {path} that sees JetPack's TensorRT",
        read=f"if grep -qix 'include-system-site-packages *= *true' {folder}/pyvenv.cfg; then echo there\n"
        f"elif test -e {folder}; then echo 'something else'; else echo missing; fi",
        wanted=("there",),
        change=f"set -e\nmkdir -p {folder}\ntouch {mark}\npython3 -m venv --system-site-packages {folder}",
        undo=f"[ ! -e {mark} ] || rm -rf {folder}",
        needs=(
            holds(
                "nothing of yours in its place",
                f"! test -e {folder} || test -e {mark}",
                f"{path} is there and does not see the system's packages: name another one with --venv",
            ),
        ),
        as_root=False,
    )


def _toolkit(target: Target, venv: str, wanted: str | None) -> Step:
    python = shlex.quote(f"{venv}/bin/python")
    requirement, number, feed = _requirement(wanted)
    copied = 'wheel=$(mktemp -d)/$name\ncat >"$wheel"\n' if feed else ""
    what = '"$wheel[jetson]"' if feed else shlex.quote(requirement)
    install = f"PATH={shlex.quote(target.path('usr/local/cuda/bin'))}:$PATH {python} -m pip install"
    return Step(
        name="toolkit",
        title=f"install {requirement} there (pycuda and LoadGen compile: some minutes)",
        read=f"{python} -c 'from importlib.metadata import version; print(version(\"{DISTRIBUTION}\"))'",
        wanted=(number,),
        change=f"set -e\nname={shlex.quote(requirement)}\n{copied}{install} {what}",
        undo=f'if [ -n "$BEFORE" ]; then {install} "{DISTRIBUTION}==$BEFORE"; '
        f"else {python} -m pip uninstall -y {DISTRIBUTION}; fi",
        needs=(holds("the virtual environment", f"test -x {python}", f"{venv} is missing: do not skip venv"),),
        as_root=False,
        feed=feed,
    )


def _requirement(wanted: str | None) -> tuple[str, str, Feed | None]:
    """Return what pip is to install, the version that then is there, and the wheel that is copied for it."""
    if wanted is not None and wanted.endswith(".whl"):
        path = Path(wanted)
        if not path.is_file() or path.name.count("-") < 4:
            raise OrinError(f"--toolkit {wanted} is no wheel, expected {DISTRIBUTION.replace('-', '_')}-...-any.whl")
        return path.name, path.name.split("-")[1], Feed(f"the file {path}", path.read_bytes)
    if wanted is not None:
        pinned = re.fullmatch(r"[\w.\[\],-]+==([\w.+!]+)", wanted)
        if pinned is None:
            raise OrinError(f"--toolkit is {wanted!r}, expected a wheel's path or {DISTRIBUTION}[jetson]==VERSION")
        return wanted, pinned[1], None
    try:
        number = version(DISTRIBUTION)
    except PackageNotFoundError:
        raise OrinError(f"{DISTRIBUTION} runs from a checkout here: name a wheel of it with --toolkit") from None
    return f"{DISTRIBUTION}[jetson]=={number}", number, None
