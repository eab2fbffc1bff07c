"""A detector's tail as a second engine on the GPU, behind each accelerator's own, against the CPU's tail."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from calibration.cache import CalibrationCache
from engines.build import build
from engines.cache import EngineCache
from engines.errors import EngineError
from engines.formats import pack
from engines.spec import Ranges
from engines.tail_network import detections, tail_network, tail_spec
from engines.tails import DETECTORS
from engines.tensorrt.builder import TensorRtBuilder
from engines.tensorrt.module import load_tensorrt
from engines.zoo import graph
from orin.bench import Bench, bench, prepare_samples
from orin.build import Desk, build_engines
from orin.check import device_runner
from orin.errors import OrinError
from orin.pipeline import Pipeline
from orin.plan import Plan
from orin.results import result
from orin.tails import answers_of
from tests.board.boards import attached
from tests.board.small import Job
from tests.orin.classifier import classifier, lay_out
from tests.orin.commands import command
from tests.orin.detector import DETECTOR, TOLERANCE, bindings, network, plain, same, values
from tests.standins import libcuda
from tests.standins.nvinfer import control, plugins

pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT 10.1")
PHOTOS = 5
ALONE = {
    "gpu": {"dla_cores": 0},
    "single": {"gpu_batch": 1, "dla_cores": 0},
    "dla": {"gpu_batch": 0},
    "looped": {"gpu_batch": 0, "dla_loop": 3},
}


@pytest.fixture
def board(tmp_path):
    """The attached board."""
    with attached(tmp_path / "root") as opened:
        yield opened


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the small detector and photos, and one cache for all tests."""
    folder = tmp_path_factory.mktemp("tail")
    lay_out(folder, PHOTOS)
    onnx.save(network(), folder / "net.onnx")
    return folder


@pytest.fixture
def plan(place, monkeypatch):
    """A plan whose network is the small detector."""
    monkeypatch.setitem(DETECTORS, str(place / "net.onnx"), DETECTOR)
    return Plan(network=str(place / "net.onnx"), gpu_batch=2, dla_batch=2, tail="gpu")


@pytest.fixture
def desk(place):
    """Where engines are built."""
    return Desk(cache=place / "cache/orin-toolkit", photos=sorted((place / "photos").iterdir()))


def answered(board, desk, plan):
    """What a plan answers for each photo, and the bytes that were copied."""
    built = build_engines(plan, desk, "jetson")
    samples = prepare_samples(desk, built, plan, every=True).samples
    outputs = next(iter(built.engines.values())).manifest.outputs
    answer = answers_of(plan, [binding.name for binding in outputs])
    with Pipeline(plan, board, built.engines, capacity=8) as pipeline:
        futures = [pipeline.submit(sample) for sample in samples]
        found = [answer([output[None] for output in future.result(60)])[0]["detections"] for future in futures]
        return found, pipeline.copied_bytes


@pytest.mark.parametrize("words", ALONE.values(), ids=ALONE)
def test_boxes_are_those_of_the_cpu(board, desk, plan, words):
    plan = replace(plan, **words)
    mine, copied = answered(board, desk, plan)
    theirs, copied_without = answered(board, desk, replace(plan, tail="cpu"))
    assert len(mine) == PHOTOS and all(len(found) > 3 for found in theirs)
    assert all(same(*pair) for pair in zip(mine, theirs, strict=True))
    assert copied == copied_without  # the tail reads the engine's outputs where they lie


@pytest.mark.parametrize("dtype,layout", [("float32", "LINEAR"), ("int8", "DLA_LINEAR"), ("float16", "DLA_LINEAR")])
def test_outputs_are_read_as_they_lie(board, tmp_path, dtype, layout):
    outputs = bindings(dtype, layout)
    rng = np.random.default_rng(5)
    stored = {binding.name: values(binding, rng) for binding in outputs}
    spec = tail_spec("small", outputs, 3)
    tail = build(
        tail_network(DETECTOR, outputs), spec, EngineCache(tmp_path, print), "none", TensorRtBuilder(load_tensorrt())
    )
    run = device_runner(board, tail)
    found = detections(run([pack(stored[binding.name], layout) for binding in outputs]))
    real = {b.name: stored[b.name].astype(np.float32) * np.float32(b.scale or 1) for b in outputs}
    for seen, wanted in zip(found, DETECTOR.detect(real), strict=True):
        assert len(wanted) > 3
        assert same(plain(seen), plain(wanted))


def test_run_answers_on_all_accelerators(board, desk, plan, place, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.setattr("orin.boards.open_board", lambda name, purpose: board)
    out = place / "out.jsonl"
    words = ["run", plan.network, "--tail", "gpu", "--gpu-batch", 2, "--board", "jetson", "--data", place / "photos"]
    assert command([*map(str, words), "-o", str(out), "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["answered"], said["tail"]) == (PHOTOS, "gpu")
    lines = [json.loads(line)["detections"] for line in out.read_text().splitlines()]
    devices = [answered(board, desk, replace(plan, tail="cpu", **ALONE[name]))[0] for name in ("gpu", "dla")]
    for photo, found in enumerate(lines):
        assert any(same(found, theirs[photo]) for theirs in devices)


def test_offline_runs_under_loadgen(board, desk, plan, place, monkeypatch):
    monkeypatch.setattr("orin.bench.MIN_SAMPLES", PHOTOS)
    record = bench(plan, board, desk, Bench("offline", seconds=0.3, runs=place / "runs", idle_s=0))
    found = result(record)
    assert found["status"] == "finished" and sum(found["share"].values()) == pytest.approx(1)
    assert record["tail"] == "gpu" and set(record["network"]["engines"]) == {"gpu", "dla", "gpu_tail", "dla_tail"}
    assert all(batch.begin_ns <= batch.end_ns for batch in record.batches)
    assert libcuda.calls("cuStreamWaitEvent") >= len(record.batches)


def test_accuracy_responses_are_mlperfs_rows(board, desk, plan, place):
    options = Bench("offline", seconds=0.3, runs=place / "runs", idle_s=0, accuracy=True)
    record = bench(replace(plan, dla_cores=0), board, desk, options)
    log = json.loads((record.folder / "loadgen/mlperf_log_accuracy.json").read_text())
    theirs, _ = answered(board, desk, replace(plan, tail="cpu", dla_cores=0))
    for entry in log:
        rows = np.frombuffer(bytes.fromhex(entry["data"]), np.float32).reshape(-1, 7)
        assert (rows[:, 0] == entry["qsl_idx"]).all()
        assert np.allclose(rows[:, 5], [found["score"] for found in theirs[entry["qsl_idx"]]], atol=TOLERANCE)


def test_ssd_mobilenet_itself_on_both_dlas(board, desk, place):
    network = graph("ssd-mobilenet")
    ranges = Ranges(dict.fromkeys(network.tensors, 6.0), "none", 0)
    cache = place / "ssd.cache"
    cache.write_text(CalibrationCache.from_ranges(ranges).dumps())
    plan = Plan(network="ssd-mobilenet", gpu_batch=0, dla_batch=2, calibration=str(cache), tail="gpu")
    few = replace(desk, photos=desk.photos[:2])
    mine, theirs = (answered(board, few, replace(plan, tail=tail))[0] for tail in ("gpu", "cpu"))
    assert len(mine) == len(theirs) == 2
    for seen, wanted in zip(mine, theirs, strict=True):
        assert np.allclose(*([found["score"] for found in each] for each in (seen, wanted)), atol=TOLERANCE)


def test_a_classifiers_best_class_is_found_on_the_gpu(board, desk, place):
    lay = place / "classifier.onnx"
    onnx.save(classifier(), lay)
    plan = Plan(network=str(lay), gpu_batch=0, dla_batch=2, tail="gpu")
    found = []
    for tail in ("gpu", "cpu"):
        built = build_engines(replace(plan, tail=tail), desk, "jetson")
        answer = answers_of(replace(plan, tail=tail), ["scores"])
        samples = prepare_samples(desk, built, plan, every=True).samples
        with Pipeline(plan, board, built.engines, capacity=8) as pipeline:
            futures = [pipeline.submit(sample) for sample in samples]
            found.append([answer([output[None] for output in future.result(60)])[0] for future in futures])
    mine, theirs = found
    assert len(mine) == PHOTOS
    for seen, wanted in zip(mine, theirs, strict=True):
        assert seen["class"] == wanted["class"] and seen["score"] == pytest.approx(wanted["score"])


def test_a_tensorrt_without_the_plugin_leaves_the_cpu(board, desk, plan, tmp_path, monkeypatch):
    monkeypatch.setattr("engines.tensorrt.builder.register_plugins", lambda trt: None)
    plugins.forget()
    with pytest.raises(EngineError, match="Plugin not found.*; or set tail to cpu$"):
        build_engines(plan, replace(desk, cache=tmp_path), "jetson")


def test_a_tail_that_does_not_load_leaves_nothing_behind(board, desk, plan):
    built = build_engines(plan, desk, "jetson")
    control.fail("Runtime.deserializeCudaEngine", "out of memory", after=1)
    with pytest.raises(OrinError, match="out of memory"):
        board.load(built.engines["gpu"], "gpu", 2, built.engines["gpu_tail"])
    loaded = board.load(built.engines["gpu"], "gpu", 2, built.engines["gpu_tail"])
    loaded.close()  # what is left is counted when the board is closed


def test_what_the_tail_alone_reads_lies_in_memory_of_the_gpus_own(board, desk, plan):
    built, depth, outputs = build_engines(plan, desk, "jetson"), 2, 4
    held = board.allocate(1)  # the context is there, and one memory of the host's
    before = libcuda.live()
    loaded = board.load(built.engines["dla"], "dla0", depth, built.engines["dla_tail"])
    after = libcuda.live()
    assert after["device"] - before.get("device", 0) == depth * outputs  # the backbone's
    assert after["host"] - before["host"] == depth * outputs  # the tail's
    loaded.close()
    del held


def test_memory_of_the_gpus_own_has_no_side_of_the_cpus(board):
    held = [board.cuda.private(nbytes) for nbytes in (1, 5000)]
    assert all(tensor.address % 4096 == 0 and not tensor.array.size for tensor in held)
    with pytest.raises(OrinError, match="1048576.0 MiB of device memory: .*out of memory"):
        board.cuda.private(1 << 40)


def test_a_tail_of_other_outputs_is_refused(board, desk, plan):
    engines = build_engines(plan, desk, "jetson").engines
    with pytest.raises(OrinError, match="reads 'scores_0' as float32 of .* build them together"):
        board.load(engines["dla"], "dla0", 1, engines["gpu_tail"])


def test_the_parser_knows_the_plugin_once_it_is_registered(cuda_context):
    import tensorrt as trt

    tail = tail_network(DETECTOR, bindings("float32", "LINEAR"))
    with pytest.raises(AssertionError):
        Job(tail)
    assert trt.init_libnvinfer_plugins(None, "")
    layer = Job(tail).layers()[-1]
    assert (layer.name, layer.type) == ("nms", trt.LayerType.PLUGIN_V2)
    assert [tuple(layer.get_output(k).shape) for k in range(4)] == [(1, 1), (1, 20, 4), (1, 20), (1, 20)]


def test_no_dla_takes_the_plugin(cuda_context):
    import tensorrt as trt

    trt.init_libnvinfer_plugins(None, "")
    job = Job(tail_network(DETECTOR, bindings("float32", "LINEAR")), flags=("FP16",), dla=True)
    assert not job.config.can_run_on_DLA(job.layers()[-1])
    assert job.build() is None and "GPU fallback is not enabled" in job.errors()[-1]
