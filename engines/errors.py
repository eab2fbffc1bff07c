"""The one exception that leaves this package."""

from __future__ import annotations


class EngineError(Exception):
    """A network, an engine or an image that cannot be used; one line: what, the value, what to do."""
