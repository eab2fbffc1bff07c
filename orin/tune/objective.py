"""What a tuner is asked for: more samples per second, more per joule, or less latency, within limits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orin.errors import OrinError

KINDS = ("throughput", "efficiency", "latency")
QUANTITIES = ("speed", "watts", "latency")  # what a run is judged by, in logarithms


@dataclass(frozen=True)
class Objective:
    """The goal and its limits: latency of a work item at its p99, module watts, samples per second."""

    kind: str = "throughput"
    slo_ms: float | None = None
    budget_w: float | None = None
    min_samples_per_s: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OrinError(f"objective is {self.kind!r}, expected one of {', '.join(KINDS)}")
        limits = {"slo-ms": self.slo_ms, "budget-w": self.budget_w, "min-samples-per-s": self.min_samples_per_s}
        for name, value in limits.items():
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise OrinError(f"--{name} is {value!r}, expected a positive number")

    @property
    def weights(self) -> tuple[float, float, float]:
        """Weights of log speed, log watts and log latency in what is to be large."""
        return {"throughput": (1.0, 0.0, 0.0), "efficiency": (1.0, -1.0, 0.0), "latency": (0.0, 0.0, -1.0)}[self.kind]

    @property
    def needs_watts(self) -> bool:
        """Whether power has to be measured, and clocks searched."""
        return self.kind == "efficiency" or self.budget_w is not None

    @property
    def limits(self) -> tuple[tuple[str, float, float], ...]:
        """Limits as (quantity, sign, log of the limit): sign times (log of the value - limit) may not be above 0."""
        asked = (
            ("speed", -1.0, self.min_samples_per_s),
            ("watts", 1.0, self.budget_w),
            ("latency", 1.0, self.slo_ms),
        )
        return tuple((name, sign, math.log(value)) for name, sign, value in asked if value is not None)

    @property
    def unit(self) -> str:
        """The unit of the goal's figure."""
        return {"throughput": "samples/s", "efficiency": "samples/J", "latency": "ms"}[self.kind]

    def figure(self, utility: float) -> float:
        """Return the goal's figure, in its unit, of a utility (a logarithm, larger is better)."""
        return math.exp(-utility if self.kind == "latency" else utility)
