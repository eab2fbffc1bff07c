"""The one exception that leaves this package."""

from __future__ import annotations


class OrinError(Exception):
    """A plan, board, run or record that cannot be used; one line: what, the value, what to do."""
