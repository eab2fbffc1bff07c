"""Options that make a Plan, shared by the commands that take one."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from orin.plan import AUTO_MEMORY, DEFAULT_STACK, MEMORY_KINDS, PRECISIONS, STACKS, TAILS, Plan

_FIELDS = {
    "gpu_batch": (int, "largest GPU batch; 0: no engine on the GPU"),
    "dla_batch": (int, "static DLA batch"),
    "dla_loop": (int, "DLA enqueues in one work item"),
    "dla_cores": (int, "DLA cores used: 0, 1 or 2"),
    "gpu_depth": (int, "work items in flight on the GPU"),
    "dla_depth": (int, "work items in flight on each DLA core"),
}


def add_plan_arguments(parser: argparse.ArgumentParser, network_default: str | None = None) -> None:
    """Add the network, `--plan FILE` and an option for each field that people change; options win over the file."""
    parser.add_argument(
        "network", nargs="?", help="zoo network (orin networks) or ONNX file" + _default(network_default)
    )
    parser.add_argument("--plan", type=Path, metavar="FILE", help="take everything from a plan file (YAML)")
    parser.add_argument("--weights", metavar="ONNX", help="checkpoint of a zoo network; without: seeded, untrained")
    parser.add_argument("--preprocess", metavar="NAME", help="how photos become inputs; without: the network's own way")
    parser.add_argument("--calibration", metavar="CACHE", help="TensorRT calibration cache with the INT8 ranges")
    parser.add_argument("--precision", choices=PRECISIONS, help="int8 (default), fp16 or fp32")
    for name, (kind, text) in _FIELDS.items():
        parser.add_argument("--" + name.replace("_", "-"), type=kind, metavar="N", help=text)
    parser.add_argument("--tail", choices=TAILS, help="where top-k, or decoding and NMS, behind the engines runs")
    kinds = (*MEMORY_KINDS, AUTO_MEMORY)
    parser.add_argument("--memory", choices=kinds, help="kind of shared memory (board only); auto: measured first")
    parser.add_argument("--stack", choices=STACKS, help=f"software whose speed the virtual board has ({DEFAULT_STACK})")


def _default(network: str | None) -> str:
    return f"; without: {network}" if network else ""


def plan_from(options: argparse.Namespace) -> Plan:
    """Return the plan of a command line: the file's fields, then the options that were given."""
    plan = Plan.load(options.plan) if options.plan else Plan()
    names = [field.name for field in dataclasses.fields(Plan)]
    given: dict[str, Any] = {name: getattr(options, name, None) for name in names}
    return dataclasses.replace(plan, **{name: value for name, value in given.items() if value is not None})
