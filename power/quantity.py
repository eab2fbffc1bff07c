"""Numbers with their uncertainty; what a module draws and what the wall gives are different types."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TypeVar

from power.errors import PowerError

_AnyQuantity = TypeVar("_AnyQuantity", bound="Quantity")

# Two-sided 95 % points of Student's t for 1, 2, ... degrees of freedom; the last serves for more, 4 % wide at most.
T95: tuple[float, ...] = (
    *(12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Quantity:
    """An estimated or measured number and the half-width of its 95 % interval, in the same unit."""

    value: float
    u95: float

    @property
    def is_resolved(self) -> bool:
        """Whether its interval leaves out zero: a difference that does not is no difference."""
        return abs(self.value) > self.u95

    def as_json(self) -> dict[str, float]:
        """Return `{"value": ..., "u95": ...}`."""
        return {"value": self.value, "u95": self.u95}

    def scaled(self: _AnyQuantity, factor: float) -> _AnyQuantity:
        """Return this quantity times an exact factor."""
        return type(self)(self.value * factor, self.u95 * abs(factor))

    def ratio(self: _AnyQuantity, numerator: float) -> _AnyQuantity:
        """Return an exact numerator divided by this quantity, to first order in its uncertainty."""
        value = numerator / self.value
        return type(self)(value, abs(value) * self.u95 / abs(self.value))


class ModuleQuantity(Quantity):
    """Power or energy of the module, by its own rails; no carrier board, no supply."""


class WallQuantity(Quantity):
    """Power or energy that an external meter saw: the supply, the carrier board and its devices included."""


def repeated(values: Sequence[_AnyQuantity]) -> _AnyQuantity:
    """Return the mean of repeated measurements, with the spread of their values in its u95.

    The u95 that they came with is of errors that they share, such as a meter's: their mean stays, in quadrature with
    t s / sqrt(n). One measurement is returned as it is.
    """
    if len(values) == 1:
        return values[0]
    numbers = [value.value for value in values]
    freedom = min(len(numbers) - 1, len(T95))
    spread = T95[freedom - 1] * stdev(numbers) / math.sqrt(len(numbers))
    return type(values[0])(fmean(numbers), math.hypot(fmean([value.u95 for value in values]), spread))


@dataclass(frozen=True)
class Comparison:
    """Two quantities with independent errors, B against A; prints as their ratio or as "not resolved"."""

    a: Quantity
    b: Quantity

    @property
    def resolved(self) -> bool:
        """Whether the 95 % intervals of the two do not overlap."""
        return abs(self.b.value - self.a.value) > self.a.u95 + self.b.u95

    @property
    def difference(self) -> Quantity:
        """B minus A."""
        return Quantity(self.b.value - self.a.value, math.hypot(self.a.u95, self.b.u95))

    @property
    def ratio(self) -> Quantity | None:
        """B over A, to first order in both uncertainties; None where A is zero."""
        if self.a.value == 0:
            return None
        value = self.b.value / self.a.value
        return Quantity(value, math.hypot(self.b.u95, value * self.a.u95) / abs(self.a.value))

    def __str__(self) -> str:
        ratio = self.ratio
        if ratio is None or not self.resolved:
            return "not resolved"
        return f"{ratio.value:.3f} ± {ratio.u95:.3f}"


def compare(a: Quantity, b: Quantity) -> Comparison:
    """Set two quantities side by side; PowerError where one is the module's and the other the wall's."""
    if type(a) is not type(b):
        raise PowerError(
            f"{_place(a)} is set against {_place(b)}: a supply and a carrier board lie between them; "
            "measure both in the same place"
        )
    return Comparison(a, b)


def _place(quantity: Quantity) -> str:
    places: dict[type[Quantity], str] = {ModuleQuantity: "a module's figure", WallQuantity: "the wall's"}
    return places.get(type(quantity), "a figure of neither the module nor the wall")
