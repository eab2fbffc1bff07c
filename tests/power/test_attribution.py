"""Watts by difference, worked by hand."""

import json
import math
from dataclasses import replace

import pytest

from power.attribution import PHASES, attribute
from power.boards import AGX_ORIN_64GB
from power.energy import module_balance, rail_balance
from power.errors import PowerError
from power.meter import Meter
from power.quantity import T95, ModuleQuantity
from power.reading import RailReading, Reading

SECOND = 1_000_000_000
TAU_S = 0.43008
RAILS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO")
STEP_20V, STEP_5V = 0.02 * 19.9, 0.02 * 5


class Samples:
    """A source that holds what a test says: stamps and milliwatts by rail."""

    name = "samples"
    filters = {}

    def __init__(self, rows):
        self.rows = rows

    def readings(self):
        return [
            (at, Reading({}, {}, {n: RailReading(mw, None, None) for n, mw in rails.items()}))
            for at, rails in self.rows
        ]

    def check(self):
        pass


def steady(seconds, *levels_mw):
    """Steady power of the rails, one level after another, each for so many seconds at 10 Hz, and a meter on it."""
    rows = [
        (round((level * seconds + at / 10) * SECOND), dict(zip(RAILS, levels_mw[level], strict=False)))
        for level in range(len(levels_mw))
        for at in range(seconds * 10)
    ]
    return Meter(AGX_ORIN_64GB, Samples(rows))


def windows(seconds, *levels_mw):
    """The four windows, each inside its level and clear of the next."""
    meter = steady(seconds, *levels_mw)
    spans = [(k * seconds * SECOND, k * seconds * SECOND + (seconds - 1) * SECOND) for k in range(len(levels_mw))]
    return dict(zip(PHASES, (meter.energy(*span) for span in spans), strict=False))


IDLE = (3200, 400, 4000, 300)
LEVELS = (IDLE, (23200, 400, 12000, 2300), (7200, 4400, 8000, 1300), (26200, 4600, 15000, 3000))


def test_watts_of_gpu_and_dlas_worked_by_hand():
    found = attribute([windows(11, *LEVELS)], dla_cores=2)
    assert found.idle_w.value == pytest.approx(7.6) and found.all_w.value == pytest.approx(45.8)
    assert found.gpu_alone.module_w.value == pytest.approx(28)
    assert found.dlas_alone.module_w.value == pytest.approx(12)
    assert found.gpu_on_top.module_w.value == pytest.approx(45.8 - 19.6)
    assert found.dlas_on_top.module_w.value == pytest.approx(45.8 - 35.6)
    assert found.interaction.module_w.value == pytest.approx(45.8 - 35.6 - 19.6 + 7.6)
    assert {name: power.value for name, power in found.dlas_alone.rails_w.items()} == pytest.approx(
        {"VDD_GPU_SOC": 4, "VDD_CPU_CV": 4, "VIN_SYS_5V0": 4, "VDDQ_VDD2_1V8AO": 1}
    )
    assert found.dla_core_alone.module_w.value == pytest.approx(6)
    assert found.dla_core_alone.module_w.u95 == pytest.approx(found.dlas_alone.module_w.u95 / 2)


def test_the_offset_cancels_and_the_step_does_not():
    found = attribute([windows(11, *LEVELS)], dla_cores=2)
    edge = 1 + 2 * (TAU_S / 10) ** 2
    steps = (2 * STEP_20V**2 + STEP_5V**2) / 12 * edge
    gain = (0.0035 / math.sqrt(3)) ** 2
    assert found.dlas_alone.module_w.u95 == pytest.approx(1.96 * math.sqrt(2 * steps + gain * 12**2))
    assert found.interaction.module_w.u95 == pytest.approx(1.96 * math.sqrt(4 * steps + gain * 1.8**2))
    rail = found.dlas_alone.rails_w["VDD_CPU_CV"]
    assert rail.u95 == pytest.approx(1.96 * math.sqrt(2 * STEP_20V**2 / 12 * edge + gain * 4**2))
    assert rail.u95 < windows(11, *LEVELS)["dlas"].rails_w["VDD_CPU_CV"].u95  # which holds the offset


def test_a_difference_below_the_sensor_s_step_is_not_resolved():
    found = attribute([windows(11, IDLE, LEVELS[1], (3500, 500, 4000, 300), LEVELS[3])], dla_cores=1)
    assert not found.dlas_alone.module_w.is_resolved
    values = json.loads(json.dumps(found.as_json()))["dlas_alone"]
    assert values["module_w"]["value"] is None and values["module_w"]["resolved"] is False
    assert values["module_w"]["u95"] > 0.4
    assert found.as_json()["gpu_alone"]["module_w"]["value"] == pytest.approx(28)


def shifted(energy, rounds):
    """The same window, later."""
    return replace(
        energy, begin_ns=energy.begin_ns + rounds * 100 * SECOND, end_ns=energy.end_ns + rounds * 100 * SECOND
    )


def test_the_spread_of_rounds_and_the_sensor_make_one_interval():
    """DLAs at 12.0, 12.6 and 13.2 W over idle: s = 0.6, t(2) = 4.303 by scipy.stats.t.ppf(0.975, 2)."""
    rounds = []
    for number, more_mw in enumerate((0, 600, 1200)):
        levels = (IDLE, LEVELS[1], (7200, 4400 + more_mw, 8000, 1300), LEVELS[3])
        rounds.append({name: shifted(energy, number) for name, energy in windows(11, *levels).items()})
    found, one = attribute(rounds, dla_cores=2), attribute(rounds[1:2], dla_cores=2)
    dlas = found.dlas_alone.module_w
    assert (found.rounds, one.rounds, found.as_json()["rounds"]) == (3, 1, 3)
    assert dlas.value == pytest.approx(12.6) and type(dlas) is ModuleQuantity
    assert dlas.u95 == pytest.approx(math.hypot(one.dlas_alone.module_w.u95, 4.303 * 0.6 / math.sqrt(3)), rel=1e-4)
    assert found.gpu_alone.module_w.u95 == pytest.approx(one.gpu_alone.module_w.u95)  # the same each time
    rail = found.dlas_alone.rails_w["VDD_CPU_CV"]
    assert rail.value == pytest.approx(4.6) and rail.u95 > one.dlas_alone.rails_w["VDD_CPU_CV"].u95
    with pytest.raises(PowerError, match="windows 'idle' and 'idle' overlap"):
        attribute([rounds[0], rounds[0]], dla_cores=2)
    with pytest.raises(PowerError, match="0 rounds of windows, expected 1 or more"):
        attribute([], dla_cores=2)


def test_students_t_is_that_of_the_tables():
    stats = pytest.importorskip("scipy.stats")
    assert [round(float(stats.t.ppf(0.975, n)), 3) for n in range(1, 31)] == pytest.approx(T95, abs=0.005)


def test_what_cannot_be_told_apart_is_refused():
    good = windows(11, *LEVELS)
    with pytest.raises(PowerError, match="0 DLA cores ran"):
        attribute([good], dla_cores=0)
    with pytest.raises(PowerError, match="windows 'idle' and 'all' overlap"):
        attribute([good | {"all": good["idle"]}], dla_cores=2)
    partial = windows(11, *(level[:2] for level in LEVELS))
    with pytest.raises(PowerError, match=r"window 'idle' lacks the module's power \(VIN_SYS_5V0\)"):
        attribute([partial], dla_cores=2)
    assert module_balance([(1, partial["gpu"]), (-1, partial["idle"])]) is None
    with pytest.raises(PowerError, match="rail 'VIN_SYS_5V0' is not in each of the windows"):
        rail_balance([(1, good["gpu"]), (-1, partial["idle"])], "VIN_SYS_5V0")
