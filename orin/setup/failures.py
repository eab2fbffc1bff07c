"""Known messages of a flash or a provisioning that failed, from a table with the source of each beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

TABLE = "failures.yaml"


@dataclass(frozen=True)
class Failure:
    """A message in a log: what it means, what helps, where it is seen, who says so; `line` is the one that shows it.

    `benign`: it looks like a failure and is none.
    """

    id: str
    cause: str
    remedy: str
    seen_in: str
    source: str
    benign: bool
    line: str


def explain(text: str, hung: bool = False) -> list[Failure]:
    """Return what is known about a log's messages, the one to act on first in front.

    `hung`: the log is of something that did not end, so that its last line tells where.
    """
    found = (_found(entry, text) for entry in table() if hung or not entry.get("hangs"))
    known = [failure for failure in found if failure is not None]
    return sorted(known, key=lambda failure: failure.benign)


@cache
def table() -> tuple[dict[str, Any], ...]:
    """Return the entries of the table, in their order."""
    import yaml

    return tuple(yaml.safe_load(resources.files(__package__).joinpath(TABLE).read_text(encoding="utf-8")))


def _found(entry: dict[str, Any], text: str) -> Failure | None:
    matches = [re.search(pattern, text) for pattern in entry["patterns"]]
    if not (all(matches) if entry.get("all") else any(matches)):
        return None
    first = next(match for match in matches if match)
    begin, end = text.rfind("\n", 0, first.start()) + 1, text.find("\n", first.start())
    line = text[begin : end if end >= 0 else len(text)].strip()
    words = {key: " ".join(entry[key].split()) for key in ("id", "cause", "remedy", "seen_in", "source")}
    return Failure(**words, benign=bool(entry.get("benign")), line=line)
