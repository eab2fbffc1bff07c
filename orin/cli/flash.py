"""`orin flash`: from NVIDIA's files to an AGX Orin developer kit that has booted; nothing is changed without --yes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from orin.cli.output import Talk, add_output_arguments, print_json, print_table
from orin.cli.setup_output import (
    ask_on_terminal,
    facts_rows,
    print_found,
    print_steps,
    print_taken,
    print_undoable,
    print_undone,
    step_json,
)

if TYPE_CHECKING:
    from orin.doctor import Fact
    from orin.flash.releases import Release
    from orin.flash.steps import Flash, User
    from orin.setup.job import Job

WORK = Path("~/orin-flash")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("jetpack", nargs="?", metavar="JETPACK", help="release, such as 6.2.2; without: what is there")
    parser.add_argument("--storage", choices=("emmc", "nvme"), default="emmc", help="where the system goes (emmc)")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help=f"folder for files and tree ({WORK})")
    add_file_arguments(parser)
    add_user_arguments(parser)
    parser.add_argument("--usb-instance", metavar="PORT", help="the board's port, such as 1-3, where there are several")
    parser.add_argument("--yes", action="store_true", help="do it: THE BOARD'S STORAGE IS ERASED")
    parser.add_argument("--again", action="store_true", help="flash another board with the same tree")
    parser.add_argument("--despite", action="append", default=[], metavar="CHECK", help="go on though this check fails")
    parser.add_argument("--dry-run", action="store_true", help="print every command, needs, success tests and undo")
    parser.add_argument("--undo", action="store_true", help="remove the unpacked tree and what was downloaded")
    parser.add_argument("--explain", type=Path, metavar="LOG", help="say what is known about the messages of a log")
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="where /sys and /proc lie (/)")
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments about NVIDIA's files."""
    parser.add_argument("--download", action="store_true", help="fetch NVIDIA's files and Ubuntu's packages")
    parser.add_argument("--bsp", type=Path, metavar="FILE", help="NVIDIA's Jetson Linux archive, where you have it")
    parser.add_argument("--rootfs", type=Path, metavar="FILE", help="its sample root file system")
    parser.add_argument("--hashes", type=Path, metavar="FILE", help="NVIDIA's list of hashes to check them against")


def add_user_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments about the board's first user."""
    parser.add_argument("--user", metavar="NAME", help="create this user, so that the first boot asks nothing")
    parser.add_argument("--hostname", default="orin", metavar="NAME", help="the board's name (orin)")
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="the user's password; without: asked for")
    parser.add_argument("--ssh-key", type=Path, metavar="FILE", help="public key that may log in as this user")
    parser.add_argument("--accept-license", action="store_true", help="accept NVIDIA's licence for the first user")


def handle(options: argparse.Namespace) -> int:
    """Run the command; exit code 1 where a host check fails or a log holds a known failure."""
    if options.explain:
        return _explain(options)
    if options.jetpack is None:
        return _overview(options)
    from orin.flash.releases import find_release
    from orin.flash.steps import flash_steps
    from orin.setup.place import local_job

    release = find_release(options.jetpack)
    folder = options.work.expanduser().absolute() / f"R{release.l4t}"
    steps = flash_steps(_flash(options, release))
    with local_job(steps, folder, "flash", Talk(options.quiet).say, ask_on_terminal()) as job:
        if options.undo:
            print_undone(options.json, job.undo()) if options.yes else print_undoable(options.json, job.undoable)
            return 0
        facts = _facts(options, release, folder)
        if not options.yes or options.dry_run:
            return _list(options, job, facts)
        _check(facts, options.despite)
        return _run(options, job, release, folder)


def _run(options: argparse.Namespace, job: Job, release: Release, folder: Path) -> int:
    from orin.flash.steps import AGAIN, USB_ADDRESS
    from orin.setup.job import as_json

    if options.again:
        job.forget(AGAIN)
    taken = job.run()
    if options.json:
        print_json({"folder": str(folder), "jetpack": release.jetpack, "steps": as_json(taken)})
    else:
        print_taken(f"{release} flashed from {folder}", taken)
        print(f"\nNext: orin provision --host {options.user or 'USER'}@{USB_ADDRESS}")
    return 0


def _flash(options: argparse.Namespace, release: Release) -> Flash:
    from orin.flash.releases import listed_hashes
    from orin.flash.steps import Flash

    return Flash(
        release=release,
        storage=options.storage,
        files=(options.bsp, options.rootfs),
        digests=listed_hashes(options.hashes) if options.hashes else None,
        download=options.download,
        user=_user(options) if options.user else None,
        accept_license=options.accept_license,
        instance=options.usb_instance,
        root=options.root,
    )


def _user(options: argparse.Namespace) -> User:
    from orin.flash.steps import User

    key = _line(options.ssh_key, "--ssh-key") if options.ssh_key else None
    return User(options.user, lambda: _password(options), options.hostname, key)


def _password(options: argparse.Namespace) -> bytes:
    from orin.errors import OrinError

    if options.password_file:
        return _line(options.password_file, "--password-file").encode() + b"\n"
    ask = ask_on_terminal()
    if ask is None:
        raise OrinError("--user needs a password, and here is no terminal to ask on: give --password-file")
    first, second = (ask(f"{words} for {options.user} on the board: ") for words in ("password", "once more"))
    if first != second or not first:
        raise OrinError("the two passwords differ, or are empty: nothing was set")
    return first.encode() + b"\n"


def _line(path: Path, option: str) -> str:
    from orin.errors import OrinError

    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if len(lines) != 1 or not lines[0].strip():
        raise OrinError(f"{option} {path} has {len(lines)} lines, expected one")
    if option == "--ssh-key" and "PRIVATE" in lines[0]:
        raise OrinError(f"{option} {path} is a private key, expected the public one beside it (.pub)")
    return lines[0]


def _facts(options: argparse.Namespace, release: Release, folder: Path) -> list[Fact]:
    from orin.flash.host import Host, examine_host, examine_usb

    host = Host(options.root)
    return [*examine_host(host, release, options.storage, folder), examine_usb(host, options.usb_instance)]


def _check(facts: list[Fact], despite: list[str]) -> None:
    """Refuse a host on which a flash breaks off; the board itself is looked at when it is its turn."""
    from orin.errors import OrinError

    wrong = [fact for fact in facts if fact.ok is False and fact.name != "board" and fact.name not in despite]
    if wrong:
        raise OrinError(f"{wrong[0].name}: {wrong[0].value}; {wrong[0].mend} (--despite {wrong[0].name!r} goes on)")


def _list(options: argparse.Namespace, job: Job, facts: list[Fact]) -> int:
    found = job.survey()
    well = all(fact.ok is not False for fact in facts)
    if options.json:
        checks = [vars(fact) for fact in facts]
        print_json({"ready": well, "checks": checks, "steps": [step_json(entry) for entry in found]})
        return 0 if well else 1
    print_table("this host", facts_rows(facts))
    print()
    print_found("steps", found)
    if options.dry_run:
        print_steps([entry.step for entry in found])
    print("\nNothing was done: --yes does it, --dry-run shows every command.")
    return 0 if well else 1


def _overview(options: argparse.Namespace) -> int:
    """Print the releases and the boards on USB."""
    from orin.flash.releases import releases
    from orin.flash.usb import boards_on_usb

    boards = boards_on_usb(options.root)
    if options.json:
        listed = [{"jetpack": r.jetpack, "l4t": r.l4t, "why_not": r.why_not, "note": r.note} for r in releases()]
        seen = [{"port": board.port, "product": board.product, "title": board.title} for board in boards]
        print_json({"releases": listed, "boards": seen})
        return 0
    rows = [(r.jetpack, r.l4t, r.note or "") for r in releases() if r.why_not is None]
    print_table("flashed onto an AGX Orin", rows, ("JetPack", "L4T", ""))
    reasons: dict[str, list[str]] = {}
    for release in releases():
        if release.why_not:
            reasons.setdefault(release.why_not, []).append(release.jetpack)
    print()
    print_table("not flashed", [(", ".join(names), reason) for reason, names in reasons.items()])
    print()
    print_table("on USB", [(str(board),) for board in boards] or [("no Jetson",)])
    return 0


def _explain(options: argparse.Namespace) -> int:
    from orin.setup.failures import explain

    failures = explain(options.explain.read_text(encoding="utf-8", errors="replace"), hung=True)
    if options.json:
        print_json({"failures": [vars(failure) for failure in failures]})
    elif failures:
        for failure in failures:
            rows = [("means", failure.cause), ("do", failure.remedy), ("source", failure.source)]
            print_table(f"{failure.line}{' (benign)' if failure.benign else ''}", rows)
    else:
        print("no message in it is known")
    return 1 if any(not failure.benign for failure in failures) else 0
