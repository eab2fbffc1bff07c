"""Pictures of a run as inline SVG: the accelerators' timeline, power over time, latency histograms."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from orin.plan import Plan
from orin.record import RunRecord
from orin.report.figures import soc_of
from orin.report.text import number, title
from orin.report.trace import decimate, read_trace
from orin.results import batch_latencies_ms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"gpu": "#2f7d4f", "dla0": "#2c62a8", "dla1": "#c9731a"}
LIGHT = {"gpu": "#58a679", "dla0": "#6290cc", "dla1": "#e39a4f"}
RAIL_COLOURS = ("#2f7d4f", "#8a4fa3", "#c9731a", "#8b8f96", "#2c62a8", "#a33f4f")
INK = "#20242a"
WIDTH_IN = 7.2
MOST_BARS = 240  # of one accelerator in the timeline
ITEMS_SHOWN = 6  # work items of the slowest accelerator in the timeline
LABEL_ROOM = 0.05  # of the timeline: bars from here on hold their number
BINS = 48

STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa0a8",
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": "#4a5058",
    "ytick.color": "#4a5058",
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's own font
}


@dataclass(frozen=True)
class Picture:
    """An SVG element and how to read it."""

    svg: str
    caption: str


def pictures(record: RunRecord) -> list[Picture]:
    """Draw what a run has data for."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        drawn = [draw(record) for draw in (_timeline, _power, _latency)]
    return [picture for picture in drawn if picture is not None]


def new_figure(height_in: float) -> Figure:
    """Return an empty figure of a page's width; draw on it in the context of `STYLE`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def svg_element(figure: Figure, name: str) -> str:
    """Render as an element that scales with the page; `name` keeps its ids apart from other pictures'."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 role="img"', re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text))


def _spans_ms(record: RunRecord, accelerator: str) -> NDArray[Any]:
    """Begin, end (in ms since the first begin of the run) and samples of each work item, [N,3]."""
    first_ns = min(batch.begin_ns for batch in record.batches)
    return np.array(
        [
            ((b.begin_ns - first_ns) / 1e6, (b.end_ns - first_ns) / 1e6, b.samples)
            for b in record.batches
            if b.accelerator == accelerator
        ]
    ).reshape(-1, 3)


def timeline_window_ms(spans: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Return a stretch in the middle of the run: a few of the longest work items, not too many of the shortest."""
    medians = [float(np.median(part[:, 1] - part[:, 0])) for part in spans if len(part)]
    length = min(ITEMS_SHOWN * max(medians), MOST_BARS * max(min(medians), 1e-3))
    middle = max(part[:, 1].max() for part in spans if len(part)) / 2
    return middle - length / 2, middle + length / 2


def _timeline(record: RunRecord) -> Picture | None:
    if not record.batches:
        return None
    names = Plan(**record["plan"]).accelerators
    spans = [_spans_ms(record, name) for name in names]
    low, high = timeline_window_ms(spans)
    figure = new_figure(0.9 + 0.42 * len(names))
    axes = figure.add_subplot()
    axes.set(xlim=(0, high - low), autoscalex_on=False)
    for row, (name, part) in enumerate(zip(names, spans)):
        _bars(axes, row, name, part[(part[:, 1] > low) & (part[:, 0] < high)] - (low, low, 0))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"ms, from {number(low / 1000)} s after the first work item")
    axes.set_title(title(record, "accelerators at work"))
    caption = "Each bar is one work item, in the middle of the run; a number in it is how many samples it answers."
    return Picture(svg_element(figure, "timeline"), caption)


def _bars(axes: Any, row: int, name: str, items: NDArray[Any]) -> None:
    """Draw one accelerator's work items in two shades in turn, with their samples where a bar has room."""
    low, high = axes.get_xlim()
    shades = [(COLOURS[name], LIGHT[name])[k % 2] for k in range(len(items))]
    axes.broken_barh([(begin, end - begin) for begin, end, _ in items], (row - 0.34, 0.68), facecolors=shades)
    for begin, end, samples in items:
        if low <= begin and end <= high and end - begin > LABEL_ROOM * (high - low):
            axes.text((begin + end) / 2, row, f"{samples:.0f}", color="white", ha="center", va="center")


def _power(record: RunRecord) -> Picture | None:
    trace = read_trace(record.folder / "tegrastats.log")
    if trace is None:
        return None
    window_ns = record.values.get("window_ns")
    zero_ns = window_ns[0] if window_ns else int(trace.at_ns[0])
    at_s = decimate((trace.at_ns - zero_ns) / 1e9)
    figure = new_figure(3.0)
    axes = figure.add_subplot()
    if window_ns:
        axes.axvspan(0, (window_ns[1] - zero_ns) / 1e9, color="#eef3f8", lw=0)
    soc = soc_of(record)
    parts = {rail.name for rail in soc.board.rails if not rail.in_total} if soc else set()
    for colour, (name, watts) in zip(RAIL_COLOURS * 2, trace.rails_w.items()):
        axes.plot(at_s, decimate(watts), color=colour, lw=1.1, ls=":" if name in parts else "-", label=name)
    if np.isfinite(trace.module_w).any():
        axes.plot(at_s, decimate(trace.module_w), color=INK, lw=1.8, label="module")
    axes.set_ylim(bottom=0)
    axes.set_xlim(at_s[0], max(at_s[-1], at_s[0] + 1e-3))
    axes.set_xlabel("s since the measuring window began" if window_ns else "s")
    axes.set_ylabel("W")
    axes.set_title(title(record, "power"))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    return Picture(
        svg_element(figure, "power"), _power_caption(window_ns is not None, bool(parts & trace.rails_w.keys()))
    )


def _power_caption(windowed: bool, parts: bool) -> str:
    shaded = (
        "Shaded: the measuring window, LoadGen's power_begin to power_end." if windowed else "As tegrastats had it."
    )
    return shaded + (" Dotted: a part of another rail, not counted again in the module." if parts else "")


def _latency(record: RunRecord) -> Picture | None:
    streams = record["scenario"] in ("singlestream", "multistream")
    latencies = {name: batch_latencies_ms(record, name) for name in Plan(**record["plan"]).accelerators}
    latencies = {name: values for name, values in latencies.items() if len(values)}
    if not latencies:
        return None
    figure = new_figure(2.5)
    cells = figure.subplots(1, len(latencies), squeeze=False)[0]
    for axes, (name, values) in zip(cells, latencies.items()):
        _histogram(axes, name, values)
        axes.locator_params(axis="x", nbins=12 // len(latencies))
    cells[0].set_ylabel("queries" if streams else "work items")
    what = "latency of a query" if streams else "duration of a work item"
    figure.suptitle(title(record, what), x=0.012, ha="left", fontsize=10.5, fontweight="bold")
    caption = "Lines mark median and 99th percentile; what lies beyond the 99.8th is counted in the last column."
    return Picture(svg_element(figure, "latency"), caption)


def _histogram(axes: Any, name: str, values_ms: NDArray[Any]) -> None:
    low, median, p99, high = np.percentile(values_ms, (0, 50, 99, 99.8))
    spare = max(0.02 * high, 1e-6) if high - low < 0.02 * high else 0.0
    bins = min(BINS, 6 + round(2 * len(values_ms) ** 0.5))
    counts, edges = np.histogram(values_ms.clip(max=high), bins=bins, range=(low - spare, high + spare))
    axes.stairs(counts, edges, fill=True, color=COLOURS[name])
    axes.axvline(median, color=INK, lw=1)
    axes.axvline(p99, color=INK, lw=1, ls="--")
    axes.set_title(f"{name}: p50 {number(median)}, p99 {number(p99)} ms", fontsize=9, fontweight="normal", loc="left")
    axes.set_xlabel("ms")
    axes.set_ylim(bottom=0)
