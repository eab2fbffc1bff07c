"""`orin fleet`: boards as one: start, look, answer a folder on all of them, end."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orin.cli.output import Talk, add_output_arguments, print_json, print_table, quantity
from orin.mlperf import SCENARIOS

if TYPE_CHECKING:
    from orin.fleet.inventory import Inventory, Offer
    from orin.fleet.station import Job


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    texts = {
        "up": ("start the scheduler here and a worker on each board", _up),
        "status": ("who is there and what they offer", _status),
        "run": ("answer a folder of samples on all boards", _run),
        "sweep": ("measure plans and modes, spread over boards of one kind", _sweep),
        "tune": ("search the best plan on all boards of a kind", _tune),
        "down": ("end every process of the fleet", _down),
    }
    made = {}
    for name, (text, handler) in texts.items():
        made[name] = actions.add_parser(name, help=text)
        made[name].add_argument("inventory", type=Path, metavar="INVENTORY", help="YAML file with the fleet's boards")
        made[name].set_defaults(handler=handler)
    _add_run(made["run"])
    _add_sweep(made["sweep"])
    _add_tune(made["tune"])
    for action in made.values():
        add_output_arguments(action)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", type=Path, required=True, metavar="FILE", help="plan file (YAML)")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="photos, or .npy arrays")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the answers")
    parser.add_argument("--label", action="append", default=[], metavar="NAME", help="only boards with this label")
    parser.add_argument("--preprocess", metavar="NAME", help="how photos become inputs, where the network is a file")
    parser.add_argument("--paced", action="store_true", help="virtual boards take an Orin's time and compute nothing")
    parser.add_argument("--slice", type=float, default=10.0, metavar="S", help="seconds that a shard takes (10)")
    parser.add_argument("--no-restart", action="store_true", help="leave lost boards alone")


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plan", type=Path, action="append", required=True, metavar="FILE", help="plan file; again: more"
    )
    parser.add_argument("--modes", nargs="*", default=[], metavar="MODE", help="power modes; without: the plans' own")
    parser.add_argument("--scenario", choices=SCENARIOS, default="offline")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="length of each run (10)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder for records, on the boards"
    )
    parser.add_argument("--label", action="append", default=[], metavar="NAME", help="only boards with this label")


def _add_tune(parser: argparse.ArgumentParser) -> None:
    from orin.cli.tune import add_search_arguments

    add_search_arguments(parser)
    parser.add_argument(
        "--runs-folder", type=Path, default=Path("runs"), metavar="DIR", help="folder for records, on the boards"
    )
    parser.add_argument("--label", action="append", default=[], metavar="NAME", help="only boards with this label")


def _up(options: argparse.Namespace) -> int:
    from orin.fleet.cluster import Starter, up
    from orin.fleet.inventory import load_inventory

    talk = Talk(options.quiet)
    inventory = load_inventory(options.inventory)
    up(inventory, Starter(inventory), talk.say)
    return _show(options, inventory)


def _status(options: argparse.Namespace) -> int:
    from orin.fleet.inventory import load_inventory

    return _show(options, load_inventory(options.inventory))


def _show(options: argparse.Namespace, inventory: Inventory) -> int:
    from orin.fleet.cluster import Processes, offers
    from orin.fleet.dask import connect

    processes = Processes.load(inventory)
    with connect(inventory, processes.address) as client:
        present = offers(client)
    if options.json:
        boards = {
            member.name: {"host": member.host, "board": member.board, **_offer(present.get(member.name))}
            for member in inventory.members
        }
        print_json({"scheduler": processes.address, "boards": boards})
    else:
        rows = [(m.name, m.host, *_row(present.get(m.name))) for m in inventory.members]
        print_table(f"fleet {inventory.path.stem} at {processes.address}", rows, ("board", "host", "state", "offers"))
    return 0 if len(present) == len(inventory.members) else 1


def _offer(offer: Offer | None) -> dict[str, Any]:
    if offer is None:
        return {"present": False}
    return {"present": True, "resources": dict(offer.resources), "facts": dict(offer.facts)}


def _row(offer: Offer | None) -> tuple[str, str]:
    if offer is None:
        return "lost", "–"
    return offer.provenance, " ".join(f"{name}={count:g}" for name, count in offer.resources.items())


def _run(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from orin.fleet.cluster import Processes, Starter, offers
    from orin.fleet.crew import DaskCrew
    from orin.fleet.dask import connect
    from orin.fleet.inventory import fitting, load_inventory, needs
    from orin.fleet.library import Library
    from orin.fleet.run import Ears, Order, Run
    from orin.fleet.shards import Rules
    from orin.fleet.watch import Watch

    talk = Talk(options.quiet)
    inventory, library = load_inventory(options.inventory), Library(options.data)
    job = _job(options, library.folder if library.kind == "photos" else None)
    processes = Processes.load(inventory)
    with connect(inventory, processes.address) as client:
        offered = offers(client)
        fit = fitting(offered, needs(job.plan) | dict.fromkeys(options.label, 1.0))
        lost = [] if options.label else [each.name for each in inventory.members if each.name not in offered]
        inventory = _only(inventory, [*fit, *lost], talk)
        crew = DaskCrew(client, job)
        order = Order(job, library, options.output, Rules(slice_s=options.slice))
        with Watch(Starter(inventory), processes, talk.say) as watch:
            ears = Ears(talk.say, talk.progress)
            if not options.no_restart:
                ears = replace(ears, lost=watch.lost, found=watch.found)
                for name in lost:
                    watch.lost(name)
            try:
                summary = Run(order, inventory, crew, ears).answer()
            finally:
                crew.close()
    _print(options, summary, {name: offered[name] for name in fit})
    return 0


def _job(options: argparse.Namespace, photos: Path | None) -> Job:
    from dataclasses import replace

    from orin.bench import photos_in
    from orin.build import CALIBRATION_IMAGES
    from orin.fleet.station import Job
    from orin.plan import Plan

    plan = Plan.load(options.plan)
    plan = replace(plan, preprocess=options.preprocess or plan.preprocess)
    if plan.calibration is not None:
        plan = replace(plan, calibration=str(Path(plan.calibration).resolve()))
    needed = plan.precision == "int8" and plan.calibration is None
    used = photos_in(photos)[:CALIBRATION_IMAGES] if needed else ()
    return Job(plan, "speed" if options.paced else "results", tuple(map(Path.resolve, used)))


def _only(inventory: Inventory, names: list[str], talk: Talk) -> Inventory:
    """Return the inventory of the boards that take part; the others are named."""
    from dataclasses import replace

    left = [member.name for member in inventory.members if member.name not in names]
    if left:
        talk.say(f"not used: {', '.join(left)} (not there, or without what the plan needs)")
    return replace(inventory, members=tuple(member for member in inventory.members if member.name in names))


def _print(options: argparse.Namespace, summary: dict[str, Any], offered: Mapping[str, Offer]) -> None:
    from orin.fleet.worker import facts_of

    provenances = sorted({offer.provenance for offer in offered.values()})
    kinds = facts_of(offered)
    if options.json:
        print_json({"output": str(options.output), "provenance": provenances, "kinds": kinds, **summary})
        return
    rows = [
        (name, str(values["samples"]), _rate(values["samples_per_s"]), str(values["losses"]))
        for name, values in summary["boards"].items()
    ]
    speed = f"in {summary['seconds']:.1f} s" if summary["samples_per_s"] else "(no speed is reported)"
    title = f"{summary['samples']} samples {speed} -> {options.output} ({', '.join(provenances)})"
    print_table(title, rows, ("board", "samples", "samples/s", "lost"))
    for name, values in summary["boards"].items():
        if values["pace"]:
            print(f"{name}: {values['pace']}")
    if summary["spread"] and len(kinds) == 1:
        print(f"between boards: {summary['spread']['cv']:.1%} (coefficient of variation)")
    if summary["repeated"] or summary["skipped"]:
        print(f"answered twice and counted once: {summary['repeated']}; skipped: {summary['skipped']}")


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _sweep(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from orin.bench import Bench, check_seconds
    from orin.fleet.cluster import Processes, offers
    from orin.fleet.dask import connect
    from orin.fleet.inventory import fitting, load_inventory, needs
    from orin.fleet.run import spread
    from orin.fleet.sweep import one_kind, sweep
    from orin.plan import Plan
    from orin.sweep import candidates

    talk = Talk(options.quiet)
    wanted = candidates([(path.stem, Plan.load(path)) for path in options.plan], options.modes)
    bench = Bench(options.scenario, check_seconds(options.seconds), options.runs.resolve())
    inventory = load_inventory(options.inventory)
    found = []
    with connect(inventory, Processes.load(inventory).address) as client:
        offered = offers(client)
        most = {name: max(needs(each.plan).get(name, 0.0) for each in wanted) for name in ("GPU", "DLA")}
        names = one_kind(offered, fitting(offered, most | dict.fromkeys(options.label, 1.0)))
        for measured in sweep(client, names, wanted, bench):
            talk.say(f"{measured.name} on {measured.board}: {measured.failure or 'done'}")
            found.append(measured)
    rates = [m.result["samples_per_s"] for m in found if m.reference and m.result and m.result["samples_per_s"]]
    if options.json:
        print_json({"boards": names, "measured": [asdict(m) for m in found], "spread": spread(rates)})
        return 0
    rows = [(m.name, m.board, *_figures(m.result, m.failure)) for m in sorted(found, key=lambda m: m.name)]
    print_table(f"{len(found)} runs on {len(names)} boards", rows, ("candidate", "board", "samples/s", "W", "kind"))
    if between := spread(rates):
        print(f"between boards ({wanted[0].name}): {between['cv']:.1%} (coefficient of variation of samples/s)")
    return 0


def _figures(result: dict[str, Any] | None, failure: str | None) -> tuple[str, str, str]:
    if result is None:
        return "–", "–", failure or "failed"
    module = (result["power_w"] or {}).get("module")
    return _rate(result["samples_per_s"]), quantity(module, "W"), result["provenance"]


def _tune(options: argparse.Namespace) -> int:
    from orin.bench import Bench
    from orin.cli.tune import run_tuning, tune_job
    from orin.fleet.cluster import Processes, offers
    from orin.fleet.dask import connect
    from orin.fleet.inventory import fitting, load_inventory
    from orin.fleet.tune import fleet_runner

    talk = Talk(options.quiet)
    inventory = load_inventory(options.inventory)
    job = tune_job(options)
    with connect(inventory, Processes.load(inventory).address) as client:
        offered = offers(client)
        names = fitting(offered, {"GPU": 1.0} | dict.fromkeys(options.label, 1.0))
        _only(inventory, names, talk)
        bench = Bench("offline", job.seconds_per_run, options.runs_folder.resolve())
        return run_tuning(options, job, fleet_runner(client, offered, names, bench), talk)


def _down(options: argparse.Namespace) -> int:
    from orin.fleet.cluster import Starter, down
    from orin.fleet.inventory import load_inventory

    talk = Talk(options.quiet)
    inventory = load_inventory(options.inventory)
    down(inventory, Starter(inventory), talk.say)
    if options.json:
        print_json({"inventory": str(inventory.path), "down": True})
    else:
        print(f"fleet {inventory.path.stem} is down")
    return 0
