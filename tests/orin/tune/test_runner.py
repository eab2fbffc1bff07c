"""Runs on a board as the tuner makes them: waiting for a warm one, slices, failures; each bench itself is faked."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

import orin.tune.run
from orin.bench import Bench
from orin.build import Desk
from orin.errors import OrinError
from orin.plan import Plan
from orin.record import Batch, RunRecord
from orin.soc import AGX_ORIN_64GB_SOC
from orin.sweep import Site, Thermal
from orin.tune.measurement import Measurement
from orin.tune.objective import Objective
from orin.tune.planner import PlanModel
from orin.tune.run import SLICES, BoardRunner
from orin.tune.search import Rules, Tuner
from orin.tune.space import Axes, Space
from orin.virtual.parameters import load_parameters
from orin.virtual.predict import known_workloads
from power.quantity import Quantity
from power.reading import parse_line

PLAN = Plan(gpu_batch=4, dla_cores=0)
LINE = "VDD_GPU_SOC 1mW/1mW GR3D_FREQ 99%@[{mhz},{mhz}]"


class Board:
    """A board that tells temperatures, one a reading; the last one stays."""

    name, soc, provenance = "jetson", AGX_ORIN_64GB_SOC, "measured"

    def __init__(self, *temperatures_c):
        self.temperatures_c = list(temperatures_c) or [40]

    def _readings(self):
        now_c = self.temperatures_c.pop(0) if len(self.temperatures_c) > 1 else self.temperatures_c[0]
        return [(0, parse_line(f"RAM 1/2MB cpu@{now_c}C tj@20C"))]

    @contextmanager
    def meter(self, on_line=None):
        yield SimpleNamespace(source=SimpleNamespace(readings=self._readings), check=lambda: None)


class Benches:
    """Stands in for `orin.bench.bench`: records of a GPU whose items end at regular or at scattered moments."""

    def __init__(self, scatter=0.0, mhz=1300):
        self.scatter, self.mhz = scatter, mhz
        self.seconds = []

    def __call__(self, plan, board, desk, options):
        self.seconds.append(options.seconds)
        gaps = np.random.default_rng(0).normal(10.0, 10.0 * self.scatter, round(100 * options.seconds))
        ends_ns = np.cumsum(np.maximum(gaps, 1.0)) * 1e6
        begins_ns = np.append(0.0, ends_ns[:-1])
        batches = tuple(Batch("gpu", round(b), round(e), plan.gpu_batch) for b, e in zip(begins_ns, ends_ns))
        folder = options.runs / f"run{len(self.seconds)}"
        folder.mkdir(parents=True)
        stamps = np.linspace(0, ends_ns[-1], 20).astype(int)
        (folder / "tegrastats.log").write_text("\n".join(f"{at} {LINE.format(mhz=self.mhz)}" for at in stamps))
        watts = {"value": 20.0, "u95": 0.2}
        values = {
            "status": "finished", "provenance": "measured", "board": board.name, "network": {"name": plan.network},
            "stack": plan.stack, "scenario": "offline", "plan": plan.as_json(), "window_ns": [0, round(ends_ns[-1])],
            "clocks": {"gpu_mhz": 1300.5},
            "power": {"module_w": watts, "rails_w": {}, "idle_w": {"value": 7.5, "u95": 0.1}},
        }  # fmt: skip
        return RunRecord(folder, values, batches)


def runner_on(board, tmp_path, monkeypatch, benches, slept=None):
    monkeypatch.setattr(orin.tune.run, "bench", benches)
    thermal = Thermal(margin_c=3, patience_s=20, poll_s=2, sleep=(slept if slept is not None else []).append)
    site = Site(lambda: board, Desk(cache=tmp_path, say=lambda words: None), thermal)
    return BoardRunner(site, Bench("offline", 5.0, tmp_path / "runs", idle_s=3.0))


def test_a_warm_board_is_waited_for_until_it_is_as_cool_as_at_first(tmp_path, monkeypatch):
    slept = []
    runner = runner_on(Board(40, 55, 48, 42, 42), tmp_path, monkeypatch, Benches(), slept)
    runner.measure(PLAN, 1)
    assert slept == []
    runner.measure(PLAN, 2)
    assert slept == [2, 2]


def test_a_steady_run_ends_early_and_a_scattered_one_goes_on(tmp_path, monkeypatch):
    steady = Benches()
    found = runner_on(Board(), tmp_path / "steady", monkeypatch, steady).measure(PLAN, 1)
    assert steady.seconds == pytest.approx([SLICES[0] * 5])
    assert found.measurement.samples_per_s.value == pytest.approx(400.0)
    scattered = Benches(scatter=0.9)
    more = runner_on(Board(), tmp_path / "scattered", monkeypatch, scattered).measure(PLAN, 1)
    assert scattered.seconds == pytest.approx([part * 5 for part in SLICES])
    assert len(more.folders) == 2


def test_idle_watts_and_idle_seconds_are_counted(tmp_path, monkeypatch):
    found = runner_on(Board(), tmp_path, monkeypatch, Benches()).measure(PLAN, 1).measurement
    assert found.idle_w == Quantity(7.5, 0.1)
    assert found.seconds == pytest.approx(2.0 + 3.0, rel=0.01)


def test_a_throttled_run_says_so(tmp_path, monkeypatch):
    found = runner_on(Board(), tmp_path, monkeypatch, Benches(mhz=900)).measure(PLAN, 1).measurement
    assert found.flags
    assert found.flags[0].startswith("throttled: gpu at 900 MHz")


def test_what_cannot_run_is_a_failure_of_the_plan(tmp_path, monkeypatch):
    def broken(plan, board, desk, options):
        raise OrinError("the engine was refused")

    found = runner_on(Board(), tmp_path, monkeypatch, broken).measure(PLAN, 1)
    assert found.measurement.failure == "the engine was refused"


def test_the_best_plan_is_run_again_against_drift():
    """A board that loses 1 % of its speed with every run: the repeated plan shows it."""
    base = Plan()
    space = Space(base, AGX_ORIN_64GB_SOC, {base.rewrites: known_workloads(base, load_parameters())}, Axes.batches())
    model = PlanModel(space)
    truth = model.scores(np.zeros(len(model.factors)))
    tuner = Tuner(space, model, Objective(), Rules(runs=5, gain=0.0, reference_every=4))
    while (trial := tuner.propose()) is not None:
        speed = float(truth.samples_per_s[trial.index]) * 0.99**trial.number
        tuner.observe(trial, Measurement(Quantity(speed, 0.002 * speed), seconds=4.0))
    again = tuner.runs[4].trial
    assert "drift" in again.reason
    assert again.plan in [run.trial.plan for run in tuner.runs[:4]]
