"""Watts of GPU and DLAs by difference, since no rail is a DLA's own: rounds of four windows, one of them idle.

A DLA's power is spread over rails that it shares with CPU, memory and GPU (`power.boards`). What an accelerator adds
is therefore a difference of two windows: over idle when it runs alone, and over the others when all run together,
where it also costs what it does to them through the DRAM that they share. The offset of the sensor cancels; its step
does not, and a difference that lies within its own uncertainty is refused: "not resolved".

Several rounds add what the sensor cannot know: how far the board itself differs from one time to the next. The spread
of the rounds and the sensor's u95 go into one, in quadrature; rounds do not shrink the sensor's part, since a steady
load meets the same step each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from power.energy import Energy, Terms, module_balance, rail_balance
from power.errors import PowerError
from power.quantity import ModuleQuantity, Quantity, repeated

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

    rounds: int
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
        whole = {"rounds": self.rounds, "idle_w": self.idle_w.as_json(), "all_w": self.all_w.as_json()}
        return whole | {"dla_cores": self.dla_cores} | {name: draw.as_json() for name, draw in self.draws().items()}


Round = Mapping[str, Energy]  # windows by the names in `PHASES`


def attribute(rounds: Sequence[Round], dla_cores: int) -> Attribution:
    """Return what GPU and DLAs draw, from one round of windows of a board or more.

    PowerError where a window lacks the module's power, or two of them overlap.
    """
    _check(rounds, dla_cores)
    return Attribution(
        rounds=len(rounds),
        idle_w=repeated([_module_w(each["idle"]) for each in rounds]),
        all_w=repeated([_module_w(each["all"]) for each in rounds]),
        dla_cores=dla_cores,
        gpu_alone=_draw(rounds, gpu=1, idle=-1),
        dlas_alone=_draw(rounds, dlas=1, idle=-1),
        gpu_on_top=_draw(rounds, all=1, dlas=-1),
        dlas_on_top=_draw(rounds, all=1, gpu=-1),
        interaction=_draw(rounds, all=1, gpu=-1, dlas=-1, idle=1),
    )


def _check(rounds: Sequence[Round], dla_cores: int) -> None:
    if dla_cores < 1:
        raise PowerError(f"{dla_cores} DLA cores ran, expected 1 or more: without one there is nothing to tell apart")
    if not rounds:
        raise PowerError("0 rounds of windows, expected 1 or more")
    named = [(name, each[name]) for each in rounds for name in PHASES]
    for name, energy in named:
        if energy.module_w is None:
            missing = ", ".join(rail for rail in energy.module_rails if rail not in energy.rails_w) or "no rule"
            raise PowerError(f"window {name!r} lacks the module's power ({missing}): not all of its rails were printed")
    for (one, a), (other, b) in combinations(named, 2):
        if a.begin_ns < b.end_ns and b.begin_ns < a.end_ns:
            raise PowerError(f"windows {one!r} and {other!r} overlap: measure them one after another")


def _module_w(energy: Energy) -> ModuleQuantity:
    assert energy.module_w is not None, "checked"
    return energy.module_w


def _draw(rounds: Sequence[Round], **signs: int) -> Draw:
    """Return a signed sum of windows, over all rounds."""
    terms: list[Terms] = [[(sign, each[name]) for name, sign in signs.items()] for each in rounds]
    modules = [power for one in terms if (power := module_balance(one)) is not None]  # all of them: checked
    rails = {rail: repeated([rail_balance(one, rail) for one in terms]) for rail in terms[0][0][1].rails_w}
    return Draw(repeated(modules), rails)


def difference_json(power: Quantity) -> dict[str, Any]:
    """Return `{value, u95, resolved}`; `value` is null where it is not resolved."""
    return {"value": power.value if power.is_resolved else None, "u95": power.u95, "resolved": power.is_resolved}
