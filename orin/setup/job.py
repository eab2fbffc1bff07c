"""Steps on a machine: surveyed, taken, gone on with after a stop, and undone.

What a step found is kept before it changes anything, so that a job that was killed at any moment goes on where it was,
and its undo still knows what there was before the first attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from orin.errors import OrinError
from orin.setup.failures import explain
from orin.setup.shell import Call, Shell, read, with_variable
from orin.setup.step import BEFORE, Step
from orin.steps import Store, load_state, save_state, utc_now
from power.commands import Done

UNDO_S = 900.0
LINE = 160  # characters of what was printed that a message shows


class Status(str, Enum):
    """What is to be done about a step."""

    DONE = "done"
    TO_DO = "to do"
    STOPPED = "stopped"
    CHECK = "check"


@dataclass(frozen=True)
class Found:
    """A step as it was found: what is there now, and whether something is to be done about it."""

    step: Step
    before: str
    status: Status


@dataclass(frozen=True)
class Taken:
    """What became of a step: `result` is what is there now, or what a check printed last."""

    name: str
    status: str
    before: str
    result: str


@dataclass(frozen=True)
class Desk:
    """Where a job keeps what it did, where it writes what was printed, and who hears how far it is."""

    store: Store
    log: Path
    say: Callable[[str], None]


class Job:
    """Steps in their order, on one machine."""

    def __init__(self, steps: Sequence[Step], shell: Shell, desk: Desk) -> None:
        self._steps = tuple(steps)
        self._shell = shell
        self._desk = desk
        self._state: dict[str, Any] = load_state(desk.store)

    @property
    def undoable(self) -> dict[str, str]:
        """What an undo would run by step, the first in front; where there is none, why not."""
        kept = ((name, self._state[name]) for name in reversed(self._state))
        return {name: _undo_call(step).script if step["undo"] else f"# stays: {step['lasting']}" for name, step in kept}

    def survey(self) -> list[Found]:
        """Look at every step, changing nothing."""
        return [self.look(step) for step in self._steps]

    def look(self, step: Step) -> Found:
        """Return what is there of a step."""
        if step.check:
            return Found(step, "", Status.CHECK)
        kept = self._state.get(step.name)
        before = read(self._shell, step.read) if step.read else ""
        if kept is not None and not kept["done"]:
            return Found(step, before, Status.STOPPED)
        as_wanted = before in step.wanted if step.read else kept is not None and kept["change"] == step.change
        return Found(step, before, Status.DONE if as_wanted else Status.TO_DO)

    def run(self) -> list[Taken]:
        """Take every step that is not done; OrinError ends the job there, and the next one goes on from it."""
        return [self._take(self.look(step)) for step in self._steps]

    def _take(self, found: Found) -> Taken:
        step = found.step
        if found.status is Status.DONE:
            self._desk.say(f"{step.name}: done already")
            return Taken(step.name, found.status.value, found.before, found.before)
        self._meet_needs(step)
        self._desk.say(f"{step.name}: {step.title} ...")
        if not step.check:
            self._keep(found, done=False)
        done = self._logged(step.name, step.call())
        if done.code != 0:
            raise OrinError(self._failure(step, done))
        result = read(self._shell, step.read) if step.read else _last_line(done)
        if step.read and result not in step.wanted:
            raise OrinError(
                f"{step.name}: ended well, yet it is {_shown(result)}, expected {_shown(step.wanted[0])}; "
                f"log: {self._desk.log}"
            )
        if not step.check:
            self._keep(found, done=True)
        return Taken(step.name, "passed" if step.check else "changed", found.before, result)

    def _meet_needs(self, step: Step) -> None:
        for need in step.needs:
            trouble = need.trouble(self._shell)
            if trouble is not None:
                raise OrinError(f"{step.name}: {trouble}")

    def _keep(self, found: Found, done: bool) -> None:
        step, kept = found.step, self._state.get(found.step.name, {})
        self._state[step.name] = {
            "done": done,
            "utc": utc_now(),
            "before": kept.get("before", found.before),  # that of the first attempt
            "change": step.change,
            "read": step.read,
            "undo": step.undo,
            "as_root": step.as_root or step.undo_as_root,
            "lasting": step.lasting,
        }
        save_state(self._desk.store, self._state)

    def forget(self, names: Sequence[str]) -> None:
        """Have steps taken once more that nothing but the state says to be done."""
        kept = {name: step for name, step in self._state.items() if name not in names}
        if kept != self._state:
            self._state = kept
            save_state(self._desk.store, kept)

    def undo(self) -> list[Taken]:
        """Undo what was changed, the last change first; OrinError ends it there, and the next undo goes on."""
        return [self._undo(name) for name in self.undoable]

    def _undo(self, name: str) -> Taken:
        kept = self._state[name]
        before, result = kept["before"], ""
        if kept["undo"]:
            self._desk.say(f"{name}: undoing ...")
            done = self._logged(f"undo {name}", _undo_call(kept))
            result = read(self._shell, kept["read"]) if kept["read"] else before
            if done.code != 0 or result != before:
                seen = f"it is {_shown(result)}, expected {_shown(before)}; " if done.code == 0 else ""
                raise OrinError(f"{name} is not undone: {seen}{_last_line(done)}; log: {self._desk.log}")
        del self._state[name]
        save_state(self._desk.store, self._state)
        return Taken(name, "undone" if kept["undo"] else f"stays: {kept['lasting']}", before, result)

    def _logged(self, what: str, call: Call) -> Done:
        """Run a script with the log before, while and after; what it is fed is not in there."""
        rights = " as root" if call.as_root else ""
        self._note(f"# {utc_now()} {what}, on {self._shell.where}{rights}\n{call.script}\n# prints:")
        try:
            done = self._shell.run(call, self._desk.log)
        except OrinError as error:
            self._note(f"# broken off: {error}\n")
            raise
        self._note(f"# {utc_now()} {what}: " + ("time is up\n" if done.code is None else f"exit code {done.code}\n"))
        return done

    def _note(self, text: str) -> None:
        self._desk.log.parent.mkdir(parents=True, exist_ok=True)
        with self._desk.log.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    def _failure(self, step: Step, done: Done) -> str:
        """Say what is known about a failure: its cause and remedy where the log shows them, else what it said last."""
        ending = f"did not end within {step.limit_s:.0f} s" if done.code is None else f"failed (exit code {done.code})"
        causes = [failure for failure in explain(done.text, hung=done.code is None) if not failure.benign]
        if causes:
            why = f"{causes[0].cause}: {causes[0].remedy}"
        else:
            why = f"It said last: {_last_line(done)}; mend that, and the same command goes on from here"
        return f"{step.name} {ending}. {why}. Log: {self._desk.log}"


def as_json(taken: Sequence[Taken]) -> list[dict[str, str]]:
    """Return what became of the steps as plain values."""
    return [asdict(entry) for entry in taken]


def _undo_call(kept: Mapping[str, Any]) -> Call:
    return with_variable(Call(kept["undo"], kept["as_root"], limit_s=UNDO_S), BEFORE, kept["before"])


def _shown(text: str) -> str:
    return " ".join(text.split())[:LINE] or "nothing"


def _last_line(done: Done) -> str:
    return done.last_line[-LINE:]
