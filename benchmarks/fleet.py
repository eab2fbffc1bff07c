"""Four virtual boards as a fleet: throughput without faults and with, what is lost, how soon it is seen, idle CPU.

Workers are killed (kill -9), hung (SIGSTOP), cut off (a relay in front of the scheduler stops forwarding) and their
disks filled (a tmpfs of their own; left out where this user may not mount one). Every figure is simulated but for CPU
times and the time to notice: a paced virtual board takes an Orin's time and computes nothing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, emit, median

from orin.build import Desk, build_engines
from orin.export.splitter import Split, Splitter
from orin.fleet.cluster import Processes, Starter, down, up
from orin.fleet.crew import DaskCrew
from orin.fleet.dask import connect
from orin.fleet.inventory import Inventory, Member, load_inventory
from orin.fleet.library import Library
from orin.fleet.run import Ears, Order, Run
from orin.fleet.shards import Rules
from orin.fleet.station import Job
from orin.fleet.watch import Watch
from orin.photos import library_photos
from orin.plan import Plan
from orin.predict import predict_plan

BOARD = "virtual:agx-orin-64gb"
NAMES = ("v1", "v2", "v3", "v4")
# FP16 at 30 W, so that two cores can bring four boards their samples: 5.8 MB each, 15 a second and board
PLAN = Plan(network="ssd-resnet34", precision="fp16", gpu_batch=1, dla_batch=1, mode="30W")
SAMPLES_A_FILE = 16
SILENCE_S = 20.0
RULES = Rules(slice_s=4.0, least_s=30.0, rest_s=10.0)
DISK_BYTES = 1 << 20
# when in the run, who, what
FAULTS = (
    (10.0, "v1", "kill"),
    (16.0, "v2", "hang"),
    (22.0, "v3", "fill"),
    (28.0, "v4", "cut"),
    (40.0, "v3", "free"),
    (50.0, "v1", "kill"),
    (58.0, "v4", "join"),
)


class Relay:
    """A TCP relay to the scheduler; while it is cut it forwards nothing and closes nothing."""

    def __init__(self, address: str) -> None:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        self._target = host, int(port)
        self._open = threading.Event()
        self._open.set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._open.clear()

    def join(self) -> None:
        self._open.set()

    def _accept(self) -> None:
        while True:
            here, _ = self._server.accept()
            there = socket.create_connection(self._target)
            for source, target in ((here, there), (there, here)):
                threading.Thread(target=self._forward, args=(source, target), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                self._open.wait()
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            end.close()


@dataclass(frozen=True)
class RelayStarter(Starter):
    """Starts one board's worker behind the relay."""

    relays: dict[str, Relay] = field(default_factory=dict)

    def worker(self, member: Member, address: str) -> int:
        relay = self.relays.get(member.name)
        return super().worker(member, relay.address if relay else address)


@dataclass
class Site:
    """A fleet that is up, and where its samples and answers are."""

    root: Path
    inventory: Inventory
    processes: Processes
    starter: RelayStarter
    disk: Path | None
    said: list[tuple[float, str]] = field(default_factory=list)
    struck: list[tuple[float, str, str]] = field(default_factory=list)

    def strike(self, name: str, what: str) -> None:
        """Let a fault happen."""
        pid = self.processes.workers[name]
        self.struck.append((time.monotonic(), name, what))
        if what == "kill":
            os.kill(pid, signal.SIGKILL)
        elif what == "hang":
            os.kill(pid, signal.SIGSTOP)
        elif what == "cut":
            self.starter.relays[name].cut()
        elif what == "join":
            self.starter.relays[name].join()
        elif self.disk is not None and what == "fill":
            fill(self.disk)
        elif self.disk is not None and what == "free":
            (self.disk / "filling").unlink()

    def faults(self, begin_s: float, stop: threading.Event) -> None:
        """Let every fault happen at its moment."""
        for at_s, name, what in FAULTS:
            if stop.wait(max(0.0, begin_s + at_s - time.monotonic())):
                return
            self.strike(name, what)


def fill(disk: Path) -> None:
    """Fill a disk to its last byte."""
    with (disk / "filling").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def make_samples(root: Path, count: int) -> Path:
    """Write one file of packed random samples and link it under as many names as it takes."""
    engine = next(iter(build_engines(PLAN, Desk(photos=library_photos())).engines.values()))
    size = engine.manifest.inputs[0].sample_bytes
    folder = root / "data"
    folder.mkdir()
    first = folder / f"{0:06d}.npy"
    np.save(first, np.random.default_rng(0).integers(0, 256, (SAMPLES_A_FILE, size), dtype=np.uint8))
    for number in range(1, -(-count // SAMPLES_A_FILE)):
        (folder / f"{number:06d}.npy").hardlink_to(first)
    return folder


def tmpfs(path: Path) -> Path | None:
    """Mount a small disk; None where this user may not."""
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", path], capture_output=True)
    return path if done.returncode == 0 else None


def start(root: Path) -> Site:
    """Bring four workers up; v3 writes to a disk of its own, v4 is behind the relay."""
    disk = tmpfs(root / "disk")
    boards = {name: {"host": "local", "board": BOARD} for name in NAMES}
    if disk is not None:
        boards["v3"]["output"] = str(disk)
    path = root / "fleet.yaml"
    path.write_text(json.dumps({"port": 0, "silence_s": SILENCE_S, "boards": boards}))
    inventory = load_inventory(path)
    relays: dict[str, Relay] = {}
    only = replace(inventory, members=inventory.members[:3])
    processes = up(only, Starter(only), print)
    relays["v4"] = Relay(processes.address)
    starter = RelayStarter(inventory, relays=relays)
    return Site(root, inventory, up(inventory, starter, print), starter, disk)


def run(site: Site, folder: Path, output: str, faulty: bool) -> dict[str, object]:
    """Answer the folder once; returns the summary and what of it is on the disks."""
    stop = threading.Event()
    job, out = Job(PLAN, "speed", tuple(library_photos())), site.root / output

    def say(text: str) -> None:
        site.said.append((time.monotonic(), text))
        print(f"  {text}", file=sys.stderr)

    with connect(site.inventory, site.processes.address) as client, Watch(site.starter, site.processes, say) as watch:
        crew = DaskCrew(client, job)
        order = Order(job, Library(folder), out, RULES)
        faults = threading.Thread(target=site.faults, args=(time.monotonic(), stop), daemon=True)
        if faulty:
            faults.start()
        try:
            summary = Run(order, site.inventory, crew, Ears(say, lost=watch.lost, found=watch.found)).answer()
        finally:
            stop.set()
        crew.close()
    return {**summary, **on_disk(site, out, summary["samples"])}


def on_disk(site: Site, out: Path, total: int) -> dict[str, int]:
    """Read every answer: samples without one, with two different places of one, and copies of a shard."""
    folders = [out, *([site.disk] if site.disk is not None else [])]
    files = [path for folder in folders for path in folder.glob("shard-*.jsonl")]
    seen: dict[int, set[str]] = {}
    for path in files:
        for line in path.read_text().splitlines():
            seen.setdefault(json.loads(line)["sample"], set()).add(path.name)
    for path in files:
        if path.parent != out:
            path.unlink()
    return {
        "lost": total - len(seen),
        "in_two_shards": sum(len(names) > 1 for names in seen.values()),
        "copies_of_a_shard": len(files) - len({path.name for path in files}),
        "unfinished_files": sum(len(list(folder.glob(".*.part"))) for folder in folders),
    }


def idle_cpu(site: Site, seconds: float) -> dict[str, float]:
    """CPU and context switches of idle workers, per second and worker."""

    def reading() -> tuple[float, int]:
        ticks = switches = 0
        for pid in site.processes.workers.values():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
            for task in Path(f"/proc/{pid}/task").iterdir():
                lines = (task / "status").read_text().splitlines()
                switches += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
        return ticks / os.sysconf("SC_CLK_TCK"), switches

    time.sleep(5.0)
    before, begin_s = reading(), time.monotonic()
    time.sleep(seconds)
    after, took_s = reading(), time.monotonic() - begin_s
    workers = len(site.processes.workers) * took_s
    return {"core_share": (after[0] - before[0]) / workers, "switches_per_s": (after[1] - before[1]) / workers}


def serve(pipe: Any) -> None:
    """Serve Triton's protocol in a process of its own until told to end."""
    from tests.orin.export.server import Triton, served

    with served(Triton()) as url:
        pipe.send(url)
        pipe.recv()


def dispatch_cost(requests: int) -> dict[str, float]:
    """CPU of the splitting client per request beside that of bare calls with a ready-made request, small samples."""
    from tests.orin.export.server import SHAPE, SPLIT

    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    lane = SPLIT.lanes[1]
    samples = np.zeros((requests * lane.batch, *SHAPE), np.int8)
    only = Split((lane,), SPLIT.models)
    with Splitter(only, here.recv()) as client:
        client.infer(samples[: 64 * lane.batch])
        ours, bare = [], []
        for _ in range(5):  # both sides alternate
            begin_s = time.process_time()
            client.infer(samples)
            ours.append(time.process_time() - begin_s)
            begin_s = time.process_time()
            calls: deque[Any] = deque()
            for _ in range(requests):
                calls.append(client.send(lane, [samples[: lane.batch]]))
                if len(calls) == lane.depth:
                    calls.popleft().result()
            for call in calls:
                call.result()
            bare.append(time.process_time() - begin_s)
    here.send(None)
    server.join(10)
    per_us = 1e6 / requests
    return {"splitter_us": median(ours) * per_us, "bare_us": median(bare) * per_us}


def noticed(site: Site, what: str) -> list[float]:
    """Seconds from each fault of a kind to the first word about that board."""
    found = []
    for at_s, name, kind in site.struck:
        words = [said_s - at_s for said_s, text in site.said if said_s >= at_s and text.startswith(name)]
        if kind == what and words:
            found.append(min(words))
    return found


def main() -> None:
    """Run everything and print it."""
    options = arguments(__doc__ or "")
    rate = predict_plan(PLAN, BOARD.partition(":")[2]).samples_per_s
    seconds = 12.0 if options.quick else 75.0
    with tempfile.TemporaryDirectory(prefix="orin-fleet-") as name:
        root = Path(name)
        folder = make_samples(root, round(4 * rate * seconds))
        site = start(root)
        try:
            idle = idle_cpu(site, 5.0 if options.quick else 30.0)
            clean = run(site, folder, "clean", faulty=False)
            faulty = run(site, folder, "faulty", faulty=True)
        finally:
            down(site.inventory, site.starter, print)
            if site.disk is not None:
                subprocess.run(["umount", site.disk], check=False)
    triton = dispatch_cost(100 if options.quick else 500)
    notice = {kind: noticed(site, kind) for kind in ("kill", "hang", "fill", "cut")}
    results: dict[str, Any] = {
        "plan": PLAN.as_json(),
        "idle": idle,
        "predicted_samples_per_s": 4 * rate,
        "clean": clean,
        "faulty": faulty,
        "noticed_s": notice,
        "faults": [fault[1:] for fault in site.struck],
        "triton": triton,
    }
    emit(results, rows(results), options)


def rows(r: dict) -> list[tuple[str, str, str]]:  # type: ignore[type-arg]
    """What is printed: what, seen, wanted."""
    clean, faulty, noticed_s = r["clean"], r["faulty"], r["noticed_s"]
    share = faulty["samples_per_s"] / clean["samples_per_s"]
    predicted = f"predicted {r['predicted_samples_per_s']:.1f}"
    late = sum(board["pace"] is not None for run in (clean, faulty) for board in run["boards"].values())
    return [
        ("samples lost, without and with faults", f"{clean['lost']}, {faulty['lost']}", "0"),
        ("samples in two shards", f"{clean['in_two_shards']}, {faulty['in_two_shards']}", "0"),
        ("samples/s of 4 boards (simulated)", f"{clean['samples_per_s']:.1f}", predicted),
        ("  with faults", f"{faulty['samples_per_s']:.1f} = {share:.0%}", f"{faulty['seconds']:.0f} s of work"),
        ("  boards that this host could not feed in time", f"{late} of 8", "0"),
        ("answered twice, counted once", f"{faulty['repeated']} of {faulty['samples']}", ""),
        *(
            (f"{kind}: noticed after", f"{statistics.median(seen):.2f} s", "")
            for kind, seen in noticed_s.items()
            if seen
        ),
        (
            "Triton client: CPU per request",
            f"{r['triton']['splitter_us']:.0f} us",
            f"of which request and gRPC call {r['triton']['bare_us']:.0f} us",
        ),
        (
            "idle CPU of a worker",
            f"{r['idle']['core_share']:.2%} of a core",
            f"{r['idle']['switches_per_s']:.0f} switches/s",
        ),
    ]


if __name__ == "__main__":
    main()
