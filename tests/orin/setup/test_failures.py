"""Each known message recognised in a log as public issues and guides show it; nothing found in a log of success."""

import pytest

from orin.setup.failures import explain, table

LOGS = {
    "no-usb-board": "Error: probing the target board failed.\n"
    "       Make sure the target board is connected through\n       USB port and is in recovery mode.\n",
    "ecid": "[   0.0110 ] Parsing partition layout\n*** Error: ECID read failed\n",
    "usb-write": "[   4.1189 ] Sending bct_br\n[   4.1243 ] ERROR: might be timeout in USB write.\n"
    "Error: Return value 3\nCommand tegrarcm_v2 --instance 1-3 --chip 0x23 0 --pollbl\n"
    "Reading board information failed.\n",
    "module-sku": "Board ID() version() sku() revision()\nError: Unrecognized module SKU\n",
    "massflash-no-device": "Entering flash-only mode\nNo devices to flash\n",
    "nfs": "Run command: mount the NFS share\nmount.nfs: Connection timed out\n"
    "Either the device cannot mount the NFS server on the host or a flash command has failed.\n",
    "initrd-ssh": "Waiting for device to expose ssh ...\nDevice should have booted into initrd kernel now. However, "
    "the host cannot connect to its ssh server\n",
    "no-gadget": "Waiting for target to boot-up...\nWaiting for target to boot-up...\nTimeout\nDevice ping failed "
    "after RCM boot. This can be due to XUSB not being enabled\n",
    "qemu": "Extracting the NV L4T drivers\nchroot: failed to run command 'dpkg': Exec format error\n",
    "initrd-tree": "Unexpected error in updating: kernel/dtb/tegra234-p3737-0000+p3701-0005_with_odm.dtb\n",
    "signing": "Copying the signed files\ncp: cannot stat 'signed/*': No such file or directory\n",
    "secureboot": "Error: Please install the Secureboot package to use initrd flash for fused board\n",
    "dla-compiler": "ImportError: libnvdla_compiler.so: cannot open shared object file: No such file or directory\n",
    "wrong-device-tree": "[   12.1] nvgpu: 17000000.gpu nvgpu_pmu_next_lsfm:88 [ERR] pmu ns boot timeout\n",
    "rt-display": "Linux version 6.8.12-rt (PREEMPT_RT)\n[  9.3] Unable to handle kernel NULL pointer dereference\n",
    "brown-out": "[  431.5] soctherm: OC ALARM 0x00000001\n",
    "apt-locked": "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1870 (unattended-upgr)\n",
    "dpkg-interrupted": "E: dpkg was interrupted, you must manually run 'sudo dpkg --configure -a'\n",
    "disk-full": "tar: write error: No space left on device\n",
    "no-network": "Err:1 https://repo.download.nvidia.com/jetson/common r36.4 InRelease\n  Temporary failure resolving "
    "'repo.download.nvidia.com'\n",
    "no-package": "E: Unable to locate package nvidia-l4t-dla-compiler\n",
    "no-nvcc": "src/cpp/cuda.hpp:14:10: fatal error: cuda.h: No such file or directory\n",
    "toolkit-not-published": "ERROR: No matching distribution found for orin-toolkit[jetson]==0.1.0\n",
}
MORE = [
    ("usb-write", "Error: Return value 8\n"),
    ("usb-write", "Reading board information failed.\n"),
    ("nfs", "Either the device cannot mount the NFS server\n"),
    ("no-gadget", "Device ping failed after RCM boot\n"),
    ("module-sku", "Board ID() version() sku()\n"),
    ("qemu", "dpkg: error: Exec format error\n"),
]
SUCCESS = """[ 120.1] tegrarcm_v2 --boot recovery
[ 121.4] Writing partition APP with system.img [ 8589934592 bytes ]
[................................................] 100%
*** The target generic has been flashed successfully. ***
Return value 0
Reset the board to boot from internal eMMC.
mount points are clean
"""


@pytest.mark.parametrize("name,log", [*LOGS.items(), *MORE])
def test_a_message_is_recognised(name, log):
    found = explain(f"some line before\n{log}some line after\n")
    assert found[0].id == name
    assert found[0].line in log and "\n" not in found[0].line
    assert found[0].cause and found[0].remedy and found[0].source


def test_every_entry_has_a_log():
    assert {entry["id"] for entry in table()} == {*LOGS, "automounter"}


def test_a_flash_that_hangs_where_it_mounts():
    log = "Creating the image\nmount /dev/nvme0n1p1 /mnt/external\n"
    assert [failure.id for failure in explain(log, hung=True)] == ["automounter"]
    assert explain(log) == [] and explain(log + "done\n", hung=True) == []


def test_a_log_of_success_has_no_failure():
    assert explain(SUCCESS) == [] and explain("", hung=True) == []


def test_what_is_benign_never_stands_in_front():
    log = LOGS["secureboot"] + LOGS["massflash-no-device"]
    assert [(failure.id, failure.benign) for failure in explain(log)] == [
        ("massflash-no-device", False),
        ("secureboot", True),
    ]


def test_the_cause_stands_before_what_follows_from_it():
    log = LOGS["usb-write"] + LOGS["signing"]
    assert [failure.id for failure in explain(log)] == ["usb-write", "signing"]


def test_a_real_time_crash_needs_both_signs():
    assert explain("Linux version 6.8.12-rt (PREEMPT_RT)\n") == []
    assert explain("Unable to handle kernel paging request\n") == []
