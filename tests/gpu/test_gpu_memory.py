"""Memory, streams, priorities, events and graphs of a real GPU, through pycuda and the driver."""

import threading
import time
from ctypes import c_uint32, c_uint64

import numpy as np
import pytest

from orin.plan import MEMORY_KINDS
from tests.gpu.kernels import ints

pytestmark = pytest.mark.gpu

CYCLES = 1 << 33  # some seconds, after which a kernel gives up
MEET = 64  # bytes between the two places


@pytest.fixture(params=MEMORY_KINDS)
def kind(request, cuda):
    if request.param not in cuda.facts.memory_kinds:
        pytest.skip(f"{cuda.facts.name} has no {request.param} memory")
    return request.param


def first_bytes(cuda, kernels, x, stride, samples):
    """What a kernel reads of `x`; mapped memory, which it writes, needs no copy back."""
    y, stream = cuda.allocate(4 * samples, "mapped"), cuda.stream()
    with cuda.current():
        arguments = (c_uint64(x.address), c_uint64(y.address), c_uint64(stride), c_uint32(samples))
        kernels.launch("first_bytes", stream.handle, *arguments, threads=samples)
        stream.synchronize()
    return y.array.view(np.float32).copy()


def test_a_kernel_reads_what_was_published(cuda, kernels, kind):
    stride, samples = 4096, 1000
    x = cuda.allocate(stride * samples, kind)
    assert not first_bytes(cuda, kernels, x, stride, samples).any()
    values = np.random.default_rng(0).integers(-128, 128, samples, np.int8)
    x.array.view(np.int8)[::stride] = values
    half = stride * samples // 2
    copied = x.publish(0, half) + x.publish(half, stride * samples)
    one_memory = kind == "mapped" or (kind == "managed" and cuda.facts.concurrent_managed_access)
    assert copied == (0 if one_memory else stride * samples)
    assert np.array_equal(first_bytes(cuda, kernels, x, stride, samples), values)


def meeting(kernels, first, second, flags):
    """Let two kernels wait for each other on two streams."""
    mine, other, met = (flags.address + MEET * place for place in range(3))
    kernels.launch("meet", first.handle, *map(c_uint64, (mine, other, met, CYCLES)))
    kernels.launch("meet", second.handle, *map(c_uint64, (other, mine, met + 4, CYCLES)))


def test_streams_run_at_the_same_time(cuda, kernels):
    flags, streams = cuda.allocate(4096, "mapped"), [cuda.stream(), cuda.stream(high_priority=True)]
    with cuda.current():
        meeting(kernels, *streams, flags)
        for stream in streams:
            stream.synchronize()
    assert list(ints(flags)[2 * MEET // 4 :][:2]) == [1, 1]


def test_streams_of_a_dla_go_first(cuda, kernels):
    usual, first = cuda.stream(), cuda.stream(high_priority=True)
    with cuda.current():
        seen = [kernels.priority(stream.handle) for stream in (usual, first)]
    assert seen == [usual.priority, first.priority] and first.priority < usual.priority


def test_an_event_is_reached_after_the_work_before_it(cuda, kernels):
    flags, stream, begin, end = cuda.allocate(4096, "mapped"), cuda.stream(), cuda.event(), cuda.event()
    with cuda.current():
        begin.record(stream)
        places = (flags.address + MEET * place for place in range(3))
        kernels.launch("meet", stream.handle, *map(c_uint64, (*places, CYCLES)))
        end.record(stream)
        assert not end.reached()
        ints(flags)[MEET // 4] = 1  # what the kernel waits for
        end.synchronize()
        assert begin.reached() and end.reached() and end.since_ms(begin) > 0
    assert ints(flags)[2 * MEET // 4] == 1


def test_events_are_on_the_hosts_clock(cuda):
    stream, event = cuda.stream(), cuda.event()
    with cuda.current():
        before_ns = time.monotonic_ns()
        event.record(stream)
        event.synchronize()
        after_ns = time.monotonic_ns()
        at_ns = cuda.clock.at_ns(event)
    u_ns = cuda.clock.u_ns + 1000  # elapsed times are steps of some 0.5 us
    assert before_ns - u_ns <= at_ns <= after_ns + u_ns


def test_a_stream_waits_for_anothers_event(cuda, kernels):
    flags, streams, event = cuda.allocate(4096, "mapped"), [cuda.stream(), cuda.stream()], cuda.event()
    y = cuda.allocate(4, "mapped")
    with cuda.current():
        places = [flags.address + MEET * place for place in range(3)]
        kernels.launch("meet", streams[0].handle, *map(c_uint64, (*places, CYCLES)))
        event.record(streams[0])
        streams[1].wait(event)
        met = (c_uint64(places[2]), c_uint64(y.address), c_uint64(1), c_uint32(1))
        kernels.launch("first_bytes", streams[1].handle, *met)
        ints(flags)[MEET // 4] = 1
        streams[1].synchronize()
    assert y.array.view(np.float32)[0] == 1  # what the first wrote when it was let go


def test_a_graph_runs_the_kernel_again(cuda, kernels):
    x, y, stream = cuda.allocate(256, "mapped"), cuda.allocate(4, "mapped"), cuda.stream()
    arguments = (c_uint64(x.address), c_uint64(y.address), c_uint64(1), c_uint32(1))
    with cuda.current():
        graph = stream.capture(lambda: kernels.launch("first_bytes", stream.handle, *arguments))
        for value in (3, 7):
            x.array[0] = value
            graph.launch(stream)
            stream.synchronize()
            assert y.array.view(np.float32)[0] == value
        graph.close()


def test_any_thread_works_in_the_context(cuda, kernels):
    x, seen = cuda.allocate(256, "mapped"), []
    x.array[0] = 5

    def work():
        cuda.attach()
        seen.append(first_bytes(cuda, kernels, x, 1, 1)[0])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [5]
