"""The board's CUDA context, and the memory that CPU, GPU and DLAs share.

Sources: CUDA for Tegra application note (what is cached where), CUDA C++ Programming Guide (managed memory without
concurrent access), pycuda 2026.1.

    with CudaContext() as cuda:
        tensor = cuda.allocate(nbytes, "mapped")
        stream = cuda.stream(high_priority=True)
        cuda.attach()  # once on each thread that enqueues or waits
"""

from __future__ import annotations

import importlib
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ctypes import byref, c_void_p
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from orin.board import SharedTensor
from orin.errors import OrinError
from orin.jetson.detect import GPU_NODES_MEND, Machine
from orin.jetson.driver import Driver, no_library
from orin.jetson.streams import ANCHORS, Event, HostClock, Stream

PAGE_BYTES = 4096

Made = TypeVar("Made", Stream, Event)


@dataclass(frozen=True)
class DeviceFacts:
    """What the driver says of the GPU, as far as it decides where tensors lie."""

    name: str
    driver_version: str
    compute_capability: str
    total_bytes: int
    integrated: bool
    maps_host_memory: bool
    managed_memory: bool
    concurrent_managed_access: bool
    pageable_memory_access: bool

    @property
    def memory_kinds(self) -> tuple[str, ...]:
        """The kinds that this device has (`orin.plan.MEMORY_KINDS`), the one to prefer first.

        Where CPU and GPU share DRAM a mapped tensor is read where it lies; anywhere else each read crosses the bus.
        """
        mapped = ("mapped",) if self.maps_host_memory else ()
        managed = ("managed",) if self.managed_memory else ()
        return (*mapped, *managed, "device") if self.integrated else ("device", *managed, *mapped)


def load_pycuda() -> Any:
    """Import `pycuda.driver`; OrinError that tells apart what is missing."""
    try:
        return importlib.import_module("pycuda.driver")
    except ImportError as reason:
        raise _not_imported(reason) from None


def _not_imported(reason: ImportError) -> OrinError:
    absent = reason.name if isinstance(reason, ModuleNotFoundError) else None
    if absent in ("pycuda", "pycuda.driver"):
        compiles = "compiles it on the board, with /usr/local/cuda/bin on PATH"
        return OrinError(f"pycuda is not installed; `pip install pycuda` {compiles}")
    if absent and not absent.startswith("pycuda"):
        return OrinError(f"pycuda needs {absent}, which is not installed; `pip install {absent}`")
    if "libcuda.so" in str(reason):
        return no_library(reason)
    again = "`pip install --no-cache-dir --force-reinstall --no-deps pycuda` builds it again"
    return OrinError(f"pycuda is installed, but was not built for this Python and CUDA ({reason}); {again}")


def device_facts() -> DeviceFacts:
    """Return the facts of GPU 0; OrinError where there is none, or none that this user may use. Makes no context."""
    pycuda, driver = load_pycuda(), Driver()
    with _errors(pycuda, driver), _rights():
        pycuda.init()
        return _facts(pycuda, pycuda.Device(0))


@contextmanager
def _errors(pycuda: Any, driver: Driver, what: str = "") -> Iterator[None]:
    """Turn pycuda's exceptions into one line with what to do."""
    try:
        yield
    except pycuda.Error as reason:
        raise driver.error(f"{what}{reason}") from None


@contextmanager
def _rights() -> Iterator[None]:
    """Say so where CUDA does not start because this user may not open what it opens; the driver's words do not."""
    try:
        yield
    except Exception as reason:
        closed = Machine().closed_nodes
        if closed:
            raise OrinError(f"CUDA: {reason}; no right to open {closed[0]}: {GPU_NODES_MEND}") from None
        raise


def _page_from(address: int) -> int:
    """Return the first address from here on that starts a page."""
    return address + -address % PAGE_BYTES


def _facts(pycuda: Any, device: Any) -> DeviceFacts:
    version = pycuda.get_driver_version()
    of = pycuda.device_attribute
    return DeviceFacts(
        name=device.name(),
        driver_version=f"{version // 1000}.{version % 1000 // 10}",
        compute_capability=".".join(map(str, device.compute_capability())),
        total_bytes=device.total_memory(),
        integrated=bool(device.get_attribute(of.INTEGRATED)),
        maps_host_memory=bool(device.get_attribute(of.CAN_MAP_HOST_MEMORY)),
        managed_memory=bool(device.get_attribute(of.MANAGED_MEMORY)),
        concurrent_managed_access=bool(device.get_attribute(of.CONCURRENT_MANAGED_ACCESS)),
        pageable_memory_access=bool(device.get_attribute(of.PAGEABLE_MEMORY_ACCESS)),
    )


class CudaContext:
    """The primary context of GPU 0, which TensorRT and the user's torch share, and everything made in it.

    `close` releases streams and events first, then memory, then the context: arrays of it must not be used any more.
    """

    def __init__(self) -> None:
        self.facts = device_facts()
        self.driver = Driver()
        self._pycuda = load_pycuda()
        self._errors = partial(_errors, self._pycuda, self.driver)
        with self._errors():
            self._context = self._pycuda.Device(0).retain_primary_context()
        self._attached = threading.local()
        self._made: list[Stream | Event] = []
        self._memory: list[weakref.finalize[..., Any]] = []
        self._closed = False
        try:
            stream, anchors = self.stream(high_priority=True), [self.event(blocking=False) for _ in range(ANCHORS)]
            with self.current():
                self.clock = HostClock(stream, anchors)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current on this thread for a while; what was current before is again afterwards."""
        with self._errors():
            self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def attach(self) -> None:
        """Make the context current on this thread for good: for threads that enqueue and wait, and end by themselves.

        pycuda's own `push` would end the process if a thread, such as LoadGen's, ended without its `pop`.
        """
        if not getattr(self._attached, "done", False):
            self.driver.call("cuCtxSetCurrent", self._context.handle)
            self._attached.done = True

    def stream(self, high_priority: bool = False) -> Stream:
        """Make a stream; released with the context."""
        with self.current():
            return self._keep(Stream(self.driver, high_priority))

    def event(self, blocking: bool = True) -> Event:
        """Make an event, which a waiting thread sleeps on if `blocking`, else spins; released with the context."""
        with self.current():
            return self._keep(Event(self.driver, blocking))

    def _keep(self, made: Made) -> Made:
        self._made = [other for other in self._made if other.handle] + [made]
        return made

    def allocate(self, nbytes: int, kind: str = "mapped") -> SharedTensor:
        """Allocate zeroed shared memory on a 4096-byte address; it is freed with its last array, at the latest by
        `close`.

        `mapped`: one memory, cached by the CPU, read uncached by the accelerators. `managed` and `device`: cached by
        the GPU; the CPU's side is memory of its own, and `publish` copies. Only with concurrent managed access, which
        no Orin has, is `managed` one memory too: elsewhere a CPU that touches it while the GPU works on anything at
        all gets a bus error.
        """
        if nbytes <= 0:
            raise OrinError(f"cannot allocate {nbytes} bytes of shared memory, expected 1 or more")
        if kind not in self.facts.memory_kinds:
            known = ", ".join(self.facts.memory_kinds)
            raise OrinError(f"memory is {kind!r}, expected one that {self.facts.name} has: {known}")
        one_memory = kind == "mapped" or (kind == "managed" and self.facts.concurrent_managed_access)
        with self.current(), self._errors(f"{nbytes / 2**20:.1f} MiB of {kind} memory: "):
            return self._one_memory(nbytes, kind) if one_memory else self._two_memories(nbytes, kind)

    def private(self, nbytes: int) -> SharedTensor:
        """Allocate zeroed memory on a 4096-byte address that accelerators alone use and the GPU caches; its array is
        empty, and frees it as those of `allocate` do."""
        array = np.empty(0, np.uint8)
        with self.current(), self._errors(f"{nbytes / 2**20:.1f} MiB of device memory: "):
            memory = self._pycuda.mem_alloc(nbytes + PAGE_BYTES)
            self._free_with(array, memory)
            address = _page_from(int(memory))
            self._pycuda.memset_d8(address, 0, nbytes)
            self.driver.call("cuStreamSynchronize", 0)  # other streams do not wait for the null stream's zeros
        return SharedTensor(array, address)

    def _one_memory(self, nbytes: int, kind: str) -> SharedTensor:
        whole = self._host(nbytes + PAGE_BYTES) if kind == "mapped" else self._managed(nbytes + PAGE_BYTES)
        address = whole.base.get_device_pointer()
        self._free_with(whole, whole.base)
        start = -address % PAGE_BYTES
        array = whole[start : start + nbytes]
        array.fill(0)
        return SharedTensor(array, address + start)

    def _two_memories(self, nbytes: int, kind: str) -> SharedTensor:
        array = self._host(nbytes)
        self._free_with(array, array.base)
        size = nbytes + PAGE_BYTES
        memory = self._pycuda.mem_alloc(size) if kind == "device" else self._managed(size).base
        self._free_with(array, memory)
        address = _page_from(int(memory))

        def publish(begin: int, end: int) -> int:
            with self.current(), self._errors():
                self._pycuda.memcpy_htod(address + begin, array[begin:end])
            return end - begin

        array.fill(0)
        publish(0, nbytes)
        return SharedTensor(array, address, publish)

    def _host(self, size: int) -> Any:
        flags = self._pycuda.host_alloc_flags
        return self._pycuda.pagelocked_empty(size, "u1", mem_flags=flags.PORTABLE | flags.DEVICEMAP)

    def _managed(self, size: int) -> Any:
        return self._pycuda.managed_empty(size, "u1", mem_flags=self._pycuda.mem_attach_flags.GLOBAL)

    def _free_with(self, array: Any, memory: Any) -> None:
        """Free memory when an array is gone: pycuda alone would not, where another thread than this lets go of it."""
        freed = weakref.finalize(array, self._free, memory)
        freed.atexit = False
        self._memory = [other for other in self._memory if other.alive] + [freed]

    def _free(self, memory: Any) -> None:
        with self.current():
            memory.free()

    def free_bytes(self) -> int:
        """Return how much memory the driver could still give; swap does not count."""
        with self.current(), self._errors():
            return int(self._pycuda.mem_get_info()[0])

    def close(self) -> None:
        """Release everything that was made here, then the context."""
        if self._closed:
            return
        self._closed = True
        with self._errors(), ExitStack() as undo:
            undo.callback(self._context.detach)
            self._context.push()
            undo.pop_all()
        with self._errors(), ExitStack() as steps:
            steps.callback(self._release)
            for freed in self._memory:
                steps.callback(freed)
            for made in self._made:
                steps.callback(made.close)

    def _release(self) -> None:
        """Release the context, which pycuda leaves on this thread's stack: below the one that was current before."""
        self._context.detach()
        top, ours = c_void_p(), self._context.handle
        self.driver.call("cuCtxPopCurrent_v2", byref(top))
        if top.value != ours:
            self.driver.call("cuCtxPopCurrent_v2", byref(c_void_p()))
            self.driver.call("cuCtxPushCurrent_v2", top)

    def __enter__(self) -> CudaContext:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
