"""Bad input: one clear line, exit code 2, no traceback, earlier runs untouched."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from orin.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
BOARD = ("--board", "virtual:agx-orin-64gb")


def orin(*words, cwd, **environment):
    """Run the command line as a user does."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cwd / "cache"), **environment}
    return subprocess.run(
        [sys.executable, "-m", "orin.cli.main", *map(str, words)], capture_output=True, text=True, cwd=cwd, env=env
    )


@pytest.fixture
def place(tmp_path):
    """A working folder with an earlier run in it, one photo, and files that are broken in various ways."""
    (tmp_path / "runs" / "earlier").mkdir(parents=True)
    (tmp_path / "runs" / "earlier" / "record.json").write_text('{"version": 1}')
    photos = tmp_path / "photos"
    photos.mkdir()
    cv2.imwrite(str(photos / "a.png"), np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8))
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.jpg").write_bytes(b"\xff\xd8\xff no photo")
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x07\x12 cut")
    dynamic = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["n", 3, "h", "w"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3, "h", "w"])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["images"], ["y"])], "g", [dynamic], [out])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "dynamic.onnx"
    )
    (tmp_path / "cut.cache").write_text("TRT-100300-EntropyCalibration2\ninput: 3c01\nconv1_out: zzz\n")
    (tmp_path / "bad.yaml").write_text("gpu_batch: many\n")
    (tmp_path / "file").write_text("")
    return tmp_path


CASES = {
    "unknown network": (("bench", "resnet5", *BOARD), "resnet5"),
    "unknown board": (("bench", "--board", "virtual:agx-thor"), "agx-thor"),
    "no Jetson here": (("bench", "--board", "jetson"), "no Jetson"),
    "unknown mode": (("predict", "--mode", "60W"), "60W"),
    "tuning runs of no length": (("tune", "digits", "--seconds-per-run", "0"), "--seconds-per-run is 0"),
    "unknown mode of a run": (("bench", "digits", "--board", "virtual:agx-orin-64gb", "--mode", "60W"), "60W"),
    "batch out of range": (("predict", "--gpu-batch", "-4"), "gpu_batch is -4"),
    "unknown option": (("predict", "--gpu-bacth", "4"), "--gpu-bacth"),
    "no number": (("bench", "--seconds", "ten"), "ten"),
    "seconds out of range": (("bench", "--seconds", "0", *BOARD), "expected 1 to 36000"),
    "rate of another scenario": (("bench", "--qps", "5", *BOARD), "--scenario server"),
    "rate that is none": (("predict", "--qps", "nan", "--scenario", "server"), "--qps is nan"),
    "negative rate": (("power", "sweep", "--qps=-3", "--scenario", "server", *BOARD), "--qps is -3"),
    "missing photo folder": (("run", *BOARD, "--data", "nowhere", "-o", "o.jsonl"), "nowhere"),
    "answers over a folder": (("run", "digits", *BOARD, "--data", "photos", "-o", "empty"), "empty cannot be written"),
    "answers in no folder": (("run", *BOARD, "--data", "photos", "-o", "no/o.jsonl"), "no/o.jsonl cannot be written"),
    "empty photo folder": (("run", *BOARD, "--data", "empty", "-o", "o.jsonl"), "empty"),
    "no readable photo": (("run", *BOARD, "--data", "broken", "-o", "o.jsonl"), "a.jpg"),
    "missing checkpoint": (("predict", "--weights", "none.onnx"), "none.onnx"),
    "corrupt checkpoint": (("predict", "--weights", "cut.onnx"), "cut.onnx"),
    "dynamic checkpoint": (("predict", "--weights", "dynamic.onnx"), "images"),
    "missing plan": (("bench", *BOARD, "--plan", "none.yaml"), "none.yaml"),
    "bad plan": (("bench", *BOARD, "--plan", "bad.yaml"), "gpu_batch is 'many'"),
    "garbled calibration cache": (("bench", *BOARD, "--data", "photos", "--calibration", "cut.cache"), "line 3"),
    "runs folder is a file": (("bench", *BOARD, "--data", "photos", "--runs", "file/x"), "file/x"),
    "missing run": (("show", "runs/nothing"), "runs/nothing"),
    "foreign record": (("compare", "file", "file"), "not JSON"),
    "both clocks and mode": (("predict", "--mode", "MAXN", "--gpu-mhz", "612"), "give one of them"),
}


@pytest.mark.parametrize("words,says", CASES.values(), ids=CASES)
def test_one_clear_line(words, says, place):
    done = orin(*words, cwd=place)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert says in last and last.startswith("orin")
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert (place / "runs" / "earlier" / "record.json").read_text() == '{"version": 1}'
    assert not (place / "o.jsonl").exists()


def test_no_rights_is_one_line(place):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (place / "runs").chmod(0o500)
    done = orin("bench", *BOARD, "--data", "photos", "--seconds", "1", cwd=place)
    assert done.returncode == 2 and "Permission denied" in done.stderr.splitlines()[-1]


def test_help_is_light_and_fast_to_import():
    program = (
        "import sys; from orin.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'cv2', 'matplotlib', 'yaml', 'rich', 'jinja2', 'mlperf_loadgen'}\n"
        "sys.exit(sorted(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "bench" in done.stdout and "doctor" in done.stdout


@pytest.mark.parametrize(
    "words", [("networks",), ("boards", "--json"), ("--help",), ("predict", "--help")], ids=" ".join
)
def test_a_reader_that_has_gone_is_no_error(words):
    reader, writer = os.pipe()
    os.close(reader)
    assert _to(writer, *words) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout_is_one_line():
    code, said = _to(os.open("/dev/full", os.O_WRONLY), "networks")
    assert code == 2 and said == "orin: stdout: No space left on device\n"


def _to(stdout, *words):
    """Run the command line with this as its stdout, buffered as it is for a user; returns exit code and stderr."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "orin.cli.main", *words]
    try:
        done = subprocess.run(words, stdout=stdout, stderr=subprocess.PIPE, text=True, env=env)
    finally:
        os.close(stdout)
    return done.returncode, done.stderr


def test_a_stop_while_a_command_is_loaded_is_one_line(monkeypatch, capsys):
    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", stopped)
    assert main(["networks"]) == 130
    assert capsys.readouterr().err.startswith("orin: stopped")


def test_too_little_memory_is_one_line(monkeypatch, capsys):
    def full(_):
        raise MemoryError("Unable to allocate 186. GiB")

    monkeypatch.setattr("orin.cli.facts.network_facts", full)
    assert main(["networks"]) == 2
    assert "memory is too small: Unable to allocate 186. GiB" in capsys.readouterr().err
