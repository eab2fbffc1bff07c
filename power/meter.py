"""Energy over a window of time, from a source of readings: per rail and for the module, each with its uncertainty.

The sensor is an exponential low-pass filter, tau dy/dt = x - y, so the energy that went in is the integral of what it
shows plus tau (y_end - y_begin): the edge term. Tau follows from the chip's settings where the source knows them,
else it is the board's. The u95 of each joule holds the sensor's step, gain and offset (`power.boards`), in
quadrature, as rectangular distributions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace

from power.boards import BoardFacts
from power.energy import Energy
from power.errors import PowerError
from power.quantity import ModuleQuantity, Quantity
from power.source import Source
from power.window import PowerSample, Trace, Window, gain_u95_w

__all__ = ["Energy", "Meter", "PowerSample"]


class Meter:
    """Power and energy of a board, from a source of readings."""

    def __init__(self, board: BoardFacts, source: Source) -> None:
        self.board = board
        self.source = source

    @property
    def source_name(self) -> str:
        """What the readings come from, e.g. the command."""
        return self.source.name

    @property
    def samples(self) -> list[PowerSample]:
        """All samples so far, oldest first."""
        return [
            PowerSample(stamp_ns, {name: rail.now_mw for name, rail in reading.rails.items()})
            for stamp_ns, reading in self.source.readings()
        ]

    @property
    def tau_s(self) -> float:
        """Time constant of the slowest filter, which is how long a new load takes to show."""
        return max([chip.tau_s for chip in self.source.filters.values()], default=self.board.filter_tau_s)

    def check(self) -> None:
        """Raise PowerError if the source has failed."""
        self.source.check()

    def energy(self, begin_ns: int, end_ns: int, idle: tuple[int, int] | None = None, edge_term: bool = True) -> Energy:
        """Return the energy of a window in the stamps of the samples, above `idle`'s mean power where that is given.

        Windows may overlap. PowerError where the source has failed, or the samples do not cover a window.
        """
        try:
            trace = Trace.of(self.samples, self.board, self.source.filters)
            energy = self._energy(trace, (begin_ns, end_ns), edge_term)
            baseline = None if idle is None else self._energy(trace, idle, edge_term)
        except PowerError as error:
            self.source.check()  # if the source has failed, that is the reason
            raise PowerError(f"{self.source_name}: {error}") from None
        if baseline is None:
            return energy
        net_w = energy.above(baseline)
        return replace(energy, idle_w=baseline.module_w, net_j=net_w and net_w.scaled(energy.duration_s))

    def _energy(self, trace: Trace, span_ns: tuple[int, int], edge_term: bool) -> Energy:
        window = trace.window(*span_ns, edge_term)
        seconds, seen = window.duration_s, window.rails
        total = tuple(rail.name for rail in self.board.total_rails())
        is_whole = bool(total) and all(name in seen for name in total)
        module_w = ModuleQuantity(*_power(window, total)) if is_whole else None
        rails_w = {name: Quantity(*_power(window, [name])) for name in seen}
        tau_s = window.longest_tau_s(total if is_whole else list(seen))
        return Energy(
            source=self.source_name,
            begin_ns=span_ns[0],
            end_ns=span_ns[1],
            duration_s=seconds,
            rails_w=rails_w,
            rails_j={name: power.scaled(seconds) for name, power in rails_w.items()},
            rails_resolution_w={name: window.resolution_u95_w([name]) for name in seen},
            rails_shown_w={name: rail.shown_w for name, rail in seen.items()},
            rails_distinct={name: rail.distinct for name, rail in seen.items()},
            module_rails=total,
            module_w=module_w,
            module_j=None if module_w is None else module_w.scaled(seconds),
            module_resolution_w=window.resolution_u95_w(total) if is_whole else None,
            idle_w=None,
            net_j=None,
            samples=window.samples,
            effective_samples=math.nan if math.isnan(tau_s) else min(window.samples, max(1.0, seconds / (2 * tau_s))),
            coverage=window.coverage.share,
            gaps=window.coverage.gaps,
            largest_gap_s=window.coverage.largest_gap_s,
            edge_term=window.edge_term,
            tau_s=tau_s,
            filters={name: asdict(chip) for name, chip in self.source.filters.items() if name in seen},
        )


def _power(window: Window, names: Sequence[str]) -> tuple[float, float]:
    """Return the mean power of some rails together, and its u95."""
    mean_w = sum(window.rails[name].mean_w for name in names)
    u95_w = math.hypot(window.resolution_u95_w(names), window.offset_u95_w(names), gain_u95_w(mean_w))
    return mean_w, u95_w
