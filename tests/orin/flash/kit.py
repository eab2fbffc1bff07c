"""A host with NVIDIA's archives, small ones whose scripts behave like NVIDIA's, and a board on a USB made of files."""

import io
import shutil
import tarfile

from tests.orin.setup.programs import filled, people, program

RELEASE = "36.4.4"
BSP = "Jetson_Linux_r36.4.4_aarch64.tbz2"
ROOTFS = "Tegra_Linux_Sample-Root-Filesystem_r36.4.4_aarch64.tbz2"
HOST_PROGRAMS = "abootimg cpio dtc lbzip2 openssl qemu-aarch64-static rsync sshpass xmllint zstd"
ROOT_ONLY = '[ -n "$AS_ROOT" ] || { echo "Error: run as root"; exit 1; }'

# What NVIDIA's scripts do to the tree and to the board, as far as the steps see it.
SCRIPTS = {
    "tools/l4t_flash_prerequisites.sh": """
for program in {host_programs}; do
  command -v "$program" >/dev/null && continue
  printf '#!/bin/sh\\n' >"{programs}/$program"; chmod +x "{programs}/$program"
done""",
    "apply_binaries.sh": """
command -v qemu-aarch64-static >/dev/null || { echo "dpkg: Exec format error"; exit 1; }
echo "# R36 (release), REVISION: 4.4, GCID: 1, BOARD: generic, EABI: aarch64" >rootfs/etc/nv_tegra_release""",
    "tools/l4t_create_default_user.sh": """
[ "$1 $3 $5 $7" = "-u -p -n --accept-license" ] || { echo "ERROR: wrong arguments: $*"; exit 1; }
sed -i "/^$2:/d" rootfs/etc/passwd rootfs/etc/shadow
echo "$2:x:1000:1000::/home/$2:/bin/bash" >>rootfs/etc/passwd
echo "$2:\\$6\\$once\\$$4:19000:0:99999:7:::" >>rootfs/etc/shadow
mkdir -p "rootfs/home/$2" && echo "$6" >rootfs/etc/hostname""",
    "nvautoflash.sh": """
echo "--- Parsing board ID ($(cat "{folder}/board-id")) succeeded."
echo "board SKU (0005)"; echo "baseboard ID (3737)"; echo "jetson-agx-orin-devkit found." """,
    "flash.sh": """
[ "$*" = "$(cat "{folder}/flash-arguments")" ] || { echo "Error: wrong arguments: $*"; exit 1; }
if [ -e "{folder}/fault" ]; then cat "{folder}/fault"; exit 3; fi
echo 7020 >"{root}/sys/bus/usb/devices/1-3/idProduct"
echo "*** The target generic has been flashed successfully. ***" """,
}


def lay_out(folder, monkeypatch):
    """Lay everything out below a folder: `root` is the host's, `nvidia` has the archives, `password` is for sudo."""
    programs = people(folder, monkeypatch)
    root = folder / "root"
    host(root)
    usb(root, "1-3", "7023")
    (folder / "board-id").write_text("3701")
    (folder / "flash-arguments").write_text("jetson-agx-orin-devkit internal")
    archives(folder, programs, root)
    program(programs, "sleep", "exit 0")
    program(programs, "ssh-keyscan", f'[ "$3" = 192.168.55.1 ] && cat "{folder}/ssh-answers" 2>/dev/null')
    (folder / "ssh-answers").write_text("192.168.55.1 ssh-ed25519 AAAA\n")
    program(programs, "curl", f'[ "$1 $2 $3" = "--fail --location --output" ] && cp "{folder}/nvidia/${{5##*/}}" "$4"')
    return root


def archives(folder, programs, root):
    """Write the two archives."""
    values = {"folder": folder, "programs": programs, "root": root, "host_programs": HOST_PROGRAMS}
    scripts = {name: f"#!/bin/sh\n{ROOT_ONLY}\n{filled(text, values)}\n" for name, text in SCRIPTS.items()}
    files = {f"Linux_for_Tegra/{name}": text for name, text in scripts.items()}
    (folder / "nvidia").mkdir()
    pack(folder / "nvidia" / BSP, {**files, "Linux_for_Tegra/rootfs/README.txt": "empty"})
    tree = {"etc/passwd": "root:x:0:0::/root:/bin/bash\n", "etc/shadow": "root:*:19000:0:99999:7:::\n"}
    pack(folder / "nvidia" / ROOTFS, {**tree, "usr/bin/dpkg": ""})


def pack(path, files):
    with tarfile.open(path, "w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o755 if text.startswith("#!") else 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))


def host(root):
    """An Ubuntu 22.04 on the metal that lacks nothing."""
    files = {
        "proc/version": "Linux version 6.8.0-45-generic (buildd@lcy02) #45~22.04.1-Ubuntu SMP",
        "proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu vme de pse tsc msr\n",
        "proc/filesystems": "nodev\tsysfs\n\text4\nnodev\tnfsd\n",
        "proc/sys/net/ipv6/conf/all/disable_ipv6": "0",
        "etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\nID=ubuntu\nVERSION_ID="22.04"\n',
        "sys/module/usbcore/parameters/autosuspend": "-1",
        "etc/ufw/ufw.conf": "ENABLED=no\n",
        "run/udev/control": "",
        **{f"usr/bin/{name}": "" for name in ("tar", "bzip2", "sudo", "openssl", "timeout", "ssh-keyscan")},
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def usb(root, port, product, vendor="0955"):
    """Attach a device; product None takes it away."""
    folder = root / "sys/bus/usb/devices" / port
    if product is None:
        shutil.rmtree(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "idVendor").write_text(f"{vendor}\n")
    (folder / "idProduct").write_text(f"{product}\n")
