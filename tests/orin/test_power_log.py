"""`orin power log` and `orin power parse`: what they print and refuse."""

import argparse
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from orin.cli import power
from orin.errors import OrinError
from orin.record import RECORD_VERSION
from power.errors import PowerError

LOGS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "tegrastats"
needs_logs = pytest.mark.skipif(not LOGS.is_dir(), reason="published logs are not at hand")

LINES = [
    f"01-02-2026 10:00:{at:02} RAM 1/2MB (lfb 1x4MB) CPU [1%@729,off] GR3D_FREQ {load}%@[{mhz},0] cpu@{50 + at}C "
    f"VDD_GPU_SOC {gpu}mW/{average}mW VDD_CPU_CV 800mW/800mW VIN_SYS_5V0 3000mW/3000mW"
    for at, gpu, average, load, mhz in (
        (0, 2400, 2400, 0, 306),
        (1, 6000, 4200, 99, 1300),
        (2, 6000, 4800, 99, 1300),
        (3, 6000, 5100, 99, 900),
        (4, 4800, 5040, 99, 800),
    )
]


def run(*words):
    parser = argparse.ArgumentParser(prog="orin power")
    power.configure(parser)
    options = parser.parse_args([*map(str, words)])
    return options.handler(options)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "tegrastats.log"
    path.write_text("\n".join(["^C", *LINES]) + "\n")
    return path


def test_log_as_json(log, capsys):
    assert run("log", log, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["records"], said["skipped"], said["seconds"], said["modules"]) == (5, 1, 4, "AGX Orin")
    assert said["module_rails"] == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"] and said["no_total"] is None
    gpu_j = (2.4 + 6) / 2 + 6 + 6 + (6 + 4.8) / 2
    edge_j = 0.43008 * (4.8 - 2.4)
    assert said["energy"]["rails_j"]["VDD_GPU_SOC"]["value"] == pytest.approx(gpu_j + edge_j)
    assert said["energy"]["module_j"]["value"] == pytest.approx(gpu_j + edge_j + 4 * 3.8)
    assert said["energy"]["module_j"]["u95"] > 0 and said["energy"]["edge_term"] is True
    assert said["rails"]["VDD_GPU_SOC"]["distinct"] == 3 and said["rails"]["VDD_GPU_SOC"]["max_w"] == 6
    assert said["temperatures_c"] == {"cpu": {"mean": 52, "min": 50, "max": 54}}
    (drop,) = said["clock_drops"]
    assert (drop["clock"], drop["records"], drop["lowest_mhz"], drop["hotter"]) == ("gpu", 2, 800, True)


def test_log_as_a_table(log, capsys):
    assert run("log", log, "--from", "1", "--to", "01-02-2026 10:00:03") == 0
    out, notes = capsys.readouterr()
    assert "3 records, AGX Orin, 2 s" in out.splitlines()[0] and all(len(line) <= 100 for line in out.splitlines()[1:])
    module = next(line for line in out.splitlines() if line.startswith("module"))
    assert "9.80 ± " in module and "19.60 ± " in module
    assert "module: sum of VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0" in notes and "tau 0.43 s" in notes
    assert run("log", log, "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_a_simulated_runs_log_says_so(log, tmp_path, capsys):
    record = dict.fromkeys(("id", "status", "network", "board", "stack", "scenario"), "x")
    record |= {"version": RECORD_VERSION, "provenance": "simulated"}
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert run("log", log) == 0
    assert capsys.readouterr().out.startswith("SIMULATED: ")
    assert run("log", log, "--json") == 0
    assert json.loads(capsys.readouterr().out)["provenance"] == "simulated"
    other = log.rename(tmp_path / "other.log")
    assert run("log", other) == 0
    assert capsys.readouterr().out.startswith(str(other))


def test_a_log_without_times_gives_watts_and_asks_for_the_interval(tmp_path, capsys):
    path = tmp_path / "nano.log"
    path.write_text("RAM 1/2MB POM_5V_IN 2000/2000 POM_5V_GPU 0/0 POM_5V_CPU 400/400\n" * 3)
    assert run("log", path) == 0
    out, notes = capsys.readouterr()
    assert "2.00 W" in out and " J" not in out and "has no timestamp: give the interval" in notes
    assert run("log", path, "--interval", "500", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["energy"]["module_j"] == {"value": pytest.approx(2), "u95": None}  # its shunt is not published
    assert said["energy"]["edge_term"] is False and said["rails"]["POM_5V_IN"]["step_w"] is None


def spl(tmp_path, *watts, hour=10):
    path = tmp_path / "spl.txt"
    path.write_text(
        "".join(f"Time,01-02-2026 {hour}:00:{at:02}.000,Watts,{w},Volts,120\n" for at, w in enumerate(watts))
    )
    return path


def test_a_meter_at_the_wall_is_set_beside_the_module(log, tmp_path, capsys):
    meter = spl(tmp_path, 30, 40, 40, 50, 60, 60)
    assert run("log", log, "--from", "1", "--to", "3", "--meter", meter, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["wall"]["wall_j"]["value"] == pytest.approx((40 + 40) / 2 + (40 + 50) / 2)
    assert said["wall"]["clock"] == "utc" and said["wall"]["samples"] == 3
    assert said["energy"]["module_j"]["value"] == pytest.approx(19.6)  # as without a meter
    assert run("log", log, "--from", "1", "--to", "3", "--meter", meter) == 0
    out, notes = capsys.readouterr()
    wall = next(line for line in out.splitlines() if line.startswith("wall"))
    assert "42.50 ± " in wall and "85.00 ± " in wall and "3 samples" in wall
    assert "spl.txt, 0 samples missed" in notes and "no module's figure" in notes
    assert run("log", log, "--json") == 0 and json.loads(capsys.readouterr().out)["wall"] is None


def test_a_meter_in_another_zone_is_shifted_and_told_of(log, tmp_path, capsys):
    meter = spl(tmp_path, 30, 40, 40, 50, 60, 60, hour=12)
    assert run("log", log, "--meter", meter, "--meter-ahead", "7200", "--json") == 0
    assert json.loads(capsys.readouterr().out)["wall"]["wall_j"]["value"] == pytest.approx(35 + 40 + 45 + 55)
    with pytest.raises(PowerError, match="spl.txt begins 7200 s after the window and shares no time with it: .*zones"):
        run("log", log, "--meter", meter)


def test_a_runs_log_meets_a_meter_through_its_record_or_by_the_same_clock(tmp_path, capsys):
    log, begin_ns = tmp_path / "tegrastats.log", 5_000_000_000_000
    log.write_text("".join(f"{begin_ns + at * 10**9} {line.split(' ', 2)[2]}\n" for at, line in enumerate(LINES)))
    monotonic = tmp_path / "meter.csv"
    rows = [f"{5000 + at},{watts}" for at, watts in enumerate((30, 40, 40, 50, 60))]
    monotonic.write_text("\n".join(["monotonic_s,power_w", *rows]) + "\n")
    assert run("log", log, "--meter", monotonic, "--json") == 0
    assert json.loads(capsys.readouterr().out)["wall"]["wall_j"]["value"] == pytest.approx(35 + 40 + 45 + 55)
    utc = spl(tmp_path, 30, 40, 40, 50, 60)
    with pytest.raises(OrinError, match="record.json is not there, which ties a run's own stamps to UTC"):
        run("log", log, "--meter", utc)
    record = dict.fromkeys(("id", "status", "provenance", "network", "board", "stack", "scenario"), "x")
    record |= {"version": RECORD_VERSION, "utc": "2026-01-02T09:59:58.000+00:00", "monotonic_ns": begin_ns - 2 * 10**9}
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert run("log", log, "--meter", utc, "--json") == 0
    assert json.loads(capsys.readouterr().out)["wall"]["wall_j"]["value"] == pytest.approx(35 + 40 + 45 + 55)


def test_times_of_no_clock_meet_no_meter(log, tmp_path):
    with pytest.raises(OrinError, match="its times are of no clock: they are from an interval of 500 ms"):
        run("log", log, "--interval", "500", "--meter", spl(tmp_path, 30, 40))
    monotonic = tmp_path / "meter.csv"
    monotonic.write_text("monotonic_s,power_w\n1,2\n2,2\n")
    with pytest.raises(OrinError, match="the meter a monotonic clock: give a meter's file in UTC"):
        run("log", log, "--meter", monotonic)
    with pytest.raises(PowerError, match="meter file .*missing.csv cannot be read: No such file"):
        run("log", log, "--meter", tmp_path / "missing.csv")


def test_ambiguous_rails_are_null_with_the_reason(tmp_path, capsys):
    path = tmp_path / "some.log"
    path.write_text("01-02-2026 10:00:00 RAM 1/2MB VDD_IN 5mW/5mW\n01-02-2026 10:00:01 RAM 1/2MB VDD_IN 5mW/5mW\n")
    assert run("log", path, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["energy"]["module_w"] is None and "no known module prints just these rails: VDD_IN" in said["no_total"]
    assert run("log", path, "--board", "orin-nx-16gb", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["energy"]["module_w"]["value"] == pytest.approx(0.005) and said["board"] == "orin-nx-16gb"


def test_parse_prints_a_record_a_line(log, capsys):
    assert run("parse", log) == 0
    out, notes = capsys.readouterr()
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["line"] for record in records] == [2, 3, 4, 5, 6] and "5 records, 1 lines" in notes
    assert list(records[0])[:2] == ["line", "timestamp"]
    assert records[1]["rails_mw"]["VDD_GPU_SOC"] == [6000, 4200, None]
    assert records[1]["module_mw"] == 9800 and records[1]["module_avg_mw"] == 8000
    assert records[0]["cpu"] == [[1, 729], None] and records[0]["swap_mb"] is None


def test_parse_reads_stdin(monkeypatch, capsys):
    text = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n" + LINES[0].encode() + b"\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", text)
    assert run("parse", "-", "--quiet", "--json", "--board", "agx-orin-64gb") == 0
    (record,) = capsys.readouterr().out.splitlines()
    assert json.loads(record)["line"] == 2 and json.loads(record)["module_mw"] == 6200


def test_bad_input_is_one_clear_error(tmp_path, log):
    with pytest.raises(FileNotFoundError):
        run("log", tmp_path / "missing.log")
    with pytest.raises(PowerError, match="board 'orin' is not known; known: agx-orin-64gb"):
        run("parse", log, "--board", "orin")
    for time in ("soon", "nan", "-inf", "1e300"):
        with pytest.raises(PowerError, match=f"time '{time}', expected seconds from the start or"):
            run("log", log, "--from", "0", f"--to={time}")
    with pytest.raises(OrinError, match="--meter-ahead is nan, expected the seconds"):
        run("log", log, "--meter", spl(tmp_path, 30, 40), "--meter-ahead", "nan")
    noise = tmp_path / "noise.log"
    noise.write_bytes(b"\x00\x01\xff" * 50)
    with pytest.raises(PowerError, match="none of them a reading of tegrastats"):
        run("log", noise)


def test_an_action_is_imported_only_when_asked_for():
    code = (
        "import argparse, sys; from orin.cli import power; p = argparse.ArgumentParser(); power.configure(p); "
        "p.format_help(); p.parse_args(['parse', 'x']); "
        "print(sorted(m for m in sys.modules if m.startswith(('orin.cli.power_', 'power', 'numpy', 'rich'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['orin.cli.power_file', 'orin.cli.power_parse']"


def test_each_actions_help_names_what_it_takes(capsys):
    with pytest.raises(SystemExit) as done:
        run("log", "--help")
    assert done.value.code == 0 and "--interval" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        run("nothing")
    assert done.value.code == 2


@needs_logs
def test_published_records_parse_as_people_read_them(capsys):
    cases = json.loads((LOGS / "expected.json").read_text(encoding="utf-8"))["cases"]
    for case in cases:
        assert run("parse", LOGS / case["file"], "--quiet") == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        record = next(record for record in records if record.pop("line") == case["line"])
        assert record == {key: value for key, value in case["expect"].items() if key != "warn"}, case["why"]
