"""The board to provision, as its own files tell it."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from orin.errors import OrinError
from orin.jetson.detect import Machine, Module, jetpack
from orin.setup.shell import Shell, read

FILES = ("etc/nv_tegra_release", "proc/device-tree/model", "proc/device-tree/compatible")


@dataclass(frozen=True)
class Target:
    """A board: its user and home folder, its module and release as far as they are known, and where its files lie."""

    user: str
    home: str
    number: str | None
    module: Module | None
    l4t: str | None
    root: str = ""

    @property
    def title(self) -> str:
        """The board in words."""
        name = self.module.title if self.module else f"module {self.number or 'unknown'}"
        return f"{name}, {jetpack(self.l4t)}, user {self.user}"

    def path(self, name: str) -> str:
        """Return a path below the board's root."""
        return f"{self.root}/{name}"


def look_at(shell: Shell, root: Path = Path("/")) -> Target:
    """Return what a machine is; OrinError where it is no Jetson, or its user has no home."""
    prefix = str(root).rstrip("/")
    user, home = read(shell, "id -un"), read(shell, 'printf %s "$HOME"')
    if not user or not home.startswith("/"):
        raise OrinError(f"{shell.where} does not say who is logged in there ({user!r}, home {home!r})")
    with tempfile.TemporaryDirectory() as copies:
        machine = _machine(shell, prefix, Path(copies))
        if not machine.jetson:
            raise OrinError(f"{shell.where} is no Jetson: no nvidia,tegra in its device tree; give --host USER@BOARD")
        return Target(user, home, machine.number, machine.module, machine.l4t, prefix)


def _machine(shell: Shell, prefix: str, copies: Path) -> Machine:
    """Return a machine whose telling files are copied here, so that they are read as on the machine itself."""
    for name in FILES:
        path = copies / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(read(shell, f"tr '\\0' '\\n' <{shlex.quote(f'{prefix}/{name}')}"), encoding="utf-8")
    return Machine(copies, lambda words: read(shell, shlex.join(words)) or None)
