"""Watts of GPU and DLAs by difference, since no rail is a DLA's own: four windows, one of them idle.

A DLA's power is spread over rails that it shares with CPU, memory and GPU (`power.boards`). What an accelerator adds
is therefore a difference of two windows: over idle when it runs alone, and over the others when all run together,
where it also costs what it does to them through the DRAM that they share. The offset of the sensor cancels; its step
does not, and a difference that lies within its own uncertainty is refused: "not resolved".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from power.energy import Energy, Terms, module_balance, rail_balance
from power.errors import PowerError
from power.quantity import ModuleQuantity, Quantity

PHASES = ("idle", "gpu", "dlas", "all")


@dataclass(frozen=True)
class Draw:
    """Watts that something adds to the module and to each rail; a value that `is_resolved` denies is no value."""

    module_w: ModuleQuantity
    rails_w: Mapping[str, Quantity]

    def divided(self, parts: int) -> Draw:
        """Return the mean of so many equal parts."""
        rails = {name: power.scaled(1 / parts) for name, power in self.rails_w.items()}
        return Draw(self.module_w.scaled(1 / parts), rails)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; `value` is null where it is not resolved."""
        rails = {name: difference_json(power) for name, power in self.rails_w.items()}
        return {"module_w": difference_json(self.module_w), "rails_w": rails}


@dataclass(frozen=True)
class Attribution:
    """What each accelerator adds: alone, and on top of the others; per DLA core the mean of those that ran.

    `interaction` is what all draw together beyond the sum of each alone: below zero where they slow each other down.
    """

    idle_w: ModuleQuantity
    all_w: ModuleQuantity
    dla_cores: int
    gpu_alone: Draw
    dlas_alone: Draw
    gpu_on_top: Draw
    dlas_on_top: Draw
    interaction: Draw

    @property
    def dla_core_alone(self) -> Draw:
        """One DLA core's part when the DLAs run alone."""
        return self.dlas_alone.divided(self.dla_cores)

    @property
    def dla_core_on_top(self) -> Draw:
        """One DLA core's part when all run."""
        return self.dlas_on_top.divided(self.dla_cores)

    def draws(self) -> dict[str, Draw]:
        """Return every draw by its name."""
        names = ("gpu_alone", "dlas_alone", "dla_core_alone", "gpu_on_top", "dlas_on_top", "dla_core_on_top")
        return {name: getattr(self, name) for name in (*names, "interaction")}

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        whole = {"idle_w": self.idle_w.as_json(), "all_w": self.all_w.as_json(), "dla_cores": self.dla_cores}
        return whole | {name: draw.as_json() for name, draw in self.draws().items()}


def attribute(windows: Mapping[str, Energy], dla_cores: int) -> Attribution:
    """Return what GPU and DLAs draw, from windows of one board by the names in `PHASES`.

    PowerError where a window lacks the module's power, or two of them overlap.
    """
    idle, gpu, dlas, both = (windows[name] for name in PHASES)
    _check(windows, dla_cores)
    assert idle.module_w is not None and both.module_w is not None, "checked above"
    return Attribution(
        idle_w=idle.module_w,
        all_w=both.module_w,
        dla_cores=dla_cores,
        gpu_alone=_draw([(1, gpu), (-1, idle)]),
        dlas_alone=_draw([(1, dlas), (-1, idle)]),
        gpu_on_top=_draw([(1, both), (-1, dlas)]),
        dlas_on_top=_draw([(1, both), (-1, gpu)]),
        interaction=_draw([(1, both), (-1, gpu), (-1, dlas), (1, idle)]),
    )


def _check(windows: Mapping[str, Energy], dla_cores: int) -> None:
    if dla_cores < 1:
        raise PowerError(f"{dla_cores} DLA cores ran, expected 1 or more: without one there is nothing to tell apart")
    for name, energy in windows.items():
        if energy.module_w is None:
            missing = ", ".join(rail for rail in energy.module_rails if rail not in energy.rails_w) or "no rule"
            raise PowerError(f"window {name!r} lacks the module's power ({missing}): not all of its rails were printed")
    for (one, a), (other, b) in combinations(windows.items(), 2):
        if a.begin_ns < b.end_ns and b.begin_ns < a.end_ns:
            raise PowerError(f"windows {one!r} and {other!r} overlap: measure them one after another")


def _draw(terms: Terms) -> Draw:
    module_w = module_balance(terms)
    assert module_w is not None, "every window has the module's power"
    return Draw(module_w, {rail: rail_balance(terms, rail) for rail in terms[0][1].rails_w})


def difference_json(power: Quantity) -> dict[str, Any]:
    """Return `{value, u95, resolved}`; `value` is null where it is not resolved."""
    return {"value": power.value if power.is_resolved else None, "u95": power.u95, "resolved": power.is_resolved}
