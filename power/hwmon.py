"""Rails straight from the kernel: INA3221 and INA238 under `/sys`, found by driver and label, never by hwmon number.

Sources: Linux `Documentation/hwmon/ina3221.rst` and `ina238.rst`; `power.boards` for which chip holds which rail.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from power.errors import PowerError
from power.reading import RailReading, Reading
from power.source import ChipFilter

_DRIVERS = Path("sys/bus/i2c/drivers")
_CHANNELS = (1, 2, 3)  # of an INA3221; its in4.. are shunt voltages and sums
_NOT_CONNECTED = "NC"
_INPUT_RAIL = "VIN"  # what tegrastats calls the one rail behind AGX Thor's INA238, which has no label
_LONGEST_BYTES = 64  # of a number in sysfs


@dataclass(frozen=True)
class HwmonRail:
    """One rail: its power in mW is the product of what its files hold, times `mw_per_unit`."""

    name: str
    chip: str
    files: tuple[Path, ...]
    mw_per_unit: float

    def read_mw(self) -> int:
        """Return the power now; PowerError where a file is gone or refuses to be read."""
        return round(math.prod(_number(path, self.name) for path in self.files) * self.mw_per_unit)


class HwmonRails:
    """The rails of this machine's power sensors, for a `Sampler`; `root` holds `sys`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.name = f"hwmon under {root / _DRIVERS}"
        self.rails: tuple[HwmonRail, ...] = ()
        self.filters: Mapping[str, ChipFilter] = {}
        self._root = root

    def open(self) -> None:
        """Find the rails and their chips' settings; PowerError where there is none."""
        self.rails = find_rails(self._root)
        if not self.rails:
            raise PowerError(
                f"no labelled power rail under {self._root / _DRIVERS}/ina3221 or ina238: this machine is no Jetson, "
                "or its sensors are not shown here (a container needs /sys); try tegrastats"
            )
        self.filters = chip_filters(self._root)

    def read(self) -> Reading:
        """Return what the rails show now; voltage and current of one rail are read next to each other."""
        return Reading({}, {}, {rail.name: RailReading(rail.read_mw(), None, None) for rail in self.rails})

    def close(self) -> None:
        """Nothing stays open between two reads."""


def find_rails(root: Path = Path("/")) -> tuple[HwmonRail, ...]:
    """Return the labelled rails that are on, in the order of their chips' addresses; of one name the first counts."""
    rails: dict[str, HwmonRail] = {}
    for chip, folder in _chips(root, "ina3221"):
        for channel in _channels_on(folder):
            name = _text(folder / f"in{channel}_label")
            if name and name != _NOT_CONNECTED:
                files = (folder / f"in{channel}_input", folder / f"curr{channel}_input")  # mV and mA
                rails.setdefault(name, HwmonRail(name, chip, files, 1e-3))
    for chip, folder in _chips(root, "ina238"):
        name = _text(folder / "power1_label") or _text(folder / "in1_label") or _INPUT_RAIL
        rails.setdefault(name, HwmonRail(name, chip, (folder / "power1_input",), 1e-3))  # uW
    return tuple(rails.values())


def chip_filters(root: Path = Path("/")) -> dict[str, ChipFilter]:
    """Return by rail the filter settings of the INA3221 behind it; a chip that does not tell has none."""
    by_chip: dict[str, ChipFilter] = {}
    for chip, folder in _chips(root, "ina3221"):
        samples, interval_ms = _text(folder / "samples"), _text(folder / "update_interval")
        channels = len(_channels_on(folder))
        if samples.isdecimal() and interval_ms.isdecimal() and channels:
            by_chip[chip] = ChipFilter(chip, int(samples), float(interval_ms), channels)
    return {rail.name: by_chip[rail.chip] for rail in find_rails(root) if rail.chip in by_chip}


def _chips(root: Path, driver: str) -> Iterator[tuple[str, Path]]:
    """Yield bus address (`1-0040`) and hwmon folder of each chip of a driver."""
    for folder in sorted((root / _DRIVERS / driver).glob("*/hwmon/hwmon*")):
        yield folder.parts[-3], folder


def _channels_on(folder: Path) -> list[int]:
    return [channel for channel in _CHANNELS if _text(folder / f"in{channel}_enable") != "0"]


def _text(path: Path) -> str:
    """Return the file's text; empty where it is not there or not ours to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path, rail: str) -> int:
    """Read a number with three system calls and nothing else: this is done some hundred times a second."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return int(os.read(descriptor, _LONGEST_BYTES))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise PowerError(f"rail {rail}: {path} cannot be read: {error.strerror}; {_remedy(error)}") from None
    except ValueError:
        raise PowerError(f"rail {rail}: {path} holds no whole number: is this another driver's file?") from None


def _remedy(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "read it as root, or through tegrastats"
    return "the sensor or its bus has gone, see dmesg"
