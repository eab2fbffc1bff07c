"""The tuner: its space, its model against the event simulation, what it learns, where it stops."""

import dataclasses
import math

import numpy as np
import pytest

from orin.errors import OrinError
from orin.plan import Plan
from orin.soc import soc
from orin.tune.measurement import Measurement
from orin.tune.objective import Objective
from orin.tune.planner import PlanModel
from orin.tune.search import Rules, Tuner
from orin.tune.space import Axes, Space, clock_settings
from orin.virtual.parameters import load_parameters
from orin.virtual.predict import Options, known_workloads, predict
from power.quantity import Quantity

SOC = soc("agx-orin-64gb")
BASE = Plan()
WORK = {BASE.rewrites: known_workloads(BASE, load_parameters())}
FEW_CLOCKS = (
    {"clocks_mhz": {"gpu": 612.0, "dla": 614.4, "emc": 3199.0, "cpu": 2201.6}},
    {"clocks_mhz": {"gpu": 1300.5, "dla": 1600.0, "emc": 2133.0, "cpu": 2201.6}},
    {"mode": "30W"},
    {"mode": "MAXN"},
)


def make_space(axes=None, base=BASE):
    return Space(base, SOC, WORK, axes)


@pytest.fixture(scope="module")
def model():
    return PlanModel(make_space(Axes(gpu_batch=(0, 1, 4, 16, 64, 256), dla_batch=(1, 2, 4), dla_loop=(1,))))


class Truth:
    """A board that is the model with other factors, and GPU batches that run off by their own share."""

    def __init__(self, model, rng, bump=0.0):
        self.space = model.space
        factors = rng.normal(size=len(model.factors)) * model.prior_sd
        factors[model.factors.index("dla_hidden_gpu")] = 0.0
        scores = model.scores(factors)
        own = np.exp(rng.normal(0, bump, len(model.space.gpu_halves)))[model.space.gpu]
        self.speed, self.watts, self.latency = scores.samples_per_s * own, scores.module_w, scores.latency_ms / own
        total = scores.samples_per_s
        self.share = np.stack([scores.gpu_per_s / total, scores.dla_per_s / total])
        self.rng = rng

    def measure(self, trial, noise=0.005):
        at = trial.index
        drawn = np.exp(self.rng.normal(0, noise, 3))
        found = [
            Quantity(float(column[at] * factor), float(2 * noise * column[at]))
            for column, factor in zip((self.speed, self.watts, self.latency), drawn)
        ]
        return Measurement(*found, {"gpu": self.share[0, at], "dla0": self.share[1, at]}, 5.0)


def run(tuner, measure):
    while (trial := tuner.propose()) is not None:
        tuner.observe(trial, measure(trial))
    return tuner


def test_every_point_is_a_plan_of_its_own_that_finds_its_number():
    space = make_space(Axes(gpu_batch=(0, 8, 64), dla_batch=(1, 2), settings=FEW_CLOCKS))
    plans = [space.plan(index) for index in range(len(space))]
    gpu, dla = 1 + 2 * 2, 1 + 2 * 2 * 2 * 2
    assert len(plans) == (gpu * dla - 1) * 4
    assert [space.index(plan) for plan in plans] == list(range(len(plans)))
    assert len({plan.dumps() for plan in plans}) == len(plans)
    assert space.index(Plan(gpu_batch=3)) is None


def test_fp32_and_other_clocks_than_the_plans_own():
    space = make_space(base=dataclasses.replace(BASE, precision="fp32", mode="50W"))
    assert {space.plan(index).dla_cores for index in range(len(space))} == {0}
    assert {space.plan(index).mode for index in range(len(space))} == {"50W"}
    modes = {setting.get("mode") for setting in clock_settings(SOC)}
    assert {mode.name for mode in SOC.board.modes} <= modes


def test_a_space_without_accelerators_or_end_is_refused():
    with pytest.raises(OrinError, match="no accelerator"):
        make_space(Axes(gpu_batch=(0,), dla_cores=(0,)))
    with pytest.raises(OrinError, match="shorten an axis"):
        make_space(Axes(gpu_batch=tuple(range(1, 2000)), settings=clock_settings(SOC)))


def test_the_model_agrees_with_the_event_simulation():
    """Closed form against the fluid simulation, event by event: other code, the same physics."""
    space = make_space(Axes(settings=FEW_CLOCKS))
    model = PlanModel(space)
    scores = model.scores(np.zeros(len(model.factors)))
    for index in np.random.default_rng(1).integers(0, len(space), 12):
        seen = predict(space.plan(index), SOC, "offline", WORK[BASE.rewrites], Options(seconds=20))
        assert scores.samples_per_s[index] == pytest.approx(seen.samples_per_s, rel=0.02)
        assert scores.module_w[index] == pytest.approx(seen.module_w.value, rel=0.02)


def test_factors_do_what_they_say(model):
    only_gpu = np.flatnonzero(model.space.dla == 0)[-1:]
    bare = np.zeros(len(model.factors))
    slower, hotter = bare.copy(), bare.copy()
    slower[model.factors.index("gpu_time")] = math.log(2)
    hotter[model.factors.index("idle_w")] = math.log(2)
    before, after = model.scores(bare, only_gpu), model.scores(slower, only_gpu)
    assert after.samples_per_s[0] == pytest.approx(before.samples_per_s[0] / 2, rel=0.02)
    idle_w = 3.2 + 0.4 + 4.0  # of the three rails that are counted, orin/virtual/parameters.yaml
    assert model.scores(hotter, only_gpu).module_w[0] - before.module_w[0] == pytest.approx(idle_w, rel=0.1)
    many = model.scores(np.stack([bare, slower]), only_gpu).samples_per_s
    assert many[:, 0] == pytest.approx([before.samples_per_s[0], after.samples_per_s[0]])


@pytest.mark.parametrize("kind", ["throughput", "latency"])
def test_finds_the_best_of_a_board_whose_parameters_are_others(model, kind):
    regrets = []
    for seed in range(3):
        truth = Truth(model, np.random.default_rng(seed))
        tuner = run(Tuner(model.space, model, Objective(kind)), truth.measure)
        goal = np.log(truth.speed) if kind == "throughput" else -np.log(truth.latency)
        regrets.append(goal.max() - goal[tuner.best.index])
        assert len(tuner.runs) <= 10
    assert np.median(regrets) < 0.01
    assert max(regrets) < 0.03


def test_a_wrong_model_is_noticed_and_its_intervals_widen(model):
    calm, odd = (
        run(Tuner(model.space, model), Truth(model, np.random.default_rng(3), bump).measure) for bump in (0.0, 0.35)
    )
    assert odd.belief.misfit[0] > 2 * calm.belief.misfit[0]
    assert len(odd.runs) >= len(calm.runs)


def test_limits_are_kept_on_the_board(model):
    for seed in range(2):
        truth = Truth(model, np.random.default_rng(seed))
        limit_ms, least = 30.0, 2000.0
        objective = Objective("throughput", slo_ms=limit_ms, min_samples_per_s=least)
        tuner = run(Tuner(model.space, model, objective), truth.measure)
        allowed = truth.latency <= limit_ms
        at = tuner.best.index
        assert allowed[at]
        assert truth.speed[at] > least
        assert truth.speed[at] > 0.95 * truth.speed[allowed].max()


def test_efficiency_looks_for_clocks():
    space = make_space(Axes(gpu_depth=(2,), dla_depth=(2,), settings=FEW_CLOCKS))
    model = PlanModel(space)
    truth = Truth(model, np.random.default_rng(0))
    tuner = run(Tuner(space, model, Objective("efficiency")), truth.measure)
    per_joule = truth.speed / truth.watts
    assert per_joule[tuner.best.index] > 0.98 * per_joule.max()


def test_what_fails_is_not_tried_again_nor_what_builds_the_same_engines(model):
    truth = Truth(model, np.random.default_rng(0))
    failed, beside_dla = [], []

    def measure(trial):
        if trial.plan.dla_cores:
            beside_dla.append(trial.plan.gpu_batch)
        if trial.plan.dla_cores and trial.plan.gpu_batch == beside_dla[0]:  # the first that is tried does not fit
            failed.append((trial.plan.gpu_batch, trial.plan.dla_batch))
            return Measurement.failed("out of memory")
        return truth.measure(trial)

    tuner = run(Tuner(model.space, model, rules=Rules(runs=12)), measure)
    assert failed
    assert len(set(failed)) == len(failed)
    assert tuner.best.plan.gpu_batch != beside_dla[0] or not tuner.best.plan.dla_cores


def test_nothing_can_run(model):
    tuner = run(Tuner(model.space, model, rules=Rules(runs=3)), lambda trial: Measurement.failed("no driver"))
    assert tuner.best is None
    assert len(tuner.runs) == 3


def test_a_throttled_run_is_repeated_once_and_then_taken_as_it_is(model):
    truth = Truth(model, np.random.default_rng(0))

    def measure(trial):
        found = truth.measure(trial)
        return dataclasses.replace(found, flags=("throttled: gpu",)) if trial.number in (1, 2) else found

    tuner = run(Tuner(model.space, model, rules=Rules(runs=5)), measure)
    first, again, other = tuner.runs[:3]
    assert first.trial.plan == again.trial.plan
    assert again.trial.reason == "again: throttled: gpu"
    assert other.trial.plan != first.trial.plan


def test_the_reference_is_run_again_and_the_runs_end(model):
    truth = Truth(model, np.random.default_rng(0))
    tuner = run(Tuner(model.space, model, rules=Rules(runs=7, gain=0.0, reference_every=4)), truth.measure)
    assert tuner.stopped_by == "7 runs"
    assert tuner.runs[4].trial.plan == tuner.runs[0].trial.plan
    assert "drift" in tuner.runs[4].trial.reason


def test_the_same_measurements_lead_to_the_same_proposals(model):
    one, other = (run(Tuner(model.space, model), Truth(model, np.random.default_rng(5)).measure) for _ in range(2))
    assert [r.trial.index for r in one.runs] == [r.trial.index for r in other.runs]
    assert one.best.plan == other.best.plan


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"kind": "speed"}, "expected one of throughput"),
        ({"slo_ms": -1.0}, "--slo-ms is -1.0"),
        ({"budget_w": math.nan}, "--budget-w"),
    ],
)
def test_objectives_that_make_no_sense_are_refused(asked, words):
    with pytest.raises(OrinError, match=words):
        Objective(**asked)


def test_a_measurement_is_kept_as_it_is():
    found = Measurement(Quantity(100.0, 2.0), Quantity(20.0, 1.0), None, {"gpu": 0.75, "dla0": 0.25}, 5.0, ("hot",))
    assert Measurement.from_json(found.as_json()) == found
    logs = found.logs()
    assert logs["speed"] == pytest.approx((math.log(100), 0.02 / 1.96))
    assert logs["balance"][0] == pytest.approx(math.log(1 / 3))
    assert "latency" not in logs
