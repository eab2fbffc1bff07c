"""A board's worker: `python -m orin.fleet.worker ADDRESS --name NAME`; one process, one lease, one station."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orin.board import close_board
from orin.boards import open_board
from orin.errors import OrinError
from orin.fleet.dask import NO_DASHBOARD, load_dask, security
from orin.fleet.inventory import Offer, Tls, label
from orin.fleet.lease import Lease, lock_path
from orin.fleet.shards import IN_HAND
from orin.fleet.station import Answered, Job, Station, Task
from orin.jetson.detect import NVPMODEL_CONF, Machine, jetpack
from orin.soc import DLAS

if TYPE_CHECKING:
    from orin.bench import Bench
    from orin.outcome import Candidate
    from orin.plan import Plan

JOIN_S = 60.0
PLUGIN = "station"


def offer(board: str, machine: Machine | None = None) -> Offer:
    """Return what a board offers: its accelerators, a label for board and JetPack, and what makes boards alike."""
    machine = machine or Machine()
    opened = open_board(board, "results")
    facts = {"soc": opened.soc.name, "provenance": opened.provenance, "toolkit": _version("orin-toolkit")}
    if opened.provenance == "measured":
        facts |= {
            "module": machine.number or "unknown",
            "jetpack": jetpack(machine.l4t),
            "tensorrt": _version("tensorrt"),
            "nvpmodel": _digest(machine.root / NVPMODEL_CONF),
        }
        close_board(opened)
    else:
        facts["onnxruntime"] = _version("onnxruntime")
    dlas = [name for name in opened.soc.accelerators if name in DLAS]
    labels = {label(opened.soc.name): 1.0, label(facts.get("jetpack", "virtual").partition("(")[2] or "virtual"): 1.0}
    return Offer({"GPU": 1.0, "DLA": float(len(dlas)), **labels}, facts, opened.provenance)


def station_plugin(station: Station, offered: Offer) -> Any:
    """Return the Dask plugin that holds a worker's station."""
    from distributed import WorkerPlugin

    class StationPlugin(WorkerPlugin):  # type: ignore[misc]
        name = PLUGIN

        def __init__(self) -> None:
            self.station, self.offer = station, offered

        def teardown(self, worker: Any) -> None:
            self.station.close()

    return StationPlugin()


# -- what the controller asks of a worker; these run there -------------------------------------------------------------


def open_station(job: Job) -> None:
    """Open a job's engines on this worker's board."""
    _plugin().station.open(job)


def answer_shard(task: Task) -> Answered:
    """Answer a shard on this worker's board."""
    answered: Answered = _plugin().station.answer(task)
    return answered


def measure_plan(candidate: Candidate, options: Bench) -> tuple[str, dict[str, Any]]:
    """Measure a candidate on this worker's board; returns the board's name and the figures."""
    from orin.bench import bench, photos_in
    from orin.build import Desk
    from orin.results import result

    station = _plugin().station
    station.close()
    board = open_board(station.board_name, "speed")
    try:
        return station.name, result(bench(candidate.plan, board, Desk(photos=photos_in(None)), options))
    finally:
        close_board(board)


def tune_plan(plan: Plan, number: int, options: Bench) -> dict[str, Any]:
    """Measure a tuning's n-th plan on this worker's board as `orin tune` does; returns a `Measurement` as JSON."""
    from orin.bench import photos_in
    from orin.build import Desk
    from orin.sweep import Site
    from orin.tune.run import BoardRunner, Runner, virtual_runner

    station = _plugin().station
    station.close()
    runner: Runner
    if _plugin().offer.provenance == "measured":
        runner = BoardRunner(
            Site(lambda: open_board(station.board_name, "speed"), Desk(photos=photos_in(None))), options
        )
    else:
        runner = virtual_runner(station.board_name, options.runs, options.seconds)
    return runner.measure(plan, number).measurement.as_json()


async def close_station(dask_worker: Any) -> None:
    """Close the engines of this worker's board, unless it is still busy with a shard."""
    await asyncio.to_thread(dask_worker.plugins[PLUGIN].station.close)


def offered(dask_worker: Any) -> Offer:
    """Return this worker's offer."""
    made: Offer = dask_worker.plugins[PLUGIN].offer
    return made


def _plugin() -> Any:
    from distributed import get_worker

    return get_worker().plugins[PLUGIN]


# -- the process -------------------------------------------------------------------------------------------------------


async def serve(address: str, name: str, board: str, tls: Tls | None) -> None:
    """Join a scheduler and work until it lets go."""
    distributed = load_dask()
    offered = offer(board)
    worker = distributed.Worker(
        address,
        name=name,
        nthreads=IN_HAND,
        resources=dict(offered.resources),
        memory_limit=0,
        dashboard=False,
        dashboard_address=NO_DASHBOARD,
        death_timeout=JOIN_S,
        security=security(tls),
        plugins=(station_plugin(Station(name, board), offered),),
    )
    async with worker:
        await worker.finished()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the process; an error that a user can mend ends it in one line."""
    parser = argparse.ArgumentParser(prog="orin.fleet.worker", description=__doc__)
    parser.add_argument("address", help="the scheduler, such as tcp://10.0.0.1:8786")
    parser.add_argument("--name", required=True)
    parser.add_argument("--board", default="jetson")
    parser.add_argument("--tls", nargs=3, metavar=("CA", "CERT", "KEY"))
    options = parser.parse_args(arguments)
    try:
        with Lease(lock_path(options.board, options.name)):
            asyncio.run(serve(options.address, options.name, options.board, Tls(*options.tls) if options.tls else None))
    except (OrinError, OSError, TimeoutError) as error:
        print(f"{options.name}: {error}", file=sys.stderr)
        return 2
    return 0


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else "none"


def facts_of(offers: Mapping[str, Offer]) -> dict[str, list[str]]:
    """Return the boards of each fingerprint."""
    groups: dict[str, list[str]] = {}
    for name, offered in offers.items():
        groups.setdefault(offered.fingerprint, []).append(name)
    return groups


if __name__ == "__main__":
    sys.exit(main())
