"""Streams with priorities, events, CUDA graphs, and when on the host's clock an event was reached."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from ctypes import byref, c_float, c_int, c_void_p

from orin.jetson.driver import NOT_READY, Driver

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: the null stream, which other libraries use, does not hold it up
BLOCKING_SYNC = 1  # CU_EVENT_BLOCKING_SYNC: a waiting thread sleeps and leaves its core to LoadGen and the other lanes
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other lanes go on allocating while one captures
ANCHOR_PERIOD_NS = 1_000_000_000
ANCHORS = 3


class Stream:
    """An ordered queue of an accelerator's work; `handle` is what TensorRT's `execute_async_v3` takes.

    Of the GPU's waiting kernels those of `high_priority` streams start first; a context must be current to make one.
    """

    def __init__(self, driver: Driver, high_priority: bool = False) -> None:
        self._driver = driver
        least, greatest, handle = c_int(), c_int(), c_void_p()
        driver.call("cuCtxGetStreamPriorityRange", byref(least), byref(greatest))
        self.priority = greatest.value if high_priority else least.value  # lower numbers go first
        driver.call("cuStreamCreateWithPriority", byref(handle), NON_BLOCKING, self.priority)
        self.handle: int = handle.value or 0

    def synchronize(self) -> None:
        """Block until everything that was enqueued is done; an accelerator's failure is raised here."""
        self._driver.call("cuStreamSynchronize", self.handle)

    def wait(self, event: Event) -> None:
        """Let what is enqueued from now on start after an event, which may be another stream's."""
        self._driver.call("cuStreamWaitEvent", self.handle, event.handle, 0)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Return what `enqueue` puts onto this stream as a graph; nothing of it runs now. The stream must be idle.

        `enqueue` may neither wait nor allocate, and TensorRT needs one ordinary enqueue of the same shapes before.
        """
        self._driver.call("cuStreamBeginCapture_v2", self.handle, THREAD_LOCAL)
        captured = c_void_p()
        try:
            enqueue()
        except BaseException:
            self._driver.code("cuStreamEndCapture", self.handle, byref(captured))
            if captured:
                self._driver.code("cuGraphDestroy", captured)
            raise
        self._driver.call("cuStreamEndCapture", self.handle, byref(captured))
        return Graph(self._driver, captured)

    def close(self) -> None:
        """Release the stream; what was enqueued still runs."""
        if self.handle:
            handle, self.handle = self.handle, 0
            self._driver.call("cuStreamDestroy_v2", handle)


class Graph:
    """Captured work that one call enqueues again, at the addresses it was captured with."""

    def __init__(self, driver: Driver, captured: c_void_p) -> None:
        self._driver = driver
        self._executable = c_void_p()
        try:
            driver.call("cuGraphInstantiateWithFlags", byref(self._executable), captured, 0)
        finally:
            driver.code("cuGraphDestroy", captured)

    def launch(self, stream: Stream) -> None:
        """Enqueue the captured work."""
        self._driver.call("cuGraphLaunch", self._executable, stream.handle)

    def close(self) -> None:
        """Release the graph."""
        if self._executable:
            executable, self._executable = self._executable, c_void_p()
            self._driver.call("cuGraphExecDestroy", executable)


class Event:
    """A point in a stream's work, with a time; a thread that waits for it sleeps if it is `blocking`, else spins."""

    def __init__(self, driver: Driver, blocking: bool = True) -> None:
        self._driver = driver
        handle = c_void_p()
        driver.call("cuEventCreate", byref(handle), BLOCKING_SYNC if blocking else 0)
        self.handle: int = handle.value or 0

    def record(self, stream: Stream) -> None:
        """Put the event behind everything that is enqueued on a stream."""
        self._driver.call("cuEventRecord", self.handle, stream.handle)

    def synchronize(self) -> None:
        """Block until the event is reached; at once where it was never recorded."""
        self._driver.call("cuEventSynchronize", self.handle)

    def reached(self) -> bool:
        """Whether the work before the event is done."""
        code = self._driver.code("cuEventQuery", self.handle)
        if code == NOT_READY:
            return False
        self._driver.check("cuEventQuery", code)
        return True

    def since_ms(self, earlier: Event) -> float:
        """Return the time from one reached event to another, negative where this one came first."""
        elapsed_ms = c_float()
        self._driver.call("cuEventElapsedTime", byref(elapsed_ms), earlier.handle, self.handle)
        return elapsed_ms.value

    def close(self) -> None:
        """Release the event."""
        if self.handle:
            handle, self.handle = self.handle, 0
            self._driver.call("cuEventDestroy_v2", handle)


class HostClock:
    """When events were reached, on `time.monotonic_ns`.

    An anchor event is recorded on an idle stream and waited for, with the host's clock read before and after: it was
    reached between the two readings, so that their middle is wrong by at most half their distance, `u_ns`. The
    tightest of three anchors is kept, and set anew once a second: `cuEventElapsedTime` answers in float milliseconds
    (0.06 us steps at a second, 60 us after a quarter of an hour), and the two clocks drift apart.
    """

    def __init__(self, stream: Stream, anchors: Sequence[Event]) -> None:
        self._lock = threading.Lock()
        self._stream = stream
        self._anchors = anchors
        self._set()

    def at_ns(self, event: Event) -> int:
        """Return when a reached event was reached; never later than now."""
        with self._lock:
            if time.monotonic_ns() - self._anchor_ns > ANCHOR_PERIOD_NS:
                self._set()
            at_ns = self._anchor_ns + round(event.since_ms(self._anchor) * 1e6)
        return min(at_ns, time.monotonic_ns())

    def _set(self) -> None:
        best_ns = None
        for anchor in self._anchors:
            before_ns = time.monotonic_ns()
            anchor.record(self._stream)
            anchor.synchronize()
            width_ns = time.monotonic_ns() - before_ns
            if best_ns is None or width_ns < best_ns:
                best_ns, self._anchor, self._anchor_ns = width_ns, anchor, before_ns + width_ns // 2
                self.u_ns = width_ns // 2
