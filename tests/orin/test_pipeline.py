"""The pipeline over a null board: every sample once, in place, and no hang when an accelerator fails."""

import threading

import numpy as np
import pytest

from orin.errors import OrinError
from orin.pipeline import Pipeline
from orin.plan import Plan
from orin.work import Chunk, rounds
from tests.instruments import SAMPLE_BYTES, NullBoard, engine

ENGINES = {"gpu": engine("gpu", 8), "dla": engine("dla", 2)}
PLAN = Plan(gpu_batch=8, dla_batch=2)


class Keep:
    """A client that keeps what it is told."""

    def __init__(self):
        self.answers = {}
        self.lock = threading.Lock()

    def done(self, item, outputs):
        with self.lock:
            for row, number in enumerate(item.ids):
                assert number not in self.answers
                self.answers[number] = None if outputs is None else float(outputs[0][row, 0])


def fill(pipeline, count):
    for place in range(count):
        pipeline.samples.store(place, [np.full((3, 224, 224), place % 100, dtype=np.int8)])


@pytest.mark.parametrize("plan", [PLAN, Plan(gpu_batch=0, dla_batch=4, dla_loop=2), Plan(gpu_batch=5, dla_cores=0)])
def test_every_sample_gets_its_own_answer(plan):
    engines = {"gpu": engine("gpu", plan.gpu_batch or 1), "dla": engine("dla", plan.dla_batch)}
    rng = np.random.default_rng(0)
    positions = rng.integers(0, 60, 500)
    client = Keep()
    with Pipeline(plan, NullBoard(computes_outputs=True), engines, capacity=68) as pipeline:
        fill(pipeline, 60)
        pipeline.start(client, ordered=False)
        pipeline.put(rounds(positions, range(500)))
        pipeline.stop()
    assert client.answers == {number: float(place) for number, place in enumerate(positions)}


def test_whole_sets_are_bound_in_place():
    positions = np.tile(np.random.default_rng(0).permutation(64), 20)
    with Pipeline(PLAN, NullBoard(), ENGINES, capacity=72) as pipeline:
        pipeline.start(Keep(), ordered=False)
        pipeline.put(rounds(positions, range(len(positions))))
        pipeline.stop()
        assert pipeline.copied_bytes == 0


def test_batches_with_holes_are_bound_in_place_and_answer_only_what_was_asked():
    asked = [0, 1, 3, 4, 6, 7, 59]
    client = Keep()
    with Pipeline(
        Plan(gpu_batch=0, dla_batch=4, dla_cores=1), NullBoard(True), {"dla": engine("dla", 4)}, 60
    ) as pipeline:
        fill(pipeline, 60)
        pipeline.start(client, ordered=False)
        pipeline.put([Chunk(asked, asked)])
        pipeline.stop()
        assert pipeline.copied_bytes == 0
    assert client.answers == {number: float(number) for number in asked}


def test_samples_off_the_address_grid_are_reached_from_the_grid():
    small = engine("dla", 4, (3, 4, 8), 4 * 4 * 8, "CHW4")  # 128 bytes a sample: every second one is 256-byte aligned
    client = Keep()
    with Pipeline(Plan(gpu_batch=0, dla_batch=4, dla_cores=1), NullBoard(True), {"dla": small}, 16) as pipeline:
        for place in range(16):
            pipeline.samples.store(place, [np.full((3, 4, 8), place, dtype=np.int8)])
        assert pipeline.samples.align == 2
        pipeline.start(client, ordered=False)
        pipeline.put([Chunk([3, 4, 5], [3, 4, 5]), Chunk([7, 8, 9, 10], [7, 8, 9, 10])])
        pipeline.stop()
        assert pipeline.copied_bytes == 4 * 128  # 7 .. 10 need five places from 6 on: gathered
    assert client.answers == {number: float(number) for number in (3, 4, 5, 7, 8, 9, 10)}


def test_scattered_samples_are_gathered_and_counted():
    with Pipeline(Plan(gpu_batch=0, dla_cores=1), NullBoard(), ENGINES, capacity=72) as pipeline:
        pipeline.start(Keep(), ordered=True)
        pipeline.put([Chunk([20, 3, 10, 11], [0, 1, 2, 3])])
        pipeline.stop()
        assert pipeline.copied_bytes == 2 * SAMPLE_BYTES


def test_coinciding_layouts_are_held_once_and_others_twice():
    with Pipeline(PLAN, NullBoard(), ENGINES, capacity=8) as pipeline:
        assert [layout["format"] for layout in pipeline.samples.layouts] == ["CHW4"]
    wide = {
        "gpu": engine("gpu", 8, (3, 300, 300), 4 * 300 * 300),
        "dla": engine("dla", 2, (3, 300, 300), 300 * 304 * 4),
    }
    with Pipeline(PLAN, NullBoard(), wide, capacity=8) as pipeline:
        assert [layout["format"] for layout in pipeline.samples.layouts] == ["CHW4", "DLA_HWC4"]


class MeetingBoard(NullBoard):
    """Each accelerator's first batch ends only when all three have one in flight, with another one behind it."""

    def __init__(self):
        super().__init__()
        self.meeting = threading.Barrier(3)
        self.queued = {}

    def load(self, loaded, accelerator, depth, tail=None):
        inner = super().load(loaded, accelerator, depth)
        answer = inner.wait

        def wait(slot):
            if accelerator not in self.queued:
                self.queued[accelerator] = len(inner.pending)
                self.meeting.wait(60)
            return answer(slot)

        inner.wait = wait
        return inner


def test_three_accelerators_work_at_the_same_time():
    board, items = MeetingBoard(), []

    class Times(Keep):
        def done(self, item, outputs):
            items.append(item)

    with Pipeline(PLAN, board, ENGINES, capacity=72) as pipeline:
        pipeline.start(Times(), ordered=False)
        pipeline.put([Chunk(list(range(64)), list(range(64 * k, 64 * k + 64))) for k in range(8)])
        pipeline.stop()
    assert sorted(number for item in items for number in item.ids) == list(range(512))
    assert board.queued == {"gpu": 2, "dla0": 2, "dla1": 2}


@pytest.mark.parametrize("who", ["gpu", "dla0", "dla1"])
def test_failing_accelerator_stops_the_run_by_name(who):
    board = NullBoard(ns_per_batch=dict.fromkeys(("gpu", "dla0", "dla1"), 1_000_000), failing=(who,), fail_after=5)
    told = []
    with pytest.raises(OrinError, match=f"{who} failed: enqueueV3 returned false"):
        with Pipeline(PLAN, board, ENGINES, capacity=72) as pipeline:
            pipeline.start(Keep(), ordered=True, on_failure=told.append)
            pipeline.put([Chunk(list(range(64)), list(range(64 * k, 64 * k + 64))) for k in range(50)])
            pipeline.stop()
    assert len(told) == 1 and board.held == 0
    assert all(loaded.closed for loaded in board.engines)


def test_submit_answers_in_any_order_of_asking():
    board = NullBoard(computes_outputs=True)
    with Pipeline(PLAN, board, ENGINES, capacity=16) as pipeline:
        futures = [pipeline.submit(np.full((3, 224, 224), n % 90, dtype=np.int8)) for n in range(100)]
        assert [float(f.result(10)[0][0]) for f in futures] == [float(n % 90) for n in range(100)]


def test_submit_quantises_floats_with_the_engines_scale():
    with Pipeline(PLAN, NullBoard(computes_outputs=True), ENGINES, capacity=4) as pipeline:
        future = pipeline.submit(np.full((3, 224, 224), 41.6, dtype=np.float32))
        assert float(future.result(10)[0][0]) == 42.0


def test_submit_refuses_what_does_not_fit():
    with Pipeline(PLAN, NullBoard(computes_outputs=True), ENGINES, capacity=4) as pipeline:
        with pytest.raises(OrinError, match=r"shape \(3, 8, 8\), expected \(3, 224, 224\)"):
            pipeline.submit(np.zeros((3, 8, 8), dtype=np.int8))
    with Pipeline(PLAN, NullBoard(computes_outputs=False), ENGINES, capacity=4) as pipeline:
        with pytest.raises(OrinError, match="computes no outputs"):
            pipeline.submit(np.zeros((3, 224, 224), dtype=np.int8))


def test_a_refused_sample_holds_up_no_other():
    with Pipeline(PLAN, NullBoard(computes_outputs=True), ENGINES, capacity=2) as pipeline:
        with pytest.raises(OrinError):
            pipeline.submit(np.zeros((3, 8, 8), dtype=np.int8))
        answers = []
        sample = np.zeros((3, 224, 224), dtype=np.int8)
        asking = threading.Thread(target=lambda: answers.append(pipeline.submit(sample).result(10)), daemon=True)
        asking.start()
        asking.join(10)
        assert len(answers) == 1
    with pytest.raises(OrinError, match="the pipeline is closed"):
        pipeline.submit(np.zeros((3, 224, 224), dtype=np.int8))


def test_submitted_futures_get_the_failure():
    board = NullBoard(computes_outputs=True, failing=("gpu", "dla0", "dla1"))
    pipeline = Pipeline(PLAN, board, ENGINES, capacity=4)
    future = pipeline.submit(np.zeros((3, 224, 224), dtype=np.int8))
    with pytest.raises(OrinError, match="failed"):
        future.result(10)
    with pytest.raises(OrinError, match="failed"):
        for _ in range(8):
            pipeline.submit(np.zeros((3, 224, 224), dtype=np.int8))
    with pytest.raises(OrinError):
        pipeline.close()


def test_gathered_batches_in_flight_do_not_share_memory():
    plan = Plan(gpu_batch=0, dla_batch=2, dla_loop=2, dla_cores=1, dla_depth=2)
    with Pipeline(plan, NullBoard(), ENGINES, capacity=72) as pipeline:
        lane = pipeline.lanes[0]
        whole = lane.item([Chunk([40, 3], [0, 1]), Chunk([50, 9], [2, 3])], 0, pipeline.samples)
        short = lane.item([Chunk([60, 5], [4, 5])], 1, pipeline.samples)
        addresses = [enqueue.addresses for item in (whole, short) for enqueue in item.enqueues]
        assert len(set(addresses)) == 3


def test_an_engine_that_does_not_load_leaves_nothing_held():
    class Full(NullBoard):
        def load(self, loaded, accelerator, depth, tail=None):
            if accelerator == "dla1":
                raise OrinError("out of memory")
            return super().load(loaded, accelerator, depth)

    board = Full()
    with pytest.raises(OrinError, match="out of memory"):
        Pipeline(PLAN, board, ENGINES, capacity=4)
    assert board.held == 0 and len(board.engines) == 2 and all(loaded.closed for loaded in board.engines)


def test_every_accelerator_is_loaded_with_the_tail_that_follows_it():
    class Noting(NullBoard):
        def load(self, loaded, accelerator, depth, tail=None):
            seen.append((accelerator, loaded, tail))
            return super().load(loaded, accelerator, depth)

    seen, tail = [], engine("gpu", 2)
    with Pipeline(PLAN, Noting(), {**ENGINES, "dla_tail": tail}, capacity=4):
        pass
    gpu, dla = ENGINES["gpu"], ENGINES["dla"]
    assert seen == [("gpu", gpu, None), ("dla0", dla, tail), ("dla1", dla, tail)]
