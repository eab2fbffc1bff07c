"""One change of a machine, as scripts that a person can read, run and undo by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orin.setup.shell import Call, Shell

LONG_S = 3600.0
BEFORE = "BEFORE"  # the variable in which an undo finds what there was


@dataclass(frozen=True)
class Need:
    """What has to hold before a step; `trouble` says in one line why it does not, and what to do."""

    what: str
    trouble: Callable[[Shell], str | None]


@dataclass(frozen=True)
class Feed:
    """What goes to a change's stdin: `what` it is, in words, and its bytes, asked for when the step runs."""

    what: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Step:
    """A change, each part of it a script for `sh`.

    `read` prints what is there, and the step is done where that is one of `wanted`; without it, done is what once ended
    well. `undo` finds in $BEFORE what `read` printed before the change; without one `lasting` says why. `as_root` is
    for `change` and `undo`, `undo_as_root` for the latter alone; reading needs no rights. `feed` goes to the change's
    stdin.
    A `check` changes nothing, runs each time, and what it prints last is its result.
    """

    name: str
    title: str
    change: str
    read: str = ""
    wanted: tuple[str, ...] = ("",)
    undo: str = ""
    lasting: str = ""
    needs: tuple[Need, ...] = ()
    as_root: bool = True
    undo_as_root: bool = False
    feed: Feed | None = None
    limit_s: float = LONG_S
    check: bool = False

    def call(self) -> Call:
        """Return the change as it is run."""
        return Call(self.change, self.as_root, self.feed.read() if self.feed else b"", self.limit_s)


def holds(what: str, test: str, otherwise: str) -> Need:
    """Return a need that a script tests: it holds where the script ends well, `otherwise` is its trouble."""
    return Need(what, lambda shell: None if shell.run(Call(test)).code == 0 else otherwise)
