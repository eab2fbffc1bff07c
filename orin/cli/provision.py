"""`orin provision`: a flashed board made ready over ssh, or on the board itself; nothing is changed without --yes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orin.cli.output import Talk, add_output_arguments, print_json
from orin.cli.setup_output import (
    ask_on_terminal,
    print_found,
    print_steps,
    print_taken,
    print_undoable,
    print_undone,
    step_json,
)

if TYPE_CHECKING:
    from orin.provision.provision import Board
    from orin.provision.steps import Provision


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--host", metavar="USER@BOARD", help="reach the board by ssh; without: this machine is the board"
    )
    parser.add_argument("--mode", help="power mode to bring into force for good; without: it stays as it is")
    parser.add_argument("--lock-clocks", action="store_true", help="clocks at their maximum, now and at each boot")
    parser.add_argument("--skip", default="", metavar="STEPS", help="leave steps out, such as headless,zram")
    parser.add_argument(
        "--venv", default="orin", metavar="NAME", help="virtual environment below the home folder (orin)"
    )
    parser.add_argument(
        "--toolkit", metavar="WHEEL", help="wheel to install, or a requirement for pip; without: this one"
    )
    parser.add_argument("--yes", action="store_true", help="do it; without: what would change is listed")
    parser.add_argument("--dry-run", action="store_true", help="print every command, needs, success tests and undo")
    parser.add_argument("--undo", action="store_true", help="put back what was there before")
    parser.add_argument(
        "--ssh-option", action="append", default=[], metavar="OPTION", help="for ssh, such as Port=2222"
    )
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="where the board's /etc lies (/)")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command."""
    from orin.provision.provision import provision, undo, undoable
    from orin.setup.job import as_json

    wanted = _wanted(options)
    with _board(options) as board:
        if not options.yes or options.dry_run:
            if options.undo:
                print_undoable(options.json, undoable(board))
                return 0
            return _list(options, board, wanted)
        if options.undo:
            print_undone(options.json, undo(board))
            return 0
        taken = provision(board, wanted)
        if options.json:
            print_json({"board": board.shell.where, "steps": as_json(taken)})
        else:
            print_taken(f"{board.shell.where} is ready", taken)
    return 0


def _wanted(options: argparse.Namespace) -> Provision:
    from orin.provision.steps import Provision

    skip = tuple(name for name in options.skip.split(",") if name)
    return Provision(options.mode, options.lock_clocks, skip, options.venv, options.toolkit)


@contextmanager
def _board(options: argparse.Namespace) -> Iterator[Board]:
    from orin.provision.provision import Board
    from orin.setup.shell import SshShell, SystemShell

    say, ask = Talk(options.quiet).say, ask_on_terminal()
    if options.host is None:
        yield Board(SystemShell("this machine", ask=ask), say, options.root)
        return
    words = [word for option in options.ssh_option for word in ("-o", option)]
    with SshShell(options.host, words, ask) as shell:
        yield Board(shell, say, options.root)


def _list(options: argparse.Namespace, board: Board, wanted: Provision) -> int:
    from orin.provision.provision import survey

    seen = survey(board, wanted)
    if options.json:
        steps = [step_json(entry) for entry in (*seen.found, *seen.checks)]
        print_json({"board": board.shell.where, "title": seen.target.title, "steps": steps})
        return 0
    print_found(f"{board.shell.where}: {seen.target.title}", (*seen.found, *seen.checks))
    if options.dry_run:
        print_steps([entry.step for entry in (*seen.found, *seen.checks)])
    print("\nNothing was changed: --yes does it, --dry-run shows every command.")
    return 0
