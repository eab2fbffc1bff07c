"""One line of tegrastats as values: all forms that JetPack 4 to 7.2 print; what is not printed is None, never 0.

A line is read word by word, since order and set of its tokens differ between releases, boards and users (root or
not). What no form fits is kept as text in `Reading.unknown`; a name printed twice keeps its first value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from power.boards import BoardFacts, total_rule

ZONE_OFF_C = -256.0  # what a thermal zone without power prints
_NOT_CONNECTED = "NC"  # the name of each channel of a sensor that measures nothing
_CACHED = 8192  # distinct words kept parsed: loads, temperatures and powers come in steps, so most words come back


@dataclass(frozen=True)
class Ram:
    """Memory in use, and the largest free block as `lfb_blocks` pieces of `lfb_block` ("4MB"), None if cut off."""

    used_mb: int
    total_mb: int
    lfb_blocks: int | None
    lfb_block: str | None


@dataclass(frozen=True)
class Swap:
    """Swap in use."""

    used_mb: int
    total_mb: int
    cached_mb: int


@dataclass(frozen=True)
class Iram:
    """On-chip memory in use, and its largest free block."""

    used_kb: int
    total_kb: int
    lfb_kb: int


@dataclass(frozen=True)
class Load:
    """Load and clock of a CPU core, the memory or an engine; None where not printed."""

    percent: int | None
    mhz: int | None


@dataclass(frozen=True)
class GpuLoad:
    """Load of the GPU and the clock of each of its GPCs; None where not printed."""

    percent: int | None
    mhz: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Mts:
    """Share of the CPU's code translation (Denver cores), foreground and background."""

    foreground_percent: int
    background_percent: int


@dataclass(frozen=True)
class Temperature:
    """Temperature of a zone, and its highest since the start where printed."""

    now_c: float
    max_c: float | None


@dataclass(frozen=True)
class RailReading:
    """Power of a rail; mean and peak since tegrastats started, where printed. Negative values are legal."""

    now_mw: int
    average_mw: int | None
    peak_mw: int | None


@dataclass(frozen=True)
class Reading:
    """What one line says: `timestamp` as ISO 8601 local time; None for cores, engines and zones that are off."""

    engines: Mapping[str, Load | None]
    temperatures_c: Mapping[str, Temperature | None]
    rails: Mapping[str, RailReading]
    unknown: tuple[str, ...] = ()
    timestamp: str | None = None
    ram: Ram | None = None
    swap: Swap | None = None
    iram: Iram | None = None
    cpus: tuple[Load | None, ...] | None = None
    cpus_complete: bool = True
    emc: Load | None = None
    gpu: GpuLoad | None = None
    mts: Mts | None = None

    def as_json(self, board: BoardFacts | None = None) -> dict[str, Any]:
        """Return plain JSON values, the module's power included (see `module_mw`); rare fields only where printed."""
        rare = {
            "mts_pct": self.mts and {"fg": self.mts.foreground_percent, "bg": self.mts.background_percent},
            "cpu_list_incomplete": not self.cpus_complete,
            "unparsed": list(self.unknown),
        }
        return {
            "timestamp": self.timestamp,
            **_memory_json(self),
            "cpu": self.cpus and [core and [core.percent, core.mhz] for core in self.cpus],
            "emc": self.emc and {"util_pct": self.emc.percent, "freq_mhz": self.emc.mhz},
            "gpu": self.gpu
            and {"util_pct": self.gpu.percent, "freq_mhz": None if self.gpu.mhz is None else list(self.gpu.mhz)},
            "engines": {
                name: {"util_pct": load.percent, "freq_mhz": load.mhz} if load else "off"
                for name, load in self.engines.items()
            },
            "temps_c": {name: zone and [zone.now_c, zone.max_c] for name, zone in self.temperatures_c.items()},
            "rails_mw": {name: [rail.now_mw, rail.average_mw, rail.peak_mw] for name, rail in self.rails.items()},
            "module_mw": module_mw(self, board),
            "module_avg_mw": module_average_mw(self, board),
            **{name: value for name, value in rare.items() if value},
        }


def _memory_json(reading: Reading) -> dict[str, Any]:
    ram, swap, iram = reading.ram, reading.swap, reading.iram
    return {
        "ram_mb": ram
        and {"used": ram.used_mb, "total": ram.total_mb, "lfb_blocks": ram.lfb_blocks, "lfb_block": ram.lfb_block},
        "swap_mb": swap and {"used": swap.used_mb, "total": swap.total_mb, "cached": swap.cached_mb},
        "iram_kb": iram and {"used": iram.used_kb, "total": iram.total_kb, "lfb": iram.lfb_kb},
    }


def module_mw(reading: Reading, board: BoardFacts | None = None) -> int | None:
    """Return the module's power: the sum of the board's total rails, None unless all are printed.

    Without a board the whole set of printed rails must belong to one known kind of module, else None.
    """
    return _total({name: rail.now_mw for name, rail in reading.rails.items()}, board)


def module_average_mw(reading: Reading, board: BoardFacts | None = None) -> int | None:
    """Return the module's mean power since tegrastats started, by the rule of `module_mw`."""
    return _total({name: rail.average_mw for name, rail in reading.rails.items()}, board)


def _total(rails_mw: Mapping[str, int | None], board: BoardFacts | None) -> int | None:
    if board is not None:
        total, parts = tuple(rail.name for rail in board.total_rails()), frozenset[str]()
    elif rule := total_rule(rails_mw):
        total, parts = rule.total, rule.parts
    else:
        return None
    terms = [value for name in total if (value := rails_mw.get(name)) is not None]
    if len(terms) < len(total):
        return None
    # A part above the whole means swapped labels, as one vendor's Nano carrier has them.
    return None if any((rails_mw[part] or 0) > sum(terms) for part in parts) else sum(terms)


def parse_line(line: str) -> Reading | None:
    """Return what a line of tegrastats says; None where it says none of memory, CPU, temperatures or rails."""
    words = line.split()
    draft = _Draft()
    unknown: list[str] = []
    at, known_to = 0, 0
    while at < len(words):
        taken = draft.take(words, at)
        if taken and known_to < at:
            unknown.append(" ".join(words[known_to:at]))
        at += taken or 1
        known_to = at if taken else known_to
    if known_to < at:
        unknown.append(" ".join(words[known_to:]))
    return draft.finish(unknown)


def parse_log(lines: Iterable[str]) -> Iterator[tuple[int, Reading | None]]:
    """Yield first line number (from 1) and reading of each record, wrapped ones joined; None for any other line."""
    begin, text, pending = 0, "", None
    for number, line in enumerate(lines, 1):
        reading = parse_line(line)
        if pending and reading and _continues(pending, reading):
            text = f"{text} {line}"
            pending = parse_line(text)
            continue
        if pending:
            yield begin, pending
        begin, text, pending = number, line, reading
        if reading is None:
            yield number, None
    if pending:
        yield begin, pending


def _continues(record: Reading, reading: Reading) -> bool:
    """A wrapped line has no head, and repeats nothing that its record already has."""
    headless = reading.ram is None and reading.timestamp is None
    repeats = (
        (record.cpus and reading.cpus)
        or record.temperatures_c.keys() & reading.temperatures_c.keys()
        or record.rails.keys() & reading.rails.keys()
    )
    return headless and not repeats


class _Draft:
    """A reading that is being put together."""

    def __init__(self) -> None:
        self.once: dict[str, Any] = {}  # fields that a line has once
        self.engines: dict[str, Load | None] = {}
        self.temperatures_c: dict[str, Temperature | None] = {}
        self.rails: dict[str, RailReading] = {}

    def take(self, words: list[str], at: int) -> int:
        """Take the token that begins at a word; return how many words it has, 0 for none that fits."""
        word = words[at]
        if reader := _LONG.get(word):
            key, value, taken = reader(" ".join(words[at + 1 : at + 5]))
            if taken:
                return taken + 1 if self.once.setdefault(key, value) is value else 0
        elif "@" in word:
            zone = _zone(word)
            return 1 if zone and self.temperatures_c.setdefault(*zone) is zone[1] else 0
        pair = _pair(word, words[at + 1]) if at + 1 < len(words) else None
        if pair is None:
            return 0
        field, key, value = pair
        fits = getattr(self, field).setdefault(key, value) is value
        return 2 if fits or key == _NOT_CONNECTED else 0

    def finish(self, unknown: list[str]) -> Reading | None:
        once = self.once
        if not ("ram" in once or "cpus" in once or self.temperatures_c or self.rails):
            return None
        if "gpu2" in once:  # JetPack 5.0 and 5.1 print the GPU's two GPCs as two tokens
            first, second = once.get("gpu", GpuLoad(None, None)), once.pop("gpu2")
            once["gpu"] = GpuLoad(first.percent, (first.mhz or (None,)) + (second.mhz or (None,)))
        once["cpus"], once["cpus_complete"] = once.get("cpus", (None, True))
        self.rails.pop(_NOT_CONNECTED, None)
        return Reading(self.engines, self.temperatures_c, self.rails, tuple(unknown), **once)


_ZONE = re.compile(r"([A-Za-z][\w.-]*)@(-?\d+(?:\.\d+)?)C(?:/(-?\d+(?:\.\d+)?)C)?")
_RAIL = re.compile(r"(-?\d+)mW(?:/(-?\d+)mW(?:/(-?\d+)mW)?)?")
_BARE_RAIL = re.compile(r"(-?\d+)/(-?\d+)()")  # JetPack 4 prints no unit, so there the name has to tell
_BARE_RAIL_NAME = re.compile(r"(?:VDD|POM|VIN|SYS)\w*|GPU|CPU|SOC|CV|NC")
_CLOCKED = re.compile(r"(?:(\d+)%)?@(\d+)|(\d+)")
_ENGINE_NAME = re.compile(r"(?!(?:RAM|SWAP|IRAM|CPU|EMC|GR3D|MTS)(?![A-Z]))[A-Z][A-Z0-9_]*")
_BARE_ENGINE_NAME = re.compile(r"(?:NVENC|NVDEC|NVJPG|NVDLA|PVA|VIC|OFA|APE|AVP|MSENC)\d*|\w+_FREQ")
_EMC = re.compile(r"(?=[@\d])(?:(\d+)%)?(?:@(\d+))?")
_GPU = re.compile(r"(?=[@\d])(?:(\d+)%)?(?:@(\d+|\[\d+(?:,\d+)*\]))?")
_CORE = re.compile(r"(\d+)%(?:@(\d+))?")


@lru_cache(_CACHED)
def _zone(word: str) -> tuple[str, Temperature | None] | None:
    match = _ZONE.fullmatch(word)
    if match is None:
        return None
    name, now_c, max_c = match.groups()
    if float(now_c) == ZONE_OFF_C:
        return name, None
    return name, Temperature(float(now_c), None if max_c is None else float(max_c))


@lru_cache(_CACHED)
def _pair(name: str, value: str) -> tuple[str, str, Any] | None:
    """Return field, key and value of a token of two words."""
    if rail := _rail(name, value):
        return "rails", name, rail
    if name in ("EMC", "EMC_FREQ") and (load := _EMC.fullmatch(value)):
        return "once", "emc", Load(_int(load[1]), _int(load[2]))
    if name in ("GR3D", "GR3D_FREQ", "GR3D2", "GR3D2_FREQ") and (load := _GPU.fullmatch(value)):
        return "once", "gpu2" if "D2" in name else "gpu", _gpu(load[1], load[2])
    if engine := _engine(name, value):
        return "engines", *engine
    if stamp := _timestamp(name, value):
        return "once", "timestamp", stamp
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
    """Return `MM-DD-YYYY HH:MM:SS` as ISO 8601."""
    try:
        return datetime.strptime(f"{date} {time}", "%m-%d-%Y %H:%M:%S").isoformat()
    except ValueError:
        return None


def _int(text: str | None) -> int | None:
    return int(text) if text else None


_Found = tuple[str, Any, int]  # field, value, words that it takes after its name: 0 where the form does not fit
_LongReader = Callable[[str], _Found]


def _form(field: str, pattern: str, make: Callable[..., object]) -> _LongReader:
    """Return a reader of a token of several words: its value is made of the pattern's groups."""
    compiled = re.compile(f"{pattern}(?= |$)")

    def read(text: str) -> _Found:
        match = compiled.match(text)
        return (field, make(*match.groups()), match[0].count(" ") + 1) if match else (field, None, 0)

    return read


def _ram(used: str, total: str, blocks: str | None, block: str | None) -> Ram:
    return Ram(int(used), int(total), _int(blocks), block)


def _read_cpus(text: str) -> _Found:
    """Read `[7%@1728,off,...]`, or `[7%,off]@1728` with one clock for all; people elide long lists by "..."."""
    body, bracket, shared = text.partition(" ")[0].partition("]")
    if not (body.startswith("[") and bracket and re.fullmatch(r"(@\d+)?", shared)):
        return "cpus", None, 0
    entries = body[1:].split(",")
    try:
        cores = tuple([_core(entry, shared) for entry in entries if entry != "..."])
    except ValueError:
        return "cpus", None, 0
    return "cpus", (cores, "..." not in entries), 1


@lru_cache(_CACHED)
def _core(entry: str, shared: str) -> Load | None:
    """Return one core of the list; ValueError where it is neither a load nor off."""
    if entry == "off":
        return None
    match = _CORE.fullmatch(entry)
    if match is None:
        raise ValueError(entry)
    return Load(int(match[1]), _int(match[2] or shared[1:]))


_LONG: dict[str, _LongReader] = {
    "RAM": _form("ram", r"(\d+)/(\d+)MB(?: \(lfb (\d+)x(\d+[kM]B)\))?", _ram),
    "SWAP": _form("swap", r"(\d+)/(\d+)MB \(cached (\d+)MB\)", lambda *mb: Swap(*map(int, mb))),
    "IRAM": _form("iram", r"(\d+)/(\d+)kB ?\(lfb (\d+)kB\)", lambda *kb: Iram(*map(int, kb))),
    "MTS": _form("mts", r"fg (\d+)% bg (\d+)%", lambda *percent: Mts(*map(int, percent))),
    "CPU": _read_cpus,
    "cpu": _read_cpus,
}
