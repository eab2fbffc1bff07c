"""Whether a power mode is really in force: what its files hold, against what the mode asks of them.

nvpmodel's exit code proves nothing: 255 when cores went offline though all went well, 0 where nothing changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from power.nvpmodel import Key, Mode, ModeFile, Query, as_number, is_cap

ROUNDING_SHARE = 0.05  # clocks whose table cannot be read are rounded, too; modes lie further apart


class Reader(Protocol):
    """The files behind a mode's values, by path."""

    def read(self, path: str) -> str | None:
        """Return a file's text; None where it is missing or not ours to read."""

    def is_gone(self, path: str) -> bool:
        """Whether its folder is missing, as that of a CPU cluster is while its cores are off."""


@dataclass(frozen=True)
class Files:
    """The files below a root."""

    root: Path

    def read(self, path: str) -> str | None:
        """Return a file's text; None where it is missing or not ours to read."""
        try:
            return self._at(path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def is_gone(self, path: str) -> bool:
        """Whether its folder is missing."""
        return not self._at(path).parent.exists()

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")


@dataclass(frozen=True)
class Value:
    """One value of a mode: what it asks for, and what is there (None: not to be seen)."""

    parameter: str
    argument: str
    path: str
    asked: str
    real: str | None
    agrees: bool | None

    def __str__(self) -> str:
        return f"{self.parameter} {self.argument} is {self.real}, asked {self.asked}"


@dataclass(frozen=True)
class Proof:
    """All values of a mode as they are."""

    values: tuple[Value, ...]

    @property
    def differing(self) -> tuple[Value, ...]:
        """Values that are not what the mode asks for."""
        return tuple(value for value in self.values if value.agrees is False)

    @property
    def unseen(self) -> tuple[Value, ...]:
        """Values that could not be read."""
        return tuple(value for value in self.values if value.agrees is None)

    @property
    def in_force(self) -> bool | None:
        """Whether the mode is in force; None where none of its values could be read."""
        if self.differing:
            return False
        return True if any(value.agrees for value in self.values) else None

    def numbers(self, argument: str) -> dict[str, int]:
        """Return the numbers of one argument that could be read, e.g. MAX_FREQ, by parameter."""
        found = {v.parameter: as_number(v.real) for v in self.values if v.argument == argument}
        return {name: number for name, number in found.items() if number is not None}


def prove(file: ModeFile, mode: Mode, query: Query | None, files: Reader) -> Proof:
    """Hold a mode against the files behind it; those that only root may read as `nvpmodel -q --verbose` saw them."""
    last_of_path = {_path(file, key, files): key for key in mode.values}  # one may be set twice; the last value counts
    return Proof(tuple(_value(file, mode, key, _real(file, key, query, files), files) for key in last_of_path.values()))


def _path(file: ModeFile, key: Key, files: Reader) -> str:
    """The file of this machine's kernel behind an argument."""
    paths = file.paths(key)
    return next((path for path in paths if not files.is_gone(path)), paths[-1] if paths else " ".join(key))


def _real(file: ModeFile, key: Key, query: Query | None, files: Reader) -> str | None:
    path = _path(file, key, files)
    real = files.read(path)
    if real is None and query is not None and key in query.values and not files.is_gone(path):
        return query.values[key].real
    return real


def _value(file: ModeFile, mode: Mode, key: Key, real: str | None, files: Reader) -> Value:
    asked = mode.values[key]
    return Value(*key, _path(file, key, files), asked, real, _agrees(file, key, asked, real, files))


def _agrees(file: ModeFile, key: Key, asked: str, real: str | None, files: Reader) -> bool | None:
    want, have = as_number(asked), as_number(real)
    if want is None:
        return None if not real else real == asked
    if have is None:
        return None
    if key[1] not in ("MAX_FREQ", "MIN_FREQ"):
        return have == want
    table = _table(file, key, files)
    if table:
        return have in _rounded(want, key[1], table)
    return _agrees_without_table(want, have, file.caps(key), key[1])


def _table(file: ModeFile, key: Key, files: Reader) -> list[int]:
    """The clocks that the hardware has, in the unit of the mode's values."""
    text = files.read(_path(file, (key[0], "FREQ_TABLE"), files)) or ""
    return sorted(int(word) for word in text.split() if word.isdecimal())


def _rounded(want: int, argument: str, table: Sequence[int]) -> set[int]:
    """What the kernel may make of a wanted clock: itself, or one of its two neighbours in the table."""
    if argument == "MAX_FREQ" and not is_cap(want):
        return {table[-1]}
    below = max((clock for clock in table if clock <= want), default=table[0])
    above = min((clock for clock in table if clock >= want), default=table[-1])
    return {below, above, *({want} if table[0] <= want <= table[-1] else ())}


def _agrees_without_table(want: int, have: int, caps: Sequence[int], argument: str) -> bool:
    if argument == "MIN_FREQ":
        return have >= want
    if is_cap(want):
        return abs(have - want) <= ROUNDING_SHARE * want
    return not is_cap(have) or have >= max(caps, default=0)  # no cap reads as such, or as the clock's own maximum
