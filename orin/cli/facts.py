"""`orin networks` and `orin boards`: the facts that the toolkit holds."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from orin.cli.output import add_output_arguments, print_json, print_table


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments; the parser's name tells which of the two it is."""
    add_output_arguments(parser)
    parser.set_defaults(handler=networks if parser.prog.endswith("networks") else boards)


def networks(options: argparse.Namespace) -> int:
    """List the networks of the zoo, our graph's size beside the published one."""
    from engines.zoo import NETWORKS

    facts = [network_facts(name) for name in NETWORKS]
    if options.json:
        print_json({"networks": facts})
        return 0
    rows = [
        (
            fact["name"],
            fact["title"],
            "x".join(map(str, fact["input_shape"])),
            f"{fact['params'] / 1e6:.2f} M ({fact['published_params'] / 1e6:.2f} M)",
            f"{fact['gmacs']:.3f} ({fact['published_gmacs']:.3f})",
        )
        for fact in facts
    ]
    print_table(
        "networks: our graph, batch normalisation folded (as published)", rows, ("", "", "input", "parameters", "GMACs")
    )
    return 0


def network_facts(name: str) -> dict[str, Any]:
    """Return a zoo network's facts with parameters and GMACs of our graph, whose batch normalisation is folded."""
    from engines.zoo import counts, graph, network

    facts, counted = network(name), counts(graph(name))
    return {
        "name": facts.name,
        "title": facts.title,
        "input_shape": list(facts.input_shape),
        "classes": facts.classes,
        "params": counted.params,
        "published_params": facts.published_params,
        "gmacs": counted.macs / 1e9,
        "published_gmacs": facts.published_gmacs,
        "source": facts.source,
    }


def boards(options: argparse.Namespace) -> int:
    """List the boards with their accelerators and what each power mode makes of their clocks."""
    from orin.soc import SOCS

    facts = [board_facts(name) for name in SOCS]
    if options.json:
        print_json({"boards": facts})
        return 0
    for fact in facts:
        print_table(f"{fact['title']} ({fact['name']}, module {fact['module']})", _accelerator_rows(fact))
        print_table("power modes, clocks in MHz", _mode_rows(fact), _MODE_HEADER)
        print("".join(f"{note}\n" for note in fact["notes"]))
    return 0


def board_facts(name: str) -> dict[str, Any]:
    """Return what is known of a board; TOPS are dense INT8 at the clocks beside them."""
    from orin.soc import soc

    facts = soc(name)
    top = facts.max_clocks
    return {
        "name": facts.name,
        "title": facts.board.title,
        "module": facts.board.module,
        "sms": facts.sms,
        "dla_cores": facts.dla_cores,
        "dram_gib": facts.dram_bytes / 2**30,
        "dram_gb_per_s": facts.dram_peak_bytes_per_s(top) / 1e9,
        "gpu_tops": facts.gpu_peak_ops(top) / 1e12,
        "dla_tops": facts.dla_cores * facts.dla_peak_ops(top) / 1e12,
        "rails": {rail.name: rail.meaning for rail in facts.board.rails},
        "default_mode": facts.board.default_mode,
        "emc_steps_mhz": list(facts.emc_steps_mhz),
        "modes": {mode.name: _mode(name, mode.name) for mode in facts.board.modes},
        "notes": [note for mode in facts.board.modes for note in facts.notes(mode.name)],
    }


def _mode(board: str, mode: str) -> dict[str, float]:
    from orin.soc import soc

    facts = soc(board)
    clocks = facts.clocks(mode)
    ops = facts.gpu_peak_ops(clocks) + facts.dla_cores * facts.dla_peak_ops(clocks)
    return {**asdict(clocks), "tops": ops / 1e12}


def _accelerator_rows(fact: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("GPU", f"{fact['sms']} SMs, {fact['gpu_tops']:.1f} TOPS (dense INT8)"),
        ("DLA", f"{fact['dla_cores']} cores, {fact['dla_tops']:.1f} TOPS together (dense INT8)"),
        ("DRAM", f"{fact['dram_gib']:.0f} GiB, {fact['dram_gb_per_s']:.1f} GB/s, EMC steps {_steps(fact)} MHz"),
        ("rails", ", ".join(fact["rails"])),
        ("", ""),
    ]


def _steps(fact: dict[str, Any]) -> str:
    return ", ".join(f"{mhz:g}" for mhz in fact["emc_steps_mhz"])


_MODE_HEADER = ("", "GPU", "SMs", "DLA", "EMC", "CPU", "cores", "TOPS")


def _mode_rows(fact: dict[str, Any]) -> list[tuple[str, ...]]:
    keys = ("gpu_mhz", "sms", "dla_mhz", "emc_mhz", "cpu_mhz", "cpus")
    return [
        (
            name + (" (default)" if name == fact["default_mode"] else ""),
            *(f"{values[key]:g}" for key in keys),
            f"{values['tops']:.1f}",
        )
        for name, values in fact["modes"].items()
    ]
