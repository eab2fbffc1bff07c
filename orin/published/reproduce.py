"""Published results against what the virtual Orin predicts of the same plans, row by row: simulated, errors shown.

A prediction is of the network's own graph, without its tail on the host (NMS, search of spans). Latencies and rates of
networks of varying length are scaled to the data set's mean sample, see `orin.parts`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orin.parts import LENGTHS, ONE
from orin.predict import predict_on
from orin.published import SAMPLES_PER_S, Generations, Predecessor, Published, Row, published, xavier
from orin.published.observed import part_name, row_workloads
from orin.soc import soc
from orin.virtual.predict import Options, Prediction
from power.quantity import ModuleQuantity, Quantity, WallQuantity
from power.wall import supply

SECONDS = 60.0  # of an Offline prediction: its steady state
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reproduced:
    """A published row and its prediction, in the row's unit; watts of the module and, where published, at the plug."""

    row: Row
    predicted: float
    u95: float
    module_w: ModuleQuantity
    wall_w: WallQuantity | None

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted / self.row.published - 1

    @property
    def wall_error(self) -> float | None:
        """Relative error of the watts at the plug; None where none were published."""
        return self.wall_w.value / self.row.wall_w - 1 if self.wall_w and self.row.wall_w else None

    @property
    def module_error(self) -> float | None:
        """Relative error of the module's watts; None where none were published."""
        return self.module_w.value / self.row.module_w - 1 if self.row.module_w else None

    def as_json(self) -> dict[str, Any]:
        """Return the row, both figures and the errors."""
        row = self.row
        named = {"id": row.id, "network": row.network, "board": row.board, "scenario": row.scenario, "role": row.role}
        figures = {"statistic": row.statistic, "unit": row.unit, "published": row.published}
        errors = {"predicted": self.predicted, "u95": self.u95, "error": self.error}
        wall = self.wall_w and _power_json(row.wall_w, self.wall_w, self.wall_error)
        module = row.module_w and _power_json(row.module_w, self.module_w, self.module_error)
        return {**named, **figures, **errors, "module": module, "wall": wall, "remark": row.remark}


def _power_json(published_w: float | None, predicted_w: Quantity, error: float | None) -> dict[str, Any]:
    return {"published_w": published_w, "predicted_w": predicted_w.as_json(), "error": error}


@dataclass(frozen=True)
class Summary:
    """Errors of the rows of one role, as shares of one: the median over networks of their medians, and the worst row.

    `inside` is the share of rows whose published figure lies in the prediction's 95 % interval.
    """

    quantity: str
    role: str
    rows: int
    networks: int
    median: float
    worst: float
    worst_id: str
    inside: float


@dataclass(frozen=True)
class Reproduction:
    """One published table against its predictions."""

    table: Published
    rows: tuple[Reproduced, ...]

    @property
    def summaries(self) -> list[Summary]:
        """Errors by quantity and role; rows aside count in none."""
        found = []
        for role in ("check", "fit"):
            rows = [row for row in self.rows if row.row.role == role]
            by_quantity: dict[str, list[_Error | None]] = {
                "speed": [_Error(row.row, row.error, row.u95 / row.predicted) for row in rows],
                "module W": [_power_error(row.row, row.module_w, row.module_error) for row in rows],
                "wall W": [_power_error(row.row, row.wall_w, row.wall_error) for row in rows],
            }
            for quantity, errors in by_quantity.items():
                if known := [error for error in errors if error]:
                    found.append(_summary(quantity, role, known))
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the table's name, rows and summaries."""
        return {
            "provenance": "simulated",
            "table": self.table.name,
            "title": self.table.title,
            "source": self.table.source,
            "stack": self.table.stack,
            "rows": [row.as_json() for row in self.rows],
            "summary": [vars(summary) for summary in self.summaries],
        }


def reproduce(name: str, progress: Progress = lambda done, total: None) -> Reproduction:
    """Predict every row of a published table; OrinError for an unknown one."""
    table = published(name)
    rows = []
    for done, row in enumerate(table.rows):
        progress(done, len(table.rows))
        rows.append(reproduced(row))
    progress(len(table.rows), len(table.rows))
    return Reproduction(table, tuple(rows))


def reproduced(row: Row) -> Reproduced:
    """Predict one published row."""
    prediction = _predict(row)
    length = LENGTHS.get(row.network, ONE)
    if row.statistic == SAMPLES_PER_S:
        predicted = prediction.samples_per_s / length.runs
    else:
        predicted = prediction.latency_ms[row.statistic] * length.runs
    share = prediction.samples_per_s_u95 / prediction.samples_per_s
    module_w = ModuleQuantity(prediction.module_w.value, prediction.module_w.u95)
    wall_w = supply(row.plan.stack).wall(module_w) if row.wall_w else None
    return Reproduced(row, predicted, predicted * share, module_w, wall_w)


def _predict(row: Row) -> Prediction:
    length = LENGTHS.get(row.network, ONE)
    work = row_workloads(row)
    work = replace(work, gpu=length.work(work.gpu))
    noise = row.statistic.startswith("p")  # percentiles of equal queries would all be the mean
    plan, options = replace(row.plan, network=part_name(row)), Options(seconds=SECONDS, noise=noise)
    return predict_on(plan, soc(row.board), row.scenario, work, options)


@dataclass(frozen=True)
class _Error:
    """One relative error, and the prediction's u95 relative to the prediction."""

    row: Row
    error: float
    u95: float

    @property
    def is_inside(self) -> bool:
        return abs(self.error) <= self.u95 * (1 + self.error)


def _power_error(row: Row, predicted_w: Quantity | None, error: float | None) -> _Error | None:
    if predicted_w is None or error is None:
        return None
    return _Error(row, error, predicted_w.u95 / predicted_w.value)


def _summary(quantity: str, role: str, errors: Sequence[_Error]) -> Summary:
    by_network: dict[str, list[float]] = {}
    for one in errors:
        by_network.setdefault(one.row.network, []).append(abs(one.error))
    worst = max(errors, key=lambda one: abs(one.error))
    return Summary(
        quantity=quantity,
        role=role,
        rows=len(errors),
        networks=len(by_network),
        median=statistics.median(map(statistics.median, by_network.values())),
        worst=worst.error,
        worst_id=worst.row.id,
        inside=sum(one.is_inside for one in errors) / len(errors),
    )


@dataclass(frozen=True)
class Ratio:
    """AGX Orin over AGX Xavier on one network: speed in MaxP, samples per joule at the plug in MaxQ."""

    network: str
    published_faster: float
    predicted_faster: float
    published_per_watt: float
    predicted_per_watt: float


@dataclass(frozen=True)
class Claim:
    """What NVIDIA said of the generation, what its own rows come to, and what the prediction does."""

    name: str
    claimed: float
    published: float
    predicted: float


@dataclass(frozen=True)
class Succession:
    """The generation claims, ratio per network: recorded Xavier rows against predicted Orin rows."""

    generations: Generations
    ratios: tuple[Ratio, ...]

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The three claims."""
        claimed, ratios = self.generations.claims, self.ratios
        faster = ([one.published_faster for one in ratios], [one.predicted_faster for one in ratios])
        per_watt = ([one.published_per_watt for one in ratios], [one.predicted_per_watt for one in ratios])
        return (
            Claim("faster, at most", claimed["most_faster"], *map(max, faster)),
            Claim("faster, on average", claimed["mean_faster"], *map(statistics.mean, faster)),
            Claim("per watt, at most", claimed["most_per_watt"], *map(max, per_watt)),
        )

    def as_json(self) -> dict[str, Any]:
        """Return ratios and claims."""
        return {
            "provenance": "simulated",
            "table": "xavier",
            "title": self.generations.title,
            "source": self.generations.source,
            "claims_source": self.generations.claims_source,
            "ratios": [vars(ratio) for ratio in self.ratios],
            "claims": [vars(claim) for claim in self.claims],
        }


def succession() -> Succession:
    """Set predicted AGX Orin rows against recorded AGX Xavier rows."""
    generations = xavier()
    table = published(generations.orin_rows)
    return Succession(generations, tuple(_ratio(one, table) for one in generations.rows))


def _ratio(old: Predecessor, table: Published) -> Ratio:
    maxp, maxq = (reproduced(table.row(f"{old.orin} {mode}")) for mode in ("MaxP", "MaxQ"))
    old_per_joule = old.maxq_samples_per_s / old.maxq_wall_w
    assert maxq.wall_w is not None and maxq.row.wall_w is not None
    return Ratio(
        network=old.network,
        published_faster=maxp.row.published / old.samples_per_s,
        predicted_faster=maxp.predicted / old.samples_per_s,
        published_per_watt=maxq.row.published / maxq.row.wall_w / old_per_joule,
        predicted_per_watt=maxq.predicted / maxq.wall_w.value / old_per_joule,
    )
