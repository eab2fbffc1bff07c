"""Volumes on the Jetson board: a TensorRT engine between the kernels, on the stand-ins."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.build import build
from engines.cache import EngineCache
from engines.errors import EngineError
from engines.spec import EngineSpec
from engines.volumes import nvcc
from engines.volumes.kernels import Kernels
from engines.volumes.plan import plan_windows
from engines.volumes.preprocess import PAD
from engines.volumes.split import Split
from orin.boards import open_board
from orin.errors import OrinError
from orin.plan import Plan
from orin.volumes.pipeline import VolumePipeline
from orin.volumes.run import VolumeRun, run_volumes, volume_plan
from orin.work import Chunk
from tests.board.boards import attached
from tests.board.test_volume_kernels import COMPILER
from tests.contract.networks import network as image_network
from tests.contract.networks import spec as image_spec
from tests.engines.volumes.by_hand import merged_and_sure, padded_windows
from tests.orin.commands import command
from tests.orin.test_segment import OFFSETS, SLOPES, pointwise
from tests.standins import libcuda
from tests.standins.nvinfer import control

SIDE, SCALE = 16, 0.02
SHAPES = ((24, 16, 30), (20, 12, 22))
CASES = (*SHAPES, SHAPES[0], (16, 24, 32))

pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT 10.1")


@pytest.fixture(scope="module", autouse=True)
def compiler(tmp_path_factory):
    """An `nvcc` that compiles for the CPU, once for all tests here."""
    program = tmp_path_factory.mktemp("bin") / "nvcc"
    program.write_text(COMPILER)
    program.chmod(0o755)
    nvcc.cubin.cache_clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PATH", str(program.parent), prepend=":")
        yield
    nvcc.cubin.cache_clear()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Engines of the pointwise network for one and for three windows, and one of images."""
    import tensorrt as trt

    from engines.tensorrt.builder import Options, TensorRtBuilder

    cache, builder = EngineCache(tmp_path_factory.mktemp("engines"), print), TensorRtBuilder(trt, Options())

    def engine(batch):
        wanted = EngineSpec("pointwise", "gpu", batch, "fp16", amax_by_tensor={"input": SCALE * 127})
        return build(pointwise(SIDE), wanted, cache, "random", builder)

    images = build(image_network(), image_spec("gpu", 1), cache, "random", builder)
    return {1: engine(1), 3: engine(3), "images": images}


@pytest.fixture
def board(tmp_path):
    with attached(tmp_path) as opened:
        yield opened


def split_of(shape, seed=0):
    volume = np.random.default_rng(seed).normal(0.5, 0.6, shape).astype(np.float32)
    return Split(volume, plan_windows(shape, (SIDE,) * 3))


def by_hand(split, batch=1):
    """Labels in float64, and where they are certain."""
    kernels = Kernels(split.plan, batch, logits="float32", sums="float32")
    stored = np.clip(np.rint(split.volume * (split.scale / np.float64(SCALE))), -127, 127)
    windows = padded_windows(kernels.plan, stored, max(-127, round(PAD / SCALE))) * SCALE
    logits = windows[:, None] * SLOPES.reshape(3, 1, 1, 1) + OFFSETS.reshape(3, 1, 1, 1)
    return merged_and_sure(kernels, logits, 1e-3)


def taken(*names):
    return [libcuda.calls(name) for name in names]


@pytest.mark.parametrize("batch", [1, 3])
def test_volumes_are_labelled_window_by_window(board, made, batch):
    loaded = board.load_windows(made[batch])
    for number, shape in enumerate(SHAPES):
        split = split_of(shape, number)
        found = loaded.segment(split)
        expected, sure = by_hand(split, batch)
        assert sure.mean() > 0.9 and len(np.unique(expected)) == 3
        assert np.array_equal(found.labels[sure], expected[sure])
        assert found.begin_ns < found.end_ns


def test_a_second_volume_of_a_size_takes_no_memory_and_nothing_is_copied(board, made):
    loaded = board.load_windows(made[3])
    first = loaded.segment(split_of(SHAPES[0]))
    held = first.labels.copy()
    names = ("cuMemAlloc", "cuMemHostAlloc", "cuMemcpyHtoD", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync")
    before, launches = taken(*names), taken("cuLaunchKernel")
    second = split_of(SHAPES[0], 7)
    found = loaded.segment(second)
    assert taken(*names) == before and taken("cuLaunchKernel") > launches
    expected, sure = by_hand(second, 3)
    assert np.array_equal(found.labels[sure], expected[sure])
    assert np.array_equal(first.labels, held)


def test_int8_volumes_in_another_range_are_brought_into_the_engines(board, made):
    stored = np.random.default_rng(3).integers(-60, 61, SHAPES[1]).astype(np.int8)
    split = Split(stored, plan_windows(SHAPES[1], (SIDE,) * 3), scale=3 * SCALE)
    expected, sure = by_hand(split)
    found = board.load_windows(made[1]).segment(split)
    assert np.array_equal(found.labels[sure], expected[sure])


def filled(pipeline, scale=SCALE):
    """Volumes in a pipeline's memory, as many as it has room for, and the splits that they are of."""
    splits = [split_of(shape, number) for number, shape in enumerate(CASES)]
    for number, split in enumerate(splits):
        pipeline.samples.fill(number, split, scale)
    return splits


def pipeline_of(board, engine):
    plans = [split_of(shape).plan for shape in CASES]
    return VolumePipeline(volume_plan("pointwise", engine.manifest.spec.batch), board, engine, plans)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_case_is_one_work_item_of_many_enqueues(board, made, batch):
    with pipeline_of(board, made[batch]) as pipeline:
        splits = filled(pipeline)
        launches = libcuda.calls("cuLaunchKernel")
        for number, split in enumerate(splits):
            item, (labels,) = pipeline.run_now([number], number)
            sizes = [enqueue.samples for enqueue in item.enqueues]
            assert sum(sizes) == len(split.plan) and max(sizes) <= batch and item.begin_ns < item.end_ns
            expected, sure = by_hand(split, batch)
            assert np.array_equal(labels[0][sure], expected[sure])
            launches += 2 * len(sizes)
        assert libcuda.calls("cuLaunchKernel") == launches and pipeline.copied_bytes == 0


class Kept:
    """A client that keeps the labels of each case."""

    def __init__(self):
        self.labels = {}

    def done(self, item, outputs):
        self.labels[item.ids[0]] = outputs[0][0].copy()


def test_cases_in_flight_together_keep_their_labels(board, made):
    client = Kept()
    with pipeline_of(board, made[3]) as pipeline:
        splits = filled(pipeline)
        assert pipeline.lanes[0].depth == 2
        pipeline.start(client, ordered=False)
        numbers = list(range(len(CASES)))
        pipeline.put([Chunk(numbers, numbers)])
        pipeline.stop()
    for number, split in enumerate(splits):
        expected, sure = by_hand(split, 3)
        assert np.array_equal(client.labels[number][sure], expected[sure])


def test_windows_are_enqueued_in_turn(board, made):
    loaded = board.load_windows(made[3])
    plan = split_of(SHAPES[0]).plan
    memory = board.allocate(int(np.prod(plan.shape)))
    loaded.hold({memory.address: plan})
    with pytest.raises(OrinError, match="got 2 windows of a volume that has .* left, .* in turn, 3 at a time"):
        loaded.enqueue(0, (memory.address,), 2)
    with pytest.raises(OrinError, match="slot 0 holds no volume"):
        loaded.wait(0)


@pytest.mark.parametrize("scenario", ["singlestream", "offline"])
def test_loadgen_runs_the_cases_on_the_board(board, made, tmp_path, scenario):
    splits = {f"case {number}": split_of(shape, number) for number, shape in enumerate(SHAPES)}
    run = VolumeRun(
        plan=volume_plan("pointwise", 3, mode="50W"),
        cases={name: split.plan for name, split in splits.items()},
        workload=made[3].manifest.workload,
        amax=SCALE * 127,
        scenario=scenario,
        seconds=0.3,
        runs=tmp_path / "runs",
        engine=made[3],
        read=splits.__getitem__,
    )
    record = run_volumes(run, board)
    assert record.finished and (record["provenance"], record["outputs"]) == ("measured", "computed")
    assert len(record.batches) >= 2 and len(record.batches) % 2 == 0 and record["copied_bytes"] == 0
    assert record["power_mode"]["mode"]["name"] == "50W"
    assert [case["expected"]["provenance"] for case in record["cases"]] == ["simulated"] * 2


def test_other_windows_and_other_engines_are_refused(board, made):
    loaded = board.load_windows(made[1])
    with pytest.raises(OrinError, match=r"windows are \(8, 8, 8\), the engine was built for \(16, 16, 16\)"):
        loaded.segment(Split(np.zeros((8, 8, 8), np.float32), plan_windows((8, 8, 8), (8, 8, 8))))
    with pytest.raises(OrinError, match=r"has x int8 \[3, 8, 8\] CHW4; y float32 .*expected int8 windows"):
        board.load_windows(made["images"])


def test_a_volume_that_fails_midway_leaves_nothing_under_way(board, made):
    loaded = board.load_windows(made[1])
    control.fail("ExecutionContext.enqueueV3", "lost", after=2)
    with pytest.raises(OrinError, match="lost"):
        loaded.segment(split_of(SHAPES[0]))
    expected, sure = by_hand(split_of(SHAPES[0]))
    assert np.array_equal(loaded.segment(split_of(SHAPES[0])).labels[sure], expected[sure])


def test_nan_in_a_volume_is_told(board, made):
    split = split_of(SHAPES[0])
    split.volume[5, 1, 2] = np.nan
    with pytest.raises(EngineError, match="NaN in plane 5 of 24"):
        board.load_windows(made[1]).segment(split)


@pytest.mark.parametrize(
    ("slot", "text"),
    [
        ("ExecutionContext.enqueueV3", "TensorRT did not enqueue 1 windows: out of order"),
        ("ExecutionContext.setTensorAddress", "TensorRT did not bind input: out of order"),
        ("CudaEngine.createExecutionContext", "TensorRT did not make an execution context for windows: out of order"),
    ],
)
def test_what_tensorrt_refuses_is_told(board, made, slot, text):
    control.fail(slot, "out of order")
    with pytest.raises(OrinError, match=text):
        board.load_windows(made[1]).segment(split_of(SHAPES[1]))


def test_the_command_labels_on_the_board_as_it_does_on_the_cpu(board, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("orin.boards.open_board", lambda name, purpose: board)
    onnx.save(pointwise(SIDE), tmp_path / "net.onnx")
    np.save(tmp_path / "scan.npy", np.random.default_rng(5).integers(-100, 101, SHAPES[0]).astype(np.int8))
    words = ["segment", str(tmp_path / "scan.npy"), "--network", str(tmp_path / "net.onnx"), "--batch", "2"]
    more = ["--scenario", "offline", "--seconds", "1", "--runs", str(tmp_path / "runs"), "--mode", "50W"]
    assert command([*words, "--board", "jetson", *more, "-o", str(tmp_path / "gpu"), "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["board"], said["computed_on"], said["precision"]) == ("jetson", "gpu", "fp16")
    assert said["run"]["provenance"] == "measured" and said["run"]["samples_per_s"] > 0
    plan = Plan.load(Path(said["run"]["run_dir"]) / "plan.yaml")
    assert (plan.network, plan.precision, plan.mode, plan.gpu_batch) == ("net", "fp16", "50W", 2)
    monkeypatch.setattr("orin.boards.open_board", open_board)
    assert command([*words, "-o", str(tmp_path / "cpu"), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["computed_on"] == "cpu"
    on_gpu, on_cpu = (np.load(tmp_path / folder / "scan.npy") for folder in ("gpu", "cpu"))
    assert len(np.unique(on_cpu)) == 3 and (on_gpu == on_cpu).mean() > 0.999
    assert "on this board are measured" in (tmp_path / "gpu" / "report.html").read_text()
