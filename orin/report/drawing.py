"""A network drawn as inline SVG: nodes in topological layers from left to right, coloured by where they run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from dla.placement import Placement
from engines.graph import Graph, Layer

GPU_COLOUR = "#2f7d4f"
FOLDED_COLOUR = "#c3c8cf"
UNSAID_COLOUR = "#f1d9c6"
LOADABLE_COLOURS = ("#2c62a8", "#7a4fb0", "#1c8aa0", "#9a3f86", "#5a8fd6", "#40449c")

WIDTH = 900
CELL, WIDE_CELL, HEIGHT = 13, 40, 13  # of a node, of a run of them, of both
GAP_X, GAP_Y, GAP_BAND = 5, 7, 20
MOST_COLUMNS = 240  # of single nodes; runs of equal colour are drawn as one cell beyond
MOST_LANES = 24


@dataclass(frozen=True)
class Cell:
    """One rectangle: a node, or nodes of one place (`place` is "gpu", "folded" or a loadable's number from 1)."""

    place: str
    layers: tuple[Layer, ...]

    @property
    def title(self) -> str:
        """What hovering shows."""
        first, last = self.layers[0], self.layers[-1]
        where = f"DLA loadable {self.place}" if self.place.isdigit() else _WHERE[self.place]
        if first is last:
            return f"{first.name} ({first.op}): {where}"
        return f"{where}: {len(self.layers)} nodes, {first.name} ... {last.name}"


_WHERE = {"gpu": "GPU", "folded": "folded away", "unsaid": "the log does not say"}
_COLOURS = {"gpu": GPU_COLOUR, "folded": FOLDED_COLOUR, "unsaid": UNSAID_COLOUR}


def colour(place: str) -> str:
    """Return the colour of a place; loadables take turns."""
    return _COLOURS.get(place) or LOADABLE_COLOURS[(int(place) - 1) % len(LOADABLE_COLOURS)]


def places(graph: Graph, placement: Placement) -> dict[str, str]:
    """Return where each node of the graph runs, as `Cell.place` says it."""
    final: dict[str, str] = {layer.node: layer.final for layer in placement.layers}
    number = {node: str(index) for index, nodes in enumerate(placement.loadables, 1) for node in nodes}
    return {layer.name: number.get(layer.name) or final.get(layer.name, "unsaid") for layer in graph.layers}


def drawing(graph: Graph, placement: Placement) -> str:
    """Return the SVG element; constants that are folded away are left out, runs of equal colour drawn as one."""
    place = places(graph, placement)
    columns = _columns([layer for layer in graph.layers if place[layer.name] != "folded" or layer.inputs])
    single = len(columns) <= MOST_COLUMNS and max(map(len, columns), default=0) <= MOST_LANES
    cells = [[Cell(place[layer.name], (layer,)) for layer in column] for column in columns]
    return _svg(_Layout(cells if single else _merged(cells), CELL if single else WIDE_CELL))


def _columns(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Put each layer one column behind the last of those that it reads from."""
    depth: dict[str, int] = {}
    columns: list[list[Layer]] = []
    for layer in layers:
        column = max((depth[name] + 1 for name in layer.inputs if name in depth), default=0)
        depth.update(dict.fromkeys(layer.outputs, column))
        columns.extend([] for _ in range(column + 1 - len(columns)))
        columns[column].append(layer)
    return columns


def _merged(columns: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """Join the nodes of a column, then columns beside each other, that run in the same places."""
    merged = []
    for found, run in groupby(columns, key=lambda column: sorted({cell.place for cell in column})):
        cells = [cell for column in run for cell in column]
        merged.append([_joined(place, cells) for place in found])
    return merged


def _joined(place: str, cells: Sequence[Cell]) -> Cell:
    return Cell(place, tuple(layer for cell in cells if cell.place == place for layer in cell.layers))


class _Layout:
    """Positions of cells: columns in bands that fill the width, cells of a column in lanes."""

    def __init__(self, columns: Sequence[Sequence[Cell]], cell_width: int) -> None:
        self.width = cell_width
        self.columns = columns
        per_band = WIDTH // (cell_width + GAP_X)
        self.bands = [columns[start : start + per_band] for start in range(0, len(columns), per_band)]
        self._lane_of: dict[str, int] = {}  # of each tensor's maker

    def cells(self) -> Iterator[tuple[Cell, int, float, float]]:
        """Yield each cell with its band and its left upper corner."""
        top = 0.0
        for number, band in enumerate(self.bands):
            lowest = 0
            for position, column in enumerate(band):
                for lane, cell in self._lanes(column):
                    lowest = max(lowest, lane)
                    yield cell, number, position * (self.width + GAP_X), top + lane * (HEIGHT + GAP_Y)
            top += (lowest + 1) * (HEIGHT + GAP_Y) + GAP_BAND

    def _lanes(self, column: Sequence[Cell]) -> Iterator[tuple[int, Cell]]:
        """Keep each cell in the lane of what it reads first, where that is free."""
        taken: set[int] = set()
        for cell in column:
            wanted = next((self._lane_of[name] for name in cell.layers[0].inputs if name in self._lane_of), 0)
            free = (lane for lane in range(len(taken) + 1) if lane not in taken)
            lane = wanted if wanted not in taken else next(free)
            taken.add(lane)
            self._lane_of.update((name, lane) for layer in cell.layers for name in layer.outputs)
            yield lane, cell


def _svg(layout: _Layout) -> str:
    placed = list(layout.cells())
    height = max((y for _, _, _, y in placed), default=0.0) + HEIGHT
    rects = "".join(_rect(cell, x, y, layout.width) for cell, _, x, y in placed)
    label = "the network, its nodes from left to right, coloured by accelerator"
    return (
        f'<svg viewBox="-2 -10 {WIDTH + 4} {height + 14:g}" role="img" aria-label="{label}">'
        f'<g fill="none" stroke="#9aa0a8" stroke-width="1">{"".join(_edges(placed, layout.width))}</g>{rects}</svg>'
    )


def _rect(cell: Cell, x: float, y: float, width: int) -> str:
    count = len(cell.layers)
    text = ""
    if width == WIDE_CELL:
        text = f'<text x="{x + width / 2:g}" y="{y + 10:g}" fill="{_ink(cell.place)}">{count}</text>'
    return (
        f"<g><title>{escape(cell.title)}</title>"
        f'<rect x="{x:g}" y="{y:g}" width="{width}" height="{HEIGHT}" rx="2" fill="{colour(cell.place)}"/>{text}</g>'
    )


def _ink(place: str) -> str:
    return "#20242a" if place in ("folded", "unsaid") else "#fff"


def _edges(placed: Sequence[tuple[Cell, int, float, float]], width: int) -> Iterator[str]:
    """Draw what flows between cells of one band; a bow where it passes over a column."""
    maker = {name: index for index, (cell, *_) in enumerate(placed) for layer in cell.layers for name in layer.outputs}
    pairs = {
        (maker[name], index): None
        for index, (cell, *_) in enumerate(placed)
        for layer in cell.layers
        for name in layer.inputs
        if maker.get(name, index) != index
    }
    for source, target in pairs:
        (_, band, x0, y0), (_, other, x1, y1) = placed[source], placed[target]
        if band == other and x1 > x0:
            yield _edge(x0 + width, y0 + HEIGHT / 2, x1, y1 + HEIGHT / 2)


def _edge(x0: float, y0: float, x1: float, y1: float) -> str:
    if x1 - x0 <= GAP_X or y0 != y1:
        return f'<path d="M{x0:g} {y0:g}L{x1:g} {y1:g}"/>'
    roof = y0 - HEIGHT / 2
    return f'<path d="M{x0 - 3:g} {roof:g}Q{(x0 + x1) / 2:g} {roof - 9:g} {x1 + 3:g} {roof:g}"/>'


def legend(place_by_node: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return colour and words of each place that holds a node, the GPU first, then loadables by number."""
    counts: dict[str, int] = {}
    for place in place_by_node.values():
        counts[place] = counts.get(place, 0) + 1
    order = sorted(counts, key=lambda place: (place.isdigit(), int(place) if place.isdigit() else 0, place != "gpu"))
    return [(colour(place), _legend_words(place, counts[place])) for place in order]


def _legend_words(place: str, count: int) -> str:
    where = f"loadable {place}" if place.isdigit() else _WHERE[place]
    return f"{where}: {count:,}"
