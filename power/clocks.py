"""jetson_clocks: storing the clocks in a file of ours, locking them at their maximum, putting the stored ones back.

It locks CPU, GPU and EMC; DLA and PVA clocks are nvpmodel's alone. Its own default file lies in `$HOME`, which is
another one under sudo, so a file is always named. Sources: NVIDIA's script and `jetson_clocks --show` on L4T 35 to 39.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from power.commands import JETSON_CLOCKS, Command

LOCK = Command(JETSON_CLOCKS, (), changes=True)
SHOW = Command(JETSON_CLOCKS, ("--show",))

_CLOCK = re.compile(r"^(\w+):? +(.*MinFreq=.*)$", re.MULTILINE)
_NAMES = ("MinFreq", "MaxFreq", "CurrentFreq")  # kHz for a CPU core, Hz for all others
_FIELD = re.compile(r"(\w+)=(-?\d+)")


@dataclass(frozen=True)
class ClockRange:
    """A clock as `jetson_clocks --show` has it."""

    min_mhz: float
    max_mhz: float
    current_mhz: float

    @property
    def is_locked(self) -> bool:
        """Whether it cannot move."""
        return self.min_mhz == self.max_mhz


def store(file: Path) -> Command:
    """Return the command that stores the clocks; it writes the file and changes nothing else."""
    return Command(JETSON_CLOCKS, ("--store", str(file)))


def put_back(file: Path) -> Command:
    """Return the command that puts stored clocks back."""
    return Command(JETSON_CLOCKS, ("--restore", str(file)), changes=True)


def parse_show(text: str) -> Mapping[str, ClockRange]:
    """Parse `jetson_clocks --show` by clock (`cpu0`, `GPU`, `EMC`, `DLA0_CORE`); a core that is off is left out."""
    found = {}
    for name, rest in _CLOCK.findall(text):
        fields = {key: int(value) for key, value in _FIELD.findall(rest)}
        is_core_off = name.startswith("cpu") and fields.get("Online") == 0
        per_mhz = 1e3 if name.startswith("cpu") else 1e6
        if not is_core_off and set(fields) >= set(_NAMES):
            found[name] = ClockRange(*(fields[key] / per_mhz for key in _NAMES))
    return found
