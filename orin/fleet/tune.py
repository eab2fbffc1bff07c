"""A tuning on many boards of one kind: every plan is measured on each of them at once.

What holds for the kind is the mean; how boards differ is part of its u95, so that the tuner takes no plan for better
that is so on one board alone. Records stay on the boards that made them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from orin.bench import Bench
from orin.errors import OrinError
from orin.fleet.inventory import Offer, needs
from orin.fleet.sweep import RETRIES, one_kind
from orin.fleet.worker import tune_plan
from orin.plan import Plan
from orin.soc import Soc, soc
from orin.tune.measurement import Measurement
from orin.tune.run import Measured
from power.quantity import Quantity, repeated

Ask = Callable[[Plan, int], Mapping[str, Measurement]]


class FleetRunner:
    """Measures with all boards of a kind; `ask` measures one plan, the tuning's n-th, on each and says by board."""

    def __init__(self, name: str, board: Soc, provenance: str, ask: Ask) -> None:
        self.name, self.soc, self.provenance = name, board, provenance
        self._ask = ask

    def measure(self, plan: Plan, number: int) -> Measured:
        """Measure a plan on every board; see `orin.tune.run.Runner`."""
        return Measured(together(self._ask(plan, number)))


def together(by_board: Mapping[str, Measurement]) -> Measurement:
    """Return what one plan showed on several boards: means, with the boards' spread in u95.

    A plan that fails on one board is no plan for the kind.
    """
    failures = [f"{name}: {one.failure}" for name, one in by_board.items() if one.failure]
    seconds = max(one.seconds for one in by_board.values())
    if failures:
        return Measurement.failed("; ".join(failures), seconds)
    found = list(by_board.values())
    accelerators = {name for one in found for name in one.share}
    speed = _mean([one.samples_per_s for one in found])
    assert speed is not None  # each has one
    return Measurement(
        samples_per_s=speed,
        module_w=_mean([one.module_w for one in found]),
        latency_ms=_mean([one.latency_ms for one in found]),
        share={name: fmean(one.share.get(name, 0.0) for one in found) for name in sorted(accelerators)},
        seconds=seconds,
        idle_w=_mean([one.idle_w for one in found]),
        flags=tuple(f"{name}: {flag}" for name, one in by_board.items() for flag in one.flags),
    )


def _mean(quantities: Sequence[Quantity | None]) -> Quantity | None:
    """Return the mean; None where a board has none, since the others may be unlike it."""
    known = [one for one in quantities if one is not None]
    return repeated(known) if len(known) == len(quantities) else None


def fleet_runner(client: Any, offers: Mapping[str, Offer], names: Sequence[str], options: Bench) -> FleetRunner:
    """Return a runner on boards of a Dask fleet by name; OrinError where they are not of one kind."""
    names = one_kind(offers, names)
    first = offers[names[0]]
    board = soc(first.facts["soc"])
    name = f"fleet of {len(names)} {first.facts['soc']}: {', '.join(names)}"

    def ask(plan: Plan, number: int) -> Mapping[str, Measurement]:
        whole = needs(plan) | {"GPU": 1.0}
        futures = {
            name: client.submit(
                tune_plan, plan, number, options, workers=[name], resources=whole, pure=False, retries=RETRIES
            )
            for name in names
        }
        return {name: _answer(name, future) for name, future in futures.items()}

    return FleetRunner(name, board, first.provenance, ask)


def _answer(name: str, future: Any) -> Measurement:
    try:
        return Measurement.from_json(future.result())
    except Exception as error:
        raise OrinError(
            f"board {name} was lost ({error}): bring it back with `orin fleet up`, or leave it out with --label; the "
            "same command goes on with the runs that are kept"
        ) from error
