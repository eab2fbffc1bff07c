"""The one exception that leaves this package."""

from __future__ import annotations


class CalibrationError(Exception):
    """Images, ranges or a calibration cache that cannot be used; one line: what, the value, what to do."""
