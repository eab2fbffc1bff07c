"""Which errors are the user's to mend: they end in one line and exit code 2, all others in a traceback."""

from __future__ import annotations


def one_line(error: Exception) -> str | None:
    """Return the one line of an expected error, None for a bug."""
    from calibration.errors import CalibrationError
    from dla.errors import DlaError
    from engines.errors import EngineError
    from orin.errors import OrinError
    from power.errors import PowerError

    if isinstance(error, (OrinError, EngineError, DlaError, CalibrationError, PowerError)):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        return f"{error.filename or 'file system'}: {error.strerror or error}"
    if isinstance(error, MemoryError):
        return f"this machine's memory is too small: {str(error) or 'none is left'}; ask for less at a time"
    if isinstance(error, ModuleNotFoundError):
        return f"Python module {error.name!r} is missing: install orin-toolkit again, or the extra that holds it"
    return None
