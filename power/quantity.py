"""A number with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """An estimated or measured number and the half-width of its 95 % interval, in the same unit."""

    value: float
    u95: float

    def as_json(self) -> dict[str, float]:
        """Return `{"value": ..., "u95": ...}`."""
        return {"value": self.value, "u95": self.u95}

    def scaled(self, factor: float) -> Quantity:
        """Return this quantity times an exact factor."""
        return Quantity(self.value * factor, self.u95 * abs(factor))

    def ratio(self, numerator: float) -> Quantity:
        """Return an exact numerator divided by this quantity, to first order in its uncertainty."""
        value = numerator / self.value
        return Quantity(value, abs(value) * self.u95 / abs(self.value))
