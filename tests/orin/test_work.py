"""The queue: runs of consecutive samples, who takes which, what cannot be bound."""

import threading
import time

import numpy as np
import pytest

from orin.work import Chunk, Tail, Taker, WorkItem, WorkQueue, rounds

GPU = Taker("gpu", 256, 1, static=False)
DLA0 = Taker("dla0", 2, 1, static=True)
DLA1 = Taker("dla1", 2, 1, static=True)


def taken(queue, taker):
    """(positions, ids) of what one take gives, a pair for each enqueue."""
    return [(list(chunk.positions), list(chunk.ids)) for chunk in queue.take(taker, block=False)]


def test_rounds_hold_each_sample_once_in_order():
    found = rounds(np.array([2, 0, 1, 1, 5, 0]), [10, 11, 12, 13, 14, 15])
    assert [(chunk.positions, chunk.ids) for chunk in found] == [([0, 1, 2, 5], [11, 12, 10, 14]), ([0, 1], [15, 13])]


def test_rounds_of_loadgens_offline_query_are_whole_sets():
    rng = np.random.default_rng(0)
    positions = np.concatenate([rng.permutation(1024) for _ in range(9)])
    found = rounds(positions, range(len(positions)))
    assert [chunk.positions for chunk in found] == [list(range(1024))] * 9
    for chunk in found:
        assert all(positions[number] == place for place, number in zip(chunk.positions, chunk.ids))


def test_gpu_takes_full_rounds_and_dla_those_with_holes():
    queue = WorkQueue([GPU, DLA0], ordered=False)
    queue.put([Chunk([3, 5, 6], [900, 901, 902]), Chunk(list(range(800)), list(range(800)))])
    assert taken(queue, GPU) == [(list(range(256)), list(range(256)))]
    assert taken(queue, DLA0) == [([3], [900])]  # 4 is not asked for: one lane of the batch stays empty
    assert taken(queue, DLA0) == [([5, 6], [901, 902])]


def test_sparse_samples_come_as_full_batches_to_gather():
    queue = WorkQueue([DLA0], ordered=False)
    queue.put([Chunk([0, 100, 200, 300, 400], [0, 1, 2, 3, 4])])
    wide = Taker("dla0", 4, 1, static=True)
    assert taken(queue, wide) == [([0, 100, 200, 300], [0, 1, 2, 3])]


def test_everything_is_taken_once_whoever_takes_it():
    rng = np.random.default_rng(1)
    positions = rng.integers(0, 64, 999)
    queue = WorkQueue([GPU, DLA0, DLA1], ordered=False)
    queue.put(rounds(positions, range(999)))
    seen = []
    while queue.waiting:
        taker = (GPU, DLA0, DLA1)[rng.integers(3)]
        for places, ids in taken(queue, taker):
            assert 0 < len(ids) <= taker.batch
            assert all(positions[number] == place for place, number in zip(places, ids))
            seen += ids
    assert sorted(seen) == list(range(999))


def test_ordered_queue_is_first_come_first_served():
    queue = WorkQueue([GPU, DLA0], ordered=True)
    for number, position in enumerate([7, 8, 3, 9]):
        queue.put([Chunk([position], [number])])
    assert taken(queue, DLA0) == [([7, 8], [0, 1])]
    assert taken(queue, GPU) == [([3, 9], [2, 3])]


def test_loop_makes_several_enqueues_of_one_item():
    queue = WorkQueue([DLA0], ordered=False)
    queue.put([Chunk(list(range(10)), list(range(10)))])
    looped = Taker("dla0", 2, 4, static=True)
    assert [len(ids) for _, ids in taken(queue, looped)] == [2, 2, 2, 2]
    assert [len(ids) for _, ids in taken(queue, looped)] == [2]


def test_closed_and_empty_says_never():
    queue = WorkQueue([GPU], ordered=False)
    assert queue.take(GPU, block=False) == []
    queue.close()
    assert queue.take(GPU, block=True) is None


def tail(*speeds):
    """A tail in which each taker has shown a speed: (taker, ms for a full batch)."""
    known = Tail([taker for taker, _ in speeds])
    for taker, ms in speeds:
        known.issued(taker.accelerator, taker.batch)
        known.finished(WorkItem(taker.accelerator, 0, range(taker.batch), [], begin_ns=0, end_ns=int(ms * 1e6)))
    return known


def test_slow_accelerator_leaves_the_tail_to_the_others():
    slow = Taker("dla0", 32, 1, static=True)
    known = tail((GPU, 57.6), (slow, 100.0))
    assert known.share(slow, 10_000) == 32  # plenty: everyone works
    assert known.share(slow, 32) == 0  # the GPU does 32 samples in 7.2 ms
    assert known.share(GPU, 32) > 0


def test_gpu_takes_only_what_ends_with_the_others():
    known = tail((GPU, 57.6), (DLA0, 2.0), (DLA1, 2.0))
    # 4444 + 1000 + 1000 samples/s: of 100 samples the GPU's part is 69, all end after 15.5 ms
    assert known.share(GPU, 100) == pytest.approx(68, abs=1)
    assert known.share(GPU, 100_000) == 256


def test_somebody_always_takes_the_last_sample():
    equal = tail((DLA0, 2.0), (DLA1, 2.0))
    assert equal.share(DLA0, 1) == 1 and equal.share(DLA1, 1) == 1
    unequal = tail((GPU, 57.6), (DLA0, 0.01))
    assert unequal.share(GPU, 1) or unequal.share(DLA0, 1)


def test_who_left_the_last_samples_to_others_is_told_that_they_are_done():
    queue, answers = WorkQueue([GPU, DLA0], ordered=False), []
    queue.put([Chunk(list(range(258)), list(range(258)))])
    for taker, end_ns in ((GPU, 10**6), (DLA0, 10**9)):  # the GPU is five orders of magnitude faster
        (chunk,) = queue.take(taker, block=False)
        queue.finished(WorkItem(taker.accelerator, 0, chunk.ids, [], begin_ns=0, end_ns=end_ns))
    queue.put([Chunk([0], [0])])
    queue.close()
    assert queue.take(DLA0, block=False) == []
    waiting = threading.Thread(target=lambda: answers.append(queue.take(DLA0, block=True)), daemon=True)
    waiting.start()
    while not queue._changed._waiters:  # until it sleeps
        time.sleep(0.001)
    (chunk,) = queue.take(GPU, block=False)
    queue.finished(WorkItem("gpu", 0, chunk.ids, [], begin_ns=0, end_ns=10**6))
    waiting.join(timeout=30)
    assert answers == [None]
