"""Which versions of TensorRT have a DLA at all.

Sources: TensorRT 11.4 release notes and "Working with DLA" (11.4.1): "10.7 was the last 10.x release with DLA"; 11.4.1
supports it again on Jetson AGX Orin with JetPack 7.2.2 or later. JetPack release notes for the versions they carry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dla.errors import DlaError

FALLBACK = "use 8.6 (JetPack 6.0), 10.3 (JetPack 6.1 and 6.2) or 11.4 (JetPack 7.2.2)"
STRONG_TYPES = (11, 0)  # from here on types are the network's own: Q/DQ nodes in place of calibrated ranges


@dataclass(frozen=True)
class Release:
    """TensorRT versions `first` to `last` of a JetPack; `reason` says why the DLA is not there, "" where it is."""

    first: tuple[int, int]
    last: tuple[int, int]
    jetpack: str
    reason: str = ""


RELEASES: tuple[Release, ...] = (
    Release((0, 0), (8, 3), "JetPack 4 and older", "it was made before Orin"),
    Release((8, 4), (8, 4), "JetPack 5.0"),
    Release((8, 5), (8, 5), "JetPack 5.1"),
    Release((8, 6), (8, 6), "JetPack 6.0"),
    Release((10, 0), (10, 7), "JetPack 6.1 and 6.2"),
    Release((10, 8), (10, 15), "JetPack 7.0 and 7.1", "TensorRT 10.7 was the last 10.x with DLA, and Thor has none"),
    Release((10, 16), (10, 99), "JetPack 7.2", "TensorRT 10.7 was the last 10.x with DLA"),
    Release((11, 0), (11, 3), "none", "DLA came back with TensorRT 11.4"),
    Release((11, 4), (11, 4), "JetPack 7.2.2, Jetson AGX Orin only"),
)


def rules_version(tensorrt: str) -> tuple[int, int]:
    """Return the major and minor version that names the rules; DlaError where that TensorRT has no DLA."""
    match = re.match(r"(\d+)\.(\d+)(\.\d+)*$", tensorrt)
    version = (int(match[1]), int(match[2])) if match else None
    release = next((entry for entry in RELEASES if version and entry.first <= version <= entry.last), None)
    if version is None or release is None:
        raise DlaError(f"TensorRT {tensorrt!r} has no rules here; {FALLBACK}")
    if release.reason:
        raise DlaError(f"TensorRT {tensorrt} ({release.jetpack}) has no DLA: {release.reason}; {FALLBACK}")
    return version
