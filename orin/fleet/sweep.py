"""Candidates measured on many boards of one kind: the first on every board, the others where one is free."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orin.bench import Bench
from orin.errors import OrinError
from orin.fleet.inventory import Offer, needs
from orin.fleet.worker import facts_of, measure_plan
from orin.outcome import Candidate

RETRIES = 2  # on another board of the same kind

Result = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """What came of one candidate: the board that measured it, and its figures or why there are none."""

    name: str
    board: str
    result: Result | None
    failure: str | None = None
    reference: bool = False


def one_kind(offers: Mapping[str, Offer], names: Sequence[str]) -> list[str]:
    """Return the boards, which have to be of one kind; OrinError names two that are not."""
    kinds = list(facts_of({name: offers[name] for name in names}).items())
    if len(kinds) > 1:
        (first, some), (second, others) = kinds[:2]
        raise OrinError(
            f"{some[0]} and {others[0]} are of different kinds ({first}; {second}): what they measure cannot be "
            "compared; choose boards of one kind with --label"
        )
    return list(names)


def sweep(
    client: Any,
    names: Sequence[str],
    wanted: Sequence[Candidate],
    options: Bench,
    measure: Callable[[Candidate, Bench], tuple[str, Result]] = measure_plan,
) -> Iterator[Measured]:
    """Measure candidates on boards by name and yield what came of each as it comes; `options.runs` lies on the boards.

    A measurement has its board to itself; where a board is lost, another one repeats it.
    """
    from distributed import as_completed

    def ask(candidate: Candidate, boards: Sequence[str]) -> Any:
        whole = needs(candidate.plan) | {"GPU": 1.0}
        return client.submit(
            measure, candidate, options, workers=list(boards), resources=whole, pure=False, retries=RETRIES
        )

    first, *rest = wanted
    asked = {ask(first, [name]): (first, name) for name in names}
    asked |= {ask(candidate, names): (candidate, None) for candidate in rest}
    for future in as_completed(list(asked), loop=client.loop):
        candidate, pinned = asked[future]
        if future.status == "finished":
            board, values = future.result()
            yield Measured(candidate.name, board, values, reference=pinned is not None)
        else:
            reason = str(future.exception()) if future.status == "error" else future.status
            yield Measured(candidate.name, pinned or "–", None, reason, pinned is not None)
