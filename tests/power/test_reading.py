"""The parser: every token form by hand-written lines, and published logs where they are at hand."""

import csv
import json
from pathlib import Path

import pytest

from power.boards import AGX_ORIN_64GB
from power.reading import (
    GpuLoad,
    Iram,
    Load,
    Mts,
    RailReading,
    Ram,
    Swap,
    Temperature,
    module_average_mw,
    module_mw,
    parse_line,
    parse_log,
)

LOGS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "tegrastats"
needs_logs = pytest.mark.skipif(not LOGS.is_dir(), reason="published logs are not at hand")

LINE = (
    "03-04-2026 05:06:07 RAM 1000/2000MB (lfb 3x4MB) SWAP 5/100MB (cached 2MB) CPU [12%@1728,off,0%@729] "
    "EMC_FREQ 7%@3199 GR3D_FREQ 34%@[1300,0] NVENC off NVDLA0_FREQ @1600 APE 174 cpu@50.5C tj@-3C GPU@-256C "
    "VDD_GPU_SOC 5000mW/4000mW VDD_CPU_CV 1200mW/1000mW VIN_SYS_5V0 3000mW/2500mW VDDQ_VDD2_1V8AO 900mW/800mW"
)


def test_a_whole_line():
    reading = parse_line(LINE)
    assert reading.timestamp == "2026-03-04T05:06:07"
    assert reading.ram == Ram(1000, 2000, 3, "4MB")
    assert reading.swap == Swap(5, 100, 2)
    assert reading.cpus == (Load(12, 1728), None, Load(0, 729)) and reading.cpus_complete
    assert reading.emc == Load(7, 3199)
    assert reading.gpu == GpuLoad(34, (1300, 0))
    assert reading.engines == {"NVENC": None, "NVDLA0": Load(None, 1600), "APE": Load(None, 174)}
    assert reading.temperatures_c == {"cpu": Temperature(50.5, None), "tj": Temperature(-3.0, None), "GPU": None}
    assert list(reading.rails) == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]
    assert reading.rails["VDD_CPU_CV"] == RailReading(1200, 1000, None)
    assert reading.iram is None and reading.mts is None and reading.unknown == ()


def test_the_total_leaves_out_the_rail_that_is_part_of_another():
    reading = parse_line(LINE)
    for board in (AGX_ORIN_64GB, None):
        assert module_mw(reading, board) == 5000 + 1200 + 3000
        assert module_average_mw(reading, board) == 4000 + 1000 + 2500


@pytest.mark.parametrize(
    ("token", "field", "value"),
    [
        ("IRAM 1/252kB(lfb 250kB)", "iram", Iram(1, 252, 250)),
        ("IRAM 1/252kB (lfb 250kB)", "iram", Iram(1, 252, 250)),
        ("CPU [5%@100,6%@200]", "cpus", (Load(5, 100), Load(6, 200))),
        ("CPU [5%,6%]", "cpus", (Load(5, None), Load(6, None))),
        ("cpu [5%,off]@408", "cpus", (Load(5, 408), None)),
        ("CPU [0%,5%@9,off]@2601", "cpus", (Load(0, 2601), Load(5, 9), None)),
        ("EMC_FREQ 7%", "emc", Load(7, None)),
        ("EMC_FREQ @3199", "emc", Load(None, 3199)),
        ("EMC 7%@408", "emc", Load(7, 408)),
        ("GR3D_FREQ 9%", "gpu", GpuLoad(9, None)),
        ("GR3D_FREQ @0", "gpu", GpuLoad(None, (0,))),
        ("GR3D 9%@76", "gpu", GpuLoad(9, (76,))),
        ("GR3D_FREQ @[1,2,3]", "gpu", GpuLoad(None, (1, 2, 3))),
        ("GR3D_FREQ 9%@[612]", "gpu", GpuLoad(9, (612,))),
        ("GR3D_FREQ 9%@5 GR3D2_FREQ 8%@6", "gpu", GpuLoad(9, (5, 6))),
        ("GR3D_FREQ 9% GR3D2_FREQ 8%@6", "gpu", GpuLoad(9, (None, 6))),
        ("MTS fg 3% bg 9%", "mts", Mts(3, 9)),
        ("VIC_FREQ 115", "engines", {"VIC": Load(None, 115)}),
        ("PVA0_FREQ off", "engines", {"PVA0": None}),
        ("AVP 1%@115", "engines", {"AVP": Load(1, 115)}),
        ("NVENC0_FREQ @0", "engines", {"NVENC0": Load(None, 0)}),
        ("APE          174", "engines", {"APE": Load(None, 174)}),
        ("soc2@48C/49.5C", "temperatures_c", {"soc2": Temperature(48.0, 49.5)}),
        ("soc2@-256C/-256C", "temperatures_c", {"soc2": None}),
        ("VDD_GPU -392mW/-10mW", "rails", {"VDD_GPU": RailReading(-392, -10, None)}),
        ("VDD_GPU 3mW/2mW/5mW", "rails", {"VDD_GPU": RailReading(3, 2, 5)}),
        ("VIN 28548mW", "rails", {"VIN": RailReading(28548, None, None)}),
        ("GPU@30C GPU 0/1", "rails", {"GPU": RailReading(0, 1, None)}),
        ("POM_5V_IN 920/910", "rails", {"POM_5V_IN": RailReading(920, 910, None)}),
        ("CPU [1%@2] CPU 311/310", "rails", {"CPU": RailReading(311, 310, None)}),
        ("NC 0mW/0mW VDD_IN 7mW/7mW NC 1mW/2mW", "rails", {"VDD_IN": RailReading(7, 7, None)}),
    ],
)
def test_each_form_of_a_token(token, field, value):
    reading = parse_line(f"RAM 1/2MB (lfb 1x512kB) {token}")
    assert getattr(reading, field) == value
    assert reading.ram == Ram(1, 2, 1, "512kB") and reading.unknown == ()


def test_what_is_not_printed_is_none_never_zero():
    reading = parse_line("RAM 1/2MB")
    assert reading.ram == Ram(1, 2, None, None)
    for field in ("timestamp", "swap", "iram", "cpus", "emc", "gpu", "mts"):
        assert getattr(reading, field) is None
    assert not reading.engines and not reading.temperatures_c and not reading.rails
    assert module_mw(reading) is None and module_mw(reading, AGX_ORIN_64GB) is None


@pytest.mark.parametrize(
    ("rest", "unknown"),
    [
        ("FUTURE_TOKEN value APE 25", ("FUTURE_TOKEN value",)),
        ("EDP limit 1734 APE 25 NEW 5", ("EDP limit 1734", "NEW 5")),
        ("GR3D_FREQ 0", ("GR3D_FREQ 0",)),
        ("CPU [1%@2,3", ("CPU [1%@2,3",)),
        ("CPU [1%@2,x]", ("CPU [1%@2,x]",)),
        ("VDD_SOC 1405/", ("VDD_SOC 1405/",)),
        ("VDD_SOC 1405mW/140", ("VDD_SOC 1405mW/140",)),
        ("VDD_SOC 1mW/1mW VDD_SOC 2mW/2mW", ("VDD_SOC 2mW/2mW",)),
        ("step 3/10 13-45-2026 10:00:00", ("step 3/10 13-45-2026 10:00:00",)),
    ],
)
def test_what_no_form_fits_is_kept_as_it_stands(rest, unknown):
    assert parse_line(f"RAM 1/2MB {rest}").unknown == unknown


@pytest.mark.parametrize("line", ["", "  \n", "^C", "[sudo] password for nvidia: ", "Unknown command: --count"])
def test_noise_is_no_reading(line):
    assert parse_line(line) is None


def test_noise_that_looks_like_tokens_is_no_reading():
    assert parse_line("Tue Jan 26 18:22:31 UTC 2021") is None
    assert parse_line("nvidia@linux:~$ sudo /usr/bin/tegrastats ") is None
    assert parse_line("BATCH 3/10 done") is None


def test_an_elided_list_of_cores_says_so():
    reading = parse_line("RAM 1/2MB CPU [3%@1036,0%@1036,...]")
    assert reading.cpus == (Load(3, 1036), Load(0, 1036)) and not reading.cpus_complete
    assert reading.as_json()["cpu_list_incomplete"] is True


def test_wrapped_records_are_joined_and_noise_ends_them():
    lines = ["RAM 1/2MB", "CPU [1%@2]", "tj@3C VDD_IN 4/5", "RAM 6/7MB", "", "VDD_IN 8/9", "^C"]
    records = list(parse_log(lines))
    assert [number for number, _ in records] == [1, 4, 5, 6, 7]
    first, second, blank, headless, noise = [reading for _, reading in records]
    assert first.cpus == (Load(1, 2),) and first.rails["VDD_IN"].now_mw == 4
    assert second.ram == Ram(6, 7, None, None) and not second.rails
    assert blank is None and noise is None and headless.rails["VDD_IN"].average_mw == 9


def test_whole_lines_without_a_head_are_records_of_their_own():
    assert len(list(parse_log(["VDD_IN 4/5", "VDD_IN 6/7"]))) == 2


def rails_line(**rails_mw):
    return "RAM 1/2MB " + " ".join(f"{name} {now}mW/{now + 1}mW" for name, now in rails_mw.items())


def test_an_unnamed_board_is_known_by_its_whole_set_of_rails():
    orin_nx = parse_line(rails_line(VDD_IN=5000, VDD_CPU_GPU_CV=900, VDD_SOC=1400))
    xavier = parse_line(rails_line(GPU=1, CPU=2, SOC=3, CV=4, VDDRQ=5, SYS5V=6))
    thor = parse_line(rails_line(VDD_GPU=1, VDD_CPU_SOC_MSS=2, VIN_SYS_5V0=3, VIN=9))
    cut = parse_line(rails_line(VDD_GPU_SOC=1, VDD_CPU_CV=2))
    assert module_mw(orin_nx) == 5000 and module_average_mw(orin_nx) == 5001
    assert module_mw(xavier) == 21
    assert module_mw(thor) is None and module_mw(cut) is None
    assert module_mw(orin_nx, AGX_ORIN_64GB) is None


def test_a_part_above_its_whole_gives_no_total():
    assert module_mw(parse_line(rails_line(POM_5V_IN=3227, POM_5V_GPU=8949, POM_5V_CPU=3148))) is None


@needs_logs
def test_published_logs_give_as_many_records_as_they_hold():
    with (LOGS / "index.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            lines = (LOGS / row["file"]).read_text(encoding="utf-8").splitlines()
            assert sum(reading is not None for _, reading in parse_log(lines)) == int(row["records"]), row["file"]


@needs_logs
def test_published_lines_parse_as_people_read_them():
    cases = json.loads((LOGS / "expected.json").read_text(encoding="utf-8"))["cases"]
    for case in cases:
        line = (LOGS / case["file"]).read_text(encoding="utf-8").splitlines()[case["line"] - 1]
        expected = {key: value for key, value in case["expect"].items() if key != "warn"}
        assert json.loads(json.dumps(parse_line(line).as_json())) == expected, case["why"]


@needs_logs
def test_the_average_column_is_the_mean_since_the_start():
    lines = (LOGS / "016-agx-orin-64gb-30w-llm.log").read_text(encoding="utf-8").splitlines()
    readings = [parse_line(line) for line in lines]
    for name in readings[0].rails:
        for count in range(1, len(readings) + 1):
            mean_mw = sum(reading.rails[name].now_mw for reading in readings[:count]) / count
            assert readings[count - 1].rails[name].average_mw == pytest.approx(mean_mw, abs=0.5)


def test_more_distinct_words_than_are_remembered():
    for power_mw in range(20_000):
        assert parse_line(f"RAM 1/2MB VDD_IN {power_mw}mW/7mW").rails["VDD_IN"].now_mw == power_mw


@pytest.mark.parametrize(
    "words", ["06-31-2026 10:00:00", "06-30-2026 24:00:00", "6-30-2026 10:00:00", "06-30-2026 1:0:0"]
)
def test_what_is_no_date_is_kept_as_it_is(words):
    reading = parse_line(f"{words} RAM 1/2MB")
    assert reading.timestamp is None and reading.unknown == (words,)
