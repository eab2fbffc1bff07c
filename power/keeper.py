"""One hold from begin to end: bring a mode into force, prove it, put back what was there."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from power import clocks
from power.commands import Command, Done, Runner
from power.errors import PowerError
from power.nvpmodel import (
    CONF,
    Caps,
    Mode,
    ModeFile,
    Query,
    capped_mode,
    enter,
    limits_mhz,
    parse_query,
    plain,
    query,
    read_mode_file,
    reboot_changes,
)
from power.proof import Files, Proof, prove
from power.stamp import Level, Processes, Setting, Stamp, default_state

OWN_MODE = "ORIN_HOLD"  # the name of a mode that is made of caps
MEND = "`orin doctor` prints the line that allows it"
TRIES, PAUSE_S = 5, 0.2  # clocks may take a moment to follow


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=3)


def _utc() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class HoldRules:
    """How a hold behaves.

    `lock`: clocks at their maximum through jetson_clocks. `reboot_ok`: try changes that may need a reboot. `required`:
    missing rights are an error; without it the run goes on in the mode that is there. `say` gets what went wrong with
    putting back, which is no reason to lose what was measured.
    """

    state: Path = field(default_factory=default_state)
    lock: bool = False
    reboot_ok: bool = False
    required: bool = False
    say: Callable[[str], None] = _warn
    sleep: Callable[[float], None] = time.sleep
    utc: Callable[[], str] = _utc
    processes: Processes = Processes()


@dataclass(frozen=True)
class InForce:
    """What is in force while a hold is open: `held` if it is what was asked for, `missing` what could not be done."""

    asked: str
    setting: Setting
    held: bool
    proof: Proof
    missing: tuple[str, ...] = ()

    @property
    def mhz(self) -> dict[str, float]:
        """The limits that could be read, by `gpu`, `dla`, `emc` and `cpu`; no cap is left out."""
        return limits_mhz(self.proof.numbers("MAX_FREQ"))

    def as_json(self) -> dict[str, Any]:
        """Return what a record keeps: number, name and file of the mode, its proof, and what is missing."""
        return {
            "asked": self.asked,
            "held": self.held,
            "mode": asdict(self.setting),
            "proven": self.proof.in_force,
            "mhz": self.mhz,
            "differing": [str(value) for value in self.proof.differing],
            "unseen": len(self.proof.unseen),
            "missing": list(self.missing),
        }


@dataclass(frozen=True)
class Target:
    """A mode to bring into force, its values, and the file that says where they lie."""

    setting: Setting
    mode: Mode
    file: ModeFile


class Keeper:
    """One hold, from begin to end; the stamp is locked around both."""

    def __init__(self, root: Path, runner: Runner, rules: HoldRules) -> None:
        self.rules = rules
        self.stamp = Stamp(rules.state)
        self._conf = root.absolute() / CONF  # which the stamp keeps, for any folder that undoes it
        self._runner = runner
        self._files = Files(root)
        self._level: Level | None = None

    def begin(self, wanted: str | Caps) -> InForce:
        """Bring a mode into force."""
        try:
            self.undo()
        except PowerError as error:
            self.rules.say(str(error))
        levels = self.stamp.levels()
        self._check_free(levels)
        before = self.before(levels)
        target = self.target(wanted, len(levels))
        if (target.setting.file, target.setting.id) == (before.file, before.id) and not self.rules.lock:
            proof = self._proof(target)
            if proof.in_force:
                return InForce(str(wanted), target.setting, True, proof)
        self.check_reboot(before, target.mode)
        return self._bring(wanted, target, before, levels)

    def end(self) -> None:
        """Put back what was there; say so where that is not possible, and keep the stamp."""
        if self._level is None:
            return
        problem = self._leave(self._level)
        if problem is not None:
            self.rules.say(f"{problem}; mend that and run `orin power restore`")
            return
        try:
            self._drop(self._level)
        except PowerError as error:  # the mode is back; undoing it once more does no harm
            self.rules.say(str(error))

    def undo(self) -> tuple[Level, ...]:
        """Undo what killed processes left behind."""
        done = []
        for level in self.stamp.dead(self.rules.processes):
            problem = self._leave(level)
            if problem is not None:
                raise PowerError(f"a killed run left {level.target.name} behind: {problem}")
            self._drop(level)
            done.append(level)
        return tuple(done)

    def before(self, levels: tuple[Level, ...]) -> Setting:
        """Return the mode in force: the innermost hold's, else the one that nvpmodel names."""
        if levels:
            return levels[-1].target
        done = self._runner.run(query())
        found = parse_query(done.text)
        if found is None:
            raise PowerError(
                f"`nvpmodel -q` names no power mode ({done.last_line}): in a container mount the host's nvpmodel and "
                "its files, or leave the mode as it is"
            )
        return Setting(str(self._conf), found.id, found.name)

    def target(self, wanted: str | Caps, depth: int) -> Target:
        """Return the wanted mode; one of caps gets a file of its own when it is brought into force."""
        file = read_mode_file(self._conf)
        if isinstance(wanted, str):
            mode = file.mode(wanted)
            return Target(Setting(str(self._conf), mode.id, mode.name), mode, file)
        mode = capped_mode(file, wanted, OWN_MODE)
        own = self.rules.state / f"mode-{self.rules.processes.this().pid}-{depth}.conf"
        return Target(Setting(str(own), mode.id, mode.name), mode, file)

    def clocks_file(self, depth: int) -> Path:
        """Return where this process stores the clocks."""
        return self.rules.state / f"clocks-{self.rules.processes.this().pid}-{depth}.conf"

    def check_reboot(self, before: Setting, after: Mode) -> None:
        """Raise PowerError where a change may need a reboot and that was not allowed."""
        now = self._known(before)
        changes = reboot_changes(now.mode, after) if now else ()
        if changes and not self.rules.reboot_ok:
            raise PowerError(
                f"from {plain(before.name)} to {after.plain_name} changes {', '.join(changes)}, which works only while "
                "nothing has used the GPU, else after a reboot: allow the attempt with --reboot-ok"
            )

    def _bring(self, wanted: str | Caps, target: Target, before: Setting, levels: tuple[Level, ...]) -> InForce:
        missing: list[str] = []
        store = self.clocks_file(len(levels))
        stored = str(store) if self._try(clocks.store(store), "stored", missing) else None
        if isinstance(wanted, Caps):
            own = ModeFile(target.file.parameters, (target.mode,), target.mode.id)
            self.stamp.keep(Path(target.setting.file), own.dumps())
        level = Level(self.rules.processes.this(), before, target.setting, stored, self.rules.utc())
        self.stamp.write([*levels, level])
        self._level = level
        done = self._runner.run(enter_setting(target.setting))
        if done.refused:
            return self._unheld(wanted, level, done)
        proof = self._settled(target)
        if not self._is_in_force(proof, target.setting, missing):
            raise PowerError(self._failed(level, done, proof))
        if self.rules.lock and self._try(clocks.LOCK, "locked", missing):
            self._check_lock(missing)
        return InForce(str(wanted), target.setting, True, proof, tuple(missing))

    def _try(self, command: Command, what: str, missing: list[str]) -> bool:
        """Run what is wanted but can be done without; where it cannot be done, that is noted."""
        try:
            done = self._runner.run(command)
        except PowerError as error:
            missing.append(f"clocks are not {what}: {error}")
            return False
        if done.code != 0:
            missing.append(f"clocks are not {what}: {_refusal(done)}")
        return done.code == 0

    def _check_lock(self, missing: list[str]) -> None:
        """Note a GPU whose clock can still move; jetson_clocks has no exit code for that."""
        gpu = clocks.parse_show(self._runner.run(clocks.SHOW).text).get("GPU")
        if gpu is not None and not gpu.is_locked:
            missing.append(f"clocks are not locked: the GPU's goes from {gpu.min_mhz:g} to {gpu.max_mhz:g} MHz")

    def _unheld(self, wanted: str | Caps, level: Level, done: Done) -> InForce:
        """Go on without the rights to change anything, or refuse to."""
        self._drop(level)
        self._level = None
        line = f"power mode {wanted} is not held: {_refusal(done)}; {MEND}"
        if self.rules.required:
            raise PowerError(line)
        now = self._known(level.before)
        return InForce(str(wanted), level.before, False, self._proof(now) if now else Proof(()), (line,))

    def _failed(self, level: Level, done: Done, proof: Proof) -> str:
        """Put back what was there, and say in one line what came of a change."""
        problem = self._leave(level)
        if problem is None:
            self._drop(level)
        self._level = None
        ended = "did not end in time" if done.code is None else f"ended with exit code {done.code}"
        said = f" ({done.last_line})" if done.text.strip() else ""
        seen = f": {proof.differing[0]}" if proof.differing else ""
        back = problem or f"the board is in {plain(level.before.name)} again"
        return (
            f"power mode {plain(level.target.name)} did not come into force, nvpmodel {ended}{said}{seen}; {back}; "
            f"{_mend(level.target, done)}"
        )

    def _leave(self, level: Level) -> str | None:
        """Put back what was there before a level; return what is wrong in one line, None where all is as it was."""
        try:
            return self._undone(level)
        except PowerError as error:
            return f"the board stays in {plain(level.target.name)}: {error}"

    def _undone(self, level: Level) -> str | None:
        done = self._runner.run(enter_setting(level.before))
        found = self._known(level.before)
        proof = self._settled(found) if found else Proof(())
        if not self._is_in_force(proof, level.before, []):
            why = _refusal(done) if done.code != 0 else "nvpmodel said that it did"
            seen = f" ({proof.differing[0]})" if proof.differing else ""
            return f"the board does not go back to {plain(level.before.name)}{seen}: {why}"
        if level.clocks and level.process.boot == self.rules.processes.boot():  # a reboot has reset the clocks
            done = self._runner.run(clocks.put_back(Path(level.clocks)))
            if done.code != 0:
                return f"the board is in {plain(level.before.name)} again, but without its clocks: {_refusal(done)}"
        return None

    def _drop(self, level: Level) -> None:
        """Forget an undone level, and the files that it needed."""
        self.stamp.write([other for other in self.stamp.levels() if other != level])
        for path in (level.clocks, level.target.file if level.target.name == OWN_MODE else None):
            if path is not None:
                Path(path).unlink(missing_ok=True)

    def _check_free(self, levels: tuple[Level, ...]) -> None:
        if not levels:
            return
        process = levels[-1].process
        if self.rules.processes.lives(process) and not self.rules.processes.is_ours(process):
            raise PowerError(
                f"power mode {plain(levels[-1].target.name)} is held by process {process.pid} since {levels[-1].utc}: "
                "wait until it has ended"
            )

    def _known(self, setting: Setting) -> Target | None:
        """Return a setting with its mode; None where its file has none such."""
        try:
            file = read_mode_file(Path(setting.file))
        except PowerError:
            return None
        mode = next((mode for mode in file.modes if mode.id == setting.id), None)
        return None if mode is None else Target(setting, mode, file)

    def _settled(self, target: Target) -> Proof:
        """Return the proof once it holds, or after some tries."""
        proof = self._proof(target)
        for _ in range(TRIES - 1):
            if proof.in_force is not False:
                break
            self.rules.sleep(PAUSE_S)
            proof = self._proof(target)
        return proof

    def _proof(self, target: Target) -> Proof:
        return prove(target.file, target.mode, self._verbose(target.setting), self._files)

    def _verbose(self, setting: Setting) -> Query | None:
        """What `nvpmodel -q --verbose` sees; None without rights."""
        done = self._runner.run(query(Path(setting.file)))
        return None if done.refused else parse_query(done.text)

    def _is_in_force(self, proof: Proof, setting: Setting, missing: list[str]) -> bool:
        """Whether a mode is in force; where no value can be seen, nvpmodel's word has to do, which is said."""
        if proof.in_force is not None:
            return proof.in_force
        missing.append("the mode is not proven: none of its values can be read")
        found = parse_query(self._runner.run(query()).text)
        return found is not None and found.id == setting.id


def enter_setting(setting: Setting) -> Command:
    """Return the command that brings a setting into force."""
    return enter(Path(setting.file), setting.id)


def _mend(target: Setting, done: Done) -> str:
    if "reboot" not in done.text.lower():
        return "stop what uses the GPU and try again"
    if target.name == OWN_MODE:
        return "it needs a reboot: bring the board into its fullest mode by hand, and start again"
    return f"it needs a reboot: run `sudo nvpmodel -m {target.id}`, answer YES, and start again"


def _refusal(done: Done) -> str:
    return f"sudo -n refuses ({done.last_line})" if done.refused else done.last_line
