"""Cutting the DLA's layers into loadables: runs of layers that can each run as one piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Step:
    """A layer in the order of the network: whom it reads from, directly or through a shuffle that TensorRT inserts.

    `batch` is None for a layer of the GPU; layers of one loadable have the same.
    """

    name: str
    direct: tuple[str, ...]
    shuffled: tuple[str, ...] = ()
    batch: int | None = None


def partition(steps: Sequence[Step]) -> Groups:
    """Group the DLA's layers, steps in topological order: a layer joins the run before it unless it cannot.

    It cannot where the batch differs, or where it waits for a layer outside the run that waits for the run itself.
    Layers that do not touch join too: the Q, K and V projections of an attention end in one loadable (TensorRT 10.3
    on AGX Orin). Linear in the number of edges.
    """
    groups: list[list[str]] = []
    run: set[str] = set()
    behind: set[str] = set()  # layers outside the run that wait for it
    batch: int | None = None
    for step in steps:
        waits = not behind.isdisjoint((*step.direct, *step.shuffled)) or not run.isdisjoint(step.shuffled)
        if step.batch is None:
            if waits or not run.isdisjoint(step.direct):
                behind.add(step.name)
            continue
        if waits or not groups or step.batch != batch:
            groups.append([])
            run, behind, batch = set(), set(), step.batch
        groups[-1].append(step.name)
        run.add(step.name)
    return tuple(map(tuple, groups))


def keep_largest(groups: Groups, limit: int) -> Groups:
    """Return the largest groups up to the limit, the earlier one of two that are as large, in their order.

    Source: verbose log of TensorRT 10.3 for DETR, 16 of 162 groups kept.
    """
    largest = sorted(range(len(groups)), key=lambda index: (-len(groups[index]), index))[:limit]
    return tuple(groups[index] for index in sorted(largest))
