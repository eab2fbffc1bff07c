"""Measured times as the fit reads them: rows of the published tables, and an owner's own run folders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from engines.engine import Workload
from orin.errors import OrinError
from orin.mlperf import MULTISTREAM_SAMPLES
from orin.parts import LENGTHS, ONE
from orin.plan import Plan
from orin.predict import predict_on, workloads
from orin.published import TABLES, Row, published
from orin.record import RunRecord, load_record
from orin.soc import GPU, soc
from orin.virtual.fit import ROW_SD, Observation
from orin.virtual.model import CostModel, EngineShape, clocks_of
from orin.virtual.predict import Workloads, plan_shapes

TOGETHER_SD = 0.03  # of a time that others' traffic stretched and the model took off again
LEAST_ITEMS = 4  # work items: fewer say nothing of a steady state
BACKBONE = "backbone"
NORMAL = {"mean": 0.0, "p50": 0.0, "p90": 1.2816, "p99": 2.3263}  # quantiles in standard deviations
QUERIES = {"singlestream": 1, "multistream": MULTISTREAM_SAMPLES}


def published_rows(roles: Iterable[str] = ("fit",)) -> list[Observation]:
    """Return the solo rows of the published tables that have one of the roles: one kind of accelerator at work."""
    wanted = set(roles)
    rows = [row for name in TABLES for row in published(name).rows if row.role in wanted]
    return [observation(row) for row in rows if not (row.plan.gpu_batch and row.plan.dla_cores)]


def observation(row: Row) -> Observation:
    """Return a published row of one kind of accelerator as a measured time."""
    plan, board = row.plan, soc(row.board)
    device = GPU if plan.gpu_batch else "dla"
    work = row_workloads(row)
    length = LENGTHS.get(row.network, ONE)
    batch = plan.gpu_batch or plan.dla_batch
    shape = EngineShape(part_name(row), device, batch, plan.precision, length.work(work.gpu), sparse=plan.sparsity)
    if device != GPU:
        shape = replace(shape, workload=work.dla, gpu_layers=work.dla_gpu_layers)
    if row.scenario == "offline":
        milliseconds, enqueues = 1e3 * batch * max(1, plan.dla_cores) / row.published, length.runs
    else:
        milliseconds, enqueues = row.published, length.runs * -(-QUERIES[row.scenario] // batch)
    return Observation(
        name=f"{plan.stack} {row.id}",
        shape=shape,
        soc=board,
        clocks=clocks_of(plan, board),
        stack=plan.stack,
        milliseconds=milliseconds * float(np.exp(-NORMAL.get(row.statistic, 0.0) * 0.005)),
        samples=min(batch, QUERIES.get(row.scenario, batch)),
        enqueues=enqueues,
        submits=row.scenario != "offline",
        sd=float(np.hypot(ROW_SD, rounding(row.published))),
    )


def part_name(row: Row) -> str:
    """Return the name of what a row ran: a network cut short is one of its own."""
    return f"{row.network}-{row.part}" if row.part == BACKBONE else row.network


def rounding(value: float) -> float:
    """Standard deviation of the logarithm of a figure that was rounded to a whole number; 0 where it was not."""
    return 1 / np.sqrt(12) / value if value == round(value) else 0.0


def row_workloads(row: Row) -> Workloads:
    """Return what the engines behind a published row held."""
    return _workloads(row.network, row.part, row.plan.dla_cores > 0, row.plan.rewrites)


@lru_cache(maxsize=64)
def _workloads(network: str, part: str, dla: bool, rewrites: tuple[str, ...]) -> Workloads:
    if part:
        whole = _part(network, part)
        return Workloads(whole, whole)
    return workloads(Plan(network=network, dla_cores=2 if dla else 0, rewrites=rewrites))


def _part(network: str, part: str) -> Workload:
    """A network up to its feature maps ("backbone"), or at another size of its images ("672")."""
    from engines.graph import read_graph
    from engines.zoo import backbone, model

    if part == BACKBONE:
        return read_graph(backbone(network, with_weights=False), network).workload
    whole = model(network, with_weights=False)
    name = whole.graph.input[0].name
    shapes: Mapping[str, tuple[int, ...]] = {name: (1, 3, int(part), int(part))}
    return read_graph(whole, network, shapes=shapes).workload


def observations(folder: Path) -> list[Observation]:
    """Return what an owner's runs measured, from a run's folder or a folder of them (`runs/`, an unpacked self-test).

    Runs on a virtual board, accuracy runs, unfinished ones and those of Server are left out; OrinError where none
    remains.
    """
    records = [load_record(path.parent) for path in sorted(folder.rglob("record.json"))]
    used = [record for record in records if _is_usable(record)]
    found = [one for record in used for one in _observations(record)]
    if not found:
        raise OrinError(
            f"{folder} has {len(records)} run records, none of a finished performance run on a real board: "
            "give the folder of `orin bench` or `orin selftest` runs"
        )
    return found


def _is_usable(record: RunRecord) -> bool:
    values = record.values
    wanted = {"status": "finished", "provenance": "measured", "mode": "performance"}
    return all(values.get(name) == value for name, value in wanted.items()) and record["scenario"] != "server"


def _observations(record: RunRecord) -> list[Observation]:
    """Each accelerator's time for a full batch; what sharing the board costs it is taken off as the model has it."""
    plan, board = Plan.loads(json.dumps(record["plan"]), str(record.folder)), soc(record["soc"])
    work, clocks = workloads(plan), clocks_of(plan, board)
    model = CostModel(board, clocks, plan.stack)
    shapes = plan_shapes(plan, board, work)
    together = predict_on(plan, board, record["scenario"], work) if len(shapes) > 1 else None
    found = []
    for accelerator, shape in shapes.items():
        samples = min(shape.batch, QUERIES.get(record["scenario"], shape.batch))
        enqueues = -(-QUERIES.get(record["scenario"], samples) // samples)
        milliseconds = _batch_ms(record, accelerator, samples * enqueues)
        if milliseconds is None:
            continue
        if together and together.share[accelerator]:
            per_batch_ms = 1e3 * samples / (together.samples_per_s * together.share[accelerator])
            milliseconds *= model.cost(shape, samples).solo_ns * 1e-6 / per_batch_ms
        found.append(
            Observation(
                name=f"{record['id']} {accelerator}",
                shape=shape,
                soc=board,
                clocks=clocks,
                stack=plan.stack,
                milliseconds=milliseconds,
                samples=samples,
                enqueues=enqueues,
                submits=record["scenario"] != "offline",
                sd=ROW_SD if together is None else TOGETHER_SD,
            )
        )
    return found


def _batch_ms(record: RunRecord, accelerator: str, samples: int) -> float | None:
    """Time of so many samples: between completions in Offline, from issue to completion in streams; None: too few."""
    own = sorted((b for b in record.batches if b.accelerator == accelerator), key=lambda batch: batch.end_ns)
    if len(own) < LEAST_ITEMS:
        return None
    if record["scenario"] != "offline":
        return float(np.mean([batch.end_ns - batch.begin_ns for batch in own])) * 1e-6
    span_ns = own[-1].end_ns - own[0].end_ns
    return span_ns * samples / sum(batch.samples for batch in own[1:]) * 1e-6
