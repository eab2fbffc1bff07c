"""`orin doctor`: what this machine is, has and lacks."""

from __future__ import annotations

import argparse

from orin.cli.output import Talk, add_output_arguments, print_json, print_table

MARKS = {True: "ok", False: "MISSING", None: ""}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_output_arguments(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command; exit code 1 where something is missing that this machine needs."""
    from dataclasses import asdict

    from orin.doctor import examine, healthy

    Talk(options.quiet).say("looking at this machine")
    facts = examine()
    well = healthy(facts)
    if options.json:
        print_json({"ok": well, "facts": [asdict(fact) for fact in facts]})
        return 0 if well else 1
    rows = []
    for fact in facts:
        rows.append((fact.name, MARKS[fact.ok], fact.value))
        if fact.mend:
            rows.append(("", "mend", fact.mend))
    print_table("this machine", rows)
    print("\nnothing is missing" if well else "\nsomething is missing: see the lines marked mend")
    return 0 if well else 1
