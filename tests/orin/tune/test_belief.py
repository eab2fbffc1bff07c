"""What is believed after some runs: hypotheses told apart, beliefs that agree with what was measured, draws."""

import math

import numpy as np
import pytest

from orin.plan import Plan
from orin.soc import soc
from orin.tune.belief import Belief
from orin.tune.factors import ANSWERS, FACTORS
from orin.tune.measurement import Measurement
from orin.tune.objective import Objective
from orin.tune.planner import PlanModel
from orin.tune.refit import Seen
from orin.tune.search import Rules, Tuner
from orin.tune.space import Axes, Space
from orin.virtual.parameters import load_parameters
from orin.virtual.predict import known_workloads
from power.quantity import Quantity

SPEED = np.array([1.0, 0.0, 0.0])
AT = {name: at for at, name in enumerate(FACTORS)}


@pytest.fixture(scope="module")
def model():
    base = Plan()
    axes = Axes(gpu_batch=(0, 1, 2, 4, 8, 64), dla_batch=(1, 2), dla_loop=(1,))
    work = {base.rewrites: known_workloads(base, load_parameters())}
    return PlanModel(Space(base, soc("agx-orin-64gb"), work, axes))


def board(model, **factors):
    """Return the factors of a board that differs in a few of them."""
    found = np.zeros(len(model.factors))
    for name, value in factors.items():
        found[AT[name]] = value
    return found


def measured(model, factors, index):
    scores = model.scores(factors, np.array([index]))
    values = (scores.samples_per_s[0], scores.module_w[0], scores.latency_ms[0])
    total = scores.samples_per_s[0]
    share = {"gpu": scores.gpu_per_s[0] / total, "dla0": scores.dla_per_s[0] / total}
    idle_w = Quantity(float(scores.idle_w[0]), 0.05)
    return Measurement(*(Quantity(float(v), 0.003 * float(v)) for v in values), share, 4.0, idle_w=idle_w)


def some(model, count, seed=0):
    return np.random.default_rng(seed).choice(len(model.space), count, replace=False)


def test_the_hypotheses_are_all_answers_to_all_questions(model):
    assert len(model.hypotheses) == math.prod(map(len, ANSWERS.values()))
    assert sum(one.probability for one in model.hypotheses) == pytest.approx(1)


@pytest.mark.parametrize(
    "factors", [{}, {"gpu_launch": -4.0}, {"dla_hidden_gpu": 4.2}, {"gpu_launch": -4.0, "dla_hidden_gpu": 4.2}]
)
def test_runs_tell_which_hypothesis_is_so(model, factors):
    truth = board(model, **factors)
    belief = Belief(model, [Seen(int(at), measured(model, truth, at)) for at in some(model, 8)])
    centre = belief.likeliest.hypothesis.centre
    assert (centre[AT["gpu_launch"]] < 0) == ("gpu_launch" in factors)
    assert (centre[AT["dla_hidden_gpu"]] > 0) == ("dla_hidden_gpu" in factors)
    assert belief.weights.sum() == pytest.approx(1)


def test_beliefs_of_measured_plans_agree_with_what_was_measured(model):
    truth = board(model, gpu_time=0.2, dla_time=-0.15, gpu_w=0.2, idle_w_cpu=0.5)
    points = some(model, 10)
    belief = Belief(model, [Seen(int(at), measured(model, truth, at)) for at in points])
    found, scores = belief.forecast(points), model.scores(truth, points)
    np.testing.assert_allclose(np.exp(found.mean[0]), scores.samples_per_s, rtol=0.015)
    np.testing.assert_allclose(np.exp(found.mean[1]), scores.module_w, rtol=0.015)


def test_intervals_hold_what_they_say(model):
    """Of the speeds of plans that were not run, most lie within two standard deviations."""
    inside = []
    for seed in range(4):
        random = np.random.default_rng(seed)
        truth = np.clip(random.normal(size=len(model.factors)), -2, 2) * model.prior_sd
        truth[AT["dla_hidden_gpu"]] = truth[AT["gpu_launch"]] = 0.0
        belief = Belief(model, [Seen(int(at), measured(model, truth, at)) for at in some(model, 6, seed)])
        points = np.arange(len(model.space))
        found = belief.forecast(points)
        off = np.abs(found.mean[0] - np.log(model.scores(truth, points).samples_per_s))
        inside.append(np.mean(off <= 2 * np.sqrt(found.variance(SPEED))))
    assert np.mean(inside) > 0.85


def test_drawn_boards_are_spread_as_the_belief_is(model):
    truth = board(model, gpu_time=0.1)
    points = some(model, 3)
    belief = Belief(model, [Seen(int(at), measured(model, truth, at)) for at in points])
    drawn = belief.drawn(400, np.random.default_rng(1))
    at = AT["dla_time"]
    untold = Belief(model, ()).drawn(400, np.random.default_rng(1))
    assert untold[:, at].std() == pytest.approx(model.prior_sd[at], rel=0.15)
    assert drawn[:, at].std() < untold[:, at].std()
    logs = np.log(model.scores(drawn, points).samples_per_s)
    believed = belief.forecast(points)
    assert np.all(np.abs(np.median(logs, axis=0) - believed.mean[0]) < 0.1)


def test_a_board_without_launch_gaps_is_tuned_to_small_batches(model):
    """Under the stack's launch gaps a batch of 1 is no faster than one of 4; the board has none."""
    truth = board(model, gpu_launch=-4.0)
    tuner = Tuner(model.space, model, Objective("latency"), Rules(runs=10))
    while (trial := tuner.propose()) is not None:
        tuner.observe(trial, measured(model, truth, trial.index))
    latency_ms = model.scores(truth).latency_ms
    assert latency_ms[tuner.best.index] < 1.02 * latency_ms.min()


def test_board_seconds_end_the_runs(model):
    truth = board(model)
    tuner = Tuner(model.space, model, Objective(), Rules(runs=100, board_s=26.0, gain=0.0))
    while (trial := tuner.propose()) is not None:
        tuner.observe(trial, measured(model, truth, trial.index))
    assert len(tuner.runs) == 6  # of 4 s
    assert tuner.stopped_by == "26 board-seconds"
