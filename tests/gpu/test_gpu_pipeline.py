"""The pipeline on a real GPU, with plain CUDA kernels in place of engines: three streams, nothing copied."""

import numpy as np
import pytest

from orin.pipeline import Pipeline
from orin.plan import MEMORY_KINDS, Plan
from orin.work import rounds
from tests.gpu.kernels import KernelBoard
from tests.instruments import SAMPLE_BYTES, engine

pytestmark = pytest.mark.gpu

CAPACITY = 64
QUERY = 6400


class Kept:
    """A client that keeps each sample's answer."""

    def __init__(self):
        self.answers, self.batches = {}, []

    def done(self, item, outputs):
        self.batches.append((item.accelerator, item.begin_ns, item.end_ns))
        self.answers.update(zip(item.ids, outputs[0][:, 0].tolist()))


@pytest.fixture(params=MEMORY_KINDS)
def board(request):
    made = KernelBoard(request.param)
    yield made
    made.close()


def offline(board, plan):
    """Answer a query over all samples, whose first bytes are their positions; the pipeline's client and copies."""
    engines = {"gpu": engine("gpu", plan.gpu_batch or 1), "dla": engine("dla", plan.dla_batch)}
    client, positions = Kept(), np.random.default_rng(1).permutation(np.arange(QUERY) % CAPACITY)
    with Pipeline(plan, board, engines, CAPACITY) as pipeline:
        memory = pipeline.samples.memory
        memory.array[: CAPACITY * SAMPLE_BYTES : SAMPLE_BYTES] = np.arange(CAPACITY)
        memory.publish(0, len(memory.array))
        pipeline.start(client, ordered=False)
        pipeline.put(rounds(positions, list(range(QUERY))))
        pipeline.stop()
        copied = pipeline.copied_bytes
    assert client.answers == dict(enumerate(positions.tolist()))
    return client, copied


def test_an_offline_query_is_answered_in_place(board):
    client, copied = offline(board, Plan(network="null", gpu_batch=16, dla_batch=4))
    assert copied <= 0.01 * QUERY * SAMPLE_BYTES
    assert all(begin_ns <= end_ns for _, begin_ns, end_ns in client.batches)
    for accelerator in {name for name, *_ in client.batches}:  # a stream runs in order
        ends = [end_ns for name, _, end_ns in client.batches if name == accelerator]
        assert ends == sorted(ends)


def test_each_accelerator_alone_answers_too(board):
    for alone in ({"dla_cores": 0, "gpu_batch": 16}, {"gpu_batch": 0, "dla_batch": 4, "dla_cores": 1}):
        client, copied = offline(board, Plan(network="null", **alone))
        assert len({name for name, *_ in client.batches}) == 1 and copied <= 0.01 * QUERY * SAMPLE_BYTES


def test_single_samples_go_through_a_graph_whose_copy_is_counted(board):
    plan = Plan(network="null", gpu_batch=1, dla_cores=0)
    with Pipeline(plan, board, {"gpu": engine("gpu", 1)}, CAPACITY) as pipeline:
        memory = pipeline.samples.memory
        memory.array[: CAPACITY * SAMPLE_BYTES : SAMPLE_BYTES] = np.arange(CAPACITY)
        memory.publish(0, len(memory.array))
        for position in range(CAPACITY):
            item, outputs = pipeline.run_now([position], position)
            assert outputs[0][0, 0] == position and item.begin_ns <= item.end_ns
        assert pipeline.copied_bytes == CAPACITY * SAMPLE_BYTES
