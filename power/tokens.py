"""The tokens of a tegrastats line, each form once; what no form fits is None.

A word that was read once is looked up the next time: loads, temperatures and powers come in steps, so most words of
a log come back. Values are named tuples, since a long log has millions of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar

ZONE_OFF_C = -256.0  # what a thermal zone without power prints
_REMEMBERED = 16_384  # distinct words kept parsed: those of a busy hour

K = TypeVar("K")
V = TypeVar("V")


class Ram(NamedTuple):
    """Memory in use, and the largest free block as `lfb_blocks` pieces of `lfb_block` ("4MB"), None if cut off."""

    used_mb: int
    total_mb: int
    lfb_blocks: int | None
    lfb_block: str | None


class Swap(NamedTuple):
    """Swap in use."""

    used_mb: int
    total_mb: int
    cached_mb: int


class Iram(NamedTuple):
    """On-chip memory in use, and its largest free block."""

    used_kb: int
    total_kb: int
    lfb_kb: int


class Load(NamedTuple):
    """Load and clock of a CPU core, the memory or an engine; None where not printed."""

    percent: int | None
    mhz: int | None


class GpuLoad(NamedTuple):
    """Load of the GPU and the clock of each of its GPCs; None where not printed."""

    percent: int | None
    mhz: tuple[int | None, ...] | None


class Mts(NamedTuple):
    """Share of the CPU's code translation (Denver cores), foreground and background."""

    foreground_percent: int
    background_percent: int


class Temperature(NamedTuple):
    """Temperature of a zone, and its highest since the start where printed."""

    now_c: float
    max_c: float | None


class RailReading(NamedTuple):
    """Power of a rail; mean and peak since tegrastats started, where printed. Negative values are legal."""

    now_mw: int
    average_mw: int | None
    peak_mw: int | None


class Remembered(dict[K, V], Generic[K, V]):
    """A dictionary that computes what it lacks, and starts afresh when full: a cache at a look-up's price."""

    def __init__(self, read: Callable[[K], V]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, key: K) -> V:
        if len(self) >= _REMEMBERED:
            self.clear()
        value = self[key] = self._read(key)
        return value


_ZONE = re.compile(r"([A-Za-z][\w.-]*)@(-?\d{1,4}(?:\.\d+)?)C(?:/(-?\d{1,4}(?:\.\d+)?)C)?")
_RAIL = re.compile(r"(-?\d+)mW(?:/(-?\d+)mW(?:/(-?\d+)mW)?)?")
_BARE_RAIL = re.compile(r"(-?\d+)/(-?\d+)()")  # JetPack 4 prints no unit, so there the name has to tell
_BARE_RAIL_NAME = re.compile(r"(?:VDD|POM|VIN|SYS)\w*|GPU|CPU|SOC|CV|NC")
_CLOCKED = re.compile(r"(?:(\d+)%)?@(\d+)|(\d+)")
_ENGINE_NAME = re.compile(r"(?!(?:RAM|SWAP|IRAM|CPU|EMC|GR3D|MTS)(?![A-Z]))[A-Z][A-Z0-9_]*")
_BARE_ENGINE_NAME = re.compile(r"(?:NVENC|NVDEC|NVJPG|NVDLA|PVA|VIC|OFA|APE|AVP|MSENC)\d*|\w+_FREQ")
_EMC = re.compile(r"(?=[@\d])(?:(\d+)%)?(?:@(\d+))?")
_GPU = re.compile(r"(?=[@\d])(?:(\d+)%)?(?:@(\d+|\[\d+(?:,\d+)*\]))?")
_CORE = re.compile(r"(\d+)%(?:@(\d+))?")
_DATE = re.compile(r"([0-9]{2})-([0-9]{2})-([0-9]{4})")
_TIME = re.compile(r"[0-9]{2}:[0-9]{2}:[0-9]{2}")
_SHARED_CLOCK = re.compile(r"@(\d+)")
_ELLIPSIS = "..."

Cores = tuple[Load | None, ...]
Cpus = tuple[Cores, bool]
Token = tuple[str, str, Any, int]  # field of a reading, key in it, value, words that it takes


def _zone(word: str) -> Token | None:
    match = _ZONE.fullmatch(word)
    if match is None:
        return None
    name, now_c, max_c = match.groups()
    off = float(now_c) == ZONE_OFF_C
    zone = None if off else Temperature(float(now_c), None if max_c is None else float(max_c))
    return "temperatures_c", name, zone, 1


def _pair(words: tuple[str, str]) -> Token | None:
    name, value = words
    if rail := _rail(name, value):
        return "rails", name, rail, 2
    if name in ("EMC", "EMC_FREQ") and (load := _EMC.fullmatch(value)):
        return "once", "emc", Load(_int(load[1]), _int(load[2])), 2
    if name in ("GR3D", "GR3D_FREQ", "GR3D2", "GR3D2_FREQ") and (load := _GPU.fullmatch(value)):
        return "once", "gpu2" if "D2" in name else "gpu", _gpu(load[1], load[2]), 2
    if engine := _engine(name, value):
        return "engines", *engine, 2
    if stamp := _timestamp(name, value):
        return "once", "timestamp", stamp, 2
    return None


def _rail(name: str, value: str) -> RailReading | None:
    match = _RAIL.fullmatch(value) if name[0].isalpha() else None
    if match is None and _BARE_RAIL_NAME.fullmatch(name):
        match = _BARE_RAIL.fullmatch(value)
    return RailReading(int(match[1]), _int(match[2]), _int(match[3])) if match else None


def _gpu(percent: str | None, mhz: str | None) -> GpuLoad:
    return GpuLoad(_int(percent), tuple(map(int, mhz.strip("[]").split(","))) if mhz else None)


def _engine(name: str, value: str) -> tuple[str, Load | None] | None:
    if not _ENGINE_NAME.fullmatch(name):
        return None
    short = name.removesuffix("_FREQ")
    if value == "off":
        return short, None
    match = _CLOCKED.fullmatch(value)
    if match is None or (match[3] and not _BARE_ENGINE_NAME.fullmatch(name)):
        return None
    return short, Load(_int(match[1]), int(match[2] or match[3]))


def _timestamp(date: str, time: str) -> str | None:
    """Return `MM-DD-YYYY HH:MM:SS` as ISO 8601; a pattern is several times as quick as strptime."""
    match = _DATE.fullmatch(date) if _TIME.fullmatch(time) else None
    try:
        return match and datetime.fromisoformat(f"{match[3]}-{match[1]}-{match[2]}T{time}").isoformat()
    except ValueError:  # the 31st of June
        return None


def _int(text: str | None) -> int | None:
    return int(text) if text else None


def _core(entry: str) -> Load | None:
    """Return one core of the list; ValueError where it is neither a load nor off."""
    match = _CORE.fullmatch(entry)
    if match is None and entry != "off":
        raise ValueError(entry)
    return match and Load(int(match[1]), _int(match[2]))


def _cpus(word: str) -> Cpus | None:
    """Return the cores, None for those that are off, and whether the list is whole.

    Reads `[7%@1728,off,...]`, or `[7%,off]@1728` with one clock for all; people elide long lists by "...".
    """
    body, bracket, shared = word.partition("]")
    if not (bracket and body.startswith("[")):
        return None
    entries = body[1:].split(",")
    whole = _ELLIPSIS not in entries
    try:
        cores = tuple(map(_CORES.__getitem__, entries if whole else [e for e in entries if e != _ELLIPSIS]))
        return _clocked(cores, shared) if shared else cores, whole
    except ValueError:
        return None


def _clocked(cores: Cores, shared: str) -> Cores:
    """Give the clock behind the list to each core that has none of its own; ValueError where it is no clock."""
    match = _SHARED_CLOCK.fullmatch(shared)
    if match is None:
        raise ValueError(shared)
    return tuple([core and (core if core.mhz is not None else Load(core.percent, int(match[1]))) for core in cores])


_CORES: Remembered[str, Load | None] = Remembered(_core)
ZONES: Remembered[str, Token | None] = Remembered(_zone)  # by the word, "cpu@50.5C"
PAIRS: Remembered[tuple[str, str], Token | None] = Remembered(_pair)  # by name and value, ("VDD_IN", "5mW/4mW")


@dataclass(frozen=True)
class _Form:
    """A token of several words behind its name: its field, its most words, and what the pattern's groups make."""

    field: str
    words: int
    pattern: re.Pattern[str]
    make: Callable[..., object]


def _ram(used: str, total: str, blocks: str | None, block: str | None) -> Ram:
    return Ram(int(used), int(total), _int(blocks), block)


_END = r"(?= |$)"
_FORMS = {
    "RAM": _Form("ram", 3, re.compile(rf"(\d+)/(\d+)MB(?: \(lfb (\d+)x(\d+[kM]B)\))?{_END}"), _ram),
    "SWAP": _Form("swap", 3, re.compile(rf"(\d+)/(\d+)MB \(cached (\d+)MB\){_END}"), lambda *mb: Swap(*map(int, mb))),
    "IRAM": _Form("iram", 3, re.compile(rf"(\d+)/(\d+)kB ?\(lfb (\d+)kB\){_END}"), lambda *kb: Iram(*map(int, kb))),
    "MTS": _Form("mts", 4, re.compile(rf"fg (\d+)% bg (\d+)%{_END}"), lambda *percent: Mts(*map(int, percent))),
}
LONG = frozenset((*_FORMS, "CPU", "cpu"))  # names of the tokens that `read_long` reads


def read_long(words: list[str], at: int) -> Token | None:
    """Read the token that begins at a word of `LONG`."""
    name = words[at]
    if form := _FORMS.get(name):
        return _LONGS[name, " ".join(words[at + 1 : at + 1 + form.words])]
    cpus = _cpus(words[at + 1])
    return ("once", "cpus", cpus, 2) if cpus else PAIRS[name, words[at + 1]]  # AGX Xavier has a rail CPU, too


def _long(named: tuple[str, str]) -> Token | None:
    form, text = _FORMS[named[0]], named[1]
    match = form.pattern.match(text)
    return match and ("once", form.field, form.make(*match.groups()), match[0].count(" ") + 2)


_LONGS: Remembered[tuple[str, str], Token | None] = Remembered(_long)
