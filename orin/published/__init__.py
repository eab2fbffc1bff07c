"""Published results as data: one YAML file a table, each row with the plan and the clocks that it was measured at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

from orin.errors import OrinError
from orin.plan import Plan

TABLES = ("mlperf-v2.0", "mlperf-v3.0", "mlperf-v3.1", "dla-table", "trtexec", "cudla")
XAVIER = "xavier"
SAMPLES_PER_S = "samples_per_s"


@dataclass(frozen=True)
class Row:
    """One published figure: `statistic` is samples_per_s, or mean, p90 or p99 of the query latency in ms.

    `role` is fit (among the data that parameters were fitted on), check, or aside (counts in no summary, see `remark`);
    `part` "backbone" is the network up to its feature maps, a number the side of its images. Watts are those of the
    same run, at the plug or of the module's rails.
    """

    id: str
    network: str
    scenario: str
    published: float
    plan: Plan
    board: str
    statistic: str
    role: str = "check"
    part: str = ""
    wall_w: float | None = None
    module_w: float | None = None
    remark: str = ""

    @property
    def unit(self) -> str:
        """The unit of the figure."""
        return "samples/s" if self.statistic == SAMPLES_PER_S else "ms"


@dataclass(frozen=True)
class Published:
    """One table of published rows: its stack is the software whose speed the rows have."""

    name: str
    title: str
    source: str
    stack: str
    rows: tuple[Row, ...]

    def row(self, identity: str) -> Row:
        """Return a row by its id."""
        return next(row for row in self.rows if row.id == identity)


@dataclass(frozen=True)
class Predecessor:
    """AGX Xavier in Offline on one network: MaxP samples per second, MaxQ samples per second and watts at the plug.

    `orin` begins the ids of AGX Orin's two rows beside them.
    """

    network: str
    orin: str
    samples_per_s: float
    maxq_samples_per_s: float
    maxq_wall_w: float


@dataclass(frozen=True)
class Generations:
    """AGX Xavier's rows, the table of AGX Orin's beside them, and what NVIDIA claims of the two."""

    title: str
    source: str
    orin_rows: str
    rows: tuple[Predecessor, ...]
    claims_source: str
    claims: Mapping[str, float] = field(hash=False)


@lru_cache(maxsize=8)
def published(name: str) -> Published:
    """Return a table by name; OrinError names the known ones."""
    if name not in TABLES:
        raise OrinError(f"published table {name!r} is not known; known: {', '.join((*TABLES, XAVIER))}")
    document = _read(name)
    return Published(
        name=name,
        title=document["title"],
        source=document["source"],
        stack=document["stack"],
        rows=tuple(_row(dict(entry), document) for entry in document["rows"]),
    )


def xavier() -> Generations:
    """Return AGX Xavier's recorded rows."""
    document = _read(XAVIER)
    claims = dict(document["claims"])
    return Generations(
        title=document["title"],
        source=document["source"],
        orin_rows=document["orin_rows"],
        rows=tuple(Predecessor(**entry) for entry in document["rows"]),
        claims_source=claims.pop("source"),
        claims=claims,
    )


def _read(name: str) -> dict[str, Any]:
    text = resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def _row(entry: dict[str, Any], document: Mapping[str, Any]) -> Row:
    clocks_mhz = entry.pop("clocks_mhz", None)
    mode = entry.pop("mode", None if clocks_mhz else "MAXN")
    plan = Plan(
        network=entry["network"],
        mode=mode,
        clocks_mhz=clocks_mhz,
        stack=document["stack"],
        **entry.pop("plan"),
    )
    usual = {"board": document["board"], "statistic": SAMPLES_PER_S if entry["scenario"] == "offline" else "mean"}
    return Row(**{**usual, **entry}, plan=plan)
