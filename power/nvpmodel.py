"""nvpmodel: its mode file read and written, and what `nvpmodel -q` says.

Sources: NVIDIA's mode files as shipped in LineageOS' device trees, and `nvpmodel -q [--verbose]` as seen on boards. The
same number means another mode on another board (0 is MAXN on AGX Orin, 15W on Orin Nano), so modes go by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from power.commands import NVPMODEL, Command
from power.errors import PowerError

CONF = Path("etc/nvpmodel.conf")
NO_CAPS = (2**31 - 1, 2**63 - 1)  # what nvpmodel makes of the -1 for "no cap"
NEWER_KERNEL = "_KNEXT"  # arguments with this ending hold the path of kernel 5.15 and later

Key = tuple[str, str]  # parameter and argument, e.g. ("GPU", "MAX_FREQ")

_HEADER = re.compile(r"<\s*(\w+)\s+(.*?)\s*>")
_FIELD = re.compile(r"(\w+)=(\S+)")
_VERBOSE = re.compile(r"PARAM (\S+): ARG (\S+): PATH (\S+): REAL_VAL: (.*?) CONF_VAL: (\S+)")
# Switching these is refused while the GPU is in use, or asks for a reboot (NVIDIA's developer guide, and boards).
_REBOOT = re.compile(r"POWER_GATING$|CHANNEL|ECC")

# Which parameters a cap sets, and how many of the file's units make a MHz.
_CAPPED = {
    "gpu_mhz": (re.compile(r"GPU"), 1e6),
    "dla_mhz": (re.compile(r"DLA\d_CORE"), 1e6),
    "dla_falcon_mhz": (re.compile(r"DLA\d_FALCON"), 1e6),
    "emc_mhz": (re.compile(r"EMC"), 1e6),
    "cpu_mhz": (re.compile(r"CPU_(?!ONLINE)\w+"), 1e3),
}
_CORE = re.compile(r"CORE_(\d+)")


@dataclass(frozen=True)
class Parameter:
    """What a mode can set: its kind (FILE or CLOCK), its name, and the file behind each argument."""

    kind: str
    name: str
    paths: Mapping[str, str]


@dataclass(frozen=True)
class Mode:
    """One mode, with the values as the file has them, in its order."""

    id: int
    name: str
    values: Mapping[Key, str]

    @property
    def plain_name(self) -> str:
        """The name without the `MODE_` that some files put before it."""
        return plain(self.name)

    @property
    def limits_mhz(self) -> dict[str, float]:
        """The limits of `gpu`, `dla`, `emc` and `cpu`; a clock without one is left out."""
        asked = {name: as_number(value) for (name, argument), value in self.values.items() if argument == "MAX_FREQ"}
        return limits_mhz({name: value for name, value in asked.items() if value is not None})

    @property
    def cpus(self) -> int:
        """How many CPU cores are on."""
        return sum(value == "1" for (_, argument), value in self.values.items() if _CORE.fullmatch(argument))

    def __str__(self) -> str:
        return f"{self.plain_name} (number {self.id})"


@dataclass(frozen=True)
class ModeFile:
    """A mode file: what it can set, its modes, the number of its default."""

    parameters: tuple[Parameter, ...]
    modes: tuple[Mode, ...]
    default: int | None

    def mode(self, name: str) -> Mode:
        """Return a mode by its name, with or without `MODE_`; PowerError names those there are."""
        for mode in self.modes:
            if mode.plain_name == plain(name):
                return mode
        known = ", ".join(mode.plain_name for mode in self.modes)
        raise PowerError(f"power mode {name!r} is not one of this board's: {known}")

    def paths(self, key: Key) -> tuple[str, ...]:
        """Return the files behind an argument, that of newer kernels first."""
        parameter, argument = key
        by_argument = next((found.paths for found in self.parameters if found.name == parameter), {})
        names = (argument + NEWER_KERNEL, argument)
        return tuple(by_argument[name] for name in names if name in by_argument)

    def caps(self, key: Key) -> list[int]:
        """Return the limits that the modes put on a clock, without those that are none."""
        values = (as_number(mode.values.get(key)) for mode in self.modes)
        return [value for value in values if value is not None and is_cap(value)]

    def dumps(self) -> str:
        """Return the file's text as nvpmodel reads it."""
        lines = []
        for parameter in self.parameters:
            lines.append(f"< PARAM TYPE={parameter.kind} NAME={parameter.name} >")
            lines += [f"{argument} {path}" for argument, path in parameter.paths.items()]
        for mode in self.modes:
            lines += ["", f"< POWER_MODEL ID={mode.id} NAME={mode.name} >"]
            lines += [f"{parameter} {argument} {value}" for (parameter, argument), value in mode.values.items()]
        if self.default is not None:
            lines += ["", f"< PM_CONFIG DEFAULT={self.default} >"]
        return "\n".join(lines) + "\n"


def plain(name: str) -> str:
    """Return a mode's name in capitals, without `MODE_`."""
    return name.upper().removeprefix("MODE_")


def as_number(text: str | None) -> int | None:
    """Return a value as a number; None for `on`, `auto` and what is not there."""
    try:
        return None if text is None else int(text, 0)
    except ValueError:
        return None


def is_cap(value: int) -> bool:
    """Whether a clock's value is a limit at all: -1 and 0 (in older files) are none."""
    return value > 0 and value not in NO_CAPS


def limits_mhz(max_freqs: Mapping[str, int]) -> dict[str, float]:
    """Return the limits of `gpu`, `dla`, `emc` and `cpu` from MAX_FREQ by parameter; of equals the first."""
    found: dict[str, float] = {}
    for name, (pattern, per_mhz) in _CAPPED.items():
        values = [value for parameter, value in max_freqs.items() if pattern.fullmatch(parameter) and is_cap(value)]
        if values and name != "dla_falcon_mhz":
            found[name.removesuffix("_mhz")] = values[0] / per_mhz
    return found


def read_mode_file(path: Path) -> ModeFile:
    """Read a mode file; PowerError says what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise PowerError(
            f"power modes of {path} cannot be read: {error.strerror or error}; a Jetson has them in /{CONF}, "
            "a container needs it mounted"
        ) from None
    return parse_mode_file(text, str(path))


def parse_mode_file(text: str, where: str = "mode file") -> ModeFile:
    """Parse a mode file's text; PowerError names the line that is not understood."""
    parser = _Parser(where)
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#")[0].strip()  # comments first: the files' own header explains sections in sections' form
        if words:
            parser.take(number, words)
    return parser.done()


class _Parser:
    """Sections of a mode file as they come; those of unknown kinds (fan profiles) are passed over."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._parameters: list[Parameter] = []
        self._modes: dict[int, Mode] = {}
        self._default: int | None = None
        self._take_line: Callable[[int, str], None] = self._outside

    def take(self, number: int, line: str) -> None:
        header = _HEADER.fullmatch(line)
        if header is None:
            self._take_line(number, line)
            return
        fields = dict(_FIELD.findall(header[2]))
        try:
            self._open(header[1], fields)
        except (KeyError, ValueError):
            raise self._error(number, line, "a header such as < POWER_MODEL ID=0 NAME=MAXN >") from None

    def done(self) -> ModeFile:
        if not self._modes:
            raise PowerError(f"{self._where} holds no < POWER_MODEL ... >: give a board's /{CONF}")
        return ModeFile(tuple(self._parameters), tuple(self._modes.values()), self._default)

    def _open(self, kind: str, fields: Mapping[str, str]) -> None:
        self._take_line = self._pass
        if kind == "PARAM":
            paths: dict[str, str] = {}
            self._parameters.append(Parameter(fields["TYPE"], fields["NAME"], paths))
            self._take_line = lambda number, line: self._path(paths, number, line)
        elif kind == "POWER_MODEL":
            values: dict[Key, str] = {}
            mode = Mode(int(fields["ID"]), fields["NAME"], values)
            self._modes[mode.id] = mode
            self._take_line = lambda number, line: self._value(values, number, line)
        elif kind == "PM_CONFIG":
            self._default = int(fields["DEFAULT"])

    def _path(self, paths: dict[str, str], number: int, line: str) -> None:
        words = line.split()
        if len(words) != 2:
            raise self._error(number, line, "an argument and its path")
        paths[words[0]] = words[1]

    def _value(self, values: dict[Key, str], number: int, line: str) -> None:
        words = line.split()
        if len(words) != 3:
            raise self._error(number, line, "a parameter, its argument and a value")
        values[words[0], words[1]] = words[2]

    def _outside(self, number: int, line: str) -> None:
        raise self._error(number, line, "a section's header first")

    def _pass(self, number: int, line: str) -> None:
        return None

    def _error(self, number: int, line: str, expected: str) -> PowerError:
        return PowerError(f"{self._where}, line {number}: {line!r}, expected {expected}")


def reboot_changes(before: Mode, after: Mode) -> tuple[str, ...]:
    """Return what differs between two modes that may need a reboot, in words such as `TPC_PG_MASK 0 -> 240`."""
    changed = (
        (key, before.values.get(key), value)
        for key, value in after.values.items()
        if _REBOOT.search(key[0]) and before.values.get(key) != value
    )
    return tuple(f"{argument} {old} -> {new}" for (_, argument), old, new in changed)


@dataclass(frozen=True)
class Caps:
    """A mode of one's own: limits in MHz and how many CPU cores stay on; None leaves what the fullest mode has."""

    gpu_mhz: float | None = None
    dla_mhz: float | None = None
    dla_falcon_mhz: float | None = None
    emc_mhz: float | None = None
    cpu_mhz: float | None = None
    cpus: int | None = None

    @classmethod
    def of(cls, clocks_mhz: Mapping[str, float]) -> Caps:
        """Return the caps of clocks by `gpu`, `dla`, `emc` and `cpu`, as `limits_mhz` has them."""
        gpu, dla, emc, cpu = (clocks_mhz.get(name) for name in ("gpu", "dla", "emc", "cpu"))
        return cls(gpu_mhz=gpu, dla_mhz=dla, emc_mhz=emc, cpu_mhz=cpu)

    def __str__(self) -> str:
        return ", ".join(f"{name}={value:g}" for name, value in vars(self).items() if value is not None)


def capped_mode(file: ModeFile, caps: Caps, name: str) -> Mode:
    """Return a mode (number 0) with caps on top of the file's fullest one; PowerError for a cap without a clock."""
    values = dict(fullest_mode(file).values)
    for field, (pattern, per_mhz) in _CAPPED.items():
        mhz = getattr(caps, field)
        if mhz is not None:
            values |= _capped(values, pattern, field, round(mhz * per_mhz))
    if caps.cpus is not None:
        values |= _cores_on(values, caps.cpus)
    return Mode(0, name, values)


def fullest_mode(file: ModeFile) -> Mode:
    """Return the mode with the fewest caps, MAXN where a board has one."""

    def caps(mode: Mode) -> int:
        found = (as_number(value) for (_, argument), value in mode.values.items() if argument == "MAX_FREQ")
        return sum(value is not None and is_cap(value) for value in found)

    return min(file.modes, key=caps)


def _capped(values: Mapping[Key, str], pattern: re.Pattern[str], field: str, cap: int) -> Iterator[tuple[Key, str]]:
    keys = [key for key in values if pattern.fullmatch(key[0]) and key[1] == "MAX_FREQ"]
    if not keys:
        raise PowerError(f"{field} is given, but this board's mode file has no such clock: leave it out")
    if cap <= 0:
        raise PowerError(f"{field} is not above 0: leave it out for no cap")
    for parameter, argument in keys:
        yield (parameter, argument), str(cap)
        lowest = as_number(values.get((parameter, "MIN_FREQ")))
        if lowest is not None and lowest > cap:
            yield (parameter, "MIN_FREQ"), str(cap)


def _cores_on(values: Mapping[Key, str], cpus: int) -> dict[Key, str]:
    cores = {int(match[1]): key for key in values if (match := _CORE.fullmatch(key[1]))}
    if not 1 <= cpus <= len(cores):
        raise PowerError(f"cpus is {cpus}, expected 1 to {len(cores)} on this board")
    return {key: str(int(core < cpus)) for core, key in cores.items()}


@dataclass(frozen=True)
class Seen:
    """One value that `nvpmodel -q --verbose` read: the text is not a number where the file could not be read."""

    path: str
    real: str


@dataclass(frozen=True)
class Query:
    """What `nvpmodel -q` says: the mode it believes in, and with `--verbose` the values behind it."""

    id: int
    name: str
    values: Mapping[Key, Seen]


def parse_query(text: str) -> Query | None:
    """Parse `nvpmodel -q`, verbose or not; None where it names no mode. Warnings and fan modes in between are left."""
    name = re.search(r"NV Power Mode: *(\S+)", text)
    numbers = re.findall(r"^ *(\d+) *$", text, re.MULTILINE)
    if name is None or not numbers:
        return None
    values = {(found[0], found[1]): Seen(found[2], found[3].strip()) for found in _VERBOSE.findall(text)}
    return Query(int(numbers[-1]), name[1], values)


def query(verbose_of: Path | None = None) -> Command:
    """Return the command that asks for the mode, with the values of a mode file where one is named (needs root)."""
    if verbose_of is None:
        return Command(NVPMODEL, ("-q",), as_root=False)
    return Command(NVPMODEL, ("-f", str(verbose_of), "-q", "--verbose"))


def enter(file: Path, number: int) -> Command:
    """Return the command that brings a mode of a file into force."""
    return Command(NVPMODEL, ("-f", str(file), "-m", str(number)), changes=True)
