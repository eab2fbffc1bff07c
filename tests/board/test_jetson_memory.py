"""The CUDA context, memory kinds, streams and clock of orin.jetson, through the real pycuda."""

import ctypes
import gc
import subprocess
import sys
import threading
import time
from ctypes import byref, c_int, c_uint, c_void_p

import numpy as np
import pytest

from orin.errors import OrinError
from orin.jetson import driver as driver_module
from orin.jetson import streams
from orin.jetson.cuda import CudaContext, DeviceFacts, device_facts, load_pycuda
from orin.jetson.detect import Machine
from orin.plan import MEMORY_KINDS
from tests.standins import libcuda
from tests.standins.install import environment

DEFAULT_FACTS = {"name": "GPU", "driver_version": "12.6", "compute_capability": "8.7", "total_bytes": 1}
OUT_OF_MEMORY, NO_DEVICE, LAUNCH_FAILED = 2, 100, 719
HOST_FUNCTION = ctypes.CFUNCTYPE(None, c_void_p)
PATIENCE_S = 60


@pytest.fixture(autouse=True)
def nothing_left():
    """Every test gives back what it took."""
    libcuda.reset()
    before = libcuda.live()
    yield
    gc.collect()
    assert libcuda.live() == before and libcuda.left_behind() == 0
    libcuda.reset()


@pytest.fixture
def cuda():
    with CudaContext() as context:
        yield context


def on_device(tensor, nbytes):
    """What the accelerators see at a tensor's address."""
    return np.frombuffer(ctypes.string_at(tensor.address, nbytes), np.uint8)


def launch(cuda, stream, function):
    """Put a Python function onto a stream; keep what is returned until it has run."""
    kept = HOST_FUNCTION(lambda _: function())
    assert ctypes.CDLL("libcuda.so.1").cuLaunchHostFunc(c_void_p(stream.handle), kept, None) == 0
    return kept


def current_context():
    context = c_void_p()
    assert ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(byref(context)) == 0
    return context.value


def test_facts_are_the_devices_and_choose_the_kind(cuda):
    facts = device_facts()
    assert facts == cuda.facts and (facts.compute_capability, facts.driver_version) == ("8.7", "12.6")
    assert facts.integrated and facts.maps_host_memory and not facts.concurrent_managed_access
    assert facts.memory_kinds == ("mapped", "managed", "device") and set(facts.memory_kinds) == set(MEMORY_KINDS)
    free_bytes = cuda.free_bytes()
    tensor = cuda.allocate(10_000)
    assert cuda.free_bytes() <= free_bytes - 10_000 and free_bytes <= facts.total_bytes and tensor


@pytest.mark.parametrize(
    "integrated, maps, managed, kinds",
    [
        (False, True, True, ("device", "managed", "mapped")),
        (True, False, True, ("managed", "device")),
        (True, True, False, ("mapped", "device")),
    ],
)
def test_a_kind_that_the_device_lacks_is_not_offered(integrated, maps, managed, kinds):
    facts = DeviceFacts(**DEFAULT_FACTS, integrated=integrated, maps_host_memory=maps, managed_memory=managed,
                        concurrent_managed_access=False, pageable_memory_access=False)  # fmt: skip
    assert facts.memory_kinds == kinds


@pytest.mark.parametrize("kind", MEMORY_KINDS)
@pytest.mark.parametrize("nbytes", [1, 4096, 150_528])
def test_memory_is_zeroed_on_a_page_and_shown_to_the_accelerators(cuda, kind, nbytes):
    tensor = cuda.allocate(nbytes, kind)
    assert tensor.array.shape == (nbytes,) and tensor.array.dtype == np.uint8 and not tensor.array.any()
    assert tensor.address % 4096 == 0 and not on_device(tensor, nbytes).any()
    tensor.array[:] = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
    copied = tensor.publish(0, nbytes)
    assert copied == (0 if kind == "mapped" else nbytes)
    assert np.array_equal(on_device(tensor, nbytes), tensor.array)


@pytest.mark.parametrize("kind", ["managed", "device"])
def test_publishing_a_part_copies_that_part(cuda, kind):
    tensor = cuda.allocate(100, kind)
    tensor.array[:] = 9
    assert tensor.publish(10, 30) == 20
    expected = np.zeros(100, np.uint8)
    expected[10:30] = 9
    assert np.array_equal(on_device(tensor, 100), expected)


def test_managed_memory_is_one_memory_where_the_device_can(cuda):
    cuda.facts = DeviceFacts(**{**vars(cuda.facts), "concurrent_managed_access": True})
    tensor = cuda.allocate(100, "managed")
    tensor.array[:] = 3
    assert tensor.publish(0, 100) == 0 and set(on_device(tensor, 100)) == {3} and tensor.address % 4096 == 0


@pytest.mark.parametrize("kind", MEMORY_KINDS)
def test_memory_is_freed_with_its_last_array_by_any_thread(cuda, kind):
    before = libcuda.live(), libcuda.live_bytes()
    held = [cuda.allocate(1000, kind).array[10:20].reshape(2, 5)]
    gc.collect()
    assert libcuda.live() != before[0]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    gc.collect()
    assert (libcuda.live(), libcuda.live_bytes()) == before


def test_closing_frees_what_is_still_held_and_can_be_repeated():
    before = libcuda.live()
    context = CudaContext()
    kept = [context.allocate(1000, kind) for kind in MEMORY_KINDS], context.stream(), context.event()
    context.close()
    context.close()
    assert libcuda.live() == before and len(kept) == 3


def test_sizes_and_kinds_that_make_no_sense_are_refused(cuda):
    with pytest.raises(OrinError, match="0 bytes.*expected 1 or more"):
        cuda.allocate(0)
    with pytest.raises(OrinError, match="memory is 'pinned', expected .*mapped, managed, device"):
        cuda.allocate(10, "pinned")


@pytest.mark.parametrize("kind", MEMORY_KINDS)
def test_too_much_memory_is_one_line(cuda, kind):
    with pytest.raises(OrinError, match=rf"^CUDA: 1048576.0 MiB of {kind} memory: .*out of memory; .*smaller batches"):
        cuda.allocate(1 << 40, kind)


@pytest.mark.parametrize("function", ["cuMemAlloc", "cuMemcpyHtoD"])
def test_device_memory_that_fails_half_way_leaves_nothing(cuda, function):
    before = libcuda.live()
    libcuda.fail(function, OUT_OF_MEMORY)
    with pytest.raises(OrinError, match="out of memory"):
        cuda.allocate(1000, "device")
    gc.collect()
    assert libcuda.live() == before


@pytest.mark.parametrize(
    "function", ["cuDevicePrimaryCtxRetain", "cuStreamCreateWithPriority", "cuEventCreate", "cuEventRecord"]
)
def test_a_context_that_fails_half_way_leaves_nothing(function):
    before = libcuda.live()
    libcuda.fail(function, OUT_OF_MEMORY, after=2 if function.startswith("cuEvent") else 0)
    with pytest.raises(OrinError, match=rf"{function} failed: out of memory"):
        CudaContext()
    assert libcuda.live() == before


def test_no_gpu_is_told():
    libcuda.fail("cuInit", NO_DEVICE)
    with pytest.raises(OrinError, match="no CUDA-capable device.*--runtime nvidia"):
        CudaContext()


def test_no_rights_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(Machine, "closed_nodes", [tmp_path / "dev/nvmap"])
    CudaContext().close()  # no trouble as long as CUDA starts
    libcuda.fail("cuInit", 999)
    with pytest.raises(OrinError, match="cuInit failed.*no right to open .*dev/nvmap: sudo usermod -aG video"):
        CudaContext()


@pytest.mark.parametrize(
    "body, message",
    [
        (None, "pycuda is not installed; `pip install pycuda`"),
        ("import mako.template", "pycuda needs mako, which is not installed; `pip install mako`"),
        ("import pycuda._driver", "not built for this Python and CUDA .*No module named 'pycuda._driver'.*reinstall"),
        ("raise ImportError('_driver.so: undefined symbol: cuX')", "not built .*undefined symbol: cuX.*reinstall"),
        (
            "raise ImportError('libcuda.so.1: cannot open shared object file')",
            "libcuda.so.1 cannot be loaded .*runtime",
        ),
    ],
)
def test_what_pycuda_lacks_is_told_apart(monkeypatch, tmp_path, body, message):
    for name in [name for name in sys.modules if name.partition(".")[0] == "pycuda"]:
        monkeypatch.delitem(sys.modules, name)
    if body is not None:
        (tmp_path / "pycuda").mkdir()
        (tmp_path / "pycuda" / "__init__.py").touch()
        (tmp_path / "pycuda" / "driver.py").write_text(body)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(OrinError, match=message) as error:
        load_pycuda()
    assert "\n" not in str(error.value)


def test_a_context_may_be_closed_as_the_program_ends():
    code = (
        "import atexit, threading; from orin.jetson.cuda import CudaContext\n"
        "cuda = CudaContext(); atexit.register(cuda.close); cuda.attach()\n"
        "kept = cuda.allocate(100), cuda.allocate(100, 'device'), cuda.stream()\n"
        "threading.Thread(target=lambda: (cuda.attach(), cuda.event())).start()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_driver_library_is_told(monkeypatch):
    monkeypatch.setattr(driver_module, "LIBRARY", "libnothing.so.1")
    with pytest.raises(OrinError, match="libnothing.so.1 cannot be loaded .*nvidia-l4t-cuda"):
        driver_module.Driver()


def test_a_thread_attaches_once_and_may_end_without_more(cuda):
    answers = []

    def work():
        answers.append(current_context())
        for _ in range(3):
            cuda.attach()
        answers.append(current_context())
        event, stream = cuda.event(), cuda.stream()
        event.record(stream)
        event.synchronize()
        answers.append(event.reached())

    libcuda.reset()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers[0] is None and answers[1] and answers[2] is True
    assert libcuda.calls("cuCtxSetCurrent") == 1


def test_what_was_current_before_is_again_afterwards():
    import pycuda.driver as drv

    answers = []

    def work():
        own = drv.Device(0).make_context()
        with CudaContext() as cuda, cuda.current():
            answers.append(current_context() != own.handle)
        answers.append(current_context() == own.handle)
        own.pop()
        answers.append(current_context() is None)
        own.detach()

    drv.init()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [True, True, True]


def test_streams_have_priorities_and_ignore_the_null_stream(cuda):
    cuda.attach()
    library, flags, priority = ctypes.CDLL("libcuda.so.1"), c_uint(), c_int()
    for high, expected in ((True, -5), (False, 0)):
        stream = cuda.stream(high_priority=high)
        library.cuStreamGetPriority(c_void_p(stream.handle), byref(priority))
        library.cuStreamGetFlags(c_void_p(stream.handle), byref(flags))
        assert (stream.priority, priority.value, flags.value) == (expected, expected, streams.NON_BLOCKING)


def test_an_event_waits_for_its_streams_work_and_orders_another(cuda):
    cuda.attach()
    first, second, event, gate, done = cuda.stream(), cuda.stream(), cuda.event(), threading.Event(), []
    kept = [launch(cuda, first, lambda: gate.wait(PATIENCE_S)), launch(cuda, first, lambda: done.append("first"))]
    event.record(first)
    second.wait(event)
    kept.append(launch(cuda, second, lambda: done.append("second")))
    assert not event.reached()
    gate.set()
    event.synchronize()
    assert event.reached() and done[0] == "first"
    second.synchronize()
    assert done == ["first", "second"] and len(kept) == 3


def test_the_clock_puts_events_between_the_hosts_readings(cuda, monkeypatch):
    cuda.attach()
    stream, events, readings = cuda.stream(), [cuda.event(), cuda.event()], []

    def work():
        readings.append(time.monotonic_ns())
        time.sleep(0.005)
        readings.append(time.monotonic_ns())

    before_ns = time.monotonic_ns()
    events[0].record(stream)
    kept = launch(cuda, stream, work)
    events[1].record(stream)
    events[1].synchronize()
    after_ns = time.monotonic_ns()
    for period_ns in (streams.ANCHOR_PERIOD_NS, -1):  # an anchor set before the events, and one set after them
        monkeypatch.setattr(streams, "ANCHOR_PERIOD_NS", period_ns)
        begin_ns, end_ns = (cuda.clock.at_ns(event) for event in events)
        slack_ns = cuda.clock.u_ns + 1000  # and a microsecond for float32 milliseconds
        assert before_ns - slack_ns <= begin_ns <= readings[0] + slack_ns
        assert readings[1] - slack_ns <= end_ns <= after_ns + slack_ns
    assert kept


def test_a_graph_repeats_what_was_captured(cuda):
    cuda.attach()
    stream, done, kept = cuda.stream(), [], []
    graph = stream.capture(lambda: kept.append(launch(cuda, stream, lambda: done.append(1))))
    assert done == []
    for _ in range(3):
        graph.launch(stream)
    stream.synchronize()
    assert done == [1, 1, 1]
    graph.close()
    graph.close()


def test_a_capture_that_fails_leaves_the_stream_usable(cuda):
    cuda.attach()
    stream, done = cuda.stream(), []

    def refuse():
        raise OrinError("enqueue refused")

    with pytest.raises(OrinError, match="enqueue refused"):
        stream.capture(refuse)
    with pytest.raises(OrinError, match="cuStreamSynchronize failed: .*capturing"):
        stream.capture(stream.synchronize)
    kept = launch(cuda, stream, lambda: done.append(1))
    stream.synchronize()
    assert done == [1] and kept


def test_a_graph_that_cannot_be_made_leaves_nothing(cuda):
    cuda.attach()
    libcuda.fail("cuGraphInstantiateWithFlags", OUT_OF_MEMORY)
    with pytest.raises(OrinError, match="cuGraphInstantiateWithFlags failed: out of memory"):
        cuda.stream().capture(lambda: None)


@pytest.mark.parametrize("function", ["cuEventSynchronize", "cuEventQuery", "cuStreamSynchronize"])
def test_an_accelerators_failure_is_raised_where_it_is_waited_for(cuda, function):
    cuda.attach()
    event, stream = cuda.event(), cuda.stream()
    event.record(stream)
    libcuda.fail(function, LAUNCH_FAILED)
    wait = {"cuEventSynchronize": event.synchronize, "cuEventQuery": event.reached}.get(function, stream.synchronize)
    with pytest.raises(OrinError, match=rf"^CUDA: {function} failed: unspecified launch failure; .*sudo dmesg"):
        wait()
    libcuda.fail(function, 0)
