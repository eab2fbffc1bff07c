"""A board made of files below a root, and the programs that the steps call: they keep what they change in those files.

What the programs print is as recorded in NVIDIA's guides and public logs. Faults are files in `faults/`.
"""

import os
import sys

from tests.orin.machines import machine
from tests.orin.setup.programs import filled, people, program

CONF = """# < POWER_MODEL ID=id_num NAME=mode_name >
< PARAM TYPE=FILE NAME=CPU_ONLINE >
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MODE_30W >
< POWER_MODEL ID=3 NAME=MODE_50W >
# < PM_CONFIG DEFAULT=default_mode >
< PM_CONFIG DEFAULT=2 >
"""
INSTALLED = "python3-dev nvidia-l4t-core"
ROOT_ONLY = '[ -n "$AS_ROOT" ] || { echo "Permission denied"; exit 1; }\n'
PROGRAMS = {
    "dpkg-query": """
for package; do :; done
grep -qx "$package" "{state}/packages" && printf installed && exit
echo "dpkg-query: no packages found matching $package" >&2; exit 1""",
    "apt-get": ROOT_ONLY
    + """
[ ! -e "{state}/faults/apt-get" ] || { cat "{state}/faults/apt-get"; exit 100; }
verb=$1; shift; [ "$1" = -y ] && shift
case $verb in
  update) echo "Hit:1 https://repo.download.nvidia.com/jetson/common r36.4 InRelease" ;;
  install) for package; do
      echo "$package" >>"{state}/packages"
      case $package in
        nvidia-jetpack) echo python3-libnvinfer >>"{state}/packages"; mkdir -p "{root}/usr/local/cuda/bin"
          printf '#!/bin/sh\\n' >"{root}/usr/local/cuda/bin/nvcc"; chmod +x "{root}/usr/local/cuda/bin/nvcc" ;;
        nvidia-l4t-dla-compiler) mkdir -p "{root}/usr/lib/aarch64-linux-gnu/nvidia"
          echo lib >"{root}/usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so" ;;
      esac
    done ;;
  remove) for package; do
      case $package in
        nvidia-jetpack) rm -r "{root}/usr/local"; sed -i /^python3-libnvinfer$/d "{state}/packages" ;;
        nvidia-l4t-dla-compiler) rm "{root}/usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so" ;;
      esac
      sed -i "/^$package$/d" "{state}/packages"
    done ;;
esac""",
    "df": 'echo "Filesystem 1024-blocks Used Available"; echo "/dev/nvme0n1p1 244000000 1 $(cat "{state}/free-kb")"',
    "getent": 'grep -q "^$2:" <<END\nvideo:x:44:\nrender:x:104:\nEND',
    "usermod": ROOT_ONLY + '[ "$1 $3" = "-aG nv" ] && echo "$2" >>"{state}/groups"',
    "gpasswd": ROOT_ONLY + '[ "$1 $2" = "-d nv" ] && sed -i "/^$3$/d" "{state}/groups"',
    "udevadm": ROOT_ONLY + 'echo "$*" >>"{state}/udevadm"',
    "visudo": ROOT_ONLY
    + 'grep -qE "^nv ALL=.root. NOPASSWD: /usr/sbin/nvpmodel, /usr/bin/jetson_clocks$" "$3" && echo "$3: parsed OK"',
    "systemctl": """
[ -n "$AS_ROOT" ] || case $1 in get-default|is-*) ;; *) echo "Failed: Access denied"; exit 4 ;; esac
now=; [ "$2" = --now ] && now=1 && set -- "$1" "$3"
case "$1" in
  get-default) cat "{state}/target" ;;
  set-default) echo "$2" >"{state}/target" ;;
  is-enabled) cat "{state}/$2-enabled" 2>/dev/null || { echo "Failed to get unit file state for $2" >&2; exit 1; } ;;
  is-active) cat "{state}/$2-active" 2>/dev/null || { echo inactive; exit 3; } ;;
  enable) [ -e "{root}/etc/systemd/system/$2.service" ] || [ "$2" = nvzramconfig ] || exit 1
    echo enabled >"{state}/$2-enabled"; [ -z "$now" ] || echo active >"{state}/$2-active" ;;
  disable) if [ "$2" = nvzramconfig ]; then echo disabled >"{state}/$2-enabled"; else rm -f "{state}/$2-enabled"; fi
    rm -f "{state}/$2-active" ;;
  daemon-reload) ;;
esac""",
    "nvpmodel": """
if [ "$1" = -q ]; then
  echo "NVPM WARN: fan mode is not set!"; echo "NV Power Mode: $(cat "{state}/mode")"; exit 0
fi
"""
    + ROOT_ONLY
    + """
[ ! -e "{state}/faults/nvpmodel" ] || { cat "{state}/faults/nvpmodel"; exit 0; }
case $2 in 0) echo MAXN ;; 2) echo MODE_30W ;; 3) echo MODE_50W ;; esac >"{state}/mode"
exit 255""",
    "swapoff": ROOT_ONLY + "exit 0",
    "python3": """
[ "$1 $2 $3" = "-m venv --system-site-packages" ] || exec {python} "$@"
mkdir -p "$4/bin"
echo "include-system-site-packages = true" >"$4/pyvenv.cfg"
cp "{programs}/venv-python" "$4/bin/python" """,
    "venv-python": """
here=$(dirname "$(dirname "$0")")
case "$*" in
  *orin-toolkit*version*|*version*orin-toolkit*) cat "$here/toolkit" 2>/dev/null || exit 1 ;;
  "-m pip install "*) [ ! -e "{state}/faults/pip" ] || { cat "{state}/faults/pip"; exit 1; }
    case $4 in
      *.whl*) file=${4%%[*}; cp "$file" "{state}/wheel"; basename "$file" | cut -d - -f 2 ;;
      *) echo "${4##*==}" ;;
    esac >"$here/toolkit"
    case $PATH in "{root}/usr/local/cuda/bin":*) ;; *) echo "nvcc: not found"; exit 1 ;; esac ;;
  "-m pip uninstall -y orin-toolkit") rm "$here/toolkit" ;;
  *"import tensorrt"*) [ ! -e "{state}/faults/tensorrt" ] || { cat "{state}/faults/tensorrt"; exit 1; }; echo 10.3.0 ;;
  "-m orin.provision.first_engine") echo "one convolution on the DLA alone, 13572 bytes, by tensorrt 10.3.0" ;;
  "-m orin.cli.main doctor") echo "nothing is missing" ;;
  *) echo "unknown: $*"; exit 9 ;;
esac""",
}


def lay_out(folder, monkeypatch):
    """A freshly flashed AGX Orin that lacks everything; `state` has what its programs know."""
    programs = people(folder, monkeypatch)
    root, home = folder / "root", folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    machine(root, "agx-orin-64gb")
    (root / "usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so").unlink()
    (root / "etc/nvpmodel.conf").write_text(CONF)
    files = {
        "packages": INSTALLED.replace(" ", "\n") + "\n",
        "groups": "nv\nadm\nsudo\n",
        "free-kb": "48000000",
        "target": "graphical.target\n",
        "mode": "MODE_30W\n",
        "nvzramconfig-enabled": "enabled\n",
        "nvzramconfig-active": "active\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "faults").mkdir()
    values = {"state": folder, "root": root, "programs": programs, "python": sys.executable}
    for name, text in PROGRAMS.items():
        program(programs, name, filled(text, values))
    return root


def known(folder):
    """What may not differ after an undo: the board's files, and what its programs know."""
    skip = ("home", "programs", "logs", "udevadm", "wheel", "password", "faults", "keys", "seen")
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name.split("/")[0] not in skip:
            found[name] = sorted(path.read_text().split()) if name in ("packages", "groups") else path.read_text()
    return found


def environment():
    """What a login shell on the board has."""
    return {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
