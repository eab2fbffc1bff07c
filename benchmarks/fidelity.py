"""ResNet-50 on the virtual Orin against every published ResNet-50 row: published, predicted, error.

Rows marked `fit` gave parameters, `in-sample` rows gave the constants of separate processes; only `check` rows tell how
good the model is. Module power is compared with published module power; wall power is another scope and stands apart.
"""

from __future__ import annotations

import csv
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from common import SHARED, arguments, emit

from orin.plan import Plan
from orin.soc import AGX_ORIN_64GB_SOC as SOC
from orin.virtual.predict import Options, Prediction, predict

Row = dict[str, str]
TRTEXEC_CLOCKS = {  # as its rows give them; CPU from the mode
    "MAXN": {"gpu": 1290.0, "dla": 1600.0, "emc": 3199.0, "cpu": 2201.6},
    "50W": {"gpu": 812.0, "dla": 1369.6, "emc": 3199.0, "cpu": 1497.6},
}
# v3.0 asked for 624.75 MHz, which its JetPack's table does not hold: it runs at 612
V30_MAXQ = {"gpu": 612.0, "dla": 1600.0, "emc": 2133.0, "cpu": 576.0}
SCENARIOS = {"SingleStream": "singlestream", "MultiStream": "multistream", "Offline": "offline"}


@dataclass(frozen=True)
class Case:
    """One published number and the prediction that answers it; `role` is fit, in-sample or check."""

    row: str
    group: str
    role: str
    what: str
    unit: str
    published: float
    predicted: float
    stack: str

    @property
    def error_pct(self) -> float:
        """Relative error of the prediction, in percent."""
        return 100 * (self.predicted / self.published - 1)


def read(name: str) -> list[Row]:
    with (SHARED / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def is_agx_resnet(row: Row) -> bool:
    return row["network"].startswith("ResNet-50") and row["device"] == "AGX Orin 64GB"


def readme_case(row: Row, role: str) -> list[Case]:
    """Both DLA cores of NVIDIA's Deep-Learning-Accelerator-SW table."""
    plan = Plan(gpu_batch=0, dla_batch=int(row["batch"]), mode=row["power_mode"], stack="trtexec-8.5")
    rate = predict(plan, SOC, options=Options(seconds=60)).samples_per_s
    what = f"2 DLA, batch {row['batch']}, {row['power_mode']}"
    return [Case(row["id"], "DLA table", role, what, "samples/s", float(row["value"]), rate, plan.stack)]


def trtexec_plan(row: Row) -> tuple[Plan, bool]:
    """The plan behind a trtexec row (batch 1, nothing rewritten), and whether it ran beside other processes."""
    together = row["context"].startswith("co-run")
    members = row["context"].rpartition(": ")[2] if together else row["engine"]
    return (
        Plan(
            rewrites=(),
            precision=row["precision"].lower(),
            gpu_batch=int("GPU" in members),
            dla_batch=1,
            dla_cores=members.count("DLA"),
            clocks_mhz=TRTEXEC_CLOCKS[row["power_mode"]],
            stack="trtexec-10.3",
        ),
        together,
    )


def trtexec_cases(row: Row, role: str) -> list[Case]:
    plan, together = trtexec_plan(row)
    options = Options(seconds=60, processes="separate" if together else "one")
    prediction = predict(plan, SOC, options=options)
    # DLA0 and DLA1 are alike: a solo row of DLA1 is answered by DLA0
    engine = row["engine"].lower() if together else plan.accelerators[0]
    per_s = prediction.samples_per_s * prediction.share[engine]
    is_rate = row["metric"] == "throughput"
    alone = "co-run, separate processes" if together else "solo"
    what = f"{row['engine']} {row['precision']} {row['metric']}, {row['power_mode']}, {row['context'][-14:]}"
    role = "in-sample" if together and role == "check" else role
    unit, predicted = ("samples/s", per_s) if is_rate else ("ms", 1e3 / per_s)
    cases = [Case(row["id"], f"trtexec {alone}", role, what, unit, float(row["value"]), predicted, plan.stack)]
    if is_rate and engine == plan.accelerators[0]:  # one board, one power: once per run
        watts = prediction.module_w.value
        cases.append(
            Case(row["id"], f"module power, {alone}", role, what, "W", float(row["power_W"]), watts, plan.stack)
        )
    return cases


def mlperf_stream_cases(row: Row) -> list[Case]:
    """v3.0 MaxQ means and v3.1 percentiles of the fit table."""
    version = "v3.1" if "v3.1" in row["context"] else "v3.0"
    maxq = row["power_mode"] == "MaxQ"
    scenario = "multistream" if "MultiStream" in row["context"] else "singlestream"
    plan = Plan(mode=None if maxq else "MAXN", clocks_mhz=V30_MAXQ if maxq else None, stack=f"mlperf-{version}")
    prediction = predict(plan, SOC, scenario, options=Options(noise=True))
    statistic = row["metric"].split()[-1]
    what = f"{scenario} {statistic}, {row['power_mode']}"
    predicted = prediction.latency_ms[statistic]
    group = f"MLPerf {version}"
    cases = [Case(row["id"], group, "fit", what, "ms", float(row["value"]), predicted, plan.stack)]
    return cases + wall_case(row["id"], group, what, row["power_W"], prediction)


def mlperf_cases(row: Row, settings: dict[tuple[str, str], Row]) -> list[Case]:
    """A row of an MLPerf table: mean latency of SingleStream and MultiStream, samples per second of Offline."""
    version, scenario = row["round"], SCENARIOS[row["scenario"]]
    plan = mlperf_plan(row, settings.get((row["scenario"], row["mode"])))
    prediction = predict(plan, SOC, scenario)
    offline = scenario == "offline"
    published = float(row["published_value"] if offline else row["mean_latency_ms"])
    predicted = prediction.samples_per_s if offline else prediction.latency_ms["mean"]
    what = f"{row['scenario']}, {row['mode']}"
    role = "fit" if version == "v3.0" else "check"
    group = f"MLPerf {version}"
    name = f"{version} {row['scenario']} {row['mode']}"
    unit = "samples/s" if offline else "ms"
    cases = [Case(name, group, role, what, unit, published, predicted, plan.stack)]
    return cases + wall_case(name, group, what, row["avg_power_w"], prediction)


def mlperf_plan(row: Row, settings: Row | None) -> Plan:
    """The plan of a submission: batches and, for MaxQ, clocks from its settings."""
    stack = f"mlperf-{row['round']}"
    if settings is None:
        return Plan(mode="MAXN", stack=stack)
    batch = int(settings["dla_batch_size"] or 1)
    cores = 2 if settings["dla_batch_size"] else 0
    if row["mode"] == "MaxP":
        return Plan(mode="MAXN", dla_batch=batch, dla_cores=cores, stack=stack)
    names = {"gpu": "soc_gpu_freq_mhz", "dla": "soc_dla_freq_mhz", "emc": "soc_emc_freq_mhz", "cpu": "soc_cpu_freq_mhz"}
    clocks = {name: float(settings[column]) for name, column in names.items()}
    return Plan(dla_batch=batch, dla_cores=cores, clocks_mhz={k: v for k, v in clocks.items() if v}, stack=stack)


def wall_case(row: str, group: str, what: str, wall_w: str, prediction: Prediction) -> list[Case]:
    """Wall power beside module power: supply, carrier board and fan lie between, so it is no error."""
    if not wall_w:
        return []
    watts = prediction.module_w.value
    return [Case(row, "wall power", "other scope", f"{group} {what}", "W", float(wall_w), watts, prediction.stack)]


def all_cases() -> list[Case]:
    cases: list[Case] = []
    for name, role in (("published_fit.csv", "fit"), ("published_check.csv", "check")):
        for row in filter(is_agx_resnet, read(name)):
            if row["engine"] == "2xDLA":
                cases += readme_case(row, role)
            elif "trtexec" in row["software"]:
                cases += trtexec_cases(row, role)
            else:
                cases += mlperf_stream_cases(row)
    for row in read("mlperf_v3.0_gpu_only.csv"):
        if row["benchmark"] == "resnet50":
            cases += mlperf_cases(row, {})
    settings = {
        (row["scenario"], row["mode"]): row
        for row in read("mlperf_v2.0_settings.csv")
        if row["benchmark"] == "resnet50" and row["config_status"] == "published"
    }
    for row in read("mlperf_v2.0.csv"):
        if row["benchmark"] == "resnet50":
            cases += mlperf_cases(row, settings)
    return cases


def summary(cases: list[Case]) -> list[dict[str, Any]]:
    """Mean, median and worst error of each group and role."""
    keys = sorted({(case.group, case.role) for case in cases if case.role != "other scope"})
    table = []
    for group, role in keys:
        errors = [abs(case.error_pct) for case in cases if (case.group, case.role) == (group, role)]
        table.append(
            {
                "group": group,
                "role": role,
                "rows": len(errors),
                "mape_pct": statistics.mean(errors),
                "median_pct": statistics.median(errors),
                "worst_pct": max(errors),
            }
        )
    return table


def steady_against_full(seconds: float) -> dict[str, float]:
    """The extrapolated steady state against every event, and what each takes to compute."""
    plan = Plan(mode="MAXN", stack="mlperf-v3.0")
    steady, steady_s = timed(lambda: predict(plan, SOC, options=Options(seconds=seconds)))
    full, full_s = timed(lambda: predict(plan, SOC, options=Options(seconds=seconds, full=True)))
    ten_minutes_s = [timed(lambda: predict(plan, SOC))[1] for _ in range(5)]
    return {
        "run_s": seconds,
        "steady_samples_per_s": steady.samples_per_s,
        "full_samples_per_s": full.samples_per_s,
        "difference_pct": 100 * (steady.samples_per_s / full.samples_per_s - 1),
        "module_w_difference_pct": 100 * (steady.module_w.value / full.module_w.value - 1),
        "steady_compute_s": steady_s,
        "full_compute_s": full_s,
        "ten_minutes_compute_s_median": statistics.median(ten_minutes_s),
    }


def timed(work: Callable[[], Prediction]) -> tuple[Prediction, float]:
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin


def show(cases: list[Case], table: list[dict[str, Any]], speed: dict[str, float]) -> None:
    print("SIMULATED ResNet-50 on the virtual AGX Orin 64 GB against published rows")
    for group in dict.fromkeys(case.group for case in cases):
        print(f"\n{group}")
        for case in (case for case in cases if case.group == group):
            error = "" if case.role == "other scope" else f"{case.error_pct:+7.1f} %"
            numbers = f"{case.published:9.3f} {case.predicted:9.3f} {case.unit:9}"
            print(f"  {case.row:24} {case.what:52.52} {numbers} {error:9} {case.role:11} {case.stack}")
    print("\nwall power: published at the plug, predicted is the module alone; no error is formed")
    print("GPU latency in a co-run: trtexec's own leaves out the time slices that its throughput lost (rows 110, 118)")
    print("v2.0 MultiStream MaxP: published slower than v2.0's own MaxQ at lower clocks; nothing here explains that")
    print("Orin NX rows (200, 201): not predicted, that module is not in this version\n")
    for line in table:
        print(
            f"{line['group']:40} {line['role']:10} {line['rows']:3} rows  MAPE {line['mape_pct']:5.1f} %  "
            f"median {line['median_pct']:5.1f} %  worst {line['worst_pct']:5.1f} %"
        )
    print(
        f"\nsteady state against all events, {speed['run_s']:.0f} s Offline: {speed['difference_pct']:+.4f} % "
        f"({speed['steady_compute_s']:.3f} s against {speed['full_compute_s']:.2f} s); ten minutes predicted in "
        f"{speed['ten_minutes_compute_s_median']:.3f} s"
    )


def main() -> int:
    """Print the rows, unless `--json`, and one JSON object."""
    options = arguments(__doc__ or "")
    if not SHARED.is_dir():
        print(f"fidelity: no data at {SHARED}: published rows are read from ../shared/data", file=sys.stderr)
        return 2
    cases = all_cases()
    table, speed = summary(cases), steady_against_full(20 if options.quick else 600)
    if not options.json:
        show(cases, table, speed)
    rows = [{**asdict(case), "error_pct": case.error_pct} for case in cases]
    emit({"rows": rows, "groups": table, "steady_against_full": speed}, [], options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
