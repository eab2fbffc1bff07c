"""The virtual board: wall time, exact times of queued work, pace, numerics, clocks and rails."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.engine import Binding, Engine, Manifest
from engines.spec import EngineSpec
from orin.errors import OrinError
from orin.plan import Plan
from orin.soc import AGX_ORIN_64GB_SOC as SOC
from orin.virtual.board import VirtualBoard
from orin.virtual.model import CostModel
from orin.virtual.paced import Pace, PacedMachine, WallClock
from orin.virtual.predict import zoo_workload
from tests.instruments import StepClock

PLAN = Plan(mode="MAXN", stack="mlperf-v3.0")
IDLE_W = 7.6  # what the model draws at MAXN with nothing to do
IMAGE = Binding("image", (3, 224, 224), "int8", "CHW4", 1.0, 4 * 224 * 224)
RESNET = zoo_workload("resnet50")


def engine(device, batch, precision="int8", path="none.engine"):
    spec = EngineSpec("resnet50", device, batch, precision)
    return Engine(Path(path), Manifest(spec, "none", "seeded", "0", "0", (IMAGE,), (), RESNET))


@pytest.fixture
def clock():
    return StepClock()


@pytest.fixture
def board(clock):
    return VirtualBoard(SOC, seed=1, clock=clock)


def test_it_says_what_it_is(board):
    assert (board.name, board.provenance, board.computes_outputs) == ("virtual:agx-orin-64gb", "simulated", False)
    assert VirtualBoard(SOC, pacing="numerics").computes_outputs
    with pytest.raises(OrinError, match="expected paced or numerics"):
        VirtualBoard(SOC, pacing="fast")


def test_memory_is_zeroed_aligned_and_its_own_address(board):
    tensors = [board.allocate(size) for size in (1, 4096, 150_528)]
    for tensor in tensors:
        assert tensor.address == tensor.array.ctypes.data
        assert tensor.address % 4096 == 0
        assert not tensor.array.any()
    with pytest.raises(OrinError, match="expected 1 or more"):
        board.allocate(0)


def test_what_cannot_be_loaded_is_refused(board):
    with pytest.raises(OrinError, match="it has gpu, dla0, dla1"):
        board.load(engine("dla", 2), "dla2", 2)
    with pytest.raises(OrinError, match="was built for gpu"):
        board.load(engine("gpu", 2), "dla0", 2)
    with pytest.raises(OrinError, match="expected int8 or fp16"):
        board.load(engine("dla", 2, "fp32"), "dla0", 2)


def test_wrong_use_of_slots_is_refused(board):
    loaded = board.load(engine("dla", 2), "dla0", 2)
    with pytest.raises(OrinError, match="takes 1 to 2"):
        loaded.enqueue(0, (0,), 3)
    with pytest.raises(OrinError, match="enqueue comes before wait"):
        loaded.wait(1)


@pytest.mark.parametrize("clock", [WallClock(), StepClock()], ids=["wall", "steps"])
def test_a_batch_takes_the_time_that_the_model_gives_it(board, clock):
    with board.hold(PLAN):
        loaded = board.load(engine("gpu", 256), "gpu", 2)
        before_ns = clock.now_ns()
        loaded.enqueue(0, (0,), 64)
        begin_ns, end_ns = loaded.wait(0)
        after_ns = clock.now_ns()
    cost_ns = CostModel(SOC, SOC.max_clocks, "mlperf-v3.0").cost(_shape(64), 64).solo_ns
    assert end_ns - begin_ns == pytest.approx(cost_ns, rel=0.03)  # service times vary by 0.5 %
    assert before_ns < begin_ns < end_ns <= after_ns
    assert loaded.outputs(0) is None
    loaded.close()


def _shape(batch):
    from orin.virtual.model import EngineShape

    return EngineShape("resnet50", "gpu", batch, "int8", RESNET)


def test_queued_work_begins_exactly_when_the_work_before_it_ends(board):
    with board.hold(PLAN):
        loaded = board.load(engine("dla", 2), "dla0", 2)
        times = []
        loaded.enqueue(0, (0,), 2)
        loaded.enqueue(1, (0,), 2)
        for k in range(40):
            times.append(loaded.wait(k % 2))
            loaded.enqueue(k % 2, (0,), 2)
    late = [begin - end for (_, end), (begin, _) in zip(times, times[1:])]
    assert max(map(abs, late)) <= 1


def test_the_way_from_an_answer_to_the_next_query_is_part_of_the_submission(board):
    with board.hold(PLAN):
        loaded = board.load(engine("gpu", 8), "gpu", 1)
        times = []
        for _ in range(60):
            loaded.enqueue(0, (0,), 8)
            times.append(loaded.wait(0))
    submit_ns = CostModel(SOC, SOC.max_clocks, "mlperf-v3.0").cost(_shape(8), 8).submit_ns
    assert [begin - end for (_, end), (begin, _) in zip(times, times[1:])] == pytest.approx([submit_ns] * 59, abs=2)


def test_a_work_item_of_several_enqueues_ends_with_its_last(board):
    with board.hold(PLAN):
        loaded = board.load(engine("dla", 2), "dla1", 1)
        for _ in range(4):
            loaded.enqueue(0, (0,), 2)
        begin_ns, end_ns = loaded.wait(0)
    assert end_ns - begin_ns == pytest.approx(4 * 1.9637e6, rel=0.03)


def test_accelerators_run_at_the_same_time(board):
    with board.hold(PLAN):
        lanes = [board.load(engine("gpu", 256), "gpu", 1)]
        lanes += [board.load(engine("dla", 32), name, 1) for name in ("dla0", "dla1")]
        for lane in lanes:
            lane.enqueue(0, (0,), 32 if lane.accelerator != "gpu" else 256)
        spans = {}
        threads = [
            threading.Thread(target=lambda lane=lane: spans.update({lane.accelerator: lane.wait(0)})) for lane in lanes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(spans) == set(SOC.accelerators)
    assert max(begin for begin, _ in spans.values()) < min(end for _, end in spans.values())


def test_finished_work_is_forgotten(board):
    with board.hold(PLAN):
        loaded = board.load(engine("gpu", 8), "gpu", 1)
        for _ in range(20):
            loaded.enqueue(0, (0,), 8)
            loaded.wait(0)
        machine = board._machine._machine
        assert machine.queued("gpu") == 0
        assert len(machine._states) <= 3
        assert loaded._slots == [[]]


def test_holding_a_plan_changes_clocks_and_restores_them(board):
    before = board._machine.clocks
    with board.hold(replace(PLAN, mode="15W")) as clocks:
        assert clocks == SOC.clocks("15W")
        slow = board.load(engine("gpu", 8), "gpu", 1)
        slow.enqueue(0, (0,), 8)
        begin_ns, end_ns = slow.wait(0)
        slow.enqueue(0, (0,), 8)  # left unfinished: leaving the mode must not hang what waits
    assert end_ns - begin_ns > 8e6
    assert board._machine.clocks == before
    slow.wait(0)


def test_an_accelerator_that_is_fed_late_is_named():
    pace = Pace()
    for k in range(10):
        pace.enqueued(k * 1000.0, ahead=1, solo_ns=1000.0, is_full=True)
        pace.served_ns += 1000.0
    pace.last_end_ns = 10_000.0
    assert pace.complaint("dla0") is None
    pace.enqueued(11_000.0, ahead=0, solo_ns=1000.0, is_full=True)
    assert "dla0 stood idle for 9.1%" in pace.complaint("dla0")
    pace.was_fed_ahead, pace.last_end_ns = True, 11_000.0
    pace.enqueued(12_000.0, ahead=0, solo_ns=1000.0, is_full=False)  # a lull of queries is no lateness
    pace.was_fed_ahead = True
    pace.enqueued(11_000.0 + 1e9, ahead=0, solo_ns=1000.0, is_full=True)  # a pause of the whole run is no lateness
    assert "dla0 stood idle for 9.1%" in pace.complaint("dla0")


def test_a_saturated_run_that_is_starved_is_noticed(board, clock):
    with board.hold(PLAN):
        loaded = board.load(engine("dla", 2), "dla0", 2)
        for _ in range(5):
            loaded.enqueue(0, (0,), 2)
            loaded.enqueue(1, (0,), 2)
            loaded.wait(0)
            loaded.wait(1)
            clock.sleep(0.004)
    assert "cannot keep pace: dla0" in board.keeps_pace()


def test_totals_go_on_through_a_change_of_clocks():
    models = [CostModel(SOC, SOC.clocks(mode), "mlperf-v3.0") for mode in ("MAXN", "15W")]
    clock = StepClock()
    machine = PacedMachine(models[0], 0, clock)
    clock.sleep(0.25)
    machine.change(models[1])
    clock.sleep(0.5)
    stamp_ns, after = machine.totals()
    assert stamp_ns == clock.now_ns() and after.elapsed_ns == pytest.approx(0.75e9)
    assert after.rail_j["VIN_SYS_5V0"] == pytest.approx(4.0 * after.elapsed_ns * 1e-9)


def test_the_meter_reads_idle_power_from_a_tegrastats_process():
    pytest.importorskip("orin.virtual.tegrastats")
    lines = []
    board = VirtualBoard(SOC, seed=1)  # the sensor's process lives in wall time
    with board.hold(PLAN), board.meter(lambda stamp_ns, line: lines.append(line)) as meter:
        while len(meter.samples) < 5:
            meter.check()
            time.sleep(0.02)
        total = SOC.board.total_rails()
        shown_w = [sum(sample.rails_mw[rail.name] for rail in total) / 1e3 for sample in meter.samples]
    steps_w = sum(rail.step_w for rail in total)
    assert shown_w == pytest.approx([IDLE_W] * len(shown_w), abs=steps_w / 2 + 0.01)  # however late its lines come
    assert "VDD_GPU_SOC" in lines[0]


def test_numerics_computes_what_the_network_computes(tmp_path):
    """A 1x1 convolution without padding or bias, against float64 numpy."""
    onnx = pytest.importorskip("onnx")
    weights = np.random.default_rng(0).normal(size=(5, 4, 1, 1)).astype(np.float32)
    path = tmp_path / "conv.onnx"
    onnx.save(_convolution(onnx, weights), path)
    image = Binding("x", (4, 6, 6), "int8", "LINEAR", 0.5, 4 * 6 * 6)
    spec = EngineSpec("conv", "gpu", 4)
    manifest = Manifest(spec, "onnxruntime", "seeded", "0", "0", (image,), (_out(),), RESNET)
    board = VirtualBoard(SOC, pacing="numerics")
    loaded = board.load(Engine(path, manifest), "gpu", 1)
    tensor = board.allocate(3 * image.sample_bytes)
    tensor.array[:] = np.random.default_rng(1).integers(-100, 100, tensor.array.size).astype(np.int8).view(np.uint8)
    loaded.enqueue(0, (tensor.address,), 2)
    loaded.enqueue(0, (tensor.address + 2 * image.sample_bytes,), 1)
    begin_ns, end_ns = loaded.wait(0)
    (result,) = loaded.outputs(0)
    x = tensor.array.view(np.int8).reshape(3, 4, 36).astype(np.float64) * 0.5
    expected = np.einsum("oc,ncp->nop", weights[:, :, 0, 0].astype(np.float64), x).reshape(3, 5, 6, 6)
    assert begin_ns <= end_ns
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-4)
    assert board.keeps_pace() is None
    with pytest.raises(OrinError, match="enqueue comes before wait"):
        loaded.wait(0)


def _out():
    return Binding("y", (5, 6, 6), "float32", "LINEAR", None, 4 * 5 * 36)


def _convolution(onnx, weights):
    helper, float_type = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[1, 1])],
        "conv",
        [helper.make_tensor_value_info("x", float_type, ["n", 4, 6, 6])],
        [helper.make_tensor_value_info("y", float_type, ["n", 5, 6, 6])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
