"""The inventory: which boards a fleet has, how to reach them, and what each of them offers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from orin.errors import OrinError
from orin.plan import Plan
from orin.soc import GPU

LOCAL = "local"
USUAL_PORT = 8786


@dataclass(frozen=True)
class Member:
    """One board: its name in the fleet, `user@host` (or "local"), the board to open there, and the Python that holds
    this toolkit. `output` is the folder for its shards where the run's own is not reachable from it."""

    name: str
    host: str = LOCAL
    board: str = "jetson"
    python: str = "python3"
    output: str | None = None


@dataclass(frozen=True)
class Tls:
    """Dask's TLS: files of the certificate authority, and of the certificate and key that every side shows."""

    ca: str
    cert: str
    key: str


@dataclass(frozen=True)
class Inventory:
    """A fleet: its boards, and the host and port under which they reach the scheduler on this machine.

    A worker that the scheduler has not heard of for `silence_s` is taken for lost, one whose connection ends at once.
    """

    path: Path
    members: tuple[Member, ...]
    host: str = "127.0.0.1"
    port: int = USUAL_PORT
    silence_s: float = 60.0
    dashboard: bool = False
    tls: Tls | None = None

    @property
    def state(self) -> Path:
        """The folder of what `orin fleet up` started: processes, addresses, logs."""
        return self.path.with_name(self.path.stem + ".fleet")

    def member(self, name: str) -> Member:
        """Return a board by name."""
        return next(member for member in self.members if member.name == name)


@dataclass(frozen=True)
class Offer:
    """What a worker says of its board: counted resources and labels, and what makes boards alike."""

    resources: Mapping[str, float]
    facts: Mapping[str, str]
    provenance: str

    @property
    def fingerprint(self) -> str:
        """Boards with the same facts measure the same thing."""
        return " ".join(f"{name}={value}" for name, value in sorted(self.facts.items()))


def load_inventory(path: Path) -> Inventory:
    """Read an inventory (YAML); OrinError says what is wrong with it."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OrinError(f"inventory {path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OrinError(f"inventory {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not isinstance(values.get("boards"), dict) or not values["boards"]:
        raise OrinError(
            f"inventory {path} names no boards, expected `boards:` and a line for each, such as `orin01: {{}}`"
        )
    boards = values.pop("boards")
    members = tuple(_member(path, str(name), rest) for name, rest in boards.items())
    if isinstance(values.get("tls"), dict):
        values["tls"] = _made(Tls, f"{path}, tls", values["tls"])
    inventory: Inventory = _made(Inventory, str(path), {"path": path, "members": members, **values})
    _check(inventory)
    return inventory


def needs(plan: Plan) -> dict[str, float]:
    """Return the resources that a plan takes of a board."""
    wanted = {"GPU": float(GPU in plan.accelerators), "DLA": float(plan.dla_cores)}
    return {name: count for name, count in wanted.items() if count}


def fitting(offers: Mapping[str, Offer], wanted: Mapping[str, float]) -> list[str]:
    """Return the boards that offer what is wanted; OrinError where none does, for Dask would wait in silence."""
    fit = [name for name, offer in offers.items() if all(offer.resources.get(k, 0) >= v for k, v in wanted.items())]
    if not fit:
        asked = " ".join(f"{name}={count:g}" for name, count in wanted.items())
        seen = "; ".join(
            f"{name}: {' '.join(f'{k}={v:g}' for k, v in offer.resources.items())}" for name, offer in offers.items()
        )
        raise OrinError(f"no board of the fleet offers {asked}; there are {seen or 'none'}")
    return fit


def label(text: str) -> str:
    """Return a label's name: capitals, digits and underscores."""
    return re.sub(r"[^A-Z0-9]+", "_", text.upper()).strip("_")


def _member(path: Path, name: str, rest: Any) -> Member:
    if rest is not None and not isinstance(rest, dict):
        raise OrinError(f"inventory {path}, board {name} is {rest!r}, expected fields such as {{host: user@{name}}}")
    member: Member = _made(Member, f"{path}, board {name}", {"name": name, **(rest or {})})
    return member


def _made(kind: Any, where: str, values: Mapping[str, Any]) -> Any:
    known = [entry.name for entry in fields(kind)]
    unknown = sorted(set(map(str, values)) - set(known))
    if unknown:
        raise OrinError(f"inventory {where} has unknown field {unknown[0]!r}; fields are {', '.join(known)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise OrinError(f"inventory {where}: {error}") from None


def _check(inventory: Inventory) -> None:
    for member in inventory.members:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", member.name):
            raise OrinError(
                f"inventory {inventory.path}: board name {member.name!r} may hold letters, digits, _ . - alone"
            )
        if member.host.startswith("-") or not member.host:
            raise OrinError(
                f"inventory {inventory.path}: host of {member.name} is {member.host!r}, expected user@host or local"
            )
    if not isinstance(inventory.port, int) or not 0 <= inventory.port < 1 << 16:
        raise OrinError(f"inventory {inventory.path}: port is {inventory.port!r}, expected 0 (any) to 65535")
    if not isinstance(inventory.silence_s, (int, float)) or inventory.silence_s <= 0:
        raise OrinError(f"inventory {inventory.path}: silence_s is {inventory.silence_s!r}, expected seconds above 0")
