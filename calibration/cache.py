"""TensorRT's calibration cache, the text that `trtexec --calib` and every INT8 calibrator read.

One header `TRT-<version>-<algorithm>`, then one line a tensor: `<name>: <hex>`. The hex digits are the bits of a
float32 scale (amax / 127), without leading zeros; names may hold spaces and colons, so the last colon separates.
Sources: TensorRT samples/common/sampleEngines.cpp release/10.3, `readScalesFromCalibrationCache`; headers from TensorRT
7.2 to 10.3 as seen in public caches.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from calibration.errors import CalibrationError
from engines.spec import INT8_MAX, Ranges

TENSORRT_10_3 = 100300
ENTROPY_2 = "EntropyCalibration2"  # the one algorithm whose caches the DLA takes

_HEADER = re.compile(r"TRT-([1-9][0-9]{0,8})-(\w+)")
_ENTRY = re.compile(r"(.+): ([0-9a-fA-F]{1,8})")


@dataclass(frozen=True)
class CalibrationCache:
    """A calibration cache: `scales` holds one float32-exact INT8 scale a tensor, in the order of the file.

    `repeats` are earlier lines of names that occur again (index among the entries, name, scale): the last one
    counts. They and `final_newline` are kept so that a file is written back as it was read.
    """

    version: int
    algorithm: str
    scales: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    repeats: tuple[tuple[int, str, float], ...] = ()
    final_newline: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", MappingProxyType(dict(self.scales)))

    @classmethod
    def from_ranges(cls, ranges: Ranges, version: int = TENSORRT_10_3, algorithm: str = ENTROPY_2) -> CalibrationCache:
        """Return the cache that holds these ranges; CalibrationError where a name or a range cannot be written."""
        return cls(version, algorithm, {name: _scale(name, amax) for name, amax in ranges.amax_by_tensor.items()})

    def to_ranges(self) -> Ranges:
        """Return amax = 127 * scale of each tensor, exact in float64."""
        amax = {name: scale * INT8_MAX for name, scale in self.scales.items()}
        return Ranges(amax, f"cache:{self.algorithm}", images=0)

    def dumps(self) -> str:
        """Return the text of the cache, as TensorRT writes it."""
        entries = list(self.scales.items())
        for index, name, scale in self.repeats:
            entries.insert(index, (name, scale))
        lines = [f"TRT-{self.version}-{self.algorithm}", *(f"{name}: {_bits(scale):x}" for name, scale in entries)]
        return "\n".join(lines) + "\n" * self.final_newline


def read_cache(source: Path | str) -> CalibrationCache:
    """Read a cache file (a Path) or a cache's text (a str); CalibrationError names the line that is wrong."""
    where = str(source) if isinstance(source, Path) else "calibration cache"
    text = _file_text(source) if isinstance(source, Path) else source
    lines = text.split("\n")
    final_newline = lines[-1] == ""
    if final_newline:
        lines.pop()
    header = _HEADER.fullmatch(lines[0]) if lines else None
    if header is None:
        seen = lines[0][:60] if lines else ""
        raise CalibrationError(f"{where} line 1 is {seen!r}, expected a header such as TRT-100300-{ENTROPY_2}")
    scales, warnings, repeats = _entries(lines[1:], where, final_newline)
    return CalibrationCache(int(header[1]), header[2], scales, warnings, repeats, final_newline)


_Repeats = tuple[tuple[int, str, float], ...]


def _entries(lines: list[str], where: str, complete: bool) -> tuple[dict[str, float], tuple[str, ...], _Repeats]:
    """Return scales, warnings and overwritten entries; `complete`: the last line ends in a newline."""
    scales: dict[str, float] = {}
    places: dict[str, int] = {}
    repeats: list[tuple[int, str, float]] = []
    for index, line in enumerate(lines):
        name, scale = _entry(line, f"{where} line {index + 2}", complete or index < len(lines) - 1)
        if name in scales:
            repeats.append((places[name], name, scales.pop(name)))
        scales[name], places[name] = scale, index
    names = {name: places[name] + 2 for _, name, _ in repeats}
    warnings = tuple(f"{name!r} occurs more than once: line {line} counts" for name, line in names.items())
    return scales, warnings, tuple(sorted(repeats))


def _entry(line: str, where: str, complete: bool) -> tuple[str, float]:
    match = _ENTRY.fullmatch(line)
    if match is None:
        raise CalibrationError(
            f"{where} is {line[:60]!r}, expected '<tensor>: <1 to 8 hex digits>'; write the cache again"
        )
    scale = float(struct.unpack(">f", bytes.fromhex(match[2].zfill(8)))[0])
    if not math.isfinite(scale) or math.copysign(1.0, scale) < 0:
        raise CalibrationError(f"{where} gives {match[1]!r} the scale {scale}, expected a finite one of 0 or more")
    if not complete and scale and len(match[2]) < 8:
        raise CalibrationError(f"{where} ends after {len(match[2])} hex digits, expected 8: the file is truncated")
    return match[1], scale


def _file_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"calibration cache {path} cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CalibrationError(f"{path} line {line} holds the byte {data[error.start]:#04x}, expected UTF-8") from None


def _bits(scale: float) -> int:
    return int.from_bytes(struct.pack(">f", scale), "big")


def _scale(name: str, amax: float) -> float:
    """Return amax / 127 rounded to float32."""
    if not name or "\n" in name:
        raise CalibrationError(f"tensor name {name!r} cannot stand in a calibration cache: one line a tensor")
    try:
        scale = float(struct.unpack(">f", struct.pack(">f", amax / INT8_MAX))[0])
    except OverflowError:
        scale = math.inf
    if not math.isfinite(scale) or amax < 0:
        raise CalibrationError(f"tensor {name!r} has the range {amax}, expected a finite one of 0 or more")
    return scale
