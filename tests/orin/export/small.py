"""A plan of the zoo's smallest network with a calibration cache, so that exports take no time."""

from dataclasses import replace

from calibration.cache import CalibrationCache
from engines import zoo
from engines.spec import Ranges
from orin.build import dla_network
from orin.plan import Plan

PLAN = Plan(network="digits", gpu_batch=8, dla_batch=4, gpu_depth=2, dla_depth=3)


def plan_with_cache(folder, **changes):
    """Return a plan whose cache gives every tensor a range: 1 for the input, 8 for the others."""
    model = zoo.model("digits")
    names = {name for made in (model, dla_network(PLAN, model)[0]) for node in made.graph.node for name in node.output}
    ranges = {model.graph.input[0].name: 1.0, **dict.fromkeys(sorted(names), 8.0)}
    cache = folder / "digits.cache"
    cache.write_text(CalibrationCache.from_ranges(Ranges(ranges, "test", 0)).dumps())
    return replace(PLAN, calibration=str(cache), **changes)
