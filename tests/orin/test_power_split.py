"""Watts by difference on a board: the four windows in order, and the virtual board's own watts given back."""

import json
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from orin.attribution import Load, Round, measure, orders, prepare
from orin.build import Desk
from orin.cli.power_split import print_split
from orin.errors import OrinError
from orin.plan import Plan
from orin.soc import AGX_ORIN_64GB_SOC as SOC
from orin.virtual.machine import Machine
from orin.virtual.model import CostModel, EngineShape
from orin.virtual.predict import zoo_workload
from orin.virtual.rails import RailsState
from orin.virtual.tegrastats import Sensor
from power.attribution import PHASES, attribute
from power.boards import AGX_ORIN_64GB
from power.meter import Meter
from power.reading import RailReading, Reading
from power.source import ChipFilter
from tests.instruments import NullBoard, engine

SECOND = 1_000_000_000
RAILS = tuple(rail.name for rail in AGX_ORIN_64GB.rails)
FAST = ChipFilter("1-0040", 1, 1.0, 3)  # no averaging: nothing to settle


class Samples:
    """A source that holds what a test says: stamps and milliwatts by rail."""

    name = "samples"
    filters = dict.fromkeys(RAILS, FAST)

    def __init__(self, rows):
        self.rows = rows

    def readings(self):
        return [
            (at, Reading({}, {}, {n: RailReading(mw, None, None) for n, mw in mws.items()})) for at, mws in self.rows
        ]

    def check(self):
        pass


class Steady(Samples):
    """A sensor that has shown the same every 10 ms since it was made."""

    def __init__(self):
        self.begin_ns = time.monotonic_ns()

    @property
    def rows(self):
        stamps_ns = range(self.begin_ns, time.monotonic_ns(), SECOND // 100)
        return [(at_ns, dict(zip(RAILS, (3200, 400, 4000, 300), strict=True))) for at_ns in stamps_ns]


class MeteredBoard(NullBoard):
    @contextmanager
    def meter(self, on_line=None):
        yield Meter(AGX_ORIN_64GB, Steady())


@pytest.fixture(scope="module")
def split():
    plan = Plan(gpu_batch=8, dla_batch=2)
    board = MeteredBoard(ns_per_batch={"gpu": 2_000_000, "dla0": 2_000_000, "dla1": 2_000_000})
    said = []
    samples = np.zeros((16, 3, 224, 224), dtype=np.int8)
    load = Load({"gpu": engine("gpu", 8), "dla": engine("dla", 2)}, samples, 0.25, said.append, rounds=2)
    found = measure(plan, board, load)
    assert [line.split(":")[0] for line in said] == [*PHASES, *reversed(PHASES)]
    assert board.held == 0 and all(loaded.closed for loaded in board.engines)
    return found


def test_each_window_runs_what_it_should_and_none_overlaps(split):
    used = {name: set(rates) for name, rates in split.samples_per_s.items()}
    assert used == {"idle": set(), "gpu": {"gpu"}, "dlas": {"dla0", "dla1"}, "all": {"gpu", "dla0", "dla1"}}
    one, two = (each.windows for each in split.rounds)
    windows = [*(one[name] for name in PHASES), *(two[name] for name in reversed(PHASES))]
    spans = [(window.begin_ns, window.end_ns) for window in windows]
    assert all(end <= begin for (_, end), (begin, _) in zip(spans, spans[1:]))
    assert all(end - begin >= SECOND // 4 for begin, end in spans)


def test_rates_are_no_higher_than_the_board_can_be(split):
    """2 ms a batch: at most 500 batches/s of 8 and of 2, and one that began before the quarter of a second."""
    for rates in split.samples_per_s.values():
        assert all(0 < rate <= (500 + 4) * (8 if name == "gpu" else 2) for name, rate in rates.items())


def test_watts_that_do_not_change_are_not_resolved(split, capsys):
    values = json.loads(json.dumps(split.as_json()))
    assert values["attribution"]["gpu_alone"]["module_w"]["value"] is None
    assert values["provenance"] == "simulated" and values["plan"]["dla_cores"] == 2
    assert values["rounds"][1]["windows"]["idle"]["module_w"]["value"] == pytest.approx(7.6)
    print_split(split)
    text = capsys.readouterr().out
    assert text.startswith("SIMULATED: resnet50 on null") and max(map(len, text.splitlines())) <= 100
    assert next(line for line in text.splitlines() if line.startswith("GPU alone")).count("not resolved") == 4
    assert "over idle: gpu – mJ/sample, dlas – mJ/sample" in text
    assert "idle 7.60 ± " in text and "window 'dlas': dla0 " in text


def test_a_sample_costs_the_watts_over_idle_by_the_rate(split):
    """28 W over idle at 4,000 samples/s are 7 mJ a sample, 12 W at 2 x 1,000 are 6 mJ."""
    levels = {
        "idle": (3200, 400, 4000),
        "gpu": (23200, 400, 12000),
        "dlas": (7200, 4400, 8000),
        "all": (27200, 4400, 16000),
    }
    rows = [
        ((at + 100 * window) * SECOND // 10, dict(zip(RAILS, levels[name], strict=False)))
        for window, name in enumerate(PHASES)
        for at in range(100)
    ]
    meter = Meter(AGX_ORIN_64GB, Samples(rows))
    windows = {name: meter.energy(k * 10 * SECOND, (k * 10 + 9) * SECOND) for k, name in enumerate(PHASES)}
    rates = {"idle": {}, "gpu": {"gpu": 4000.0}, "dlas": {"dla0": 1000.0, "dla1": 1000.0}, "all": {}}
    less = {name: {one: 0.9 * rate for one, rate in rate.items()} for name, rate in rates.items()}
    more = {name: {one: 1.1 * rate for one, rate in rate.items()} for name, rate in rates.items()}
    rounds = [Round(windows, less), Round(windows, more)]
    found = replace(split, attribution=attribute([windows], 2), rounds=rounds).mj_per_sample()
    assert {name: cost.value for name, cost in found.items()} == pytest.approx({"gpu": 7.0, "dlas": 6.0})


@pytest.mark.parametrize("plan", [Plan(gpu_batch=0), Plan(dla_cores=0)])
def test_a_plan_without_gpu_or_dla_has_nothing_to_tell_apart(plan):
    with pytest.raises(OrinError, match="alone: to tell GPU and DLAs apart it takes both"):
        prepare(plan, Desk(photos=[]), 1)


def test_rounds_below_one_are_refused():
    with pytest.raises(OrinError, match="--rounds is 0, expected 1 or more"):
        orders(0)


def run_machine(used, seconds=2.0):
    """Run batches back to back on the exact machine; return its mean watts by rail over the run."""
    workload = zoo_workload("resnet50")
    model = CostModel(SOC, SOC.clocks("MAXN"), Plan().stack)
    machine = Machine(model)
    shapes = {name: EngineShape("resnet50", "gpu" if name == "gpu" else "dla", 32, "int8", workload) for name in used}
    while machine.now_ns < seconds * SECOND:
        for name, shape in shapes.items():
            while machine.queued(name) < 2:
                machine.submit(name, model.cost(shape, 32), name)
        machine.advance(machine.now_ns + 1e6)
    totals = machine.totals()
    return {rail: joules / (totals.elapsed_ns / 1e9) for rail, joules in totals.rail_j.items()}


def test_the_virtual_board_s_watts_come_back_through_sensor_and_meter():
    """Each level lasts 12 s and is measured when the sensor has settled; what comes out is the model's own."""
    used = {"idle": (), "gpu": ("gpu",), "dlas": ("dla0", "dla1"), "all": ("gpu", "dla0", "dla1")}
    watts = {name: run_machine(names) for name, names in used.items()}
    sensor, rows, spans, energy_mj, at_ns = Sensor(AGX_ORIN_64GB), [], {}, [0.0] * 4, 0
    for name in PHASES:
        spans[name] = (at_ns + 2 * SECOND, at_ns + 11 * SECOND)
        for _ in range(120):
            at_ns += SECOND // 10
            energy_mj = [mj + watts[name][rail] * 100 for mj, rail in zip(energy_mj, RAILS, strict=True)]
            sensor.feed(RailsState(at_ns, tuple(energy_mj), 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0))
            if (shown := sensor.rails_mw()) is not None:
                rows.append((at_ns, shown))
    meter = Meter(AGX_ORIN_64GB, Samples(rows))
    found = attribute([{name: meter.energy(*span) for name, span in spans.items()}], dla_cores=2)
    total = [rail.name for rail in AGX_ORIN_64GB.total_rails()]

    def true_w(high, low):
        return sum(watts[high][rail] - watts[low][rail] for rail in total)

    for draw, high, low in (
        (found.gpu_alone, "gpu", "idle"),
        (found.dlas_alone, "dlas", "idle"),
        (found.gpu_on_top, "all", "dlas"),
        (found.dlas_on_top, "all", "gpu"),
    ):
        assert draw.module_w.is_resolved
        assert abs(draw.module_w.value - true_w(high, low)) < 1.3 * draw.module_w.u95  # the worst of four at 95 %
        for rail in AGX_ORIN_64GB.rails:  # half a step at most on either side of a difference
            difference_w = watts[high][rail.name] - watts[low][rail.name]
            assert abs(draw.rails_w[rail.name].value - difference_w) < rail.step_w + 0.01
    assert true_w("dlas", "idle") > 5  # the model's DLAs do draw power: the comparison is of something
