"""External meters: PTDaemon's log and CSV files, worked by hand; wall watts are no module watts."""

import math

import pytest

from power.errors import PowerError
from power.external import read_csv, read_spl
from power.quantity import ModuleQuantity, Quantity, WallQuantity, compare

SECOND = 1_000_000_000
T0_NS = 1_767_348_000 * SECOND  # 2026-01-02 10:00:00 UTC


def spl_line(second, watts):
    return f"Time,01-02-2026 10:00:{second:06.3f},Watts,{watts:.6f},Volts,121.6,Amps,0.71,PF,0.43,Mark,run_1"


def spl(tmp_path, *samples):
    path = tmp_path / "spl.txt"
    path.write_text("".join(spl_line(*sample) + "\n" for sample in samples))
    return path


def csv_file(tmp_path, *lines):
    path = tmp_path / "meter.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_spl_is_read_as_utc_and_its_mean_is_mlperf_s(tmp_path):
    series = read_spl(spl(tmp_path, *((at + 0.25, 40 + at) for at in range(10))))
    assert series.clock == "utc" and series.missed == 0
    assert series.stamps_ns[0] == T0_NS + SECOND // 4 and series.watts.tolist() == [40.0 + at for at in range(10)]
    energy = series.energy(T0_NS + 2 * SECOND, T0_NS + 6 * SECOND)
    assert energy.mean_inside_w == pytest.approx((42 + 43 + 44 + 45) / 4)
    # watts = 39.75 + seconds: the mean from 2 s to 6 s
    assert energy.wall_w.value == pytest.approx(43.75) and energy.wall_j.value == pytest.approx(175)
    scatter_w = math.sqrt((1.5**2 + 0.5**2 + 0.5**2 + 1.5**2) / 3 / 4)
    assert energy.wall_w.u95 == pytest.approx(1.96 * scatter_w) and energy.accuracy_share is None
    assert (energy.samples, energy.missed, energy.gaps, energy.coverage) == (4, 0, 0, 1.0)


def test_the_clock_of_the_analyser_s_host_is_shifted_to_utc(tmp_path):
    series = read_spl(spl(tmp_path, (0.0, 40), (1.0, 40)), utc_offset_s=3600)
    assert series.stamps_ns[0] == T0_NS - 3600 * SECOND


def test_a_missed_sample_is_left_out_and_lowers_the_coverage(tmp_path):
    path = spl(tmp_path, *((at, -2 if at == 20 else 40) for at in range(41)))
    energy = read_spl(path).energy(T0_NS, T0_NS + 40 * SECOND)
    assert energy.wall_w.value == pytest.approx(40) and energy.mean_inside_w == pytest.approx(40)
    assert (energy.samples, energy.missed, energy.gaps, energy.largest_gap_s) == (40, 1, 1, 2.0)
    assert energy.coverage == pytest.approx(38 / 40)
    with pytest.raises(PowerError, match=r"spl.txt: samples cover 80.0% of the power window of 10 s"):
        read_spl(path).energy(T0_NS + 15 * SECOND, T0_NS + 25 * SECOND)


def test_the_meter_s_accuracy_is_in_the_uncertainty_where_it_is_stated(tmp_path):
    series = read_spl(spl(tmp_path, *((at, 50) for at in range(11))), accuracy_share=0.002)
    energy = series.energy(T0_NS, T0_NS + 10 * SECOND)
    assert energy.wall_w == WallQuantity(pytest.approx(50), pytest.approx(0.1))
    assert energy.wall_j.u95 == pytest.approx(1.0) and energy.as_json()["wall_j"]["value"] == pytest.approx(500)
    assert energy.as_json()["accuracy_share"] == 0.002 and energy.as_json()["clock"] == "utc"


@pytest.mark.parametrize(
    "header,rows,clock,first_ns",
    [
        ("utc,power_w", ["2026-01-02T10:00:00Z,5", "2026-01-02T11:00:00.5+01:00,6"], "utc", T0_NS),
        ("unix_s,Power_mW", ["1767348000,5000", "1767348000.5,6000"], "utc", T0_NS),
        ("unix_ns,volts,watts", [f"{T0_NS},19,5", f"{T0_NS + SECOND // 2},19,6"], "utc", T0_NS),
        ("power_w,monotonic_ms", ["5,1000", "6,1500"], "monotonic", SECOND),
    ],
)
def test_a_csv_states_its_units_and_its_clock(tmp_path, header, rows, clock, first_ns):
    series = read_csv(csv_file(tmp_path, "# a meter", header, *rows))
    assert series.clock == clock
    assert series.stamps_ns.tolist() == [first_ns, first_ns + SECOND // 2]
    assert series.watts.tolist() == pytest.approx([5, 6])


def test_an_empty_cell_is_a_missed_sample(tmp_path):
    series = read_csv(csv_file(tmp_path, "monotonic_s,power_w", "0,5", "1,", "2,7"))
    assert series.missed == 1 and math.isnan(series.watts[1])


@pytest.mark.parametrize(
    "lines,message",
    [
        (["time,power", "1,2"], "line 1: 'time,power', expected a header with one time column"),
        (["unix_s,utc,power_w", "1,2,3"], "line 1: 'unix_s,utc,power_w', expected a header"),
        (["unix_s,power_w", "1,2", "x,2"], "line 3: 'x', expected a time as unix_s"),
        (["unix_s,power_w", "inf,2"], "line 2: 'inf', expected a time as unix_s"),
        (["unix_s,power_w", "1,two"], "line 2: 'two', expected a power"),
        (["unix_s,power_w", "1,inf"], "line 2: 'inf', expected a power"),
        (["unix_s,power_w", "1767348000000,5"], "a time beyond the year 2200: is its unit the one in the header"),
        (["unix_s,power_w", "1"], "line 2: '1', expected 2 cells"),
        (["unix_s,power_w", "1,2", "3,2", "3,2"], "sample 3 is not after the one before it"),
        (["unix_s,power_w"], "holds no sample"),
    ],
)
def test_a_csv_that_cannot_be_used_says_where_and_why(tmp_path, lines, message):
    with pytest.raises(PowerError, match=message):
        read_csv(csv_file(tmp_path, *lines))


def test_an_spl_that_cannot_be_used_says_where_and_why(tmp_path):
    path = spl(tmp_path, (0.0, 40))
    path.write_text(path.read_text() + "Time,01-02-2026 10:00:01,Watts,1\n")
    with pytest.raises(PowerError, match="line 2: '01-02-2026 10:00:01', expected MM-DD-YYYY HH:MM:SS.fff"):
        read_spl(path)
    path.write_text("RAM 1/2MB\n")
    with pytest.raises(PowerError, match="line 1: 'RAM 1/2MB', expected Time,"):
        read_spl(path)
    with pytest.raises(PowerError, match="cannot be read: No such file"):
        read_spl(tmp_path / "missing.txt")


def test_quantities_are_resolved_where_their_intervals_do_not_overlap():
    a, b = Quantity(20.0, 0.4), Quantity(20.8, 0.3)
    assert compare(a, b).resolved and not compare(a, Quantity(20.5, 0.3)).resolved
    assert compare(a, b).difference == Quantity(pytest.approx(0.8), pytest.approx(0.5))
    assert str(compare(a, Quantity(30.0, 0.3))) == "1.500 ± 0.034"
    assert str(compare(a, Quantity(20.5, 0.3))) == "not resolved"
    assert compare(Quantity(0.0, 0.1), b).ratio is None and str(compare(Quantity(0.0, 0.1), b)) == "not resolved"
    assert Quantity(0.5, 0.4).is_resolved and not Quantity(-0.3, 0.4).is_resolved


def test_a_module_is_never_set_against_the_wall():
    module, wall = ModuleQuantity(20.0, 1.0), WallQuantity(30.0, 0.1)
    with pytest.raises(PowerError, match="a module's figure is set against the wall's: .* measure both in the same"):
        compare(module, wall)
    per_joule = module.ratio(1000.0), wall.scaled(10).ratio(1000.0)
    assert [type(figure) for figure in per_joule] == [ModuleQuantity, WallQuantity]
    with pytest.raises(PowerError, match="the wall's is set against a module's"):
        compare(*reversed(per_joule))
    assert module != WallQuantity(20.0, 1.0)


def test_a_wall_series_and_a_meter_name_their_watts_differently(tmp_path):
    energy = read_spl(spl(tmp_path, *((at, 50) for at in range(11)))).energy(T0_NS, T0_NS + 10 * SECOND)
    assert not any("module" in name for name in energy.as_json())
