"""Run folders: readable at any moment, raw data kept, statistics computed on read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orin.errors import OrinError
from orin.record import Recorder, load_record, write_atomically
from orin.results import result, share
from orin.work import WorkItem

START = {
    "provenance": "simulated",
    "network": {"name": "resnet50", "weights": "untrained"},
    "board": "virtual:agx-orin-64gb",
    "soc": "agx-orin-64gb",
    "stack": "trtexec-10.3",
    "scenario": "offline",
}


def items(recorder, accelerator, count, samples, ms):
    for k in range(count):
        begin, end = int(k * ms * 1e6), int((k + 1) * ms * 1e6)
        recorder.note(WorkItem(accelerator, 0, range(samples), [], begin_ns=begin, end_ns=end))


def test_figures_come_from_the_raw_work_items(tmp_path):
    with Recorder(tmp_path, START) as recorder:
        items(recorder, "gpu", 10, 256, 50.0)
        items(recorder, "dla0", 250, 2, 2.0)
        power = {"module_w": {"value": 40.0, "u95": 2.0}, "rails_w": {}}
        values = {"window_ns": [0, 500_000_000], "copied_bytes": 6120, "power": power, "valid": True}
        recorder.finish(values)
    record = load_record(recorder.folder)
    found = result(record)
    # 2,560 + 500 samples in 0.5 s
    assert found["samples_per_s"] == pytest.approx(6120.0)
    assert share(record) == pytest.approx({"gpu": 2560 / 3060, "dla0": 500 / 3060, "dla1": 0.0})
    assert found["latency_ms"]["p99"] == pytest.approx(500.0)
    assert found["samples_per_joule"] == pytest.approx({"value": 153.0, "u95": 7.65})
    assert found["bytes_copied_per_sample"] == pytest.approx(2.0)


def test_error_in_the_run_is_kept_in_the_record(tmp_path):
    with pytest.raises(OrinError, match="gpu failed"), Recorder(tmp_path, START) as recorder:
        raise OrinError("gpu failed: boom")
    record = load_record(recorder.folder)
    assert record["status"] == "failed" and record["error"] == "gpu failed: boom"


def test_killed_run_leaves_what_was_measured(tmp_path):
    program = f"""
import os, sys, time
sys.path.insert(0, {str(Path.cwd())!r})
from orin.record import Recorder
from tests.orin.test_record import START, items
recorder = Recorder(__import__("pathlib").Path({str(tmp_path)!r}), START)
items(recorder, "gpu", 7, 8, 1.0)
while "samples_so_far" not in recorder.values:
    time.sleep(0.01)
time.sleep(0.2)
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    record = load_record(next(tmp_path.iterdir()))
    assert record["status"] == "running" and not record.finished
    assert record["samples_so_far"] == {"gpu": 56}
    assert sum(batch.samples for batch in record.batches) == 56


def test_cut_last_line_is_not_read(tmp_path):
    with Recorder(tmp_path, START) as recorder:
        items(recorder, "gpu", 3, 8, 1.0)
        recorder.finish({})
    path = recorder.folder / "batches.csv"
    path.write_text(path.read_text() + "gpu,123,4")
    assert len(load_record(recorder.folder).batches) == 3


def test_writing_is_atomic(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "1")
    write_atomically(path, "2")
    assert path.read_text() == "2" and [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "text,says", [("{", "not JSON"), ('{"version": 99}', "record version 99, expected 1"), ("[]", "version None")]
)
def test_foreign_records_are_refused(text, says, tmp_path):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(OrinError, match=says):
        load_record(tmp_path)


def test_disk_full_says_what_to_do_and_keeps_the_folder(tmp_path):
    with Recorder(tmp_path, START) as recorder:
        items(recorder, "gpu", 3, 8, 1.0)
        recorder._batches.close()
        recorder._batches = Path("/dev/full").open("w")  # noqa: SIM115
        with pytest.raises(OrinError, match="No space left on device; free some space"):
            recorder.finish({})
    assert json.loads((recorder.folder / "record.json").read_text())["status"] == "running"
