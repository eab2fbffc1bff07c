"""`orin power modes`, `hold` and `restore`: a board's power modes, holding one for a command, undoing a killed hold."""

from __future__ import annotations

import argparse
import getpass
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orin.cli.output import Talk, add_output_arguments, print_json, print_table

if TYPE_CHECKING:
    from power.hold import HoldRules
    from power.nvpmodel import Caps, Mode, ModeFile
    from power.stamp import Setting

EXIT_USAGE = 2
SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments; the parser's name tells which of the three it is."""
    action = parser.prog.split()[-1]
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="where /etc, /sys and /usr lie (/)")
    _ARGUMENTS[action](parser)
    add_output_arguments(parser)
    parser.set_defaults(handler=_HANDLERS[action])


def _modes_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--board", metavar="BOARD", help="jetson, or virtual:agx-orin-64gb")


def _hold_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s (--mode MODE | --caps LIST) [options] -- COMMAND ..."
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--mode", help="power mode by name, see `orin power modes`")
    wanted.add_argument("--caps", metavar="LIST", help="limits in MHz and CPU cores: gpu=612,dla=780,emc=2133,cpus=4")
    parser.add_argument("--lock", action="store_true", help="clocks at their maximum (jetson_clocks)")
    parser.add_argument("--reboot-ok", action="store_true", help="try what may need a reboot, such as another TPC mask")
    _add_undo_arguments(parser)
    parser.add_argument("words", nargs="*", metavar="COMMAND", help="what runs meanwhile, behind --")


def _restore_arguments(parser: argparse.ArgumentParser) -> None:
    _add_undo_arguments(parser)
    parser.add_argument("--unit", action="store_true", help="print a systemd unit that does it at each boot")


def _add_undo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", type=Path, metavar="DIR", help="where the stamp lies (~/.local/state/orin-toolkit)")
    parser.add_argument("--dry-run", action="store_true", help="print every command that would change something")


def modes(options: argparse.Namespace) -> int:
    """List a board's power modes, from its own file where that can be read."""
    from orin.boards import board_name
    from power.nvpmodel import plain

    name = board_name(options.board, Talk(options.quiet).say, options.root)
    file, source = _mode_file(name, options.root)
    current = _in_force(options.root) if name == "jetson" else None
    in_force = plain(current.name) if current else None
    if options.json:
        listed = [{"id": mode.id, "name": mode.plain_name, **_mode_json(mode)} for mode in file.modes]
        print_json({"board": name, "source": source, "default": file.default, "in_force": in_force, "modes": listed})
        return 0
    rows = [_mode_row(mode, mode.id == file.default, mode.plain_name == in_force) for mode in file.modes]
    print_table(f"power modes of {name} ({source}), MHz", rows, ("", "", "cores", "CPU", "GPU", "DLA", "EMC", ""))
    return 0


def _mode_file(board: str, root: Path) -> tuple[ModeFile, str]:
    from orin.boards import DEFAULT_VIRTUAL
    from orin.errors import OrinError
    from orin.soc import soc
    from power.modes import board_modes
    from power.nvpmodel import CONF, read_mode_file

    if board == "jetson":
        return read_mode_file(root / CONF), str(root / CONF)
    if not board.startswith("virtual:"):
        raise OrinError(f"--board is {board!r}, expected jetson or virtual:NAME such as {DEFAULT_VIRTUAL}")
    return board_modes(soc(board.removeprefix("virtual:")).board), "table"


def _in_force(root: Path) -> Setting | None:
    from power.errors import PowerError
    from power.hold import mode_in_force

    try:
        return mode_in_force(root)
    except PowerError:  # a container may hold the file alone
        return None


def _mode_json(mode: Mode) -> dict[str, Any]:
    return {"cpus": mode.cpus, "limits_mhz": mode.limits_mhz}


def _mode_row(mode: Mode, is_default: bool, is_in_force: bool) -> tuple[str, ...]:
    limits = mode.limits_mhz
    clocks = (f"{limits[name]:g}" if name in limits else "no cap" for name in ("cpu", "gpu", "dla", "emc"))
    marks = [word for word, holds in (("default", is_default), ("in force", is_in_force)) if holds]
    return str(mode.id), mode.plain_name, str(mode.cpus), *clocks, ", ".join(marks)


def hold(options: argparse.Namespace) -> int:
    """Run a command while a mode is held; its exit code, or 2 where the mode could not be put back."""
    from orin.errors import OrinError
    from power.hold import hold_mode

    if not options.words and not options.dry_run:
        raise OrinError("orin power hold has no command: put it behind --, e.g. orin power hold --mode 30W -- sleep 10")
    problems: list[str] = []
    rules, wanted = _rules(options, problems.append), options.mode or parse_caps(options.caps)
    if options.dry_run:
        return _rehearse(options, wanted, rules)
    _end_by_exception()
    with hold_mode(wanted, options.root, rules=rules) as found:
        Talk(options.quiet).say(f"{found.setting.name} is in force" + "".join(f"; {line}" for line in found.missing))
        code = _run(options.words, sys.stderr if options.json else None)
    for line in problems:
        print(f"orin power hold: {line}", file=sys.stderr)
    if options.json:
        print_json({"in_force": found.as_json(), "exit_code": code, "not_put_back": problems})
    return EXIT_USAGE if problems else code


def parse_caps(text: str) -> Caps:
    """Parse `gpu=612,cpus=4`; OrinError names what is not understood."""
    from orin.errors import OrinError
    from power.nvpmodel import Caps

    known = {name.removesuffix("_mhz"): name for name in vars(Caps())}
    found: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            found[known[name]] = int(value) if name == "cpus" else float(value)
        except (KeyError, ValueError):
            raise OrinError(
                f"--caps has {part.strip()!r}, expected NAME=NUMBER with {', '.join(known)}, e.g. gpu=612,cpus=4"
            ) from None
    return Caps(**found)


def _rules(options: argparse.Namespace, say: Callable[[str], None]) -> HoldRules:
    from power.hold import HoldRules
    from power.stamp import default_state

    return HoldRules(
        state=(options.state or default_state()).absolute(),
        lock=getattr(options, "lock", False),
        reboot_ok=getattr(options, "reboot_ok", False),
        required=True,
        say=say,
    )


def _rehearse(options: argparse.Namespace, wanted: str | Caps, rules: HoldRules) -> int:
    from power.hold import rehearse

    steps = rehearse(wanted, options.root, rules=rules)
    enter, leave = list(map(str, steps.enter)), list(map(str, steps.leave))
    if options.json:
        print_json({"enter": enter, "leave": leave})
        return 0
    print("\n".join([*enter, f"# {' '.join(options.words) or '(the command)'}", *leave]))
    return 0


def _end_by_exception() -> None:
    """A polite kill must put the mode back, as Ctrl-C does; what no process can catch is left to the stamp."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    for number in SIGNALS:
        signal.signal(number, end)


def _run(words: list[str], stdout: Any) -> int:
    from orin.errors import OrinError

    try:
        with subprocess.Popen(words, stdout=stdout) as child:
            try:
                return child.wait()
            except SystemExit:
                child.terminate()
                raise
    except OSError as error:
        raise OrinError(f"{words[0]!r} cannot be run: {error.strerror or error}") from None


def restore(options: argparse.Namespace) -> int:
    """Undo what killed holds left behind."""
    from power.hold import left_behind, restore, restore_steps

    rules = _rules(options, Talk(options.quiet).say)
    if options.unit:
        text = unit(rules.state)
        print_json({"unit": text}) if options.json else print(text, end="")
        return 0
    if options.dry_run:
        _print(options, "commands", [str(c) for level in left_behind(rules) for c in restore_steps(level)])
        return 0
    undone = restore(options.root, rules=rules)
    _print(options, "undone", [f"{level.target.name} of {level.utc} -> {level.before.name}" for level in undone])
    return 0


def _print(options: argparse.Namespace, name: str, lines: list[str]) -> None:
    if options.json:
        print_json({name: lines})
    else:
        print("\n".join(lines) or "nothing to undo")


def unit(state: Path) -> str:
    """Return a systemd unit that undoes a killed hold at boot, as the user, with the user's rights."""
    return f"""[Unit]
Description=Put back the power mode that a killed orin run left behind
After=nvpmodel.service
ConditionPathExists={state}/held.json

[Service]
Type=oneshot
User={getpass.getuser()}
ExecStart={sys.executable} -m orin.cli.main power restore --state {state}

[Install]
WantedBy=multi-user.target
"""


_ARGUMENTS = {"modes": _modes_arguments, "hold": _hold_arguments, "restore": _restore_arguments}
_HANDLERS = {"modes": modes, "hold": hold, "restore": restore}
