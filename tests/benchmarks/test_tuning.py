"""The grading of the tuner: its boards against sums by hand, its curves and its searches against known answers."""

from __future__ import annotations

import csv
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from orin.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))  # behind the packages: benchmarks/power.py must not hide power

from tuning.baselines import BASELINES, HAND  # noqa: E402
from tuning.cases import STATIC, Case, Goal, Grid, cases, optimum  # noqa: E402
from tuning.forms import Form, in_form, names  # noqa: E402
from tuning.grading import Step, curve, play, regret_at, violations  # noqa: E402
from tuning.perturbed import (  # noqa: E402
    CONTENTION,
    Nature,
    Network,
    PerturbedBoard,
    Settings,
    Steady,
    board,
    factors,
    published_networks,
)
from tuning.player import measurement, tune  # noqa: E402
from tuning.replay import replay, rows, tables  # noqa: E402
from tuning.runs import SLICES_S, WARM_UP_S, measure  # noqa: E402

from orin.predict import workloads  # noqa: E402

SHARED = ROOT.parent / "shared" / "data"
QUIET = Nature("DLA first", 0.85, 1.0, 0.0, 0.0, 1.0, 7.6, 17.9, 3.9, 0.114, 1.5, 0.0, 0.0, 100.0, 60.0)
SMALL = Network(0.2, 0.05, 0.15, 0.6, 0.4, 0.3, gpu_mb=0.001, dla_mb=0.001, tail_ms=0.0)


def _rate(network: Network, nature: Nature = QUIET, **plan: object) -> float:
    settings = Settings.of([Plan(network="resnet50", **plan)])  # type: ignore[arg-type]
    return float(PerturbedBoard("small", network, nature, 0).steady(settings).samples_per_s[0])


def test_the_gpu_alone_takes_a_fixed_part_and_one_a_sample():
    assert _rate(SMALL, gpu_batch=8, dla_cores=0) == pytest.approx(8e3 / (0.15 + 8 * 0.25), rel=1e-6)


def test_one_item_in_flight_shows_the_host():
    assert _rate(SMALL, gpu_batch=8, gpu_depth=1, dla_cores=0) == pytest.approx(
        8e3 / (0.15 + 8 * 0.25 + 0.14), rel=1e-6
    )


@pytest.mark.parametrize("norm", [1.0, 1.5, 2.0])
def test_dlas_take_the_published_time_at_batch_two_however_their_parts_add_up(norm: float):
    each_ms = 0.6 / 1.6 + 0.4 + 0.3 / 2
    assert _rate(SMALL, replace(QUIET, norm=norm), gpu_batch=0) == pytest.approx(2e3 / each_ms, rel=1e-4)


def test_dla_weights_are_read_once_a_batch():
    each_ms = 0.6 / 1.6 + 0.4 + 0.3 / 4
    assert _rate(SMALL, gpu_batch=0, dla_batch=4) == pytest.approx(2e3 / each_ms, rel=1e-4)


def test_clocks_slow_what_they_clock():
    clocks = {"gpu": 1300.5 / 2, "dla": 800.0, "emc": 3199.0 / 2, "cpu": 2201.6}
    assert _rate(SMALL, gpu_batch=8, dla_cores=0, clocks_mhz=clocks) == pytest.approx(
        8e3 / (2 * (0.15 + 2.0)), rel=1e-6
    )


def test_unexpected_work_takes_gpu_time_from_both():
    """Alone, 0.1 ms of each of the two samples; beside a busy GPU each takes twice that."""
    side = replace(SMALL, unexpected_ms=0.1)
    each_ms = 0.6 / 1.6 + 0.4 + 0.3 / 2
    assert _rate(side, gpu_batch=0, dla_cores=1, dla_depth=2) < 1e3 / (each_ms + 0.1) * 1.0001
    both = PerturbedBoard("small", side, QUIET, 0).steady(
        Settings.of([Plan(gpu_batch=64), Plan(gpu_batch=64, dla_cores=0)])
    )
    dla_rate = float((1 - both.gpu_share[0]) * both.samples_per_s[0])
    gpu_rate = float(both.gpu_share[0] * both.samples_per_s[0])
    assert dla_rate == pytest.approx(2e3 / (each_ms + 0.2), rel=1e-3)
    assert gpu_rate == pytest.approx(float(both.samples_per_s[1]) * (1 - dla_rate * 0.1e-3), rel=1e-3)


@pytest.mark.parametrize("contention", CONTENTION)
def test_sharing_dram_slows_and_never_passes_its_limit(contention: str):
    heavy = replace(SMALL, gpu_compute=0.02, gpu_memory=0.23, gpu_mb=22.0, dla_mb=40.0)
    nature = replace(QUIET, contention=contention)
    alone = _rate(heavy, nature, gpu_batch=64, dla_cores=0) + _rate(heavy, nature, gpu_batch=0, dla_cores=2)
    assert _rate(heavy, nature, gpu_batch=64) < alone


def test_a_grid_entry_and_its_plan_are_the_same_settings():
    grid = Grid("yolov5s", clocks=True)
    picked = [0, 777, len(grid) - 1]
    from_plans = Settings.of([grid.plan(index) for index in picked])
    for field in fields(Settings):
        np.testing.assert_allclose(getattr(grid.settings, field.name)[picked], getattr(from_plans, field.name))


def test_a_hot_board_throttles_and_recovers_in_idleness():
    nature = replace(QUIET, throttle_w=20.0)
    hot = PerturbedBoard("small", SMALL, nature, 0)
    plan = Plan(gpu_batch=64)
    assert not hot.run(plan, 5.0).throttled
    slow = hot.run(plan, 600.0)
    assert slow.throttled
    hot.rest(plan, 600.0)
    again = hot.run(plan, 5.0)
    assert not again.throttled
    assert again.samples_per_s > 1.05 * slow.samples_per_s


def test_boards_are_drawn_from_the_covariance():
    names = ["law.gpu_efficiency", "networks.n.gpu_compute", "networks.n.dla_memory"]
    lower = [[0.01], [0.008, 0.02], [0.0, 0.001, 0.03]]
    document = {"belief": {"names": names, "covariance": lower}}
    random = np.random.default_rng(0)
    drawn = [factors(["n"], document, random)["n"] for _ in range(4000)]
    compute = np.log([one["gpu_compute"] for one in drawn])
    assert np.var(compute) == pytest.approx(0.01 + 0.02 - 2 * 0.008, rel=0.1)  # of network less shared
    assert np.var(np.log([one["dla_memory"] for one in drawn])) == pytest.approx(0.03, rel=0.1)
    assert np.std(np.log([one["dla_compute"] for one in drawn])) == pytest.approx(0.15, rel=0.1)  # never measured


def test_the_same_seed_is_the_same_board():
    one, two, other = (board("resnet50", seed, {}) for seed in (3, 3, 4))
    assert (one.network, one.nature) == (two.network, two.nature)
    assert one.network != other.network
    plan = Plan(gpu_batch=64)
    assert one.run(plan, 5.0) == two.run(plan, 5.0)


def test_about_fifteen_in_a_hundred_boards_have_unexpected_work():
    found = [board(name, seed, {}).network.unexpected_ms > 0 for name in published_networks() for seed in range(60)]
    assert 0.10 < np.mean(found) < 0.20


def _truth(rate: list[float], watts: list[float], latency_ms: list[float]) -> Steady:
    columns = (np.array(one) for one in (rate, watts, latency_ms, rate, rate))
    return Steady(*columns)


def test_the_optimum_keeps_the_limits():
    truth = _truth([100.0, 90.0, 50.0], [50.0, 30.0, 10.0], [9.0, 5.0, 2.0])
    assert optimum(Goal("throughput"), truth) == 100
    assert optimum(Goal("throughput", slo_ms=5.0), truth) == 90
    assert optimum(Goal("throughput", budget_w=29.0), truth) == 50
    assert optimum(Goal("efficiency"), truth) == 5
    assert optimum(Goal("efficiency", min_samples_per_s=60.0), truth) == 3
    assert optimum(Goal("latency", min_samples_per_s=95.0), truth) == pytest.approx(1 / 9)
    assert np.isnan(optimum(Goal("throughput", slo_ms=1.0), truth))


def test_excess_is_the_worst_broken_limit():
    truth = _truth([100.0], [60.0], [12.0])
    goal = Goal("throughput", slo_ms=10.0, budget_w=40.0, min_samples_per_s=110.0)
    assert float(goal.excess(truth)[0]) == pytest.approx(0.5)


def test_graded_cases_lose_five_percent_by_default_and_none_beats_the_exhaustive_optimum():
    found = list(cases(("resnet50",), range(2), {}, clocks=False))
    assert found
    for case in found:
        assert case.judge(Plan(network="resnet50", **STATIC))[0] >= 0.05
        truth = case.board().steady(case.grid.settings)
        kept = np.flatnonzero(case.goal.excess(truth) <= 0)
        best = kept[np.argmax(case.goal.value(truth)[kept])]
        assert case.judge(case.grid.plan(int(best)))[0] == pytest.approx(0, abs=1e-9)


class _Hill:
    """A smooth hill over a grid, its top at one entry."""

    def __init__(self, grid: Grid, top: int) -> None:
        self.grid, self.top = grid, grid.coordinates[top]

    def score(self, index: int) -> float:
        return 100 - float(np.sum((self.grid.coordinates[index] - self.top) ** 2))


def _search(name: str, hill: _Hill, at_most: int) -> list[int]:
    search = BASELINES[name](hill.grid, np.random.default_rng(5))
    asked = [next(search)]
    try:
        while len(asked) < at_most:
            asked.append(search.send(hill.score(asked[-1])))
    except StopIteration:
        pass
    return asked


def test_hill_climbing_ends_at_the_top_of_a_smooth_hill():
    hill = _Hill(Grid("resnet50", clocks=False), 400)
    asked = _search("hill climbing", hill, 900)
    assert len(asked) < 500
    assert max(map(hill.score, asked)) >= 99


def test_random_and_full_grid_ask_for_every_entry_once():
    hill = _Hill(Grid("resnet50", clocks=False), 400)
    assert _search("full grid", hill, 10_000) == list(range(len(hill.grid)))
    assert sorted(_search("random", hill, 10_000)) == list(range(len(hill.grid)))


def test_tpe_makes_twenty_trials_and_ends_after_ten_without_gain():
    pytest.importorskip("optuna")
    hill = _Hill(Grid("resnet50", clocks=False), 400)
    scores = [hill.score(index) for index in _search("Optuna TPE", hill, 900)]
    assert len(scores) >= 20
    assert max(scores[:-10]) >= max(scores[-10:])


def test_static_and_gpu_only_are_what_they_say():
    hill = _Hill(Grid("resnet50", clocks=True), 400)
    (only,) = _search("static", hill, 9)
    assert hill.grid.plan(only).accelerators == ("gpu", "dla0", "dla1")
    assert all(hill.grid.plan(index).accelerators == ("gpu",) for index in _search("GPU only", hill, 99))


def test_curves_hold_the_last_plan_and_count_from_the_first_run():
    traces = [[Step(7, 0.5, 0), Step(14, 0.004, 0)], [Step(7, 0.2, 0), Step(21, 0.0, 0)], [Step(14, 0.003, 0.2)]]
    assert regret_at(traces[0], 6) == 1
    assert regret_at(traces[0], 13.5) == 0.5
    seen = curve(traces, 30)
    assert seen.median[[6, 7, 14, 21]].tolist() == [1.0, 0.5, 0.004, 0.003]
    assert seen.reached_s() == 14
    assert seen.reached_s(0.0001) == float("inf")
    assert (seen.low <= seen.median).all()
    assert (seen.median <= seen.high).all()
    assert violations(traces, 0.01) == pytest.approx(1 / 3)


def test_a_baseline_pays_for_its_runs_and_warm_ups():
    case = next(iter(cases(("resnet50",), range(2), {}, clocks=False)))
    steps = play(case, "random", 0, 71.0)
    each_s = WARM_UP_S + SLICES_S[0]  # so many small items leave a narrow interval at once
    assert [step.seconds for step in steps] == [each_s * (i + 1) for i in range(18)]
    assert isinstance(case, Case)


def test_the_tuner_plays_by_the_same_rules():
    case = next(iter(cases(("resnet50",), range(2), {}, clocks=False)))
    played = tune(case, 36.0)
    seconds = [step.seconds for step in played.steps]
    assert seconds == sorted(seconds)
    assert 4.0 <= seconds[0] <= seconds[-1] <= 36.0
    for name in ("gpu_batch", "dla_batch", "dla_cores"):
        assert getattr(played.plan, name) in case.grid.axes[name]
    assert case.judge(played.plan) == (played.steps[-1].regret, played.steps[-1].excess)


def test_a_measurement_says_what_the_run_did():
    plan = Plan(gpu_batch=64)
    seen = measure(PerturbedBoard("small", SMALL, QUIET, 0), plan)
    found = measurement(plan, seen)
    assert found.samples_per_s.value == seen.run.samples_per_s
    assert sum(found.share.values()) == pytest.approx(1)
    assert found.share["dla0"] == found.share["dla1"]
    assert found.seconds == seen.seconds == WARM_UP_S + SLICES_S[0]
    assert found.idle_w.value == pytest.approx(7.6)
    assert found.flags == ()


def test_a_run_of_few_items_goes_on():
    slow = Network(800.0, 200.0, 0.15, 2400.0, 1600.0, 0.3, gpu_mb=0.001, dla_mb=0.001, tail_ms=0.0)
    seen = measure(PerturbedBoard("slow", slow, QUIET, 0), Plan(gpu_batch=1, dla_batch=1))
    assert seen.seconds == 2 * WARM_UP_S + sum(SLICES_S)
    assert seen.run.seconds == sum(SLICES_S)


def test_a_form_of_a_network_is_larger_on_the_board_and_for_the_tuner():
    form = Form.of("resnet50@0.5x1.4")
    assert form.name == "resnet50@0.5x1.4"
    assert (form.macs, form.weights) == pytest.approx((0.25 * 1.96, 0.25))
    plan = Plan()
    work = workloads(plan).gpu
    smaller = in_form(workloads(plan), form).gpu
    assert smaller.macs == pytest.approx(form.macs * work.macs, rel=0.01)
    assert smaller.weight_bytes == pytest.approx(form.weights * work.weight_bytes, rel=0.01)
    products = sum(layer.rows * layer.columns * layer.depth * layer.groups for layer in smaller.layers if layer.macs)
    assert products == pytest.approx(smaller.macs, rel=0.02)
    base, other = (board(name, 3, {}).network for name in ("resnet50", form.name))
    assert other.dla_weight_ms == pytest.approx(0.25 * base.dla_weight_ms)
    assert other.gpu_mb == pytest.approx(0.5 * 1.96 * base.gpu_mb)
    assert len(set(names(tuple(published_networks())))) >= 30


@pytest.mark.skipif(not SHARED.is_dir(), reason="published rows are not beside this checkout")
def test_replayed_boards_answer_with_published_rows():
    found = {table.name: table for table in tables(rows(SHARED))}
    assert found["YOLOv5s, GPU batches"].rates[(16, 0, 0)][0] == pytest.approx(16 / 16.87e-3)
    assert found["ResNet-50 in separate processes, efficiency"].rates[(0, 1, 2)] == pytest.approx((2 * 675.8, 20.46))
    assert replay(found["YOLOv5s, GPU batches"]).entries == 2


def test_without_rows_nothing_is_replayed(tmp_path: Path):
    assert tables(rows(tmp_path)) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="published settings are not beside this checkout")
@pytest.mark.parametrize("network", ["ssd-mobilenet", "ssd-resnet34"])
def test_hand_settings_are_those_submitted(network: str):
    with (SHARED / "mlperf_v2.0_settings.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["benchmark"], row["scenario"]) == (network, "Offline")]
    by_mode = {row["mode"]: row for row in rows}
    for plan, row in zip(HAND[network], (by_mode["MaxP"], by_mode["MaxQ"])):
        assert plan.dla_batch == int(row["dla_batch_size"])
        assert plan.gpu_depth == int(row["gpu_copy_streams"])
        assert plan.dla_depth == int(row["dla_copy_streams"])
        if plan.clocks_mhz:
            names = {"gpu": "soc_gpu_freq_mhz", "dla": "soc_dla_freq_mhz", "cpu": "soc_cpu_freq_mhz"}
            assert {n: plan.clocks_mhz[n] for n in names} == {n: float(row[column]) for n, column in names.items()}
