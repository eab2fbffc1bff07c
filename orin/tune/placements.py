"""Which layers of a network go to the GPU: the placements worth trying, one for each set of rewrites that differs."""

from __future__ import annotations

from dataclasses import replace

from dla.errors import DlaError
from orin.plan import Plan
from orin.predict import workloads
from orin.tune.space import Rewrites
from orin.virtual.predict import Workloads


def placements(base: Plan) -> dict[Rewrites, Workloads]:
    """Return what the engines hold under the plan's rewrites, without each of them, and without all.

    Sets that give the same network are kept once; one that the network refuses is left out.
    """
    found: dict[Rewrites, Workloads] = {}
    for rewrites in _sets(base.rewrites):
        try:
            work = workloads(replace(base, rewrites=rewrites, dla_cores=max(1, base.dla_cores)))
        except DlaError:
            continue
        if all(work != other for other in found.values()):
            found[rewrites] = work
    return found or {base.rewrites: workloads(replace(base, dla_cores=0))}


def _sets(rewrites: Rewrites) -> list[Rewrites]:
    without = [tuple(name for name in rewrites if name != left_out) for left_out in rewrites]
    return list(dict.fromkeys([rewrites, *without, ()]))
