"""What one run of a plan showed, as the tuner takes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from orin.soc import GPU
from power.quantity import Quantity


@dataclass(frozen=True)
class Measurement:
    """One run: samples per second, module watts, p99 of a work item's latency, module watts of the idle board before
    it (None: not measured), with their u95.

    `share` is each accelerator's of the samples, `seconds` what the run and the idling before it took of the board,
    `flags` say why not to trust it, `failure` why it could not run at all.
    """

    samples_per_s: Quantity
    module_w: Quantity | None = None
    latency_ms: Quantity | None = None
    share: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    flags: tuple[str, ...] = ()
    failure: str | None = None
    idle_w: Quantity | None = None

    @classmethod
    def failed(cls, failure: str, seconds: float = 0.0) -> Measurement:
        """Return what a plan that cannot run leaves."""
        return cls(Quantity(0.0, 0.0), seconds=seconds, failure=failure)

    def logs(self) -> dict[str, tuple[float, float]]:
        """Return logarithms and their standard deviations by quantity, those measured; "balance" is DLA over GPU."""
        found = {"speed": self.samples_per_s, "watts": self.module_w, "latency": self.latency_ms, "idle": self.idle_w}
        logs = {
            name: (math.log(q.value), q.u95 / q.value / 1.96)
            for name, q in found.items()
            if q is not None and q.value > 0
        }
        gpu = self.share.get(GPU, 0.0)
        dla = sum(share for name, share in self.share.items() if name != GPU)
        if gpu > 0 and dla > 0 and "speed" in logs:
            logs["balance"] = (math.log(dla / gpu), 1.4 * logs["speed"][1])
        return logs

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values, which `from_json` takes."""
        return {**asdict(self), "share": dict(self.share), "flags": list(self.flags)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Measurement:
        """Return what `as_json` gave."""
        quantities = {
            name: Quantity(**values[name]) if values.get(name) else None
            for name in ("samples_per_s", "module_w", "latency_ms", "idle_w")
        }
        return cls(**{**values, **quantities, "flags": tuple(values["flags"])})
