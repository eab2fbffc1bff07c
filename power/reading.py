"""One line of tegrastats as values: all forms that JetPack 4 to 7.2 print; what is not printed is None, never 0.

A line is read word by word, since order and set of its tokens differ between releases, boards and users (root or
not). What no form of `power.tokens` fits is kept as text in `Reading.unknown`; a name printed twice keeps its first
value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from power.boards import BoardFacts, total_rule
from power.tokens import (
    LONG,
    PAIRS,
    ZONES,
    GpuLoad,
    Iram,
    Load,
    Mts,
    RailReading,
    Ram,
    Swap,
    Temperature,
    read_long,
)

__all__ = [
    "GpuLoad",
    "Iram",
    "Load",
    "Mts",
    "RailReading",
    "Ram",
    "Reading",
    "Swap",
    "Temperature",
    "module_average_mw",
    "module_mw",
    "parse_line",
    "parse_log",
]

_NOT_CONNECTED = "NC"  # the name of each channel of a sensor that measures nothing
_LINE_END = 4096  # characters; the longest line of any board has about 600


class Reading(NamedTuple):
    """What one line says: `timestamp` as ISO 8601 local time; None for cores, engines and zones that are off."""

    engines: Mapping[str, Load | None]
    temperatures_c: Mapping[str, Temperature | None]
    rails: Mapping[str, RailReading]
    unknown: tuple[str, ...] = ()
    cpus: tuple[Load | None, ...] | None = None
    cpus_complete: bool = True
    timestamp: str | None = None
    ram: Ram | None = None
    swap: Swap | None = None
    iram: Iram | None = None
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
    rule = total_rule(rails_mw) if board is None else board.rule
    if rule is None or not rule.total:
        return None
    terms = [value for name in rule.total if (value := rails_mw.get(name)) is not None]
    if len(terms) < len(rule.total):
        return None
    # A part above the whole means swapped labels, as one vendor's Nano carrier has them.
    return None if any((rails_mw.get(part) or 0) > sum(terms) for part in rule.parts) else sum(terms)


def parse_line(line: str) -> Reading | None:
    """Return what a line of tegrastats says; None where it says none of memory, CPU, temperatures or rails."""
    words = line.split() if len(line) < _LINE_END else []
    end = len(words)
    words.append("")  # so that each has a follower
    found: _Found = {"once": {}, "engines": {}, "temperatures_c": {}, "rails": {}}
    unknown: list[str] = []
    at = known_to = 0
    while at < end:
        word = words[at]
        if "@" in word:
            token = ZONES[word]
        elif word in LONG:
            token = read_long(words, at)
        else:
            token = PAIRS[word, words[at + 1]]
        if token is None:
            at += 1
            continue
        field, key, value, width = token
        if found[field].setdefault(key, value) is not value and key != _NOT_CONNECTED:
            at += 1
            continue
        if known_to < at:
            unknown.append(" ".join(words[known_to:at]))
        at += width
        known_to = at
    if known_to < end:
        unknown.append(" ".join(words[known_to:end]))
    return _reading(found, tuple(unknown))


_Found = dict[str, dict[str, Any]]  # tokens by field and key; those that a line has once are in the field "once"


def _reading(found: _Found, unknown: tuple[str, ...]) -> Reading | None:
    once, rails, temperatures_c = found["once"], found["rails"], found["temperatures_c"]
    if not ("ram" in once or "cpus" in once or temperatures_c or rails):
        return None
    if "gpu2" in once:  # JetPack 5.0 and 5.1 print the GPU's two GPCs as two tokens
        first, second = once.get("gpu", GpuLoad(None, None)), once.pop("gpu2")
        once["gpu"] = GpuLoad(first.percent, (first.mhz or (None,)) + (second.mhz or (None,)))
    cpus, complete = once.get("cpus", (None, True))
    rails.pop(_NOT_CONNECTED, None)
    rest = map(once.get, ("timestamp", "ram", "swap", "iram", "emc", "gpu", "mts"))
    return Reading(found["engines"], temperatures_c, rails, unknown, cpus, complete, *rest)


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
