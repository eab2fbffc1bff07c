"""The virtual Orin against every published row: errors of rows that were not fitted, every one of them printed.

Groups, and what was aimed at: measured networks at other batches, clocks and modes; GPU and both DLAs together;
networks left out of the fit altogether; watts; and how often the intervals held. Medians are of networks, over the
medians of their rows. Then the DLAs' share over the power modes, and what predictions take to compute. `--quick` leaves
out the refits.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import yaml
from common import arguments, emit
from fit_virtual import LeftOut, left_out_rows
from resolution import resolution_cases

from engines.zoo import NETWORKS
from orin.plan import Plan
from orin.predict import predict_on, workloads
from orin.published import TABLES
from orin.published.observed import published_rows
from orin.published.reproduce import Reproduced, reproduce
from orin.soc import AGX_ORIN_64GB_SOC as SOC
from orin.virtual.fit import Prior
from orin.virtual.parameters import PARAMETERS_PATH, load_parameters
from orin.virtual.predict import Options, Workloads

MODES = ("MAXN", "50W", "30W", "15W")
SHARE_NETWORKS = {"resnet50": (256, 2), "ssd-mobilenet": (128, 2), "ssd-resnet34": (8, 1), "retinanet": (4, 1)}
SETTINGS = 1000


@dataclass(frozen=True)
class Case:
    """One published figure that was not fitted, and the prediction: errors in percent, logarithms for the interval."""

    group: str
    network: str
    row: str
    error_pct: float
    inside_80: bool | None = None


@dataclass(frozen=True)
class Aim:
    """What a group's errors were to be, in percent: the median over networks, and the worst row."""

    group: str
    median_pct: float
    worst_pct: float


OTHER, TOGETHER, NEW, WATTS = "other batches, clocks, modes", "GPU + 2 DLA", "networks left out", "watts"
LATER, MODE = "MLPerf v2.0, stack without rows", "modes left out"
AIMS = (Aim(OTHER, 2, 6), Aim(TOGETHER, 4, 10), Aim(NEW, 15, 40), Aim(WATTS, 5, 12))
Z80 = 1.2816


def check_cases() -> list[Case]:
    """Rows of the published tables that no fit has seen."""
    cases = []
    for name in TABLES:
        for one in reproduce(name).rows:
            if one.row.role == "check":
                cases += _checked(name, one)
    return cases


def _checked(table: str, one: Reproduced) -> list[Case]:
    row = one.row
    name = f"{table} {row.id}"
    group = TOGETHER if row.plan.gpu_batch and row.plan.dla_cores else LATER if table == "mlperf-v2.0" else OTHER
    inside = abs(np.log1p(one.error)) <= Z80 * np.log1p(one.u95 / one.predicted) / 1.96
    cases = [Case(group, row.network, name, 100 * one.error, bool(inside))]
    for what, error in (("module", one.module_error), ("wall", one.wall_error)):
        if error is not None:
            cases.append(Case(WATTS, row.network, f"{name}, {what} W", 100 * error))
    return cases


def left_out_cases(left: Iterable[LeftOut]) -> list[Case]:
    """Rows of the fit, each predicted by a fit that had not seen its network, or its mode."""
    return [
        Case(
            NEW if one.how == "network" else MODE,
            f"{one.row.shape.network} {one.row.shape.device}",
            one.row.name,
            100 * float(np.expm1(one.error)),
            bool(abs(one.error) <= Z80 * one.sd),
        )
        for one in left
    ]


def summary(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Errors of each group beside what was aimed at, and the share of rows inside their 80 % interval."""
    aims = {aim.group: aim for aim in AIMS}
    lines = []
    for group in dict.fromkeys(case.group for case in cases):
        own = [case for case in cases if case.group == group]
        by_network: dict[str, list[float]] = {}
        for case in own:
            by_network.setdefault(case.network, []).append(abs(case.error_pct))
        held = [case.inside_80 for case in own if case.inside_80 is not None]
        aim, worst = aims.get(group), max(own, key=lambda case: abs(case.error_pct))
        lines.append(
            {
                "group": group,
                "rows": len(own),
                "networks": len(by_network),
                "median_pct": statistics.median(map(statistics.median, by_network.values())),
                "worst_pct": worst.error_pct,
                "worst_row": worst.row,
                "aim_median_pct": aim.median_pct if aim else None,
                "aim_worst_pct": aim.worst_pct if aim else None,
                "rows_over_aim": sum(abs(case.error_pct) > aim.worst_pct for case in own) if aim else None,
                "inside_80_pct": 100 * sum(held) / len(held) if held else None,
            }
        )
    return lines


def dla_shares() -> list[dict[str, Any]]:
    """The DLAs' share of the samples in each power mode, and what the board makes of it."""
    rows = []
    for network, (gpu_batch, dla_batch) in SHARE_NETWORKS.items():
        plan = Plan(network=network, gpu_batch=gpu_batch, dla_batch=dla_batch, stack="mlperf-v3.0")
        work = workloads(plan)
        for mode in MODES:
            found = predict_on(replace(plan, mode=mode), SOC, "offline", work, Options(seconds=60))
            share = found.share["dla0"] + found.share["dla1"]
            per_joule = found.samples_per_joule.value
            rows.append(
                {
                    "network": network,
                    "mode": mode,
                    "dla_share": share,
                    "samples_per_s": found.samples_per_s,
                    "samples_per_joule": per_joule,
                }
            )
    return rows


def network_seconds() -> dict[str, dict[str, float]]:
    """Seconds from a network's ONNX to its prediction, each of the zoo, in this process."""
    seconds = {}
    for name in NETWORKS:
        cores = 0 if name in ("bert-large", "unet3d") else 2
        plan = Plan(network=name, gpu_batch=8, dla_cores=cores, mode="MAXN")
        seconds[name] = timed(lambda plan=plan: predict_on(plan, SOC, "offline", workloads(plan)))  # type: ignore[misc]
    return seconds


def settings() -> list[Plan]:
    """A thousand settings of ResNet-50: batches of GPU and DLA, clocks."""
    base = Plan(stack="mlperf-v3.0")
    return [
        replace(base, gpu_batch=gpu, dla_batch=dla, clocks_mhz={"gpu": mhz, "dla": dla_mhz, "emc": emc})
        for gpu in (8, 32, 64, 128, 256)
        for dla in (1, 2, 4, 8)
        for mhz in np.linspace(306, 1300, 10).round(1).tolist()
        for dla_mhz in (614.4, 1100.0, 1369.6, 1500.0, 1600.0)
        for emc in ((2133.0, 3199.0) if dla > 4 else (3199.0,))
    ][:SETTINGS]


def settings_seconds(processes: int) -> dict[str, float]:
    """Seconds to predict them in so many processes, the workload made once."""
    plans = settings()
    work = workloads(plans[0])
    parts = [plans[i::processes] for i in range(processes)]
    if processes == 1:
        return timed(lambda: predict_all(parts[0], work))
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(predict_all, [part[:1] for part in parts], [work] * processes))  # started, imports done
        return timed(lambda: list(pool.map(predict_all, parts, [work] * processes)))


def predict_all(plans: Sequence[Plan], work: Workloads) -> list[float]:
    """Return the rates of plans."""
    return [predict_on(plan, SOC, "offline", work).samples_per_s for plan in plans]


def steady_against_full(seconds: float) -> dict[str, float]:
    """The extrapolated steady state against every event."""
    plan = Plan(mode="MAXN", stack="mlperf-v3.0")
    work = workloads(plan)
    steady, full = (predict_on(plan, SOC, "offline", work, Options(seconds=seconds, full=on)) for on in (False, True))
    return {
        "run_s": seconds,
        "rate_difference_pct": 100 * (steady.samples_per_s / full.samples_per_s - 1),
        "module_w_difference_pct": 100 * (steady.module_w.value / full.module_w.value - 1),
    }


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Seconds that a call takes, and those of them that this process had a core."""
    begin, core = time.perf_counter(), time.process_time()
    work()
    return {"wall_s": time.perf_counter() - begin, "core_s": time.process_time() - core}


def show(found: dict[str, Any], cases: Sequence[Case]) -> None:
    """Print every row, then the tables."""
    print("SIMULATED: the virtual Orin against published rows that it was not fitted on\n")
    aims = {aim.group: aim for aim in AIMS}
    for group in dict.fromkeys(case.group for case in cases):
        print(group)
        for case in (case for case in cases if case.group == group):
            missed = group in aims and abs(case.error_pct) > aims[group].worst_pct
            held = "" if case.inside_80 is None else ("in 80 %" if case.inside_80 else "outside")
            print(f"  {case.row:56} {case.error_pct:+7.1f} % {held:8} {'MISS' if missed else ''}")
    print(f"\n{'group':34} rows nets  median   aim    worst   aim  over  in 80 %")
    for line in found["groups"]:
        aim = [
            f"{line[key]:4.0f} %" if line[key] is not None else "     -" for key in ("aim_median_pct", "aim_worst_pct")
        ]
        held = f"{line['inside_80_pct']:5.0f} %" if line["inside_80_pct"] is not None else "      -"
        print(
            f"{line['group']:34} {line['rows']:4} {line['networks']:4} {line['median_pct']:5.1f} % {aim[0]}"
            f" {line['worst_pct']:+6.1f} % {aim[1]} {line['rows_over_aim'] if aim[1].strip() != '-' else '-':>4} {held}"
        )
    print("\nthe DLAs' share of the samples, Offline on GPU and both DLAs")
    for line in found["dla_shares"]:
        figures = f"{line['samples_per_s']:8.1f} samples/s {line['samples_per_joule']:7.2f} samples/J"
        print(f"  {line['network']:16} {line['mode']:5} {line['dla_share']:6.1%} {figures}")
    print("\nfrom ONNX to a prediction: wall seconds, and seconds of a core")
    for name, took in {**found["network_seconds"], **found["settings_seconds"]}.items():
        print(f"  {name:44} {took['wall_s']:7.2f} {took['core_s']:7.2f}")
    print("steady state against every event:", found["steady_against_full"])


def main() -> int:
    """Print the rows, unless `--json`, and one JSON object."""
    options = arguments(__doc__ or "")
    cases = [*check_cases(), *resolution_cases_as(Case)]
    if not options.quick:
        document = yaml.safe_load(PARAMETERS_PATH.read_text(encoding="utf-8"))
        cases += left_out_cases(left_out_rows(load_parameters(), Prior.read(document), published_rows()))
    found: dict[str, Any] = {
        "groups": summary(cases),
        "rows": [asdict(case) for case in cases],
        "dla_shares": dla_shares(),
        "network_seconds": network_seconds(),
        "settings_seconds": {f"{SETTINGS} settings of ResNet-50, {n} process(es)": settings_seconds(n) for n in (1, 2)},
        "steady_against_full": steady_against_full(20 if options.quick else 600),
        "cpus": os.cpu_count(),
    }
    if not options.json:
        show(found, cases)
    emit(found, [], options)
    return 0


def resolution_cases_as(case: type[Case]) -> list[Case]:
    """YOLO networks without a graph here, by the law of their measured sizes: a group apart."""
    return [case(group, network, row, error) for group, network, row, error in resolution_cases()]


if __name__ == "__main__":
    sys.exit(main())
