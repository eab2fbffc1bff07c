"""`orin power ACTION`: measure, log, hold; an action's module is imported when it is asked for."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

# name -> (module, one-line help), as in `orin.cli.main`
ACTIONS = {
    "log": ("power_log", "power and energy from a log that tegrastats wrote, of any board"),
    "parse": ("power_parse", "a log as JSON Lines, one record each"),
    "watch": ("power_watch", "a live view: rails, clocks, temperatures, running energy"),
    "split": ("power_split", "watts of GPU and DLAs, by difference of four windows"),
    "sweep": ("power_sweep", "samples per second and per joule over power modes and plans"),
    "modes": ("power_modes", "the board's power modes, and which one is in force"),
    "hold": ("power_modes", "run a command in a power mode, and restore what was before"),
    "restore": ("power_modes", "undo what a killed run left behind"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions; each adds its own arguments when it is asked for."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=_Action)
    for name, (module, text) in ACTIONS.items():
        actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", module=module)


class _Action(argparse.ArgumentParser):
    """The parser of an action: its module configures it when its words are parsed."""

    def __init__(self, *, module: str, **options: Any) -> None:
        super().__init__(**options)
        self._module: str | None = module

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as any parser does, configured by then."""
        module, self._module = self._module, None
        if module is not None:
            importlib.import_module(f"orin.cli.{module}").configure(self)
        return super().parse_known_args(args, namespace)
