"""The whole way on the stand-ins: ONNX, ranges, engines, pipeline, LoadGen, record; answers are ONNX Runtime's."""

import json
import struct
from pathlib import Path

import pytest

from engines.formats import pack
from engines.numerics import OrtRunner
from orin.bench import Bench, bench, prepare_samples
from orin.build import Desk, build_engines
from orin.plan import Plan
from orin.results import result
from tests.board.boards import attached
from tests.orin.classifier import CLASSES, lay_out
from tests.orin.commands import command
from tests.standins import libcuda

pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT 10.1")
PHOTOS = 5
DLA_STEPS = 1.0  # of the INT8 output by which a DLA's best class may be behind the reference's


@pytest.fixture
def board(tmp_path):
    """The attached board."""
    with attached(tmp_path / "root") as opened:
        yield opened


@pytest.fixture
def place(tmp_path, monkeypatch, board):
    """A user's folder with a network and photos, on a machine to which the board is attached."""
    lay_out(tmp_path, PHOTOS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("orin.boards.open_board", lambda name, purpose: board)
    return tmp_path


def orin(place, capsys, *words):
    """Run a command on the attached board; returns its JSON."""
    code = command([*map(str, words), "--board", "jetson", "--data", str(place / "photos"), "--json", "--quiet"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def reference(place, device):
    """What ONNX Runtime answers for each photo, from the same INT8 network and samples."""
    photos = sorted((place / "photos").iterdir())
    desk = Desk(cache=place / "cache/orin-toolkit", photos=photos, references=True)
    plan = Plan(network=str(place / "net.onnx"), gpu_batch=4, dla_batch=2)
    built = build_engines(plan, desk, "jetson")
    samples = prepare_samples(desk, built, plan, every=True).samples
    engine = built.references[device]
    packed = pack(samples, engine.manifest.inputs[0].format)
    scores = OrtRunner(engine).run([packed])[0].reshape(PHOTOS, CLASSES)
    return scores, built.engines[device].manifest.outputs[0].scale


PLAN = ("--gpu-batch", 4, "--dla-batch", 2)


def measured(place, board, scenario, **plan):
    """A short run under LoadGen, without the seconds of idling before it."""
    desk = Desk(cache=place / "cache/orin-toolkit", photos=sorted((place / "photos").iterdir()))
    options = Bench(scenario, seconds=0.3, runs=place / "runs", idle_s=0)
    return bench(Plan(network=str(place / "net.onnx"), **plan), board, desk, options)


def test_offline_on_all_accelerators(place, board):
    record = measured(place, board, "offline", gpu_batch=4, dla_batch=2)
    found = result(record)
    assert found["provenance"] == "measured" and found["board"] == "jetson" and found["status"] == "finished"
    assert set(found["share"]) == {"gpu", "dla0", "dla1"} and sum(found["share"].values()) == pytest.approx(1)
    assert record["outputs"] == "computed" and record["memory"]["kind"] == "mapped"
    assert record["network"]["dla_gpu_layers"] == []
    assert record["clocks"]["gpu_mhz"] == 612.0  # what the board was in: 30W
    assert record["prediction"]["provenance"] == "simulated"
    assert all(batch.begin_ns <= batch.end_ns for batch in record.batches)
    assert sum(batch.samples for batch in record.batches) >= PHOTOS
    assert "VDD_GPU_SOC 3200mW" in (record.folder / "tegrastats.log").read_text()


def test_single_stream_runs_graphs_and_counts_their_copies(place, board):
    record = measured(place, board, "singlestream", gpu_batch=1, dla_cores=0)
    found = result(record)
    assert found["status"] == "finished" and found["share"] == {"gpu": 1.0, "dla0": 0.0, "dla1": 0.0}
    assert found["bytes_copied_per_sample"] == record["sample_bytes"] == 200_704
    assert libcuda.calls("cuGraphLaunch") >= len(record.batches)
    assert found["latency_ms"]["p50"] > 0


@pytest.mark.parametrize("device,words", [("gpu", ("--dla-cores", 0)), ("dla", ("--gpu-batch", 0))])
def test_accuracy_answers_are_onnx_runtimes(place, capsys, device, words):
    plan = (*PLAN[:2], *words) if device == "gpu" else (*PLAN[2:], *words)
    found = orin(place, capsys, "bench", place / "net.onnx", *plan, "--accuracy", "--runs", place / "runs")
    log = json.loads((Path(found["run_dir"]) / "loadgen/mlperf_log_accuracy.json").read_text())
    scores, step = reference(place, device)
    answers = {entry["qsl_idx"]: struct.unpack("<i", bytes.fromhex(entry["data"]))[0] for entry in log}
    assert set(answers) == set(range(PHOTOS))
    for photo, answer in answers.items():
        assert scores[photo].max() - scores[photo][answer] <= (DLA_STEPS * step if step else 0)


def test_run_answers_every_photo(place, capsys):
    out = place / "out.jsonl"
    found = orin(place, capsys, "run", place / "net.onnx", *PLAN, "-o", out)
    assert (found["answered"], found["provenance"]) == (PHOTOS, "measured")
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    exact, _ = reference(place, "gpu")
    _, step = reference(place, "dla")
    for scores, answer in zip(exact, answers, strict=True):
        assert abs(scores[answer["class"]] - answer["score"]) <= 2 * step
        assert scores.max() - scores[answer["class"]] <= 2 * step


def test_deploy_takes_every_step_on_the_board_and_measures_memory(place, capsys):
    words = ("deploy", place / "net.onnx", *PLAN, "--seconds", 1, "--memory", "auto", "-o", place / "out")
    first = orin(place, capsys, *words)
    assert first["skipped"] == []
    assert list(first["steps"]) == ["place", "rewrite", "calibrate", "build", "memory", "bench"]
    assert first["steps"]["build"]["dla"]["builder"].startswith("tensorrt 10.3.0")
    assert first["steps"]["memory"]["kind"] in first["steps"]["memory"]["seconds"]
    assert first["steps"]["bench"]["provenance"] == "measured"
    assert Plan.load(place / "out/plan.yaml").memory == first["steps"]["memory"]["kind"]
    again = orin(place, capsys, *words)
    assert again["skipped"] == list(first["steps"]) and again["steps"] == first["steps"]


def test_selftest_checks_numbers_and_memory_on_the_board(place, board, monkeypatch):
    import orin.selftest as selftest

    plan = Plan(network=str(place / "net.onnx"), gpu_batch=4, dla_batch=2)
    monkeypatch.setattr(selftest, "cases", lambda network: [selftest.Case("all", plan)])
    desk = Desk(cache=place / "cache/orin-toolkit", photos=sorted((place / "photos").iterdir()))
    wanted = selftest.Selftest("net", seconds=0.3, idle_s=0.0, runs=place / "runs")
    outcome = selftest.selftest(wanted, lambda: board, desk, [])
    assert outcome.passed, outcome.values
    checks = outcome.values["checks"]
    assert checks["numbers"]["doubts"] == [] and checks["numbers"]["sqnr_db"]["gpu"] == {"scores": "equal"}
    assert checks["memory"]["fastest"] in checks["memory"]["seconds"]
    (run,) = outcome.values["runs"]
    assert run["pace"] is None and run["samples_per_s"]["seen"] > 0
