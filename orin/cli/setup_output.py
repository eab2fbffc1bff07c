"""How `orin flash` and `orin provision` print steps: as a list, in full, and what became of them."""

from __future__ import annotations

import getpass
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orin.cli.output import print_json, print_table

if TYPE_CHECKING:
    from orin.doctor import Fact
    from orin.setup.job import Found, Taken
    from orin.setup.step import Step

MARKS = {True: "ok", False: "NO", None: "note"}
SHOWN = 60


def ask_on_terminal() -> Callable[[str], str] | None:
    """Return what asks for a password without showing it; None where there is no terminal."""
    return getpass.getpass if sys.stdin.isatty() else None


def facts_rows(facts: Sequence[Fact]) -> list[tuple[str, ...]]:
    """Return a table's rows: what was found, and below it what helps."""
    rows: list[tuple[str, ...]] = []
    for fact in facts:
        rows.append((fact.name, MARKS[fact.ok], fact.value))
        if fact.mend:
            rows.append(("", "mend", fact.mend))
    return rows


def print_found(title: str, found: Sequence[Found]) -> None:
    """Print what would become of each step, and below it what is there now."""
    rows: list[tuple[str, ...]] = []
    for entry in found:
        rows.append((entry.step.name, entry.status.value, entry.step.title))
        if entry.before and entry.status.value != "done":
            rows.append(("", "now", " ".join(entry.before.split())))
    print_table(title, rows)


def print_steps(steps: Sequence[Step]) -> None:
    """Print all of each step: what it needs, its scripts, and how it is proven and undone."""
    for number, step in enumerate(steps, 1):
        rights = "as root" if step.as_root else "as the user"
        print(f"\n{number}. {step.name}: {step.title}")
        for need in step.needs:
            print(f"   needs   {need.what}")
        _print_script(f"change ({rights})" if not step.check else "check", step.change)
        if step.feed:
            print(f"   stdin   {step.feed.what}")
        if step.read:
            _print_script(f"done where this prints {' or '.join(repr(value) for value in step.wanted)}", step.read)
        else:
            print("   done    where that ends well")
        if step.undo:
            _print_script("undo ($BEFORE: what was printed at first)", step.undo)
        elif step.lasting:
            print(f"   undo    none: {step.lasting}")


def _print_script(title: str, script: str) -> None:
    print(f"   {title}")
    print(textwrap.indent(script, "     | "))


def step_json(found: Found) -> dict[str, Any]:
    """Return all of a step as plain values."""
    step = found.step
    return {
        "name": step.name,
        "title": step.title,
        "status": found.status.value,
        "before": found.before,
        "needs": [need.what for need in step.needs],
        "change": step.change,
        "as_root": step.as_root,
        "read": step.read,
        "wanted": list(step.wanted) if step.read else [],
        "undo": step.undo or None,
        "lasting": step.lasting or None,
        "check": step.check,
    }


def print_taken(title: str, taken: Sequence[Taken]) -> None:
    """Print what became of each step."""
    rows = [(entry.name, entry.status, " ".join(entry.result.split())[-SHOWN:]) for entry in taken]
    print_table(title, rows, ("step", "", "now"))


def print_undoable(as_json_object: bool, scripts: Mapping[str, str]) -> None:
    """Print what an undo would run."""
    if as_json_object:
        print_json({"steps": scripts})
        return
    for name, script in scripts.items():
        _print_script(name, script)
    print("\nNothing was changed: --undo --yes does it." if scripts else "nothing to undo")


def print_undone(as_json_object: bool, taken: Sequence[Taken]) -> None:
    """Print what was undone."""
    from orin.setup.job import as_json

    if as_json_object:
        print_json({"steps": as_json(taken)})
    elif taken:
        print_taken("undone", taken)
    else:
        print("nothing to undo")
