"""The one exception that leaves this package."""

from __future__ import annotations


class DlaError(Exception):
    """A network or setting that the DLA cannot take; one line: what, the value, what to do."""
