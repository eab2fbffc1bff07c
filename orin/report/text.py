"""Numbers and titles as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from orin.record import RunRecord

DASH = "–"


def title(record: RunRecord, words: str) -> str:
    """Return a title that says SIMULATED where the run was."""
    return f"SIMULATED: {words}" if record["provenance"] == "simulated" else words


def number(value: float | None, unit: str = "") -> str:
    """Format a number with at least three digits and thousands apart; a dash for None."""
    if value is None:
        return DASH
    decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value and math.isfinite(value) else 0
    return f"{value:,.{decimals}f} {unit}".rstrip()


def quantity(found: Mapping[str, float] | None, unit: str = "") -> str:
    """Format `{value, u95}` with the u95 at two digits; a dash for None."""
    if found is None:
        return DASH
    value, u95 = found["value"], found["u95"]
    if not u95 or not math.isfinite(u95):
        return number(value, unit)
    decimals = max(0, 1 - math.floor(math.log10(abs(u95))))
    return f"{value:,.{decimals}f} ± {u95:,.{decimals}f} {unit}".rstrip()


def percent(share: float) -> str:
    """Format a share of one."""
    return f"{100 * share:.1f} %"


def milliseconds(value_ms: float) -> str:
    """Format a duration in the unit that reads best."""
    if value_ms >= 1000:
        return number(value_ms / 1000, "s")
    return number(value_ms, "ms") if value_ms >= 0.1 else number(value_ms * 1000, "us")
