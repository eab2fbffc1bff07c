"""Which files calibration data is in: everything under a folder, one array file, or what a list names."""

from __future__ import annotations

from pathlib import Path

from calibration.dataset import SUFFIXES
from calibration.errors import CalibrationError

ARRAY_SUFFIXES = (".npy", ".npz")
NAMED_AT_MOST = 3  # of many missing files


def data_files(data: Path, listing: Path | None = None) -> list[Path]:
    """Return photos or array files, never both: those that `listing` names, in its order, or all, sorted by name.

    `data` is one .npy or .npz file, or a folder. CalibrationError where there is nothing, or both kinds.
    """
    if listing is None and data.is_file():
        paths = [data]
    elif not data.is_dir():
        wanted = "a folder" if listing else "a folder of photos or of .npy and .npz files, or one such file"
        raise CalibrationError(f"calibration data {data} is not a folder, expected {wanted}")
    elif listing is not None:
        paths = listed_files(listing, data)
    else:
        usable = (*SUFFIXES, *ARRAY_SUFFIXES)
        paths = sorted(path for path in data.rglob("*") if path.suffix.lower() in usable and path.is_file())
    _check_kind(paths, data)
    return paths


def are_arrays(paths: list[Path]) -> bool:
    """Tell whether these are array files, not photos."""
    return paths[0].suffix.lower() in ARRAY_SUFFIXES


def listed_files(listing: Path, folder: Path) -> list[Path]:
    """Return the files that an MLPerf calibration list names: one a line relative to `folder`, perhaps with a label.

    Empty lines do not count. CalibrationError names files that are missing, and lines that name a file again.
    """
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise CalibrationError(f"list {listing} cannot be read: {reason}") from None
    line_of: dict[Path, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path = folder / _name(line.strip(), folder)
        if path in line_of:
            raise CalibrationError(
                f"{listing} line {number} names {path.name!r}, as line {line_of[path]} does; keep one of them"
            )
        line_of[path] = number
    _check_there(line_of, listing, folder)
    return list(line_of)


def _name(line: str, folder: Path) -> str:
    """Return the file name of a line: all of it where that is a file, or all but a number at its end."""
    name, _, label = line.rpartition(" ") if " " in line else line.rpartition("\t")
    return name.rstrip() if label.isdigit() and name and not (folder / line).is_file() else line


def _check_there(line_of: dict[Path, int], listing: Path, folder: Path) -> None:
    if not line_of:
        raise CalibrationError(f"list {listing} names no file, expected one a line")
    missing = [str(path.relative_to(folder)) for path in line_of if not path.is_file()]
    if missing:
        more = f" and {len(missing) - NAMED_AT_MOST} more" if len(missing) > NAMED_AT_MOST else ""
        raise CalibrationError(
            f"{len(missing)} of {len(line_of)} files of {listing} are not in {folder}: "
            f"{', '.join(missing[:NAMED_AT_MOST])}{more}; name their folder with --data"
        )


def _check_kind(paths: list[Path], data: Path) -> None:
    suffixes = {path.suffix.lower() for path in paths}
    known = f"{', '.join(SUFFIXES)} photos or {', '.join(ARRAY_SUFFIXES)} arrays"
    if not paths or not suffixes <= {*SUFFIXES, *ARRAY_SUFFIXES}:
        seen = ", ".join(sorted(suffixes)) or "none"
        raise CalibrationError(f"{data} holds {seen}, expected {known}; name a folder of them")
    if suffixes & set(SUFFIXES) and suffixes & set(ARRAY_SUFFIXES):
        raise CalibrationError(f"{data} holds photos and array files, expected one kind; choose with --list FILE")
