"""Reports of run records: what a run says as text, pictures and one self-contained page."""

from __future__ import annotations

from pathlib import Path

from orin.record import RunRecord

REPORT = "report.html"


def write_report(record: RunRecord) -> Path:
    """Write `report.html` into the run's folder and return its path; OSError where the folder takes no file."""
    from orin.record import write_atomically
    from orin.report.page import page

    path = record.folder / REPORT
    write_atomically(path, page(record))
    return path
