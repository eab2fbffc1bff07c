"""Fit the virtual Orin to published rows, show parameters and errors; --write keeps them, --records fits one board.

Rows: those of `orin/published` with role "fit" (from published_fit.csv and mlperf_v3.0_gpu_only.csv; neither
published_check.csv nor mlperf_v2.0.csv is fitted, but for two rows of the latter that the former holds too). Speed is a
maximum a posteriori estimate by least squares, all networks at once; power follows in `fit_power`.
`--left-out` also fits without each network, and without each of its modes, and says how far off those rows come out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from common import SHARED
from fit_power import fit_power

from orin.errors import OrinError
from orin.published.observed import published_rows
from orin.virtual.fit import Observation, Prior, fit, refit
from orin.virtual.parameters import (
    PARAMETERS_PATH,
    Parameters,
    document_of,
    load_parameters,
    parameters_of,
    save_document,
)


@dataclass(frozen=True)
class LeftOut:
    """A row that was not fitted: how it was left out, and the logarithm of predicted over published time."""

    how: str
    row: Observation
    error: float
    sd: float


def blank(parameters: Parameters) -> Parameters:
    """Return parameters that know no network, so that one that is left out cannot leak in."""
    none = {
        name: replace(fit, factors={}, measured=frozenset(), stacks=frozenset(), spread={})
        for name, fit in parameters.networks.items()
    }
    return replace(parameters, networks=none)


def left_out_networks(start: Parameters, prior: Prior, rows: Sequence[Observation]) -> list[LeftOut]:
    """Fit without each network in turn; trtexec-10.3's GPU rows tell nothing, their stack's prior is one of them."""
    found = []
    for network in dict.fromkeys(row.shape.network for row in rows):
        found += _without(start, prior, rows, [row for row in rows if row.shape.network == network], "network")
    return [one for one in found if (one.row.stack, one.row.shape.device) != ("trtexec-10.3", "gpu")]


def left_out_modes(start: Parameters, prior: Prior, rows: Sequence[Observation]) -> list[LeftOut]:
    """Fit without each clock setting of each network and accelerator that has rows at another one."""
    found = []
    groups: dict[tuple[str, str], list[Observation]] = {}
    for row in rows:
        groups.setdefault((row.shape.network, row.shape.device), []).append(row)
    for own in groups.values():
        modes = dict.fromkeys((row.soc.name, row.clocks) for row in own)
        for mode in modes if len(modes) > 1 else ():
            out = [row for row in own if (row.soc.name, row.clocks) == mode]
            found += _without(start, prior, rows, [row for row in out if _has_kin(row, out, rows)], "mode")
    return found


def _has_kin(row: Observation, out: Sequence[Observation], rows: Sequence[Observation]) -> bool:
    """Say whether a row's precision on its stack is among the rows that stay: else more than a mode is left out."""
    away = {id(one) for one in out}
    kin = [(one.stack, one.shape.device, one.shape.precision) for one in rows if id(one) not in away]
    return (row.stack, row.shape.device, row.shape.precision) in kin


def left_out_rows(start: Parameters, prior: Prior, rows: Sequence[Observation]) -> list[LeftOut]:
    """Return every row, left out with its mode and with its network; `start` only shortens the search."""
    return [*left_out_modes(start, prior, rows), *left_out_networks(start, prior, rows)]


def _without(
    start: Parameters, prior: Prior, rows: Sequence[Observation], out: Sequence[Observation], how: str
) -> list[LeftOut]:
    if not out:
        return []
    away = {id(row) for row in out}
    fitted = fit(blank(start), [row for row in rows if id(row) not in away], prior, start)
    print(f"  without {how} of {out[0].name} ({len(out)} rows)", file=sys.stderr)
    return [LeftOut(how, row, row.error(fitted), speed_sd(fitted, row)) for row in out]


def speed_sd(parameters: Parameters, row: Observation) -> float:
    """Standard deviation that the model gives a row's logarithm."""
    from orin.virtual.model import CostModel

    return CostModel(row.soc, row.clocks, row.stack, parameters).speed_sd(row.shape)


def spreads(left: Sequence[LeftOut]) -> dict[str, float]:
    """Return the standard deviations that make 80 % intervals hold 80 % of the rows left out, by accelerator.

    A row that a network leaves out gives the whole spread; one that a mode leaves out what its factors do not explain.
    """
    found = {}
    for device in ("gpu", "dla"):
        for how, name in (("network", "unmeasured"), ("mode", "measured")):
            errors = [abs(one.error) for one in left if (one.row.shape.device, one.how) == (device, how)]
            if errors:
                found[f"{device}_{name}_sd"] = float(np.quantile(errors, 0.8)) / 1.2816
    return found


def show(parameters: Parameters, prior: Prior, rows: Sequence[Observation]) -> None:
    """Print what moved, and every fitted row."""
    sds = np.sqrt(np.diag(parameters.belief.covariance))
    before = dict(zip(prior.names, np.exp(prior.mean)))
    for name, sd in zip(parameters.belief.names, sds):
        print(f"{name:44} {before.get(name, 1.0):9.4g} -> {parameters.value(name):9.4g}  sd {sd:.0%}")
    for row in rows:
        print(f"{row.name:46} {row.milliseconds:10.3f} ms  {100 * np.expm1(row.error(parameters)):+6.1f} %  fitted")


def show_left_out(left: Sequence[LeftOut]) -> None:
    """Print the rows left out and how many of them the 80 % intervals hold."""
    for one in left:
        print(f"{one.row.name:46} left out with its {one.how:8} {100 * np.expm1(one.error):+6.1f} %")


def main(argv: list[str] | None = None) -> int:
    """Fit, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the values into orin/virtual/parameters.yaml")
    parser.add_argument("--left-out", action="store_true", help="also fit without each network and each mode (minutes)")
    parser.add_argument(
        "--records", type=Path, metavar="DIR", help="folder of run folders: fit this board from there on"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="with --records: the parameter file to write")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args(argv)
    try:
        return _own_board(args) if args.records else _published(args)
    except OrinError as error:
        print(f"fit_virtual: {error}", file=sys.stderr)
        return 2


def _own_board(args: argparse.Namespace) -> int:
    from orin.published.observed import observations

    rows = observations(args.records)
    before = load_parameters()
    parameters = refit(before, rows)
    for row in rows:
        was, now = (100 * np.expm1(row.error(p)) for p in (before, parameters))
        print(f"{row.name:46} {row.milliseconds:10.3f} ms  {was:+6.1f} % -> {now:+6.1f} %", file=sys.stderr)
    out = args.out or args.records / "parameters.yaml"
    save_document(document_of(parameters, f"fitted on {len(rows)} measured times in {args.records}"), out)
    print(json.dumps({"rows": len(rows), "parameters": str(out)}) if args.json else f"wrote {out}")
    return 0


def _published(args: argparse.Namespace) -> int:
    if not SHARED.is_dir():
        raise OrinError(f"no data at {SHARED}: the fit needs ../shared/data beside the checkout")
    document = yaml.safe_load(PARAMETERS_PATH.read_text(encoding="utf-8"))
    rows, prior = published_rows(), Prior.read(document)
    parameters = fit(blank(parameters_of(document)), rows, prior)
    left = left_out_rows(parameters, prior, rows) if args.left_out else []
    if args.json:
        values = {name: parameters.value(name) for name in parameters.belief.names}
        shown = [{"row": one.row.name, "left_out": one.how, "error": float(np.expm1(one.error))} for one in left]
        print(json.dumps({"parameters": values, "left_out": shown}, indent=1))
    else:
        show(parameters, prior, rows)
        show_left_out(left)
    if args.write:
        document = document_of(parameters, "fitted on the rows with role fit in orin/published", document)
        for name, (value, source) in fit_power(document["power"], parameters).items():
            document["power"][name] = {"value": float(f"{value:.6g}"), "source": source}
        for name, value in spreads(left).items():
            source = "80 % of the rows left out lie in the 80 % interval: " + (
                "all rows of a network" if "un" in name else "a mode"
            )
            document["shared"][name] = {"value": float(f"{value:.4g}"), "source": source}
        save_document(document, PARAMETERS_PATH)
    return 0


if __name__ == "__main__":
    sys.exit(main())
