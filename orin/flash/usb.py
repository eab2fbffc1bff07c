"""The Jetsons on this host's USB: which are in recovery mode, which run, and by which port and hub.

Sources: product ids of NVIDIA's flashing guides and of meta-tegra's find-jetson-usb.sh; 0955:7X23 is NVIDIA's own test
for an Orin in recovery mode, as modules of one kind differ in X.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DEVICES = "sys/bus/usb/devices"
VENDOR = "0955"
RUNNING = "7020"
FLASHING = "7035"  # the network gadget of a flash that goes on
RECOVERY = {
    "7023": "AGX Orin (64 GB, Industrial, first developer kit)",
    "7223": "AGX Orin 32 GB",
    "7323": "Orin NX 16 GB",
    "7423": "Orin NX 8 GB",
    "7523": "Orin Nano 8 GB",
    "7623": "Orin Nano 4 GB",
}
AGX_ORIN = ("7023", "7223")
OTHERS = {r"7[0-9a-f]19": "AGX Xavier or Xavier NX", r"7[0-9a-f]26": "Thor"}

TO_RECOVERY = (
    "hold Force Recovery (the middle button), press and release Reset (with the power off: Power), let go; the cable "
    "goes into the USB-C port beside the 40-pin header"
)
REBOOT_TO_RECOVERY = "on the board: sudo reboot --force forced-recovery"


@dataclass(frozen=True)
class UsbBoard:
    """A Jetson on USB: its port as Linux and NVIDIA's tools name it ("1-3"; a dot means a hub), its product id."""

    port: str
    product: str

    @property
    def recovery(self) -> bool:
        """Whether it is an Orin in recovery mode."""
        return re.fullmatch(r"7[0-9a-f]23", self.product) is not None

    @property
    def behind_hub(self) -> bool:
        """Whether it hangs on a hub, which flashes break off at."""
        return "." in self.port

    @property
    def title(self) -> str:
        """What it is, in words."""
        if self.product == RUNNING:
            return "a running Jetson, not in recovery mode"
        if self.product == FLASHING:
            return "a board in the middle of a flash"
        if self.recovery:
            return f"{RECOVERY.get(self.product, 'an Orin of unknown kind')} in recovery mode"
        other = next((name for pattern, name in OTHERS.items() if re.fullmatch(pattern, self.product)), None)
        return f"{other} in recovery mode" if other else "a device of NVIDIA's that no table knows"

    def __str__(self) -> str:
        return f"{VENDOR}:{self.product} at {self.port}: {self.title}"


def boards_on_usb(root: Path = Path("/")) -> tuple[UsbBoard, ...]:
    """Return every device of NVIDIA's, by port; `root` holds `sys`."""
    found = []
    for folder in sorted((root / DEVICES).glob("*")):
        if _text(folder / "idVendor") == VENDOR:
            found.append(UsbBoard(folder.name, _text(folder / "idProduct")))
    return tuple(found)


def recovery_trouble(boards: tuple[UsbBoard, ...], instance: str | None = None) -> str | None:
    """Say why not exactly one AGX Orin waits in recovery mode, and what to do; None where one does."""
    waiting = [board for board in boards if board.recovery and instance in (None, board.port)]
    if len(waiting) > 1:
        ports = ", ".join(board.port for board in waiting)
        return f"{len(waiting)} boards are in recovery mode, at {ports}: name one with --usb-instance"
    if waiting and waiting[0].product not in AGX_ORIN:
        return f"{waiting[0]}, and this is for the AGX Orin developer kit: nothing is flashed"
    if waiting:
        return None
    where = f" at {instance}" if instance else ""
    others = [board for board in boards if instance in (None, board.port)]
    if others:
        way = f"{REBOOT_TO_RECOVERY}; or {TO_RECOVERY}" if others[0].product == RUNNING else TO_RECOVERY
        return f"no Orin in recovery mode{where} (0955:7X23): {others[0]}; {way}"
    return f"no Jetson on USB{where}, expected one in recovery mode (0955:7X23): {TO_RECOVERY}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip().lower()
    except OSError:
        return ""
