"""Existing logs: times, steps, breaks in the averages, dropped clocks; each against a trace worked out by hand."""

import json
import random
from pathlib import Path

import pytest

from power.analysis import Question, analyse
from power.averages import Break, breaks
from power.boards import board
from power.clock_drops import clock_drops
from power.errors import PowerError
from power.log import read_log, stamps
from power.reading import RailReading, Reading, parse_line
from power.step import step_mw

LOGS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "tegrastats"
needs_logs = pytest.mark.skipif(not LOGS.is_dir(), reason="published logs are not at hand")
SECOND = 1_000_000_000


def line(second, gpu_mw, cpu_mw=1000, in_mw=3000, ddr_mw=None, tail=""):
    rails = {"VDD_GPU_SOC": gpu_mw, "VDD_CPU_CV": cpu_mw, "VIN_SYS_5V0": in_mw, "VDDQ_VDD2_1V8AO": ddr_mw}
    head = "" if second is None else f"01-02-2026 10:00:{second:02} "
    powers = " ".join(f"{name} {mw}mW/{mw}mW" for name, mw in rails.items() if mw is not None)
    return f"{head}RAM 1/2MB {powers}{tail}"


def log(*lines):
    return read_log("test.log", lines)


def averaged(values, first=1, round_to=round):
    """Readings whose averages are what tegrastats prints when it has shown these values."""
    return [
        Reading({}, {}, {"A": RailReading(mw, round_to(sum(values[: n + 1]) / (n + 1)), None)})
        for n, mw in enumerate(values)
    ][first - 1 :]


def test_records_keep_the_line_that_they_begin_in():
    read = log("^C", "RAM 1/2MB", "VDD_IN 4/5", "RAM 6/7MB", "noise")
    assert [record.line for record in read.records] == [2, 4] and read.skipped == 2
    with pytest.raises(PowerError, match=r"log test.log holds 2 lines, none of them a reading"):
        log("^C", "noise")


def test_times_are_the_timestamps_of_a_log_of_one_line_a_second():
    times = stamps(log(line(1, 0), line(2, 0), line(4, 0)))
    assert times.ns == (0, SECOND, 3 * SECOND) and times.source == "timestamps" and times.reason is None


def test_lines_of_one_second_are_spread_over_it():
    """Five a second: the log begins 2 lines before the end of its first second and ends 3 into its last."""
    times = stamps(log(*[line(s, 0) for s, count in ((1, 2), (2, 5), (3, 5), (4, 3)) for _ in range(count)]))
    assert [ns / SECOND for ns in times.ns] == pytest.approx([n / 5 for n in range(15)])


def test_an_interval_beats_timestamps():
    times = stamps(log(line(1, 0), line(1, 0)), interval_ms=250)
    assert times.ns == (0, SECOND // 4) and "250 ms" in times.source


def test_a_runs_own_stamps_are_its_times():
    times = stamps(log(f"5000000000 {line(1, 0)}", f"5100000000 {line(1, 0)}", f"5300000000 {line(1, 0)}"))
    assert times.ns == (0, SECOND // 10, 3 * SECOND // 10) and "own stamps" in times.source


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ((line(1, 0), line(None, 0)), "line 2 has no timestamp"),
        ((line(5, 0), line(3, 0)), "line 2: 2026-01-02T10:00:03 is before"),
        ((line(5, 0), line(5, 0)), "all lines have the same timestamp"),
    ],
)
def test_without_usable_times_there_are_means_and_no_joules(lines, reason):
    analysis = analyse(log(*lines), Question())
    assert reason in analysis.no_energy and "give" in analysis.no_energy and analysis.seconds is None
    said = analysis.as_json()
    assert said["energy"]["module_w"]["value"] == pytest.approx(4) and "module_j" not in said["energy"]
    assert said["no_times"] == analysis.no_energy
    with pytest.raises(PowerError, match=r"'3' cannot be found in it: .*give"):
        analyse(log(*lines), Question(begin="3"))


def test_energy_of_a_log_worked_by_hand():
    """Module 14, 24, 24, 4 W at 0, 1, 2, 4 s: trapezoids of 19 + 24 + 28 J; the part is not added."""
    lines = [line(at, gpu, ddr_mw=700) for at, gpu in ((0, 10000), (1, 20000), (2, 20000), (4, 0))]
    analysis = analyse(log(*lines), Question())
    energy = analysis.energy
    tau_s = 0.43008
    assert energy.edge_term and energy.module_j.value == pytest.approx(19 + 24 + 28 + tau_s * (4 - 14))
    assert energy.rails_j["VDDQ_VDD2_1V8AO"].value == pytest.approx(2.8)
    assert analysis.seconds == 4 and analysis.modules == "AGX Orin" and analysis.no_total is None
    assert analysis.module_rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    gpu = analysis.rails["VDD_GPU_SOC"]
    assert (gpu.mean_w, gpu.min_w, gpu.max_w, gpu.samples, gpu.distinct) == (12.5, 0, 20, 4, 3)
    assert (analysis.module.mean_w, analysis.module.max_w) == (16.5, 24)
    assert not analysis.rails["VDDQ_VDD2_1V8AO"].counted


@pytest.mark.parametrize(
    ("begin", "end", "joules", "rise_w"),
    [
        ("1", "3", 6 + 8, 4),
        ("01-02-2026 10:00:01", "01-02-2026 10:00:03", 6 + 8, 4),
        ("2026-01-02T10:00:02", None, 4 * 8, 0),
        (None, "1.5", 1.5 * 6 / 2, 6),
    ],
)
def test_a_window_by_seconds_or_timestamps(begin, end, joules, rise_w):
    """The module rises by 4 W a second up to 8 W, and stays there until 6 s."""
    lines = [line(at, 0, 0, min(4000 * at, 8000)) for at in range(7)]
    energy = analyse(log(*lines), Question(begin=begin, end=end)).energy
    assert energy.module_j.value == pytest.approx(joules + 0.43008 * rise_w)


def test_windows_that_are_none_say_what_is_there():
    lines = log(line(1, 0), line(2, 0), line(3, 0))
    with pytest.raises(PowerError, match="no record from 5 s to 9 s: it lasts 2 s"):
        analyse(lines, Question(begin="5", end="9"))
    with pytest.raises(PowerError, match=r"no line at 01-02-2026 11:00:00 or after: its last has 2026-01-02T10:00:03"):
        analyse(lines, Question(begin="01-02-2026 11:00:00"))
    with pytest.raises(PowerError, match=r"time 'noon', expected seconds from the start or MM-DD-YYYY"):
        analyse(lines, Question(end="noon"))
    with pytest.raises(PowerError, match="interval of -5 ms"):
        analyse(lines, Question(interval_ms=-5))
    assert analyse(lines, Question(end="0")).no_energy == "one record is no window of time"


def test_the_set_of_rails_of_the_whole_log_tells_the_module():
    cut = "01-02-2026 10:00:02 RAM 1/2MB VDD_GPU_SOC 9000mW/9000mW VDD_CPU_CV 10"
    analysis = analyse(log(line(1, 5000), cut, line(3, 5000)), Question())
    assert analysis.modules == "AGX Orin" and analysis.energy.module_w.value == pytest.approx(9)
    mixed = analyse(log(line(1, 5000), "01-02-2026 10:00:02 RAM 1/2MB VDD_IN 4/4"), Question())
    assert mixed.modules is None and "no known module prints just these rails" in mixed.no_total
    assert mixed.module is None and mixed.module_rails == ()
    named = analyse(log(line(1, 5000), line(2, 5000)), Question(board("agx-thor")))
    assert named.no_total.startswith("Jetson AGX Thor") and named.energy.module_w is None


def test_swapped_labels_give_no_total():
    lines = [f"RAM 1/2MB POM_5V_IN 3227/3227 POM_5V_GPU {mw}/{mw} POM_5V_CPU 300/300" for mw in (400, 8949)]
    analysis = analyse(log(*lines), Question(interval_ms=1000))
    assert "line 2: POM_5V_GPU of 8949 mW is above POM_5V_IN of 3227 mW" in analysis.no_total
    assert analysis.energy.module_j is None


def test_gaps_leave_no_energy_and_keep_the_rest():
    analysis = analyse(log(*[line(at, 5000) for at in (0, 1, 2, 3, 30, 31)]), Question())
    assert analysis.energy is None and "cover 12.9% of the power window" in analysis.no_energy
    assert analysis.rails["VDD_GPU_SOC"].mean_w == 5 and analysis.as_json()["energy"] is None


@pytest.mark.parametrize("step", [398.0, 239.4, 100.16, 39.3, 19.1])
def test_a_step_is_found_from_what_was_shown(step):
    dice = random.Random(1)
    shown = [int(dice.randrange(1, 14) * step) for _ in range(200)]
    assert step_mw(shown) == pytest.approx(step, rel=0.01)
    assert step_mw(shown[:3]) is None
    assert step_mw([-mw for mw in shown]) == pytest.approx(step, rel=0.01)


def test_values_without_a_step_have_none():
    dice = random.Random(2)
    for count in (5, 8, 20, 60):
        assert [step_mw(dice.randrange(1000, 9000) for _ in range(count)) for _ in range(10)] == [None] * 10


def test_the_step_of_a_12_volt_supply_replaces_the_boards():
    lines = [line(at, round(steps * 239.4)) for at, steps in enumerate((3, 4, 5, 7, 8, 10, 11, 12))]
    analysis = analyse(log(*lines), Question())
    gpu, cpu = (analysis.rails[name] for name in ("VDD_GPU_SOC", "VDD_CPU_CV"))
    assert gpu.step_w == pytest.approx(0.2394, rel=0.01) and gpu.step_from == "its values"
    assert cpu.step_w == pytest.approx(0.398) and cpu.step_from == "the board"


@pytest.mark.parametrize("round_to", [round, int])
def test_averages_that_run_on_have_no_break(round_to):
    dice = random.Random(3)
    values = [dice.randrange(300, 20000) for _ in range(400)]
    assert breaks(averaged(values, round_to=round_to)) == []
    assert breaks(averaged(values, first=120, round_to=round_to)) == []


def test_a_restart_is_seen():
    dice = random.Random(4)
    first, second = ([dice.randrange(1000, 9000) for _ in range(30)] for _ in range(2))
    assert breaks(averaged(first) + averaged(second)) == [Break(30, "restart")]


def test_missing_lines_are_counted_and_never_too_many():
    dice = random.Random(5)
    values = [dice.randrange(1000, 9000) for _ in range(200)]
    for begin, end in ((10, 11), (20, 25), (50, 120)):
        readings = averaged(values)
        (found,) = breaks(readings[:begin] + readings[end:])
        assert found.record == begin and found.kind == "dropped"
        assert 1 <= found.lines <= end - begin and found.lines >= 0.9 * (end - begin)


def test_a_cut_average_is_not_explained_by_missing_lines():
    readings = averaged([1405] * 20)
    readings[12] = Reading({}, {}, {"A": RailReading(1405, 140, None)})
    found = breaks(readings)
    assert found[0] == Break(12, "unexplained") and {each.kind for each in found} == {"unexplained"}


def test_breaks_are_reported_at_lines_of_the_file():
    shown = averaged([1000, 9000, 2000, 8000, 3000, 7000])
    rails = [reading.rails["A"] for reading in shown]
    lines = [f"RAM 1/2MB VDD_IN {rail.now_mw}mW/{rail.average_mw}mW" for rail in rails]
    analysis = analyse(log("^C", *lines[:2], *lines[3:], *lines), Question())
    assert analysis.dropped == {4: 1} and analysis.restarts == (7,) and analysis.as_json()["dropped_lines"] == 1


def busy(mhz, temperature_c, percent=99):
    return parse_line(f"RAM 1/2MB CPU [5%@700] GR3D_FREQ {percent}%@[{mhz},0] gpu@{temperature_c}C PMIC@100C")


def test_a_gpu_that_slows_down_while_busy_and_hot():
    readings = [busy(1300, 60)] * 5 + [busy(900, 97), busy(800, 99)] + [busy(306, 50, percent=3)]
    (drop,) = clock_drops(readings)
    assert (drop.clock, drop.busy, drop.records, drop.full_mhz, drop.lowest_mhz) == ("gpu", 7, 2, 1300, 800)
    assert (drop.full_c, drop.dropped_c, drop.is_hotter) == (60, 98, True)
    assert clock_drops([busy(1300, 60)] * 5 + [busy(1290, 60)] * 5 + [busy(306, 50)]) == ()


@needs_logs
def test_every_published_log_is_analysed():
    for path in sorted(LOGS.glob("*.log")):
        lines = path.read_text(encoding="utf-8").splitlines()
        if path.name.startswith("061"):
            continue
        analysis = analyse(read_log(path.name, lines), Question())
        json.dumps(analysis.as_json())
        assert analysis.records > 0 and (analysis.module is None) == (analysis.no_total is not None)


@needs_logs
def test_a_published_log_whose_middle_was_left_out():
    lines = (LOGS / "021-tx2-mts-2021.log").read_text(encoding="utf-8").splitlines()
    analysis = analyse(read_log("021", lines), Question())
    assert list(analysis.dropped) == [41] and 100 < analysis.dropped[41] <= 1440  # lines 41 to 1480 of the whole log
