"""From the module to the plug: what the supply and the carrier board add, one documented constant a set-up.

Nothing about a supply can be read from a module's rails, so this is a constant and not a model: the carrier board, its
devices and the supply's loss, less what a tuned set-up saves on the module itself below the idle of the virtual board's
devkit (7.6 W). AGX Orin at the plug showed 14.7 to 16.8 W before MLPerf v2.0's MaxQ runs, about 6.3 W before v3.0's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from power.quantity import Quantity, WallQuantity


@dataclass(frozen=True)
class Supply:
    """One set-up's supply and carrier board: watts at the plug beyond the module's, with their u95, and the source."""

    name: str
    added_w: float
    u95_w: float
    source: str

    def wall(self, module: Quantity) -> WallQuantity:
        """Return what a module's power comes to at the plug."""
        return WallQuantity(module.value + self.added_w, math.hypot(module.u95, self.u95_w))


SUPPLIES = {
    "mlperf-v2.0": Supply(
        "MLPerf v2.0's set-up",
        8.2,
        1.5,
        "median of the readings at the plug before its 14 MaxQ runs (15.8 W) less the devkit's idle (7.6 W)",
    ),
    "mlperf-v3.0": Supply(
        "MLPerf v3.0's set-up",
        0.0,
        1.5,
        "v3.0's MaxQ runs of ResNet-50, the plug less the predicted module: a fitted constant",
    ),
}
ANY_SUPPLY = Supply("any supply", 4.0, 4.0, "the middle of the two published set-ups, and half of what lies between")


def supply(setup: str) -> Supply:
    """Return the supply of a published set-up (MLPerf v2.1 and later: v3.0's), or one that covers them all."""
    if setup in ("mlperf-v2.1", "mlperf-v3.1"):
        setup = "mlperf-v3.0"
    return SUPPLIES.get(setup, ANY_SUPPLY)
