"""The report of segmented volumes: a slice of each with what was found drawn over it, and the figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orin.volumes.cases import Case

COLOURS = {1: "#39b58a", 2: "#f0a02c"}  # kidney, tumour
DARKEST, BRIGHTEST = -2.34, 2.64  # Hounsfield units -79 and 304, normalised
HEIGHT_IN, DPI = 3.0, 90


@dataclass(frozen=True)
class Overlay:
    """A picture of one case: a PNG in base64 and how to read it."""

    name: str
    png: str
    caption: str


def telling_slice(labels: NDArray[Any]) -> int:
    """Return the slice of labels [D,H,W] with most tumour, else with most kidney, else the middle one."""
    for label in sorted(COLOURS, reverse=True):
        counts = (labels == label).sum(axis=(1, 2))
        if counts.any():
            return int(counts.argmax())
    return len(labels) // 2


def overlay(case: Case, labels: NDArray[Any]) -> Overlay:
    """Draw a case's input, ground truth (where there is one) and labels side by side, in the slice that tells most."""
    from matplotlib.figure import Figure

    truth, name = case.truth, case.source.name
    at = telling_slice(labels if truth is None else truth)
    panels = {"input": None, **({} if truth is None else {"ground truth": truth[at]}), "result": labels[at]}
    figure = Figure(figsize=(HEIGHT_IN * len(panels), HEIGHT_IN), layout="constrained")
    for axes, (words, found) in zip(figure.subplots(1, len(panels)), panels.items()):
        axes.imshow(case.volume[at] * case.scale, cmap="gray", vmin=DARKEST, vmax=BRIGHTEST)
        if found is not None:
            axes.imshow(_coloured(found))
        axes.set_title(words, fontsize=9)
        axes.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.04)
    return Overlay(name, base64.b64encode(buffer.getvalue()).decode(), f"{name}, slice {at} of {len(labels)}")


def _coloured(labels: NDArray[Any]) -> NDArray[Any]:
    """Return labels [H,W] as half-transparent RGBA, background clear."""
    from matplotlib.colors import to_rgba

    picture = np.zeros((*labels.shape, 4))
    for label, colour in COLOURS.items():
        picture[labels == label] = to_rgba(colour, 0.55)
    return picture


def write_overlays(
    path: Path, heading: str, overlays: Sequence[Overlay], header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Write the page, which needs no other file; OSError where it cannot be written."""
    from jinja2 import Environment, StrictUndefined

    from orin.record import write_atomically

    source = resources.files("orin.report").joinpath("segment.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    legend: Mapping[str, str] = {"kidney": COLOURS[1], "tumour": COLOURS[2]}
    page = template.from_string(source).render(
        heading=heading, overlays=overlays, header=header, rows=rows, legend=legend
    )
    write_atomically(path, page)
