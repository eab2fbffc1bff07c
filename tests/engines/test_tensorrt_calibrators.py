"""Calibrators over plain callables, and implicit INT8's ranges, without TensorRT."""

import types

import numpy as np
import pytest

from engines.errors import EngineError
from engines.tensorrt.calibrators import Calibrator, Feed, make_calibrator


class Memory:
    def __init__(self):
        self.allocated, self.copied = [], []

    def allocate(self, nbytes):
        self.allocated.append(nbytes)
        return 4096 * len(self.allocated)

    def copy(self, address, array):
        self.copied.append((address, array.copy()))


def feed(memory, batches, **changes):
    return Feed("photos", 3, batches, memory.allocate, memory.copy, **changes)


def test_batches_go_to_one_address_an_input_as_float32():
    memory = Memory()
    batches = [{"a": np.full((3, 2), k), "b": np.full((3, 1), -k)} for k in (1, 2)]
    calibrator = Calibrator(feed(memory, batches))
    assert calibrator.get_batch_size() == 3
    assert calibrator.get_batch(["b", "a"]) == [4096, 8192]
    assert calibrator.get_batch(["b", "a"]) == [4096, 8192]
    assert calibrator.get_batch(["b", "a"]) is None
    assert memory.allocated == [12, 24]
    assert [(address, array.dtype, array[0, 0]) for address, array in memory.copied] == [
        (4096, np.float32, -1),
        (8192, np.float32, 1),
        (4096, np.float32, -2),
        (8192, np.float32, 2),
    ]


def test_a_short_last_batch_is_filled_up_with_its_own_samples():
    memory = Memory()
    Calibrator(feed(memory, [{"a": np.array([[5.0], [7.0]])}])).get_batch(["a"])
    assert memory.copied[0][1].ravel().tolist() == [5, 7, 5]


def test_caches_go_through_the_callables():
    kept = []
    calibrator = Calibrator(feed(Memory(), [], read_cache=lambda: b"TRT", write_cache=kept.append))
    assert calibrator.read_calibration_cache() == b"TRT"
    calibrator.write_calibration_cache(memoryview(b"new"))
    assert kept == [b"new"]
    plain = Calibrator(feed(Memory(), []))
    assert plain.read_calibration_cache() is None
    plain.write_calibration_cache(b"nobody keeps it")


def broken():
    yield {"a": np.zeros((3, 1))}
    raise OSError("gone")


def test_what_batches_raise_is_kept_and_no_cache_is_written():
    kept = []
    calibrator = Calibrator(feed(Memory(), broken(), write_cache=kept.append))
    assert calibrator.get_batch(["a"]) == [4096]
    calibrator.raise_failure()
    assert calibrator.get_batch(["a"]) is None
    calibrator.write_calibration_cache(b"half")
    assert kept == []
    with pytest.raises(OSError, match="gone"):
        calibrator.raise_failure()


def test_a_missing_input_is_told():
    calibrator = Calibrator(feed(Memory(), [{"z": np.zeros((3, 1))}]))
    assert calibrator.get_batch(["a"]) is None
    with pytest.raises(EngineError, match="lacks input 'a'; it has z"):
        calibrator.raise_failure()


def test_a_tensorrt_without_calibrators_says_so():
    trt = types.SimpleNamespace(__version__="11.4.0")
    with pytest.raises(EngineError, match="TensorRT 11.4.0 has no calibrators; give ranges"):
        make_calibrator(trt, "entropy", Calibrator(feed(Memory(), [])))
    with pytest.raises(EngineError, match="'legacy', expected one of minmax, entropy"):
        make_calibrator(trt, "legacy", Calibrator(feed(Memory(), [])))
