"""Networks that have no graph here: time over the size of square images, `c + k * pixels^e` through three sizes.

YOLO networks of trtexec in FP16 on Orin NX 16 GB were published at eight sizes. Three of them (160, 640, 1280) give the
law, the other five (in published_check.csv) say how good it is.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence

from common import SHARED

GROUP = "YOLO FP16, other sizes"
LEAST, MOST, HALVINGS = 0.1, 4.0, 60  # of the exponent
Times = Mapping[int, float]


def resolution_cases() -> list[tuple[str, str, str, float]]:
    """Return group, network, row and error in percent of the sizes that the law was not drawn through."""
    given, others = _times("published_fit.csv"), _times("published_check.csv")
    cases = []
    for key, times_ms in others.items():
        for side, published_ms in times_ms.items():
            error = 100 * (law_ms(given[key], side) / published_ms - 1)
            cases.append((GROUP, key[1], f"{' '.join(key)} {side}x{side}", error))
    return cases


def law_ms(known: Times, side: int) -> float:
    """Time at a side of the image, by the law through three known sides."""
    sides = sorted(known)
    exponent = _exponent([one * one * 1e-6 for one in sides], [known[one] for one in sides])
    low, high = ((sides[i] ** 2 * 1e-6) ** exponent for i in (0, -1))
    slope = (known[sides[-1]] - known[sides[0]]) / (high - low)
    return float(known[sides[0]] + slope * ((side * side * 1e-6) ** exponent - low))


def _exponent(pixels: Sequence[float], times_ms: Sequence[float]) -> float:
    """The exponent at which the middle point lies on the curve, by halving: the higher, the lower the middle."""
    wanted = (times_ms[1] - times_ms[0]) / (times_ms[2] - times_ms[0])
    low, high = LEAST, MOST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        first, second, third = (one**middle for one in pixels)
        low, high = (middle, high) if (second - first) / (third - first) > wanted else (low, middle)
    return (low + high) / 2


def _times(name: str) -> dict[tuple[str, str], dict[int, float]]:
    found: dict[tuple[str, str], dict[int, float]] = {}
    with (SHARED / name).open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["metric"] == "latency median" and row["network"].startswith("yolo"):
                side = int(row["input"].partition("x")[0])
                found.setdefault((row["device"], row["network"]), {})[side] = float(row["value"])
    return found
