"""`orin show`, `orin networks` and `orin boards` as people and scripts see them."""

import json
import os

import pytest

from orin.cli.main import main
from orin.cli.show import find_run, print_result
from orin.record import load_record
from tests.orin.test_report import make_run


def rows(text):
    return {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in text.splitlines() if "  " in line}


def test_a_run_as_a_table_with_its_report(tmp_path, capsys):
    record = make_run(tmp_path)
    assert main(["show", str(record.folder)]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0].rstrip() == "SIMULATED: resnet50, Offline, virtual:agx-orin-64gb (trtexec-10.3)"
    assert max(map(len, lines[:-1])) <= 100
    found = rows(text)
    assert found["throughput"] == "6,800 samples/s"
    assert found["ceiling"].startswith("8,000 samples/s (DRAM bound)")
    report = record.folder / "report.html"
    assert lines[-1] == f"report: {report}"
    assert "SIMULATED" in report.read_text(encoding="utf-8")


def test_json_is_the_result_with_the_state(tmp_path, capsys):
    record = make_run(tmp_path)
    assert main(["show", str(record.folder / "record.json"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["provenance"] == "simulated"
    assert found["samples_per_joule"]["value"] == pytest.approx(200.0)
    assert found["samples_measured"] == 40 * 256 + 1000 * 2 + 953 * 2
    assert found["status"] == "finished"


def test_a_killed_run_is_interrupted_and_keeps_what_it_measured(tmp_path, capsys):
    record = make_run(tmp_path, status="running")
    path = record.folder / "record.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "process": {"host": "elsewhere", "pid": 1}}))
    os.utime(path, (1_000_000, 1_000_000))
    record = load_record(record.folder)
    print_result(record)
    assert rows(capsys.readouterr().out)["state"] == "interrupted: 14,146 samples measured"
    assert main(["show", str(record.folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["samples_measured"]) == ("interrupted", 14_146)
    assert "interrupted: 14,146 samples measured" in (record.folder / "report.html").read_text(encoding="utf-8")


def test_a_damaged_run_is_one_line(tmp_path, capsys):
    record = make_run(tmp_path)
    values = {name: value for name, value in record.values.items() if name != "plan"}
    path, batches = record.folder / "record.json", record.folder / "batches.csv"
    path.write_text(json.dumps(values))
    assert main(["show", str(record.folder)]) == 2
    assert "record.json has no 'plan': it is damaged" in capsys.readouterr().err
    batches.write_text(batches.read_text() + "gpu,1,2,many\n")
    assert main(["show", str(record.folder)]) == 2
    said = capsys.readouterr().err
    assert f"{batches} is damaged" in said and said.count("\n") == 1


def test_last_is_the_run_written_last(tmp_path):
    folders = [make_run(tmp_path, seconds=0.2).folder for _ in range(3)]
    for age, folder in zip((20, 0, 10), folders):
        os.utime(folder / "record.json", (1_000_000 - age, 1_000_000 - age))
    assert find_run("last", tmp_path) == folders[1]


def test_a_folder_that_takes_no_report_is_shown_all_the_same(tmp_path, capsys):
    record = make_run(tmp_path)
    (record.folder / "report.html").mkdir()
    assert main(["show", str(record.folder)]) == 0
    captured = capsys.readouterr()
    assert "6,800 samples/s" in captured.out
    assert captured.err.startswith("the report was not written: ")


@pytest.mark.parametrize(
    "prepare,named",
    [
        (lambda folder: folder / "none", "cannot be read"),
        (lambda folder: (folder / "record.json").write_text("{") and folder, "not JSON"),
        (lambda folder: (folder / "record.json").write_text('{"version": 99}') and folder, "version 99, expected 1"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(tmp_path, capsys, prepare, named):
    assert main(["show", str(prepare(tmp_path))]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert named in captured.err


def test_last_without_a_run_says_how_to_make_one(tmp_path, capsys):
    assert main(["show", "last", "--runs", str(tmp_path)]) == 2
    assert "orin bench" in capsys.readouterr().err


def test_boards_have_their_peaks_and_modes(capsys):
    assert main(["boards", "--json"]) == 0
    board, *_ = json.loads(capsys.readouterr().out)["boards"]
    assert (board["name"], board["sms"], board["dla_cores"], board["dram_gib"]) == ("agx-orin-64gb", 16, 2, 64.0)
    assert board["gpu_tops"] == pytest.approx(85.2, abs=0.05)  # NVIDIA's data sheet: 85 dense INT8 TOPS at 1.3 GHz
    assert board["dla_tops"] == pytest.approx(52.4, abs=0.05)  # NVIDIA's data sheet: 52.5, both cores
    assert {name: (mode["gpu_mhz"], mode["sms"]) for name, mode in board["modes"].items()} == {
        "MAXN": (1300.5, 16),
        "15W": (408.0, 6),
        "30W": (612.0, 8),
        "50W": (816.0, 16),
    }


def test_boards_print_one_line_a_mode(capsys):
    assert main(["boards"]) == 0
    lines = capsys.readouterr().out.splitlines()
    maxn = next(line.split() for line in lines if line.startswith("MAXN"))
    assert maxn == ["MAXN", "1300.5", "16", "1600", "3199", "2201.6", "12", "137.7"]
    assert any(line.startswith("30W (default)") for line in lines)


def test_networks_have_our_size_beside_the_published(capsys):
    assert main(["networks", "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["networks"]}
    resnet = found["resnet50"]
    assert resnet["published_params"] == 25_557_032
    # Folding replaces the 53,120 scale and shift values of 53 batch normalisations by 26,560 biases.
    assert resnet["params"] == 25_557_032 - 53_120 + 26_560
    assert resnet["gmacs"] == pytest.approx(resnet["published_gmacs"], rel=1e-3)
    assert main(["networks"]) == 0
    assert "25.53 M (25.56 M)" in capsys.readouterr().out
