"""Replay of published grids: the board is a table of measured rows, so a search can ask for these plans alone.

YOLOv5s (Orin-X, batches 1 to 16 on the GPU and on a DLA) and ResNet-50 in separate trtexec processes on the
accelerators together (AGX Orin, MAXN). Rows come by number from the project's tables of published measurements.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orin.plan import Plan
from orin.predict import workloads
from orin.soc import AGX_ORIN_64GB_SOC as SOC
from orin.tune.measurement import Measurement
from orin.tune.objective import Objective
from orin.tune.planner import PlanModel
from orin.tune.search import Rules, Tuner
from orin.tune.space import Axes, Space
from power.quantity import Quantity

Rows = Mapping[str, dict[str, str]]
YOLO_BATCHES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Published:
    """A table of plans that were measured: samples per second, and watts where they were."""

    name: str
    base: Plan
    axes: Axes
    objective: str
    rates: Mapping[tuple[int, int, int], tuple[float, float | None]]  # by GPU batch, DLA batch, DLA cores


@dataclass(frozen=True)
class Replayed:
    """What the tuner took of a table: regret against its best entry, runs made, entries there are."""

    name: str
    regret: float
    runs: int
    entries: int
    chosen: str


def rows(folder: Path) -> Rows:
    """Return the published rows by number, of both tables; empty where the folder is absent."""
    found: dict[str, dict[str, str]] = {}
    for name in ("published_fit.csv", "published_check.csv"):
        if (folder / name).is_file():
            with (folder / name).open(newline="", encoding="utf-8") as file:
                found.update({row["id"]: row for row in csv.DictReader(file)})
    return found


def tables(found: Rows) -> list[Published]:
    """Lay the rows out as tables; none where there are no rows."""
    return [*_yolo(found), *_together(found)] if found else []


def replay(table: Published) -> Replayed:
    """Let the tuner choose from a table."""
    plan = table.base
    space = Space(plan, SOC, {plan.rewrites: workloads(plan)}, table.axes)
    tuner = Tuner(space, PlanModel(space), Objective(kind=table.objective), Rules())
    asked: set[tuple[int, int, int]] = set()
    runs = 0
    while (trial := tuner.propose()) is not None:
        key = _key(trial.plan)
        asked.add(key)
        runs += 1
        tuner.observe(trial, _measured(trial.plan, table.rates[key]))
    values = {key: _value(table.objective, row) for key, row in table.rates.items()}
    best = tuner.best
    chosen = _key(best.plan) if best else next(iter(asked))
    return Replayed(table.name, 1 - values[chosen] / max(values.values()), runs, len(values), str(chosen))


def _key(plan: Plan) -> tuple[int, int, int]:
    return plan.gpu_batch, plan.dla_batch if plan.dla_cores else 0, plan.dla_cores


def _value(objective: str, row: tuple[float, float | None]) -> float:
    rate, watts = row
    return rate / watts if objective == "efficiency" and watts else rate


def _measured(plan: Plan, row: tuple[float, float | None]) -> Measurement:
    """Published figures are rounded and come from one run: half a percent."""
    rate, watts = row
    share = {name: 1 / len(plan.accelerators) for name in plan.accelerators} if len(plan.accelerators) == 1 else {}
    return Measurement(
        samples_per_s=Quantity(rate, 0.005 * rate),
        module_w=Quantity(watts, 0.005 * watts) if watts else None,
        latency_ms=None,
        share=share,
        seconds=5.0,
    )


def _yolo(found: Rows) -> list[Published]:
    """GPU batches, and DLA batches on one core, each alone; latencies of a whole batch in ms."""
    base = Plan(network="yolov5s", dla_loop=1, gpu_depth=2, dla_depth=2)
    by_engine: dict[str, dict[int, float]] = {"GPU": {}, "DLA0": {}}
    for row in found.values():
        if row["network"] == "YOLOv5s" and row["device"].startswith("Orin-X") and row["engine"] in by_engine:
            batch = int(row["batch"] or 0)
            if batch in YOLO_BATCHES and row["metric"] == "latency" and row["context"] == "solo":
                by_engine[row["engine"]][batch] = batch / float(row["value"]) * 1e3
    gpu, dla = by_engine["GPU"], by_engine["DLA0"]
    one: Sequence[int] = (2,)
    alone = Axes(
        gpu_batch=tuple(sorted(gpu)), dla_cores=(0,), gpu_depth=tuple(one), dla_depth=tuple(one), dla_loop=(1,)
    )
    core = replace(alone, gpu_batch=(0,), dla_cores=(1,), dla_batch=tuple(sorted(dla)))
    gpu_rates = {(batch, 0, 0): (rate, None) for batch, rate in gpu.items()}
    dla_rates = {(0, batch, 1): (rate, None) for batch, rate in dla.items()}
    return [
        Published("YOLOv5s, GPU batches", base, alone, "throughput", gpu_rates),
        Published("YOLOv5s, DLA batches", base, core, "throughput", dla_rates),
    ]


def _together(found: Rows) -> list[Published]:
    """ResNet-50 at batch 1 with its fallback layers: rows 99 to 123, MAXN."""

    def rate(*ids: int) -> float:
        return sum(float(found[str(number)]["value"]) for number in ids)

    def watts(number: int) -> float:
        return float(found[str(number)]["power_W"])

    rates: dict[tuple[int, int, int], tuple[float, float | None]] = {
        (1, 0, 0): (rate(99), watts(99)),
        (0, 1, 1): (rate(103), watts(103)),
        (1, 1, 1): (rate(111, 113), watts(111)),
        (0, 1, 2): (rate(115, 117), watts(115)),
        (1, 1, 2): (rate(119, 121, 123), watts(119)),
    }
    base = Plan(network="resnet50", rewrites=(), tail="none")
    axes = Axes(gpu_batch=(0, 1), dla_batch=(1,), dla_loop=(1,), gpu_depth=(2,), dla_depth=(2,))
    return [
        Published(f"ResNet-50 in separate processes, {objective}", base, axes, objective, rates)
        for objective in ("throughput", "efficiency")
    ]
