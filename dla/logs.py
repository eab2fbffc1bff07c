"""What a TensorRT build log says of the DLA: logs of trtexec or the API, TensorRT 8.4 to 10.3, verbose or not.

A verbose log lists every layer that could run on the DLA, then ("DLA Network Layer Information") those of each loadable
that was built; a log without them only names each loadable by its first and last layer, "{ForeignNode[A...B]}". Names
in braces are the DLA's only where the line says so: TensorRT 10 gives the GPU's Myelin regions the same form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dla.errors import DlaError

FOREIGN = "{ForeignNode["
MIB = 1 << 20


@dataclass(frozen=True)
class LoggedLayer:
    """A layer as a log names it; `kind` is its TensorRT type, "" where the line leaves it out."""

    name: str
    kind: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the layers that were fused into this one."""
        return tuple(self.name.split(" + "))

    @property
    def is_region(self) -> bool:
        """Whether this is a whole region, "{ForeignNode[A...B]}", of which only the ends are named."""
        return self.name.startswith(FOREIGN)

    @property
    def ends(self) -> tuple[LoggedLayer, LoggedLayer]:
        """First and last layer of a region; itself twice where it is none."""
        inner = self.name.removeprefix(FOREIGN).removesuffix("]}") if self.is_region else self.name
        first, *last = re.split(r"(?<! )\.\.\.(?! )", inner, maxsplit=1)  # " + ... + " abridges one name
        return LoggedLayer(first), LoggedLayer(last[0] if last else first)


@dataclass(frozen=True)
class LoggedLoadable:
    """A loadable that was built: `layers` is empty where the log does not list them.

    `pools_bytes` holds the managed SRAM, local DRAM and global DRAM that it needs; empty where the log is silent.
    """

    region: LoggedLayer
    layers: tuple[LoggedLayer, ...] = ()
    pools_bytes: tuple[int, ...] = ()


@dataclass(frozen=True)
class BuildLog:
    """What a build log says: `candidates` and `gpu` are its lists of layers, `loadables` what the DLA really runs.

    `refused` maps each layer that the DLA does not take to its type, `reasons` to TensorRT's words where it gives any;
    `dropped` are the first layers of the loadables beyond the `limit` of a core. Names are TensorRT's.
    """

    tensorrt: str | None
    candidates: tuple[LoggedLayer, ...]
    gpu: tuple[LoggedLayer, ...]
    loadables: tuple[LoggedLoadable, ...]
    refused: Mapping[str, str]
    reasons: Mapping[str, str]
    dropped: tuple[str, ...]
    limit: int | None

    @property
    def lists_layers(self) -> bool:
        """Whether the log says of each single layer whether it could run on the DLA."""
        return bool(self.candidates) or any(loadable.layers for loadable in self.loadables)


def read_log(path: Path) -> BuildLog:
    """Read a build log; DlaError where it is none, or the build ended before it said where the layers run."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        return parse_log(lines, str(path))


def parse_log(lines: Iterable[str], name: str = "log") -> BuildLog:
    """Read the lines of a build log, as `read_log` does."""
    reader = _Reader()
    for line in lines:
        reader.read(_COLOUR.sub("", line.rstrip("\r\n")))
    if not reader.is_tensorrt:
        raise DlaError(f"{name} is no TensorRT log: no line of it is TensorRT's; give trtexec's output, best --verbose")
    if not reader.is_placed:
        raise DlaError(f"{name} does not say which layers run on the DLA: {reader.why_not_placed()}")
    return reader.log()


@dataclass
class _Reader:
    """Collects what the lines say, one after the other."""

    is_tensorrt: bool = False
    is_placed: bool = False  # the lists of layers, or the word that none can run on the DLA, have come
    tensorrt: str | None = None
    error: str = ""
    in_block: bool = False
    candidates: list[LoggedLayer] = field(default_factory=list)
    gpu: list[LoggedLayer] = field(default_factory=list)
    announced: list[str] = field(default_factory=list)  # regions before the DLA's compiler has seen them
    built: dict[str, tuple[int, ...]] = field(default_factory=dict)  # region to memory pools
    blocks: list[list[LoggedLayer]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    limit: int | None = None

    def read(self, line: str) -> None:
        """Take in one line."""
        prefix, text = _split(line)
        self.is_tensorrt = self.is_tensorrt or "[TRT]" in prefix or "TensorRT" in line
        if _ERROR.search(prefix):
            self.error = text
        layer = _BLOCK_LAYER.fullmatch(text) if self.in_block else None
        if layer:
            self.blocks[-1].append(LoggedLayer(layer["name"], layer["kind"]))
            return
        self.in_block = False
        for word, pattern, take in _LINES:
            if word in text and (match := pattern.search(text)):
                take(self, match)
                return

    def log(self) -> BuildLog:
        """Return what was read."""
        return BuildLog(
            tensorrt=self.tensorrt,
            candidates=tuple(dict.fromkeys(self.candidates)),
            gpu=tuple(dict.fromkeys(self.gpu)),
            loadables=self._loadables(),
            refused=self.refused,
            reasons=self.reasons,
            dropped=tuple(dict.fromkeys(self.dropped)),
            limit=self.limit,
        )

    def why_not_placed(self) -> str:
        """Return the build's error, or what to do where it has none."""
        if self.error:
            return f"the build failed: {self.error}"
        return "build with --useDLACore=0, and log informational messages or --verbose ones"

    def _loadables(self) -> tuple[LoggedLoadable, ...]:
        """What was built in the end; a log that does not speak of that has built what it announced."""
        blocks = {_region(block): tuple(block) for block in self.blocks if block}
        names = self.built or blocks or dict.fromkeys(self.announced)
        return tuple(LoggedLoadable(LoggedLayer(n), blocks.get(n, ()), self.built.get(n, ())) for n in names)

    # One method for each form of line in `_LINES`.

    def version(self, match: re.Match[str]) -> None:
        self.tensorrt = match["version"] if "." in match["version"] else _version(int(match["version"]))

    def begin_lists(self, _: re.Match[str]) -> None:
        self.is_placed = True

    def begin_block(self, _: re.Match[str]) -> None:
        self.in_block = True
        self.blocks.append([])

    def layer_on_dla(self, match: re.Match[str]) -> None:
        layer = _layer(match["layer"])
        if layer.is_region:
            self.announced.append(layer.name)
        else:
            self.candidates.append(layer)

    def layer_on_gpu(self, match: re.Match[str]) -> None:
        self.gpu.append(_layer(match["layer"]))

    def loadable_built(self, match: re.Match[str]) -> None:
        self.is_placed = True
        self.built.setdefault(match["layer"], ())
        self.memory_needed(match)

    def memory_needed(self, match: re.Match[str]) -> None:
        pools = _POOLS.search(match.string)
        if pools and self.built:
            self.built[next(reversed(self.built))] = tuple(round(float(mib) * MIB) for mib in pools.groups())

    def layer_refused(self, match: re.Match[str]) -> None:
        self.refused[match["layer"]] = match["kind"]

    def refusal_explained(self, match: re.Match[str]) -> None:
        self.refused.setdefault(match["layer"], "")
        self.reasons.setdefault(match["layer"], match.string)

    def loadable_dropped(self, match: re.Match[str]) -> None:
        self.limit = int(match["limit"])
        self.dropped.append(match["layer"])


def _split(line: str) -> tuple[str, str]:
    """Return the time and severity that stand before a message, and the message."""
    prefix = _PREFIX.match(line)
    length = prefix.end() if prefix else 0
    return line[:length], line[length:]


def _layer(item: str) -> LoggedLayer:
    kind, separator, name = item.partition(": ")
    return LoggedLayer(name, kind) if separator and _KIND.fullmatch(kind) else LoggedLayer(item)


def _region(layers: list[LoggedLayer]) -> str:
    """Return TensorRT's name of a loadable with these layers."""
    return FOREIGN + "...".join(dict.fromkeys((layers[0].name, layers[-1].name))) + "]}"


def _version(number: int) -> str:
    """Return "8.4.1" for 8401 and "10.3.0" for 100300, the forms of NV_TENSORRT_VERSION before and since 10."""
    major, rest = divmod(number, 10_000 if number >= 100_000 else 1_000)
    return f"{major}.{rest // 100}.{rest % 100}"


_TIME = r"\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d"
_PREFIX = re.compile(rf"(?:\s*(?:[A-Z]+: ?)?\[(?:{_TIME}|TRT|TensorRT|[VIWEF]|VERBOSE|INFO|WARNING|ERROR)\]:?)*\s*")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ERROR = re.compile(r"\[(?:E|ERROR)\]|ERROR:")
_KIND = re.compile(r"[A-Z][A-Z0-9_]+")
_BLOCK_LAYER = re.compile(r"(?:Layer\()?(?P<kind>[A-Z][A-Z0-9_]+)\)?: (?P<name>.+?)(?:, [A-Z][\w ]*: .*)?")
_POOLS = re.compile(r"Managed SRAM = ([\d.]+) MiB,\s*Local DRAM = ([\d.]+) MiB,\s*Global DRAM = ([\d.]+) MiB")
_REASONS = (
    "DLA cores do not|DLA only supports|DLA does not|MatMul is unsupported on DLA|Unary operation: "
    r"|Concatenation on DLA|ActivationLayer \(|This version of DLA"
)

# A word that a line holds, the line's form, and who takes it; the first form that fits counts.
# Source: builder logs of TensorRT 8.4 to 10.3 on Jetson, and the messages that users quote in public issues.
_LINES: tuple[tuple[str, re.Pattern[str], Callable[[_Reader, re.Match[str]], None]], ...] = tuple(
    (word, re.compile(pattern), take)
    for word, pattern, take in (
        ("[TensorRT v", r"\[TensorRT v(?P<version>\d{4,6})\]", _Reader.version),
        ("TensorRT version", r"^TensorRT version: (?P<version>\d+\.\d+[\d.]*)", _Reader.version),
        ("unning on", r"^-+ Layers [Rr]unning on (?:DLA|GPU)\b", _Reader.begin_lists),
        ("no layer in the network", r"no layer in the network can run on DLA", _Reader.begin_lists),
        ("DLA Network Layer", r"DLA Network Layer Information", _Reader.begin_block),
        ("[DlaLayer]", r"^\[DlaLayer\] (?P<layer>.+)$", _Reader.layer_on_dla),
        ("[GpuLayer]", r"^\[GpuLayer\] (?P<layer>.+)$", _Reader.layer_on_gpu),
        ("offloaded to DLA", r"^(?P<layer>\{ForeignNode\[.+\]\}) successfully offloaded", _Reader.loadable_built),
        ("Layer(DLA)", r"^Layer\(DLA\): (?P<layer>\{ForeignNode\[.+?\]\})(?:, |$)", _Reader.loadable_built),
        ("Required:", r"^Required: Managed SRAM", _Reader.memory_needed),
        ("Unsupported on DLA", r"^Layer '(?P<layer>.+)' \((?P<kind>\w+)\): Unsupported on DLA", _Reader.layer_refused),
        ("subgraphs per", r"only (?P<limit>\d+) subgraphs .* for layer (?P<layer>.+)$", _Reader.loadable_dropped),
        ("Default DLA", r"but layer (?P<layer>.+) is not supported on DLA, falling", _Reader.refusal_explained),
        ("DLA LAYER:", r"^DLA LAYER: .* for layer (?P<layer>.+) exceeds max batch", _Reader.refusal_explained),
        ("dynamic shapes", r"^DLA Layer (?P<layer>.+) does not support dynamic", _Reader.refusal_explained),
        ("device type to GPU", r"type\. Switching (?P<layer>.+) device type to GPU", _Reader.refusal_explained),
        ("Validation failed", r"^Validation failed for DLA layer: (?P<layer>.+)\. ", _Reader.refusal_explained),
        ("Splitting DLA", r"^Splitting DLA subgraph at: (?P<layer>.+) because DLA ", _Reader.refusal_explained),
        (": ", rf"^(?P<layer>.+?): (?:{_REASONS})", _Reader.refusal_explained),
    )
)
