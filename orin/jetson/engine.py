"""A TensorRT engine on one accelerator: a ring of execution contexts on one stream, bound where the samples lie.

Sources: TensorRT developer guide ("Enqueue", "Working with DLA"), samples/common/sampleInference.cpp: contexts on one
stream run in order, a DLA's tensor address has to be cleared before another is set (TensorRT 11), and CUDA graphs and
DLAs do not go together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engines.engine import Binding, Engine
from engines.formats import unpack, view
from orin.board import SharedTensor
from orin.errors import OrinError
from orin.jetson.cuda import CudaContext
from orin.jetson.streams import Event, Graph, Stream
from orin.soc import GPU

CLEARS_ADDRESSES_SINCE = 11  # TensorRT's major version
GRAPH_BATCH = 1  # who asks for one sample at a time waits for the launch of every kernel
Part = Literal["whole", "backbone", "tail"]


@dataclass(frozen=True)
class Site:
    """Where an engine is loaded: the accelerator, CUDA, TensorRT's major version and what it said last; and its part:
    whether a tail alone reads its outputs, or it is such a tail."""

    accelerator: str
    cuda: CudaContext
    major: int
    last_error: Callable[[], str]
    part: Part = "whole"


class Output:
    """Memory for one output of a batch, and its real values; a view of it where the engine writes them as they are."""

    def __init__(self, binding: Binding, tensor: SharedTensor) -> None:
        self._binding, self._tensor = binding, tensor
        self.name, self.address = binding.name, tensor.address
        self._rows = tensor.array.reshape(-1, binding.sample_bytes)
        self._view = view(self._rows, binding.format, binding.shape, binding.dtype)

    def values(self, samples: int) -> NDArray[Any]:
        """Return the values of the first samples, [samples, ...]."""
        values, scale = self._stored(samples), self._binding.scale
        if scale is not None:
            values = values * np.float32(scale)
        return values.astype(np.float32) if values.dtype == np.float16 else values

    def _stored(self, samples: int) -> NDArray[Any]:
        if self._view is not None:
            return self._view[:samples]
        return unpack(self._rows[:samples], self._binding.format, self._binding.shape, self._binding.dtype)


@dataclass
class Step:
    """One enqueue of a work item: an execution context, what is bound to it, memory for its outputs, its samples.

    An engine of single samples has a graph too, whose inputs lie in one fixed place.
    """

    context: Any
    outputs: list[Output]
    samples: int = 0
    bound: dict[str, int] = field(default_factory=dict)
    shape: int = 0
    fixed: list[SharedTensor] = field(default_factory=list)
    graph: Graph | None = None

    def close(self) -> None:
        """Release graph and context now: the traceback of an error may hold this step for longer."""
        self.context = None
        if self.graph is not None:
            self.graph.close()


@dataclass
class Slot:
    """A work item's place: when it was enqueued, the event behind it, and its steps, the first `flying` under way.

    Each step has a context of its own, because no address of a context may change while it runs.
    """

    end: Event
    enqueued_ns: int = 0
    steps: list[Step] = field(default_factory=list)
    flying: int = 0
    done: int = 0


class JetsonEngine:
    """An engine on an accelerator of the board; see `orin.board.LoadedEngine`.

    A DLA's stream and a tail's have high priority, so that their few GPU kernels do not queue behind the GPU's own
    engine. A tail has no graph: its inputs lie in place already. What it reads lies in memory that the GPU caches.
    """

    def __init__(self, engine: Engine, deserialized: Any, site: Site, depth: int) -> None:
        self.accelerator = site.accelerator
        self.copied_bytes = 0
        self.closed = False
        self._engine, self._deserialized, self._site, self._cuda = engine, deserialized, site, site.cuda
        self._inputs, self._outputs = engine.manifest.inputs, engine.manifest.outputs
        self._batch = engine.manifest.spec.batch
        self._is_gpu = site.accelerator == GPU
        self._captures = self._is_gpu and self._batch <= GRAPH_BATCH and site.part != "tail"
        self._slots: list[Slot] = []
        self._last_end_ns = 0
        self._stream: Stream = self._cuda.stream(high_priority=site.part == "tail" or not self._is_gpu)
        with ExitStack() as undo:
            undo.callback(self.close)
            self._check_tensors()
            for _ in range(depth):
                self._slots.append(Slot(self._cuda.event()))
                self._slots[-1].steps.append(self._step())
            undo.pop_all()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in the order of their addresses."""
        return tuple(binding.name for binding in self._inputs)

    def latest(self, slot: int) -> tuple[Event, dict[str, int]]:
        """Return the event behind a slot's latest enqueue, and where that one writes its outputs."""
        state = self._slots[slot]
        return state.end, {output.name: output.address for output in state.steps[state.flying - 1].outputs}

    def enqueue(self, slot: int, addresses: Sequence[int], samples: int, after: Event | None = None) -> None:
        """Start one batch, `after` an event that may be another stream's; see `orin.board.LoadedEngine`."""
        if not 1 <= samples <= self._batch:
            raise OrinError(f"{self.accelerator} got a batch of {samples} samples, its engine takes 1 to {self._batch}")
        self._cuda.attach()
        state = self._slots[slot]
        if state.flying == len(state.steps):
            state.steps.append(self._step())
        step = state.steps[state.flying]
        if not state.flying:
            state.enqueued_ns = time.monotonic_ns()
        if after is not None:
            self._stream.wait(after)
        if step.graph is not None:
            self._launch(step.graph, step, addresses)
        else:
            self._execute(step, addresses, samples)
        step.samples = samples
        state.flying += 1  # before what can still fail: `close` waits for what is under way
        state.end.record(self._stream)

    def wait(self, slot: int) -> tuple[int, int]:
        """Block until a slot is done; it ends when the stream reaches its event, and begins when it is enqueued or the
        slot before it ends, because a stream runs in order. Slots are waited for in the order of their enqueues."""
        self._cuda.attach()
        state = self._slots[slot]
        if not state.flying:
            raise OrinError(f"{self.accelerator} slot {slot} holds no batch: enqueue comes before wait")
        state.end.synchronize()
        state.done, state.flying = state.flying, 0
        begin_ns, end_ns = max(state.enqueued_ns, self._last_end_ns), self._cuda.clock.at_ns(state.end)
        self._last_end_ns = end_ns = max(begin_ns, end_ns)  # the two clocks agree to within microseconds
        return begin_ns, end_ns

    def outputs(self, slot: int) -> list[NDArray[Any]]:
        """Return the outputs of the slot's last wait as real values, samples first; they lie in the slot's memory
        where the engine writes them as they are."""
        state = self._slots[slot]
        rows = [[output.values(step.samples) for output in step.outputs] for step in state.steps[: state.done]]
        return rows[0] if len(rows) == 1 else [np.concatenate(column) for column in zip(*rows, strict=True)]

    def close(self) -> None:
        """Wait for what is in flight and release everything, contexts before their engine."""
        if self.closed:
            return
        slots, self._slots, self.closed = self._slots, [], True
        with self._cuda.current(), ExitStack() as steps:
            steps.callback(self._stream.close)
            for slot in slots:
                steps.callback(slot.end.close)
                for step in slot.steps:
                    steps.callback(step.close)
            if any(slot.flying for slot in slots):
                self._stream.synchronize()
        self._deserialized = None

    # -- one step of a slot -------------------------------------------------------------------------------------------

    def _step(self) -> Step:
        """Make a step; the first of each slot is there when the engine is loaded, others when they are first used."""
        with self._cuda.current():
            context = self._deserialized.create_execution_context()
        self._said(context, f"make an execution context for {self.accelerator}")
        allocate = self._cuda.private if self._site.part == "backbone" else self._cuda.allocate
        outputs = [Output(binding, allocate(binding.sample_bytes * self._batch)) for binding in self._outputs]
        step = Step(context, outputs)
        if self._captures:
            step.fixed = [self._cuda.private(b.sample_bytes * self._batch) for b in self._inputs]
            step.graph = self._capture(step)
        return step

    def _capture(self, step: Step) -> Graph:
        """Run a batch of zeros once, as TensorRT asks, and once more into a graph."""

        def run() -> None:
            self._execute(step, [tensor.address for tensor in step.fixed], self._batch)

        with self._cuda.current():
            run()
            self._stream.synchronize()
            return self._stream.capture(run)

    def _launch(self, graph: Graph, step: Step, addresses: Sequence[int]) -> None:
        for binding, fixed, address in zip(self._inputs, step.fixed, addresses, strict=True):
            copy = (fixed.address, address, binding.sample_bytes, self._stream.handle)
            self._cuda.driver.call("cuMemcpyDtoDAsync_v2", *copy)
            self.copied_bytes += binding.sample_bytes
        graph.launch(self._stream)

    def _execute(self, step: Step, addresses: Sequence[int], samples: int) -> None:
        if self._is_gpu and self._batch > 1 and step.shape != samples:
            self._set_shape(step, samples)
        for binding, address in zip(self._inputs, addresses, strict=True):
            self._bind(step, binding.name, address)
        for output in step.outputs:
            self._bind(step, output.name, output.address)
        self._said(step.context.execute_async_v3(self._stream.handle), "enqueue the batch")

    def _set_shape(self, step: Step, samples: int) -> None:
        for binding in self._inputs:
            said = step.context.set_input_shape(binding.name, (samples, *binding.shape))
            self._said(said, f"take {samples} samples of {binding.name}")
        step.shape = samples

    def _bind(self, step: Step, name: str, address: int) -> None:
        before = step.bound.get(name)
        if before == address:
            return
        if before is not None and not self._is_gpu and self._site.major >= CLEARS_ADDRESSES_SINCE:
            step.context.set_tensor_address(name, 0)
        self._said(step.context.set_tensor_address(name, address), f"bind {name} to address {address:#x}")
        step.bound[name] = address

    def _check_tensors(self) -> None:
        found = {self._deserialized.get_tensor_name(index) for index in range(self._deserialized.num_io_tensors)}
        wanted = {binding.name for binding in (*self._inputs, *self._outputs)}
        if found != wanted:
            raise OrinError(
                f"engine {self._engine.path} has the tensors {', '.join(sorted(found))}, its manifest "
                f"{', '.join(sorted(wanted))}: they do not belong together, build it again"
            )

    def _said(self, answer: object, what: str) -> None:
        """Raise where TensorRT answers with false or nothing."""
        if not answer:
            raise OrinError(f"TensorRT did not {what}: {self._site.last_error()}")
