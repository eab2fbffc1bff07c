"""Provisioning a board: what would change, the change, its proof, and its undoing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orin.provision.steps import Provision, check_steps, provision_steps
from orin.provision.target import Target, look_at
from orin.setup.job import Desk, Found, Job, Taken
from orin.setup.place import RemoteStore, log_file
from orin.setup.shell import Shell, SshShell
from power.stamp import default_state

STATE = ".local/state/orin-toolkit/provision.json"  # on the board, below its user's home


@dataclass(frozen=True)
class Board:
    """A board to provision: the shell that reaches it, where its files lie, and who hears how far it is."""

    shell: Shell
    say: Callable[[str], None]
    root: Path = Path("/")
    logs: Path | None = None

    def desk(self) -> Desk:
        """Return where state and logs go: the state on the board, the log on this machine."""
        logs = self.logs or default_state() / "logs"
        return Desk(RemoteStore(self.shell, STATE), log_file(logs, "provision"), self.say)


@dataclass(frozen=True)
class Survey:
    """What a board is, what would be done to it, and what would prove it."""

    target: Target
    found: tuple[Found, ...]
    checks: tuple[Found, ...]


def survey(board: Board, wanted: Provision) -> Survey:
    """Look at a board, changing nothing."""
    target = look_at(board.shell, board.root)
    desk = board.desk()
    found = Job(provision_steps(target, wanted), board.shell, desk).survey()
    checks = Job(check_steps(target, wanted), board.shell, desk).survey()
    return Survey(target, tuple(found), tuple(checks))


def provision(board: Board, wanted: Provision) -> list[Taken]:
    """Take every step that is not done, then prove that the board is ready; OrinError where one fails."""
    target = look_at(board.shell, board.root)
    desk = board.desk()
    taken = Job(provision_steps(target, wanted), board.shell, desk).run()
    if isinstance(board.shell, SshShell):
        board.shell.reconnect()  # groups count from the next login on
    elif any(entry.name == "groups" and entry.status == "changed" for entry in taken):
        board.say("new groups count from your next login on: log in again and run this once more for the checks")
        return taken
    if {"venv", "toolkit"} & set(wanted.skip):
        return taken
    return [*taken, *Job(check_steps(target, wanted), board.shell, desk).run()]


def undo(board: Board) -> list[Taken]:
    """Undo what this toolkit changed on a board, the last change first."""
    return Job((), board.shell, board.desk()).undo()


def undoable(board: Board) -> dict[str, str]:
    """Return what an undo would run, by step."""
    return Job((), board.shell, board.desk()).undoable
