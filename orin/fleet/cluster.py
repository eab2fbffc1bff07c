"""A fleet's processes: the scheduler here, a worker on each board (ssh, or this machine), started, found and ended."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orin.errors import OrinError
from orin.fleet.dask import connect
from orin.fleet.inventory import LOCAL, Inventory, Member, Offer
from orin.fleet.scheduler import ADDRESS
from orin.fleet.worker import offered
from orin.record import write_atomically

STATE = "processes.json"
POLL_S = 0.1
START_S = 60.0
END_S = 10.0
SETTLE_S = 1.0
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Starter:
    """Starts and ends processes: `ssh` is the command in front of a host's name; logs go to the state folder."""

    inventory: Inventory
    ssh: Sequence[str] = SSH

    def scheduler(self) -> int:
        """Start the scheduler; returns its process id."""
        return self._here(
            "scheduler", [sys.executable, "-m", "orin.fleet.scheduler", str(self.inventory.path.resolve())]
        )

    def worker(self, member: Member, address: str) -> int:
        """Start a board's worker; returns its process id there."""
        tls = self.inventory.tls
        secure = ["--tls", tls.ca, tls.cert, tls.key] if tls else []
        words = ["-m", "orin.fleet.worker", address, "--name", member.name, "--board", member.board, *secure]
        if member.host == LOCAL:
            return self._here(member.name, [sys.executable, *words])
        line = f"nohup {shlex.join([member.python, *words])} > orin-fleet-{member.name}.log 2>&1 < /dev/null & echo $!"
        said = self._there(member, line)
        if not said.strip().isdigit():
            raise OrinError(
                f"{member.host} answers {said.strip()!r} to the start of {member.name}, expected a process id"
            )
        return int(said)

    def end(self, member: Member, pid: int) -> None:
        """End a board's worker."""
        if member.host == LOCAL:
            end_process(pid)
        else:
            with suppress(OrinError):
                self._there(member, f"kill {pid}")

    def _here(self, name: str, words: Sequence[str]) -> int:
        log = self.inventory.state / f"{name}.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        return process.pid

    def _there(self, member: Member, line: str) -> str:
        try:
            done = subprocess.run(
                [*self.ssh, member.host, line],
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=START_S,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise OrinError(f"{member.name}: ssh to {member.host} failed: {error}") from None
        if done.returncode:
            raise OrinError(
                f"{member.name}: ssh to {member.host} failed: {' '.join(done.stderr.split()) or done.returncode}"
            )
        return done.stdout


@dataclass
class Processes:
    """What `up` started: the scheduler's address and process, and each worker's."""

    address: str
    scheduler: int
    workers: dict[str, int] = field(default_factory=dict)

    def save(self, inventory: Inventory) -> None:
        """Write them down."""
        write_atomically(inventory.state / STATE, json.dumps(vars(self), indent=1))

    @classmethod
    def load(cls, inventory: Inventory) -> Processes:
        """Read what `up` wrote; OrinError where the fleet is not up."""
        path = inventory.state / STATE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise OrinError(f"the fleet of {inventory.path} is not up: orin fleet up {inventory.path}") from None
        except (OSError, ValueError, TypeError) as error:
            raise OrinError(f"{path} is damaged ({error}): delete it after orin fleet down") from None


def up(inventory: Inventory, starter: Starter, say: Say) -> Processes:
    """Start what is not running yet and wait until every board has joined or told why not."""
    inventory.state.mkdir(parents=True, exist_ok=True)
    processes = _running(inventory) or _start_scheduler(inventory, starter)
    with connect(inventory, processes.address) as client:
        present = members_present(client)
        for member in inventory.members:
            if member.name not in present:
                start_worker(member, starter, processes, say)
        _wait(inventory, client, processes, say)
    return processes


def start_worker(member: Member, starter: Starter, processes: Processes, say: Say) -> bool:
    """Start one board's worker and write its process down; False, said, where that fails."""
    try:
        processes.workers[member.name] = starter.worker(member, processes.address)
    except OrinError as error:
        say(str(error))
        return False
    processes.save(starter.inventory)
    return True


def down(inventory: Inventory, starter: Starter, say: Say) -> None:
    """Shut the fleet down, and end what does not end by itself."""
    processes = Processes.load(inventory)
    try:
        with connect(inventory, processes.address) as client:
            client.shutdown()
    except OrinError as error:
        say(str(error))
    for name, pid in processes.workers.items():
        starter.end(inventory.member(name), pid)
    end_process(processes.scheduler)
    (inventory.state / STATE).unlink()


def members_present(client: Any) -> dict[str, str]:
    """Return the workers that the scheduler knows: address by name."""
    workers: Mapping[str, Mapping[str, Any]] = client.scheduler_info(n_workers=-1)["workers"]
    return {str(values["name"]): address for address, values in workers.items()}


def offers(client: Any) -> dict[str, Offer]:
    """Return what each worker offers, by name; one that does not answer is left out."""
    present = members_present(client)
    said: dict[str, Any] = client.run(offered, on_error="return")
    return {name: said[address] for name, address in sorted(present.items()) if isinstance(said.get(address), Offer)}


def end_process(pid: int) -> None:
    """End one of the fleet's processes on this machine, with force after a while."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not is_ours(pid):
            return
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        limit_s = time.monotonic() + END_S
        while is_ours(pid) and time.monotonic() < limit_s:
            _reap(pid)
            time.sleep(POLL_S)


def is_ours(pid: int) -> bool:
    """Whether a process is there and is one of a fleet's: a number may have been given to another one since."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(word.startswith(b"orin.fleet.") for word in words)


def _has_ended(pid: int, began_s: float) -> bool:
    """Whether a process that was just started here has ended; at first it may be no Python yet."""
    _reap(pid)
    return time.monotonic() > began_s + SETTLE_S and not is_ours(pid)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _running(inventory: Inventory) -> Processes | None:
    with suppress(OrinError):
        processes = Processes.load(inventory)
        if is_ours(processes.scheduler):
            return processes
    return None


def _start_scheduler(inventory: Inventory, starter: Starter) -> Processes:
    path = inventory.state / ADDRESS
    path.unlink(missing_ok=True)
    pid = starter.scheduler()
    try:
        began_s = time.monotonic()
        while not path.is_file():
            if _has_ended(pid, began_s) or time.monotonic() > began_s + START_S:
                raise OrinError(f"the scheduler does not start: {_last_line(inventory, 'scheduler')}")
            time.sleep(POLL_S)
        processes = Processes(path.read_text(encoding="utf-8"), pid)
        processes.save(inventory)
    except BaseException:  # Ctrl-C too: `down` would not know of it
        end_process(pid)
        raise
    return processes


def _wait(inventory: Inventory, client: Any, processes: Processes, say: Say) -> None:
    """Wait for the boards; one whose worker has ended, or that takes too long, is named with its last words."""
    waiting = {member.name: member for member in inventory.members if member.name in processes.workers}
    began_s = time.monotonic()
    while waiting and time.monotonic() < began_s + START_S:
        for name in members_present(client):
            waiting.pop(name, None)
        for name, member in list(waiting.items()):
            if member.host == LOCAL and _has_ended(processes.workers[name], began_s):
                say(f"{name} did not join: {_last_line(inventory, name)}")
                del waiting[name]
        time.sleep(POLL_S)
    for name in waiting:
        say(f"{name} did not join within {START_S:.0f} s: see its log, and that it reaches {processes.address}")


def _last_line(inventory: Inventory, name: str) -> str:
    try:
        lines = (inventory.state / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "it says nothing"
