"""Objects of the user that TensorRT calls: calibrators, progress monitors, output allocators."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from calibration.cache import read_cache
from tests.board.small import Job, images, model

trt = pytest.importorskip("tensorrt")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT:DeprecationWarning"),
    pytest.mark.usefixtures("nothing_left"),
]
BASES = {"IInt8MinMaxCalibrator": "MinMaxCalibration", "IInt8EntropyCalibrator2": "EntropyCalibration2"}


def calibrator(base, batches, cache=None):
    """A calibrator of the user's: batches are copied to device memory, the cache is kept."""
    import pycuda.driver as cuda

    class Fed(getattr(trt, base)):
        def __init__(self):
            getattr(trt, base).__init__(self)
            self.left, self.cache, self.asked = list(batches), cache, []
            self.memory = cuda.mem_alloc(batches[0].nbytes)

        def get_batch_size(self):
            return len(batches[0])

        def get_batch(self, names):
            self.asked.append(list(names))
            if not self.left:
                return None
            cuda.memcpy_htod(self.memory, np.ascontiguousarray(self.left.pop(0)))
            return [int(self.memory)]

        def read_calibration_cache(self):
            return self.cache

        def write_calibration_cache(self, cache):
            self.cache = bytes(cache)

    return Fed()


@pytest.mark.parametrize("base", BASES)
def test_a_calibrator_is_fed_and_its_cache_written(base):
    batches = [images(2), images(2) * 0.5]
    job = Job(flags=("INT8",))
    job.config.int8_calibrator = fed = calibrator(base, batches)
    plan = job.plan()
    assert fed.asked == [["x"]] * 3
    cache = read_cache(fed.cache.decode())
    assert (cache.algorithm, cache.version) == (BASES[base], 100300)
    assert set(cache.scales) == {"x", "c1", "r1", "p1", "c2", "a", "y"}
    if base == "IInt8MinMaxCalibrator":
        assert cache.scales["x"] * 127 == pytest.approx(np.abs(np.concatenate(batches)).max(), rel=1e-6)
        named = [model(outputs=("c2",)), {"x": batches[0]}]
        (c2,) = ReferenceEvaluator(named[0]).run(None, named[1])
        assert cache.scales["c2"] * 127 == pytest.approx(np.abs(c2).max(), rel=1e-4)

    again = Job(flags=("INT8",))
    again.config.int8_calibrator = kept = calibrator(base, batches, fed.cache)
    assert again.plan() == plan
    assert kept.asked == []


def test_ranges_that_were_set_win_over_the_calibrator():
    job = Job(flags=("INT8",))
    job.network.get_input(0).dynamic_range = (-9.0, 9.0)
    job.bind(job.network.get_input(0), "CHW4")
    job.config.int8_calibrator = calibrator("IInt8MinMaxCalibrator", [images()])
    from tests.standins.nvinfer.plan import loads

    assert loads(job.plan()).bindings[0].scale == pytest.approx(9 / 127)


def test_a_cache_of_another_algorithm_is_not_used():
    job = Job(flags=("INT8",))
    cache = b"TRT-100300-EntropyCalibration2\nx: 3c010a14\n"
    job.config.int8_calibrator = fed = calibrator("IInt8MinMaxCalibrator", [images()], cache)
    job.plan()
    assert fed.asked
    assert "Calibration table does not match calibrator algorithm type." in job.warnings()


def test_a_calibrator_without_a_batch_fails_the_build():
    job = Job(flags=("INT8",))
    job.config.int8_calibrator = fed = calibrator("IInt8MinMaxCalibrator", [images()])
    fed.left.clear()
    assert job.build() is None
    assert "Calibration failure" in job.errors()[0]


def monitor(cancel_at=None):
    class Seen(trt.IProgressMonitor):
        def __init__(self):
            trt.IProgressMonitor.__init__(self)
            self.calls = []

        def phase_start(self, phase, parent, steps):
            self.calls.append(("start", parent, steps))

        def step_complete(self, phase, step):
            self.calls.append(("step", step))
            return step != cancel_at

        def phase_finish(self, phase):
            self.calls.append(("finish",))

    return Seen()


def test_a_progress_monitor_sees_the_steps():
    job = Job()
    job.config.progress_monitor = seen = monitor()
    assert job.build() is not None
    assert seen.calls == [("start", None, 3), ("step", 0), ("step", 1), ("step", 2), ("finish",)]


def test_a_progress_monitor_cancels():
    job = Job()
    job.config.progress_monitor = seen = monitor(cancel_at=1)
    assert job.build() is None
    assert seen.calls == [("start", None, 3), ("step", 0), ("step", 1), ("finish",)]
    assert job.errors() == []


def test_an_output_allocator_gives_the_memory():
    import pycuda.driver as cuda

    loaded = Job(flags=("FP16",)).engine().allocate()

    class Giving(trt.IOutputAllocator):
        def __init__(self):
            trt.IOutputAllocator.__init__(self)
            self.asked, self.shapes = [], {}
            self.memory = cuda.mem_alloc(1 << 12)

        def reallocate_output_async(self, name, memory, size, alignment, stream):
            self.asked.append((name, size, alignment, stream))
            return int(self.memory)

        def notify_shape(self, name, shape):
            self.shapes[name] = tuple(shape)

    giving = Giving()
    x = images()
    assert loaded.context.set_output_allocator("y", giving)
    loaded.run(x)
    got = np.empty((2, 8, 4, 4), np.float32)
    cuda.memcpy_dtoh(got, giving.memory)
    assert giving.asked == [("y", got.nbytes, 256, loaded.stream.handle)]
    assert giving.shapes == {"y": got.shape}
    (expected,) = ReferenceEvaluator(model()).run(None, {"x": x})
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
