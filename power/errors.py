"""The one exception that leaves this package."""

from __future__ import annotations


class PowerError(Exception):
    """A power reading, mode or source that cannot be used; one line: what, the value, what to do."""
