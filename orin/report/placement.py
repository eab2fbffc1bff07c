"""The report of a placement: the figures of its summary, and one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from orin.place import Answer, reasons, trtexec
from orin.report.drawing import drawing, legend, places

if TYPE_CHECKING:
    from dla.loadable import Loadable
    from dla.log_placement import Confusion
    from dla.placement import Placement

MIB = 1 << 20
POOLS = "SRAM / DRAM / weights"
BUILD_IT = "build it on the board (without a calibration cache trtexec makes the ranges up)"


@dataclass(frozen=True)
class Table:
    """A titled table with a header."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def heading(answer: Answer) -> str:
    """Return a line that says what was placed, and whether that is a prediction or what a build did."""
    kind = "PREDICTED" if answer.confusion is None else "FROM THE LOG OF A BUILD"
    question = answer.question
    return f"{kind}: {answer.graph.name}, TensorRT {answer.placement.tensorrt}, {question.precision}, DLA of Orin"


def summary(answer: Answer) -> list[tuple[str, str]]:
    """Return the rows that come first: what the DLA takes, and whether that leaves the GPU alone."""
    placement = answer.placement
    rows = [
        ("layers on the DLA", _on_dla(placement)),
        ("loadables", _loadables(placement)),
        ("layers on the GPU", _on_gpu(placement)),
        ("beside the GPU", side_by_side(placement)),
    ]
    if answer.confusion is None:
        reformats = len(placement.reformats)
        rows.insert(3, ("reformats", f"{reformats} tensors change their format between devices" if reformats else "0"))
    return rows


def side_by_side(placement: Placement) -> str:
    """Say whether engines on GPU, DLA0 and DLA1 really run at the same time: only where none of them has GPU layers."""
    if not placement.kept:
        return "no: the DLA runs nothing of this network"
    if placement.zero_gpu_layers:
        return "yes: no GPU layer inside, so GPU, DLA0 and DLA1 run three engines side by side"
    count = len(placement.gpu_layers)
    return f"no: {count} GPU layer{'s' * (count != 1)} inside the DLA's engine wait for the GPU's own work"


def _on_dla(placement: Placement) -> str:
    nodes = [layer for layer in placement.layers if layer.op]
    on_dla = sum(layer.final == "dla" for layer in nodes)
    folded = sum(layer.final == "folded" for layer in nodes)
    return f"{on_dla} of {len(nodes) - folded}" + (f" ({folded} more folded away)" if folded else "")


def _loadables(placement: Placement) -> str:
    candidates, kept = len(placement.candidates), len(placement.kept)
    if candidates == kept:
        return str(kept)
    return f"{kept} of {candidates}: a core takes no more, the smallest fall back to the GPU"


def _on_gpu(placement: Placement) -> str:
    inserted = sum(layer.final == "gpu" and not layer.op for layer in placement.layers)
    found = str(len(placement.gpu_layers))
    return found + (f", {inserted} of them shuffles that TensorRT inserts" if inserted else "")


def confusion_rows(found: Confusion) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and rows of predicted (down) against real (across), before and after the limit of loadables."""
    from dla.log_placement import DEVICES

    rows = [
        (name, ours, *(str(table.get((ours, theirs), 0)) for theirs in DEVICES))
        for name, table in (("before the limit", found.candidate), ("in the end", found.final))
        for ours in DEVICES
    ]
    if found.unsaid:
        rows.append(("the log does not say", str(len(found.unsaid)), "", "", ""))
    return ("", "predicted", "really dla", "really gpu", "really folded"), rows


def placement_page(answer: Answer) -> str:
    """Return the answer as HTML that needs no other file."""
    from jinja2 import Environment, StrictUndefined

    placement = answer.placement
    source = resources.files("orin.report").joinpath("placement.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(source).render(
        title=heading(answer),
        badge="predicted" if answer.confusion is None else "from a build log",
        name=answer.graph.name,
        model=answer.question.model,
        tensorrt=placement.tensorrt,
        precision=answer.question.precision,
        alone=placement.zero_gpu_layers and bool(placement.kept),
        summary=summary(answer),
        svg=drawing(answer.graph, placement),
        legend=legend(places(answer.graph, placement)),
        reasons=reasons(answer),
        tables=[table for table in _tables(answer) if table.rows],
        command=trtexec(answer),
        build_it=BUILD_IT,
    )


def _tables(answer: Answer) -> list[Table]:
    placement, confusion = answer.placement, answer.confusion
    tables = [_loadable_table(placement), _reformat_table(placement)]
    if confusion is not None:
        header, rows = confusion_rows(confusion)
        misses = [(miss.node, miss.op, miss.predicted, miss.real) for miss in confusion.misses]
        tables += [
            Table("Predicted against real, in nodes", header, rows),
            Table("Nodes that ran elsewhere than predicted", ("node", "operator", "predicted", "really"), misses),
        ]
    return tables


def _loadable_table(placement: Placement) -> Table:
    described = any(loadable.fusions for loadable in placement.kept)  # a log says nothing of what is inside
    header = ("", "layers", "from", "to", *(("fusions", "chained in SRAM") if described else ()), POOLS)
    rows = [_loadable_row(str(index), loadable, described) for index, loadable in enumerate(placement.kept, 1)]
    return Table("Loadables", header, rows)


def _loadable_row(number: str, loadable: Loadable, described: bool) -> tuple[str, ...]:
    inside = (str(len(loadable.fusions)), str(len(loadable.chained))) if described else ()
    ends = (loadable.nodes[0], loadable.nodes[-1])
    return (number, str(len(loadable.nodes)), *ends, *inside, _mib(tuple(loadable.pools_bytes.values())))


def _mib(sizes: Sequence[int]) -> str:
    return " / ".join(f"{size / MIB:g}" for size in sizes) + " MiB" if sizes else ""


def _reformat_table(placement: Placement) -> Table:
    rows = [(found.tensor, found.source, found.target, found.why) for found in placement.reformats]
    return Table("Reformats", ("tensor", "from", "to", "why"), rows)
