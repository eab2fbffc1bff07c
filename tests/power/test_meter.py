"""Energy over windows: hand-computed traces, the sensor's filter in closed form, uncertainty, gaps."""

import json
import math

import numpy as np
import pytest

from power.boards import AGX_ORIN_64GB, BOARDS
from power.errors import PowerError
from power.meter import Meter
from power.reading import RailReading, Reading
from power.source import ChipFilter
from power.window import trapezoid_j

SECOND = 1_000_000_000
TAU_S = 0.43008  # 512 samples x 3 channels x 280 us
RAILS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO")


class Samples:
    """A source that holds what a test says; `rows` are seconds and milliwatts of each rail."""

    name = "samples"

    def __init__(self, rows, names=RAILS, failure=None, filters=None):
        self.rows, self.names, self.failure, self.filters = rows, names, failure, filters or {}

    def readings(self):
        return [(round(at_s * SECOND), self._reading(values)) for at_s, *values in self.rows]

    def check(self):
        if self.failure:
            raise PowerError(self.failure)

    def _reading(self, values):
        rails = {n: RailReading(mw, None, None) for n, mw in zip(self.names, values, strict=True) if mw is not None}
        return Reading({}, {}, rails)


def meter(rows, **options):
    return Meter(AGX_ORIN_64GB, Samples(rows, **options))


def constant(seconds, *rails_mw, step_s=0.1):
    return [(at * step_s, *rails_mw) for at in range(round(seconds / step_s) + 1)]


def test_trapezoid_of_a_trace_worked_by_hand():
    times, watts = np.array([0.0, 1.0, 2.0, 4.0]), np.array([10.0, 20.0, 20.0, 0.0])
    assert trapezoid_j(times, watts, 0.0, 4.0) == pytest.approx(15 + 20 + 20)
    assert trapezoid_j(times, watts, 0.5, 3.0) == pytest.approx((15 + 20) / 2 * 0.5 + 20 + (20 + 10) / 2)
    assert trapezoid_j(times, watts, 1.25, 1.5) == pytest.approx(20 * 0.25)
    assert trapezoid_j(times, watts, -1.0, 0.0) == pytest.approx(10)
    assert trapezoid_j(times, watts, -1.0, 6.0) == pytest.approx(10 + 55 + 0)


def test_constant_power_sums_to_the_module_without_the_part():
    energy = meter(constant(10, 20000, 8000, 6000, 2000)).energy(1 * SECOND, 9 * SECOND)
    assert energy.duration_s == 8 and energy.samples == 81
    assert {name: power.value for name, power in energy.rails_w.items()} == pytest.approx(
        {"VDD_GPU_SOC": 20, "VDD_CPU_CV": 8, "VIN_SYS_5V0": 6, "VDDQ_VDD2_1V8AO": 2}
    )
    assert energy.module_w.value == pytest.approx(34) and energy.module_j.value == pytest.approx(272)
    assert energy.rails_j["VDD_CPU_CV"].value == pytest.approx(64)
    assert energy.effective_samples == pytest.approx(8 / (2 * TAU_S))
    assert energy.coverage == pytest.approx(1) and energy.largest_gap_s == pytest.approx(0.1)
    assert energy.idle_w is None and energy.net_j is None


@pytest.mark.parametrize("window_s", [1, 5, 30])
def test_the_edge_term_gives_back_what_the_filter_holds(window_s):
    """7 W to 27 W at t = 0: the sensor shows 27 - 20 exp(-t / tau), so it misses tau (shown(T) - 7) joules."""
    times = np.arange(-1, window_s + 1, 0.1)
    shown_mw = np.where(times < 0, 7000, 27000 - 20000 * np.exp(-np.maximum(times, 0) / TAU_S))
    source = meter([(at, 0, 0, round(mw), 0) for at, mw in zip(times, shown_mw, strict=True)])
    true_j = 27 * window_s
    missed_j = TAU_S * 20 * (1 - math.exp(-window_s / TAU_S))
    plain = source.energy(0, window_s * SECOND, edge_term=False)
    mended = source.energy(0, window_s * SECOND)
    assert plain.module_j.value == pytest.approx(true_j - missed_j, rel=0.004)
    assert mended.module_j.value == pytest.approx(true_j, rel=0.004)
    assert mended.edge_term and not plain.edge_term and mended.tau_s == pytest.approx(TAU_S)


def through_the_chip(times_s, step_at_s=0.0, samples=512, cycle_s=0.84e-3):
    """7 W to 27 W through the filter as the data sheet words it: each cycle 1 / samples of the way (TI SBOS576, 7.4.1).

    Returns what is shown at the times, in watts.
    """
    cycles = np.arange(times_s[0], times_s[-1] + cycle_s, cycle_s)
    shown_w, value_w = np.empty(len(cycles)), 7.0
    for index, at_s in enumerate(cycles):
        value_w += ((27.0 if at_s >= step_at_s else 7.0) - value_w) / samples
        shown_w[index] = value_w
    return shown_w[np.searchsorted(cycles, times_s + 1e-9, side="right") - 1]


@pytest.mark.parametrize("window_s", [0.5, 1, 2, 5, 10, 30])
def test_a_step_through_the_chip_s_own_recursion(window_s):
    """Plain integration misses tau x 20 W x (1 - exp(-T / tau)), the closed form: 44 % of 0.5 s, 1 % of 30 s."""
    times_s = np.arange(-10, window_s * 10 + 11) / 10
    source = meter([(at, 0, 0, round(w * 1000), 0) for at, w in zip(times_s, through_the_chip(times_s), strict=True)])
    true_j, end_ns = 27 * window_s, round(window_s * SECOND)
    missed_j = TAU_S * 20 * (1 - math.exp(-window_s / TAU_S))
    plain_j = source.energy(0, end_ns, edge_term=False).module_j.value
    assert plain_j - true_j == pytest.approx(-missed_j, rel=0.01)
    assert source.energy(0, end_ns).module_j.value == pytest.approx(true_j, rel=0.004)


def test_the_filter_is_the_chip_s_where_the_source_knows_its_settings():
    """64 samples instead of 512 on one rail: an eighth of the time constant; the other rails' are the board's."""
    fast_s = 64 * 3 * 280e-6
    times = np.arange(-1, 3, 0.02)
    shown_mw = np.where(times < 0, 7000, 27000 - 20000 * np.exp(-np.maximum(times, 0) / fast_s))
    rows = [(at, 0, 0, round(mw), 0) for at, mw in zip(times, shown_mw, strict=True)]
    chip = ChipFilter("1-0040", 64, 1.0, 3)
    known = meter(rows, filters={"VIN_SYS_5V0": chip})
    assert known.energy(0, SECOND).rails_j["VIN_SYS_5V0"].value == pytest.approx(27, rel=0.005)
    assert meter(rows).energy(0, SECOND).rails_j["VIN_SYS_5V0"].value == pytest.approx(
        27 + 20 * (TAU_S - fast_s), rel=0.01
    )
    found = known.energy(0, SECOND)
    assert found.filters == {"VIN_SYS_5V0": {"chip": "1-0040", "samples": 64, "update_interval_ms": 1.0, "channels": 3}}
    assert found.tau_s == pytest.approx(TAU_S) and known.tau_s == pytest.approx(fast_s)  # the slowest of the module


def test_what_rests_on_unpublished_figures_is_unknown():
    """A Jetson Nano's shunts and filter settings have no source: its watts are good, their uncertainty is not known."""
    rows = [(at / 10, 5000, 1000, 2000) for at in range(101)]
    names = ("POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU")
    energy = Meter(BOARDS["nano"], Samples(rows, names)).energy(0, 10 * SECOND)
    assert energy.module_w.value == pytest.approx(5) and not energy.edge_term
    assert all(math.isnan(figure) for figure in (energy.module_w.u95, energy.tau_s, energy.effective_samples))
    assert not energy.above(energy).is_resolved
    values = json.loads(json.dumps(energy.as_json(), allow_nan=False))
    assert values["module_w"] == {"value": pytest.approx(5), "u95": None} and values["tau_s"] is None


def test_a_board_without_an_established_sum_has_no_module_power():
    rows = [(at / 10, 5000, 1000, 2000, 9000) for at in range(101)]
    names = ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0", "VIN")
    energy = Meter(BOARDS["agx-thor"], Samples(rows, names)).energy(0, 10 * SECOND)
    assert energy.module_w is None and energy.module_rails == ()
    assert energy.rails_j["VIN"].value == pytest.approx(90)


def test_what_was_shown_is_counted():
    rows = [(at / 10, 2000 + 400 * (at % 3), 400, 3000, 300) for at in range(101)]
    energy = meter(rows).energy(0, 10 * SECOND)
    assert energy.rails_distinct == {"VDD_GPU_SOC": 3, "VDD_CPU_CV": 1, "VIN_SYS_5V0": 1, "VDDQ_VDD2_1V8AO": 1}
    assert energy.rails_shown_w["VDD_GPU_SOC"] == (2.0, 2.8)
    assert energy.module_rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    assert (energy.begin_ns, energy.end_ns, energy.gaps, energy.source) == (0, 10 * SECOND, 0, "samples")


def test_u95_of_power_worked_by_hand():
    energy = meter(constant(10, 20000, 8000, 6000, 2000)).energy(0, 10 * SECOND)
    edge = 1 + 2 * (TAU_S / 10) ** 2
    step_20v, step_5v, offset_20v, offset_5v = 0.02 * 19.9, 0.02 * 5, 0.04 * 19.9, 0.04 * 5
    gpu = math.sqrt(step_20v**2 / 12 * edge + (20 * 0.0035) ** 2 / 3 + offset_20v**2 / 3)
    assert energy.rails_w["VDD_GPU_SOC"].u95 == pytest.approx(1.96 * gpu)
    assert energy.rails_j["VDD_GPU_SOC"].u95 == pytest.approx(1.96 * gpu * 10)
    steps = (2 * step_20v**2 + step_5v**2) / 12 * edge
    offsets = (2 * offset_20v**2 + offset_5v**2) / 3
    module = math.sqrt(steps + (34 * 0.0035) ** 2 / 3 + offsets)
    assert energy.module_w.u95 == pytest.approx(1.96 * module)


def test_net_energy_is_above_idle_and_free_of_the_offset():
    rows = [(at / 10, 2000 if at <= 50 else 12000, 1000, 3000, 300) for at in range(151)]
    energy = meter(rows).energy(10 * SECOND, 15 * SECOND, idle=(0, 5 * SECOND))
    assert energy.idle_w.value == pytest.approx(6) and energy.net_j.value == pytest.approx(10 * 5)
    edge = 1 + 2 * (TAU_S / 5) ** 2
    steps = 2 * (2 * (0.02 * 19.9) ** 2 + (0.02 * 5) ** 2) / 12 * edge
    assert energy.net_j.u95 == pytest.approx(1.96 * 5 * math.sqrt(steps + (10 * 0.0035) ** 2 / 3))
    assert energy.net_j.u95 < energy.module_j.u95


def test_windows_may_overlap():
    source = meter([(at / 10, at * 100, 0, 0, 0) for at in range(101)])  # watts = seconds
    whole = source.energy(0, 10 * SECOND, edge_term=False).module_j.value
    halves = [source.energy(a * SECOND, b * SECOND, edge_term=False).module_j.value for a, b in ((0, 5), (5, 10))]
    inner = source.energy(3 * SECOND, 7 * SECOND, edge_term=False).module_j.value
    assert whole == pytest.approx(50) and sum(halves) == pytest.approx(whole) and inner == pytest.approx(20)


def test_a_missing_rail_leaves_the_module_unknown():
    energy = meter(constant(2, 5000, 3000), names=RAILS[:2]).energy(0, 2 * SECOND)
    assert energy.module_w is None and energy.module_j is None and energy.net_j is None
    assert energy.rails_w["VDD_CPU_CV"].value == pytest.approx(3)
    assert energy.as_json()["module_w"] is None


def test_a_cut_line_counts_as_no_sample():
    rows = constant(2, 5000, 3000, 4000, 1000)
    rows[10] = (1.0, 99000, None, None, None)
    energy = meter(rows).energy(0, 2 * SECOND)
    assert energy.samples == 20 and energy.module_w.value == pytest.approx(12)


def test_too_few_samples_are_refused():
    with pytest.raises(PowerError, match="samples: power window of 0.05 s holds 1 samples, expected at least 2"):
        meter(constant(2, 1, 1, 1, 1)).energy(SECOND, SECOND + SECOND // 20)


def test_gaps_are_counted_and_refused():
    rows = [row for row in constant(10, 1000, 1000, 1000, 1000) if not 4.05 < row[0] < 4.45]
    assert meter(rows).energy(0, 10 * SECOND).coverage == pytest.approx(0.95, abs=1e-6)
    assert meter(rows).energy(0, 10 * SECOND).gaps == 1
    assert meter(rows).energy(0, 3 * SECOND).largest_gap_s == pytest.approx(0.1)
    with pytest.raises(PowerError, match=r"cover 90.0% of the power window of 5 s \(largest gap 0.5 s\)"):
        meter(rows).energy(2 * SECOND, 7 * SECOND)
    with pytest.raises(PowerError, match="cover 76.9%"):
        meter(constant(10, 1, 1, 1, 1)).energy(0, 13 * SECOND)
    with pytest.raises(PowerError, match="cover 83.3%"):
        meter(constant(10, 1, 1, 1, 1)).energy(-2 * SECOND, 10 * SECOND)


def test_a_window_that_ends_before_it_begins_is_refused():
    with pytest.raises(PowerError, match="ends 1 s before it begins"):
        meter(constant(2, 1, 1, 1, 1)).energy(2 * SECOND, SECOND)


def test_a_failed_source_is_the_reason_that_is_given():
    with pytest.raises(PowerError, match="child died"):
        meter([], failure="child died").energy(0, SECOND)


def test_readings_without_rails_say_what_to_do():
    with pytest.raises(PowerError, match="sudo"):
        meter([(0,), (1,)], names=()).energy(0, SECOND)


def test_energy_as_json_is_plain():
    energy = meter(constant(2, 5000, 3000, 4000, 1000)).energy(0, 2 * SECOND, idle=(0, SECOND))
    values = json.loads(json.dumps(energy.as_json()))
    assert values["module_w"]["value"] == pytest.approx(12) and values["rails_w"]["VDD_CPU_CV"]["u95"] > 0
    assert values["edge_term"] is True and values["samples"] == 21


def test_samples_are_a_snapshot_of_the_source():
    source = meter(constant(0.2, 1, 2, 3, 4))
    assert [sample.monotonic_ns for sample in source.samples] == [0, 100_000_000, 200_000_000]
    assert source.samples[0].rails_mw == dict(zip(RAILS, (1, 2, 3, 4), strict=True))
    assert source.source_name == "samples"
