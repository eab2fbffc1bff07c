"""What one window of a meter says, as plain values; differences of windows, in which constant errors cancel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from power.errors import PowerError
from power.quantity import ModuleQuantity, Quantity
from power.window import gain_u95_w


@dataclass(frozen=True)
class Energy:
    """Power and energy of one window; None for the module where not all of its rails were printed.

    `net_j` is the module's energy above the idle baseline. `module_rails` are those that sum to the module, `tau_s`
    is of the slowest filter among them. `coverage` is the share of the window without gaps; `effective_samples`
    allows for neighbours that the filter makes alike, about duration / (2 tau). `rails_shown_w` are the smallest and
    the largest value shown, `rails_distinct` how many different ones: few for a steady load. `resolution` is the
    part of a u95 that does not cancel in a difference of two windows of one board. Stamps are the source's. What rests
    on a step or a filter that is not published is NaN, and null in JSON.
    """

    source: str
    begin_ns: int
    end_ns: int
    duration_s: float
    rails_w: Mapping[str, Quantity]
    rails_j: Mapping[str, Quantity]
    rails_resolution_w: Mapping[str, float]
    rails_shown_w: Mapping[str, tuple[float, float]]
    rails_distinct: Mapping[str, int]
    module_rails: tuple[str, ...]
    module_w: ModuleQuantity | None
    module_j: ModuleQuantity | None
    module_resolution_w: float | None
    idle_w: ModuleQuantity | None
    net_j: ModuleQuantity | None
    samples: int
    effective_samples: float
    coverage: float
    gaps: int
    largest_gap_s: float
    edge_term: bool
    tau_s: float
    filters: Mapping[str, Mapping[str, Any]]

    def above(self, idle: Energy) -> ModuleQuantity | None:
        """Return the module's mean power above that of another window; None where either is not known."""
        return module_balance([(1, self), (-1, idle)])

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: _json(value) for name, value in vars(self).items()}


def _json(value: object) -> Any:
    if isinstance(value, Quantity):
        return _json(value.as_json())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _json(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [_json(item) for item in value]
    return value


Terms = Sequence[tuple[int, Energy]]


def module_balance(terms: Terms) -> ModuleQuantity | None:
    """Return a signed sum of windows' module power whose signs cancel; None where the module's power is not known.

    The sensor's offset is the same in all windows, so it is not in the sum; its gain acts on the sum alone.
    """
    powers = [(sign, energy.module_w, energy.module_resolution_w) for sign, energy in terms]
    found = [(sign, power.value, step) for sign, power, step in powers if power is not None and step is not None]
    return ModuleQuantity(*_balance(found)) if len(found) == len(terms) else None


def rail_balance(terms: Terms, rail: str) -> Quantity:
    """Return the same for one rail, which all windows must hold."""
    for _, energy in terms:
        if rail not in energy.rails_w:
            raise PowerError(
                f"rail {rail!r} is not in each of the windows that are compared: {', '.join(energy.rails_w)}"
            )
    return Quantity(*_balance([(s, e.rails_w[rail].value, e.rails_resolution_w[rail]) for s, e in terms]))


def _balance(terms: Sequence[tuple[int, float, float]]) -> tuple[float, float]:
    value = sum(sign * mean_w for sign, mean_w, _ in terms)
    return value, math.hypot(gain_u95_w(value), *(step_w for _, _, step_w in terms))
