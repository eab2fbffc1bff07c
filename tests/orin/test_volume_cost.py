"""What a volume costs on the virtual Orin, against NVIDIA's published percentiles of 3D-UNet."""

import csv
from pathlib import Path

import pytest

from engines.engine import Workload
from engines.volumes.plan import plan_windows
from orin.plan import Plan
from orin.soc import soc
from orin.volumes.cost import volume_cost

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
WINDOW = Workload(477_298_688_000, 31_190_243, 1_000_000_000)
WINDOWS = {50: (192, 384, 384), 108: (256, 448, 448), 125: (384, 384, 384), 144: (320, 448, 448)}
MAXQ_MHZ = {"gpu": 828.75, "emc": 3199.0, "cpu": 1036.8}  # of v2.0


def cost(windows, network="unet3d", **plan):
    chosen = Plan(network=network, gpu_batch=1, dla_cores=0, **plan)
    made = volume_cost(chosen, soc("agx-orin-64gb"), WINDOW, plan_windows(WINDOWS[windows]))
    assert made.windows == windows
    return made


def published(file, mode):
    path = DATA / file
    if not path.is_file():
        pytest.skip(f"{file} is not here")
    with path.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["benchmark"] == "3d-unet-99"]
    row = next(row for row in rows if (row["scenario"], row["mode"]) == ("SingleStream", mode))
    return {
        key: float(row[f"{key}_latency_ms" if key == "mean" else f"{key}_ms"]) for key in ("mean", "p50", "p90", "p99")
    }


@pytest.mark.parametrize(
    "file,stack,p90_windows",
    [("mlperf_v2.0.csv", "mlperf-v2.0", 108), ("mlperf_v3.0_gpu_only.csv", "mlperf-v3.0", 125)],
)
def test_the_published_p90_lies_on_the_law_of_the_other_percentiles(file, stack, p90_windows):
    found = published(file, "MaxP")
    assert cost(50, stack=stack, mode="MAXN").latency_ms == pytest.approx(found["p50"], rel=1e-6)
    assert cost(144, stack=stack, mode="MAXN").latency_ms == pytest.approx(found["p99"], rel=1e-6)
    assert cost(p90_windows, stack=stack, mode="MAXN").latency_ms == pytest.approx(found["p90"], rel=2e-4)


def test_the_published_means_differ_by_the_one_case_that_v3_has_more():
    counts = []
    for file, stack, cases in (
        ("mlperf_v2.0.csv", "mlperf-v2.0", 42),
        ("mlperf_v3.0_gpu_only.csv", "mlperf-v3.0", 43),
    ):
        one = cost(50, stack=stack, mode="MAXN")
        window_ms = (one.network_ms + one.merge_ms) / 50
        counts.append(cases * (published(file, "MaxP")["mean"] - one.fixed_ms) / window_ms)
    assert counts[0] == pytest.approx(2636, abs=2) and counts[1] - counts[0] == pytest.approx(125, abs=2)


def test_maxq_follows_the_gpus_clock():
    found = published("mlperf_v2.0.csv", "MaxQ")
    for windows, key in ((50, "p50"), (108, "p90"), (144, "p99")):
        made = cost(windows, stack="mlperf-v2.0", clocks_mhz=MAXQ_MHZ)
        assert made.latency_ms == pytest.approx(found[key], rel=0.01)
        assert abs(made.latency_ms - found[key]) < made.u95_ms


def test_parts_add_up_and_the_network_has_the_most():
    made = cost(108, stack="mlperf-v3.0", mode="MAXN")
    assert made.latency_ms == pytest.approx(made.network_ms + made.merge_ms + made.fixed_ms)
    assert made.network_ms > 0.95 * made.latency_ms
    moved = 108 * 128**3 * (2 + 3 * 6 + 2) + 256 * 448 * 448 * 7
    assert made.merge_ms == pytest.approx(1e3 * moved / (0.85 * 204.8e9), rel=0.01)
    assert made.as_json()["provenance"] == "simulated"


def test_lower_modes_are_slower():
    top, middle, low = (cost(50, mode=mode).latency_ms for mode in ("MAXN", "30W", "15W"))
    assert 1.5 * top < middle < low


def test_another_network_has_the_virtual_boards_prior():
    small = cost(50, network="unet3d-small", mode="MAXN")
    assert small.u95_ms == pytest.approx(small.latency_ms) and small.fixed_ms == 0.0
    assert cost(144, network="unet3d-small", mode="MAXN").network_ms == pytest.approx(small.network_ms * 144 / 50)


def test_other_precisions_are_not_taken_for_the_published_one():
    int8, fp16 = cost(50), cost(50, precision="fp16")
    assert 1.2 < fp16.network_ms / int8.network_ms < 3 and fp16.u95_ms > 0.9 * fp16.latency_ms
