"""Holding a power mode for a while: proven to be in force, and put back at the end, on an error, and after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from power import clocks
from power.commands import Command, Runner, SystemRunner
from power.keeper import HoldRules, InForce, Keeper, enter_setting
from power.nvpmodel import Caps
from power.stamp import Level, Setting, Stamp

__all__ = [
    "HoldRules",
    "InForce",
    "Steps",
    "hold_mode",
    "left_behind",
    "mode_in_force",
    "rehearse",
    "restore",
    "restore_steps",
]


@dataclass(frozen=True)
class Steps:
    """The commands of a hold, in order: at its begin and at its end."""

    enter: tuple[Command, ...]
    leave: tuple[Command, ...]


@contextmanager
def hold_mode(
    wanted: str | Caps, root: Path = Path("/"), runner: Runner | None = None, rules: HoldRules | None = None
) -> Iterator[InForce]:
    """Hold a mode by name, or one made of caps, and put back what was there; yields what is in force.

    What a killed hold left behind is put back first. Holds nest, also over the processes that a hold starts.
    PowerError where the mode does not come into force (what was there is put back), where another process holds one,
    or where a reboot may be needed and `reboot_ok` is not set.
    """
    keeper = Keeper(root, runner or SystemRunner(root), rules or HoldRules())
    try:
        with keeper.stamp.locked():
            found = keeper.begin(wanted)
        yield found
    finally:  # also where Ctrl-C came in the middle of a change
        with keeper.stamp.locked():
            keeper.end()


def rehearse(
    wanted: str | Caps, root: Path = Path("/"), runner: Runner | None = None, rules: HoldRules | None = None
) -> Steps:
    """Return the commands of a hold without running one that changes anything."""
    keeper = Keeper(root, runner or SystemRunner(root), rules or HoldRules())
    before = keeper.before(keeper.stamp.levels())
    target = keeper.target(wanted, 0)
    keeper.check_reboot(before, target.mode)
    store = keeper.clocks_file(0)
    lock = (clocks.LOCK,) if keeper.rules.lock else ()
    return Steps(
        (clocks.store(store), enter_setting(target.setting), *lock), (enter_setting(before), clocks.put_back(store))
    )


def mode_in_force(root: Path = Path("/"), runner: Runner | None = None) -> Setting:
    """Return the mode that nvpmodel names; PowerError where it names none."""
    return Keeper(root, runner or SystemRunner(root), HoldRules()).before(())


def left_behind(rules: HoldRules | None = None) -> tuple[Level, ...]:
    """Return the killed holds that wait to be undone, the one to undo first in front."""
    rules = rules or HoldRules()
    return Stamp(rules.state).dead(rules.processes)


def restore_steps(level: Level) -> tuple[Command, ...]:
    """Return the commands that undo one hold."""
    put_back = (clocks.put_back(Path(level.clocks)),) if level.clocks else ()
    return (enter_setting(level.before), *put_back)


def restore(root: Path = Path("/"), runner: Runner | None = None, rules: HoldRules | None = None) -> tuple[Level, ...]:
    """Undo killed holds and return them, and leave those of living processes; PowerError where one stays."""
    keeper = Keeper(root, runner or SystemRunner(root), rules or HoldRules())
    with keeper.stamp.locked():
        return keeper.undo()
