"""libcuda's stand-in checks what the driver checks; expectations are those of the CUDA Driver API reference 12.6."""

import ctypes
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from ctypes import byref, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p

import pytest

from tests.standins import libcuda
from tests.standins.install import environment

INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, INVALID_CONTEXT, INVALID_HANDLE = 1, 2, 3, 201, 400
ILLEGAL_STATE, NOT_READY, CONTEXT_IS_DESTROYED, NOT_PERMITTED, NOT_SUPPORTED = 401, 600, 709, 800, 801
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED, CAPTURED_EVENT = 900, 901, 907
DEVICEMAP, NON_BLOCKING, DISABLE_TIMING = 2, 1, 2
HOST_FUNCTION = ctypes.CFUNCTYPE(None, c_void_p)
PATIENCE_S = 60  # how long a test waits for another thread before it fails


class Cuda:
    """The driver's functions by name; calls return the CUresult."""

    def __init__(self):
        self.library = ctypes.CDLL("libcuda.so.1")
        self.kept = []

    def __call__(self, function, *arguments):
        return getattr(self.library, function)(*arguments)

    def make(self, function, *arguments):
        made = c_void_p()
        assert self(function, byref(made), *arguments) == 0, function
        return made

    def stream(self, flags=0):
        return self.make("cuStreamCreate", c_uint(flags))

    def event(self, flags=0):
        return self.make("cuEventCreate", c_uint(flags))

    def device_memory(self, nbytes):
        return c_uint64(self.make("cuMemAlloc_v2", c_size_t(nbytes)).value)

    def host_memory(self, nbytes, flags=DEVICEMAP):
        return self.make("cuMemHostAlloc", c_size_t(nbytes), c_uint(flags))

    def launch(self, stream, function):
        self.kept.append(HOST_FUNCTION(lambda _: function()))
        return self("cuLaunchHostFunc", stream, self.kept[-1], None)

    @contextmanager
    def held(self, stream):
        """Keep a stream busy."""
        gate = threading.Event()
        assert self.launch(stream, lambda: gate.wait(PATIENCE_S)) == 0
        try:
            yield
        finally:
            gate.set()


@pytest.fixture
def driver():
    """The driver on a thread without a context, as if no other test had left one current."""
    libcuda.reset()
    cuda, others = Cuda(), []
    assert cuda("cuInit", 0) == 0
    while cuda("cuCtxPopCurrent_v2", byref(context := c_void_p())) == 0:
        others.append(context)
    yield cuda
    for context in reversed(others):
        cuda("cuCtxPushCurrent_v2", context)
    libcuda.reset()


@pytest.fixture
def cuda(driver):
    """The driver with a context of its own."""
    context = driver.make("cuCtxCreate_v2", c_uint(0), c_int(0))
    yield driver
    assert driver("cuCtxSynchronize") == 0
    assert driver("cuCtxDestroy_v2", context) == 0


def test_pycuda_itself_runs_on_it(driver):
    import pycuda.driver as drv

    device = drv.Device(0)
    assert drv.get_driver_version() == 12060 and device.compute_capability() == (8, 7) and "Orin" in device.name()
    attribute = drv.device_attribute
    facts = {name: device.get_attribute(getattr(attribute, name)) for name in ("INTEGRATED", "CAN_MAP_HOST_MEMORY")}
    assert set(facts.values()) == {1}
    assert device.get_attribute(attribute.CONCURRENT_MANAGED_ACCESS) == 0
    assert device.get_attribute(attribute.PAGEABLE_MEMORY_ACCESS) == 0


def child(*lines):
    """Run lines in a process where nobody has called the driver yet; return the words that it prints."""
    code = "\n".join(("from ctypes import *", "cuda = CDLL('libcuda.so.1')", *lines))
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_nothing_works_before_init():
    assert child(
        "count = c_int()",
        "print(cuda.cuDeviceGetCount(byref(count)), cuda.cuCtxSynchronize(), cuda.cuInit(1), cuda.cuInit(0))",
        "print(cuda.cuDeviceGetCount(byref(count)), count.value)",
    ) == [str(NOT_INITIALIZED), str(NOT_INITIALIZED), str(INVALID_VALUE), "0", "0", "1"]


def test_what_it_does_not_answer_says_so(driver, capfd):
    libcuda.trace()
    assert driver("cuModuleLoad", byref(c_void_p()), b"kernel.cubin") == NOT_SUPPORTED
    libcuda.trace(False)
    assert libcuda.unanswered() == "cuModuleLoad" and "cuModuleLoad" in capfd.readouterr().err
    assert driver("cuTexRefCreate", byref(c_void_p())) == NOT_SUPPORTED and not capfd.readouterr().err


def test_work_needs_a_context_on_its_own_thread(cuda):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(cuda("cuMemAlloc_v2", byref(c_uint64()), c_size_t(8))))
    thread.start()
    thread.join()
    assert answers == [INVALID_CONTEXT]
    context = c_void_p()
    assert cuda("cuCtxPopCurrent_v2", byref(context)) == 0
    calls = (("cuCtxSynchronize",), ("cuStreamCreate", byref(c_void_p()), 0), ("cuEventCreate", byref(c_void_p()), 0))
    assert {cuda(*call) for call in calls} == {INVALID_CONTEXT}
    assert cuda("cuCtxPopCurrent_v2", byref(c_void_p())) == INVALID_CONTEXT
    assert cuda("cuCtxPushCurrent_v2", context) == 0 and cuda("cuCtxSynchronize") == 0


def test_a_destroyed_context_takes_what_is_in_it(driver):
    before, bytes_before = Counter(libcuda.live()), libcuda.live_bytes()
    context = driver.make("cuCtxCreate_v2", c_uint(0), c_int(0))
    driver("cuCtxPushCurrent_v2", context)
    stream, _, _ = driver.stream(), driver.event(), driver.device_memory(100)
    assert Counter(libcuda.live()) - before == {"context": 1, "stream": 1, "event": 1, "device": 1}
    assert libcuda.live_bytes() == bytes_before + 100
    assert driver("cuCtxDestroy_v2", context) == 0
    assert libcuda.live() == before and libcuda.left_behind() == 3 and libcuda.live_bytes() == bytes_before
    assert driver("cuStreamSynchronize", stream) == CONTEXT_IS_DESTROYED
    assert driver("cuCtxSetCurrent", None) == 0 and driver("cuCtxSynchronize") == INVALID_CONTEXT
    assert driver("cuCtxSetCurrent", context) == INVALID_CONTEXT


def test_the_primary_context_lives_while_it_is_retained():
    assert child(
        "first, second, flags, active = c_void_p(), c_void_p(), c_int(), c_int()",
        "print(cuda.cuInit(0), cuda.cuDevicePrimaryCtxRetain(byref(first), 0))",
        "print(cuda.cuDevicePrimaryCtxRetain(byref(second), 0), first.value == second.value)",
        "for _ in range(2):",
        "    print(cuda.cuDevicePrimaryCtxRelease_v2(0))",
        "    print(cuda.cuDevicePrimaryCtxGetState(0, byref(flags), byref(active)), active.value)",
        "print(cuda.cuDevicePrimaryCtxRelease_v2(0))",
    ) == ["0", "0", "0", "True", "0", "0", "1", "0", "0", "0", str(INVALID_CONTEXT)]


def test_memory_is_aligned_dirty_and_checked(cuda):
    memory = cuda.device_memory(1000)
    assert memory.value % 256 == 0 and memory.value % 512 != 0  # no more than what is promised
    assert set(ctypes.string_at(memory.value, 1000)) == {0xCD}
    source = ctypes.create_string_buffer(b"x" * 1001)
    assert cuda("cuMemcpyHtoD_v2", memory, source, c_size_t(1001)) == INVALID_VALUE
    assert cuda("cuMemcpyHtoD_v2", memory, source, c_size_t(1000)) == 0
    assert cuda("cuMemcpyDtoH_v2", source, c_uint64(memory.value + 500), c_size_t(501)) == INVALID_VALUE
    assert ctypes.string_at(memory.value, 1000) == b"x" * 1000
    assert cuda("cuMemFreeHost", c_void_p(memory.value)) == INVALID_VALUE
    assert cuda("cuMemFree_v2", c_uint64(memory.value + 256)) == INVALID_VALUE
    assert cuda("cuMemFree_v2", memory) == 0 and cuda("cuMemFree_v2", memory) == INVALID_VALUE
    assert cuda("cuMemcpyHtoD_v2", memory, source, c_size_t(1)) == INVALID_VALUE
    assert cuda("cuMemAlloc_v2", byref(c_uint64()), c_size_t(0)) == INVALID_VALUE
    assert cuda("cuMemAlloc_v2", byref(c_uint64()), c_size_t(1 << 40)) == OUT_OF_MEMORY


def test_host_memory_has_an_address_only_where_it_was_mapped(cuda):
    address = c_uint64()
    mapped, unmapped = cuda.host_memory(64), cuda.host_memory(64, flags=0)
    assert cuda("cuMemHostGetDevicePointer_v2", byref(address), mapped, 0) == 0 and address.value == mapped.value
    assert cuda("cuMemHostGetDevicePointer_v2", byref(address), unmapped, 0) == INVALID_VALUE
    own = ctypes.create_string_buffer(64)
    assert cuda("cuMemHostGetDevicePointer_v2", byref(address), own, 0) == INVALID_VALUE
    assert cuda("cuMemHostRegister_v2", own, c_size_t(64), c_uint(DEVICEMAP)) == 0
    assert cuda("cuMemHostRegister_v2", own, c_size_t(64), c_uint(DEVICEMAP)) == 712
    assert cuda("cuMemHostGetDevicePointer_v2", byref(address), own, 0) == 0
    assert cuda("cuMemHostUnregister", own) == 0 and cuda("cuMemHostUnregister", own) == 713


def test_managed_memory_can_be_attached_but_not_prefetched(cuda):
    managed = c_uint64(cuda.make("cuMemAllocManaged", c_size_t(64), c_uint(1)).value)
    stream = cuda.stream()
    assert cuda("cuStreamAttachMemAsync", stream, managed, c_size_t(0), c_uint(4)) == 0
    assert cuda("cuStreamAttachMemAsync", None, managed, c_size_t(0), c_uint(4)) == INVALID_VALUE
    assert cuda("cuStreamAttachMemAsync", stream, cuda.device_memory(64), c_size_t(0), c_uint(1)) == INVALID_VALUE
    assert cuda("cuMemAllocManaged", byref(c_uint64()), c_size_t(64), c_uint(4)) == INVALID_VALUE
    assert cuda("cuMemPrefetchAsync", managed, c_size_t(64), 0, stream) == 101  # no concurrent managed access
    kind, is_managed = c_uint(), c_uint()
    assert cuda("cuPointerGetAttribute", byref(kind), 2, c_uint64(managed.value + 63)) == 0 and kind.value == 2
    assert cuda("cuPointerGetAttribute", byref(is_managed), 8, managed) == 0 and is_managed.value == 1
    assert cuda("cuPointerGetAttribute", byref(kind), 2, c_uint64(managed.value + 64)) == INVALID_VALUE


def test_memory_accounts_for_what_is_alive(cuda):
    free, total = c_size_t(), c_size_t()
    cuda("cuMemGetInfo_v2", byref(free), byref(total))
    at_first = free.value
    memory, host = cuda.device_memory(1000), cuda.host_memory(500)
    cuda("cuMemGetInfo_v2", byref(free), byref(total))
    assert at_first - free.value == 1500 and total.value - free.value == libcuda.live_bytes()
    cuda("cuMemFree_v2", memory), cuda("cuMemFreeHost", host)
    assert total.value - libcuda.live_bytes() == at_first


def test_a_stream_keeps_order_and_another_does_not_wait(cuda):
    first, second, done = cuda.stream(NON_BLOCKING), cuda.stream(NON_BLOCKING), []
    with cuda.held(first):
        for number in range(3):
            cuda.launch(first, lambda number=number: done.append(number))
        cuda.launch(second, lambda: done.append("second"))
        assert cuda("cuStreamSynchronize", second) == 0
        assert done == ["second"]
        assert cuda("cuStreamQuery", first) == NOT_READY and cuda("cuStreamQuery", second) == 0
    assert cuda("cuStreamSynchronize", first) == 0 and done == ["second", 0, 1, 2]


def test_the_null_stream_and_ordinary_streams_wait_for_each_other(cuda):
    ordinary, free, done = cuda.stream(), cuda.stream(NON_BLOCKING), []
    with cuda.held(ordinary):
        cuda.launch(None, lambda: done.append("null"))
        cuda.launch(free, lambda: done.append("free"))
        later = cuda.stream()
        cuda.launch(later, lambda: done.append("later"))
        assert cuda("cuStreamSynchronize", free) == 0 and done == ["free"]
    assert cuda("cuStreamSynchronize", later) == 0 and done == ["free", "null", "later"]


def test_an_event_orders_streams(cuda):
    first, second, event, done = cuda.stream(NON_BLOCKING), cuda.stream(NON_BLOCKING), cuda.event(), []
    with cuda.held(first):
        cuda.launch(first, lambda: done.append("first"))
        cuda("cuEventRecord", event, first)
        assert cuda("cuStreamWaitEvent", second, event, 0) == 0
        cuda.launch(second, lambda: done.append("second"))
        assert cuda("cuEventQuery", event) == NOT_READY
    assert cuda("cuStreamSynchronize", second) == 0 and done == ["first", "second"]
    assert cuda("cuEventQuery", event) == 0 and cuda("cuEventSynchronize", event) == 0


def test_events_time_what_lies_between_them(cuda):
    stream, begin, end, within = cuda.stream(), cuda.event(), cuda.event(), []

    def work():
        within.append(time.monotonic_ns())
        time.sleep(0.01)
        within.append(time.monotonic_ns())

    before_ns = time.monotonic_ns()
    cuda("cuEventRecord", begin, stream), cuda.launch(stream, work), cuda("cuEventRecord", end, stream)
    assert cuda("cuEventSynchronize", end) == 0
    around_ms = (time.monotonic_ns() - before_ns) / 1e6
    elapsed_ms = c_float()
    assert cuda("cuEventElapsedTime", byref(elapsed_ms), begin, end) == 0
    assert (within[1] - within[0]) / 1e6 <= elapsed_ms.value * (1 + 1e-6) and elapsed_ms.value <= around_ms * (1 + 1e-6)
    backwards_ms = c_float()
    assert cuda("cuEventElapsedTime", byref(backwards_ms), end, begin) == 0 and backwards_ms.value == -elapsed_ms.value


def test_events_that_have_no_time_are_refused(cuda):
    stream, event, untimed, elapsed_ms = cuda.stream(NON_BLOCKING), cuda.event(), cuda.event(DISABLE_TIMING), c_float()
    assert cuda("cuEventElapsedTime", byref(elapsed_ms), event, event) == INVALID_HANDLE  # never recorded
    cuda("cuEventRecord", event, stream), cuda("cuEventRecord", untimed, stream)
    assert cuda("cuEventElapsedTime", byref(elapsed_ms), event, untimed) == INVALID_HANDLE
    with cuda.held(stream):
        cuda("cuEventRecord", event, stream)
        assert cuda("cuEventElapsedTime", byref(elapsed_ms), event, event) == NOT_READY


def test_handles_are_dead_once_they_are_destroyed(cuda):
    stream, event = cuda.stream(), cuda.event()
    assert cuda("cuEventDestroy_v2", event) == 0 and cuda("cuEventDestroy_v2", event) == INVALID_HANDLE
    assert cuda("cuEventRecord", event, stream) == INVALID_HANDLE
    assert cuda("cuEventRecord", cuda.event(), c_void_p(12345)) == INVALID_HANDLE
    done = threading.Event()
    with cuda.held(stream):
        cuda.launch(stream, done.set)
        assert cuda("cuStreamDestroy_v2", stream) == 0
        assert cuda("cuStreamSynchronize", stream) == INVALID_HANDLE and not done.is_set()
    assert done.wait(PATIENCE_S)  # what was enqueued still ran


def test_memory_freed_under_running_work_stays_until_it_is_done(cuda):
    stream, memory = cuda.stream(NON_BLOCKING), cuda.device_memory(1000)
    target = cuda.host_memory(1000)
    cuda("cuMemsetD8Async", memory, ctypes.c_ubyte(7), c_size_t(1000), stream)
    with cuda.held(stream):
        assert cuda("cuMemcpyDtoHAsync_v2", target, memory, c_size_t(1000), stream) == 0
        assert cuda("cuMemFree_v2", memory) == 0
    assert cuda("cuStreamSynchronize", stream) == 0
    assert set(ctypes.string_at(target.value, 1000)) == {7}


def test_pageable_memory_is_read_before_an_upload_returns(cuda):
    stream, memory, source = cuda.stream(NON_BLOCKING), cuda.device_memory(4), ctypes.create_string_buffer(b"abcd", 4)
    with cuda.held(stream):
        assert cuda("cuMemcpyHtoDAsync_v2", memory, source, c_size_t(4), stream) == 0
        source.raw = b"wxyz"
    cuda("cuStreamSynchronize", stream)
    assert ctypes.string_at(memory.value, 4) == b"abcd"


def test_host_functions_may_not_call_cuda(cuda):
    stream, answers = cuda.stream(), []

    def work():
        context = c_void_p()
        cuda("cuCtxGetCurrent", byref(context))
        cuda("cuCtxSetCurrent", mine)
        answers.extend([context.value, cuda("cuStreamSynchronize", stream), cuda.launch(stream, lambda: None)])

    mine = c_void_p()
    cuda("cuCtxGetCurrent", byref(mine))
    cuda.launch(stream, work)
    cuda("cuStreamSynchronize", stream)
    assert answers == [None, NOT_PERMITTED, NOT_PERMITTED]


def test_a_graph_runs_what_was_captured_each_time_it_is_launched(cuda):
    stream, other, event, done = cuda.stream(NON_BLOCKING), cuda.stream(NON_BLOCKING), cuda.event(), []
    assert cuda("cuStreamBeginCapture_v2", stream, 1) == 0
    assert cuda("cuStreamBeginCapture_v2", stream, 1) == ILLEGAL_STATE
    cuda.launch(stream, lambda: done.append("a"))
    cuda("cuEventRecord", event, stream), cuda("cuStreamWaitEvent", other, event, 0)  # a fork
    cuda.launch(other, lambda: done.append("b"))
    assert cuda("cuEventSynchronize", event) == CAPTURED_EVENT
    cuda("cuEventRecord", event, other), cuda("cuStreamWaitEvent", stream, event, 0)
    graph, nodes = c_void_p(), c_size_t()
    assert cuda("cuStreamEndCapture", stream, byref(graph)) == 0
    assert cuda("cuGraphGetNodes", graph, None, byref(nodes)) == 0 and nodes.value == 2 and done == []
    executable = cuda.make("cuGraphInstantiateWithFlags", graph, ctypes.c_ulonglong(0))
    assert cuda("cuGraphDestroy", graph) == 0
    for _ in range(2):
        assert cuda("cuGraphLaunch", executable, stream) == 0
    cuda("cuStreamSynchronize", stream)
    assert done == ["a", "b", "a", "b"]
    assert cuda("cuGraphExecDestroy", executable) == 0 and cuda("cuGraphLaunch", executable, stream) == INVALID_VALUE


def test_waiting_inside_a_capture_spoils_it(cuda):
    stream = cuda.stream(NON_BLOCKING)
    cuda("cuStreamBeginCapture_v2", stream, 1)
    assert cuda("cuStreamSynchronize", stream) == CAPTURE_UNSUPPORTED
    assert cuda("cuStreamEndCapture", stream, byref(c_void_p())) == CAPTURE_INVALIDATED
    assert cuda("cuStreamEndCapture", stream, byref(c_void_p())) == ILLEGAL_STATE
    assert cuda("cuStreamBeginCapture_v2", None, 1) == CAPTURE_UNSUPPORTED


def test_priorities_are_orins_and_clamped(cuda):
    least, greatest, priority = c_int(), c_int(), c_int()
    cuda("cuCtxGetStreamPriorityRange", byref(least), byref(greatest))
    assert (least.value, greatest.value) == (0, -5)
    for asked, given in ((-3, -3), (-99, -5), (7, 0)):
        stream = cuda.make("cuStreamCreateWithPriority", c_uint(NON_BLOCKING), c_int(asked))
        cuda("cuStreamGetPriority", stream, byref(priority))
        assert priority.value == given


def test_calls_are_counted_and_made_to_fail(cuda):
    libcuda.fail("cuMemAlloc", OUT_OF_MEMORY, after=1)
    address = c_uint64()
    codes = [cuda("cuMemAlloc_v2", byref(address), c_size_t(8)) for _ in range(3)]
    assert codes == [0, OUT_OF_MEMORY, OUT_OF_MEMORY] and libcuda.calls("cuMemAlloc") == 3
    libcuda.fail("cuMemAlloc", 0)
    assert cuda("cuMemAlloc_v2", byref(address), c_size_t(8)) == 0
