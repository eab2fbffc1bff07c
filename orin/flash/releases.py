"""Which JetPack releases can be flashed, from which files and with which commands; the others with why not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from orin.errors import OrinError
from orin.jetson.detect import JETPACK_BY_L4T

TABLE = "releases.yaml"
STORAGES = ("emmc", "nvme")
HASH_PROGRAMS = {40: "sha1sum", 64: "sha256sum", 128: "sha512sum"}  # by length in hex


@dataclass(frozen=True)
class File:
    """A file that NVIDIA publishes: its name, where it is, and its SHA-256 where that is known."""

    name: str
    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class Release:
    """One L4T release; `why_not` is set where it is not flashed by this toolkit, `commands` is by storage."""

    l4t: str
    bsp: File | None
    rootfs: File | None
    hosts: tuple[str, ...]
    commands: Mapping[str, str]
    why_not: str | None
    note: str | None

    @property
    def jetpack(self) -> str:
        """JetPack's own number."""
        return JETPACK_BY_L4T[self.l4t]

    def __str__(self) -> str:
        return f"JetPack {self.jetpack} (L4T {self.l4t})"


@cache
def releases() -> tuple[Release, ...]:
    """Return every release of the table, those that can be flashed in front."""
    values = _table()
    found = (_release(str(l4t), entry or {}, values) for l4t, entry in values["releases"].items())
    return tuple(sorted(found, key=lambda release: release.why_not is not None))


def find_release(name: str) -> Release:
    """Return a release by JetPack's or L4T's number; OrinError where there is none, or it is not flashed."""
    wanted = name.upper().removeprefix("JETPACK").removeprefix("R").strip()
    release = next((entry for entry in releases() if wanted in (entry.jetpack, entry.l4t)), None)
    known = ", ".join(entry.jetpack for entry in releases() if entry.why_not is None)
    if release is None:
        raise OrinError(f"JetPack {name!r} is not in the table; those that can be flashed: {known}")
    if release.why_not is not None:
        raise OrinError(f"{release} is not flashed: {release.why_not}; those that are: {known}")
    return release


def archive_url() -> str:
    """Return the page on which NVIDIA lists the releases."""
    return str(_table()["archive"])


def listed_hashes(path: Path) -> dict[str, str]:
    """Return the hash of each file that a list of `HEX  NAME` lines names; OrinError where it names none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise OrinError(f"list of hashes {path} cannot be read: {error.strerror or error}") from None
    found = re.findall(r"^([0-9a-fA-F]+)[ \t]+\*?(\S+)\s*$", text, re.MULTILINE)
    listed = {Path(name).name: digest.lower() for digest, name in found if len(digest) in HASH_PROGRAMS}
    if not listed:
        raise OrinError(f"list of hashes {path} names none, expected lines of a SHA-1, SHA-256 or SHA-512 and a file")
    return listed


@cache
def _table() -> dict[str, Any]:
    import yaml

    values: dict[str, Any] = yaml.safe_load(resources.files(__package__).joinpath(TABLE).read_text(encoding="utf-8"))
    return values


def _release(l4t: str, entry: Mapping[str, Any], values: Mapping[str, Any]) -> Release:
    line = values["lines"].get(int(l4t.partition(".")[0]), {})
    folder = f"{values['base']}/{entry.get('url')}"
    hashes = entry.get("sha256", {})
    files = {
        kind: File(entry[kind], f"{folder}/{entry[kind]}", hashes.get(kind)) if kind in entry else None
        for kind in ("bsp", "rootfs")
    }
    return Release(
        l4t=l4t,
        bsp=files["bsp"],
        rootfs=files["rootfs"],
        hosts=tuple(line.get("hosts", ())),
        commands={storage: line[storage] for storage in STORAGES if storage in line},
        why_not=entry.get("why_not"),
        note=entry.get("note"),
    )
