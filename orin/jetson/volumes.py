"""Volumes on a Jetson: kernels cut windows and merge logits around a TensorRT engine, all of it on one stream.

A volume is one work item of many enqueues, each a batch of its windows; the host waits once. The engine reads its
windows where `cut` writes them and writes its logits where `merge` reads them; volumes and labels lie in memory that
CPU and GPU share, nothing is copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.engine import Binding, Engine
from engines.spec import INT8_MAX, TensorFormat
from engines.volumes.gpu import Launcher, checked
from engines.volumes.kernels import C_TYPES, Buffers, Kernels
from engines.volumes.plan import WindowPlan
from engines.volumes.preprocess import PAD
from engines.volumes.split import Split, quantise
from orin.board import SharedTensor
from orin.errors import OrinError
from orin.jetson.cuda import CudaContext, load_pycuda
from orin.jetson.streams import NON_BLOCKING, Event
from orin.soc import GPU


@dataclass(frozen=True)
class Labelled:
    """Labels of a volume, int8 [D,H,W], and from its first enqueue to its last label on `time.monotonic_ns`."""

    labels: NDArray[Any]
    begin_ns: int
    end_ns: int


@dataclass
class Slot:
    """A volume's place: its labels, the event behind it, where it lies, and how many of its windows are under way."""

    labels: SharedTensor
    end: Event
    address: int = 0
    windows: int = 0
    enqueued_ns: int = 0


class WindowEngine:
    """An engine of windows that labels whole volumes; made by `JetsonBoard.load_windows`.

    It is an `orin.board.LoadedEngine` once `hold` has said where volumes lie: an enqueue takes the next windows of the
    volume at its address.
    """

    accelerator = GPU
    copied_bytes = 0

    def __init__(self, engine: Engine, deserialized: Any, cuda: CudaContext, last_error: Callable[[], str]) -> None:
        self.closed = False
        self._cuda, self._last_error = cuda, last_error
        self._batch = engine.manifest.spec.batch
        self._input, self._output = _ends(engine)
        self._scale = self._input.scale or 1.0
        self._kernels: dict[int, Kernels] = {}
        self._room: dict[str, SharedTensor] = {}
        self._slots: list[Slot] = []
        self._launcher: Launcher | None = None
        self._own: tuple[tuple[WindowPlan, str], SharedTensor] | None = None
        self._last_end_ns = 0
        self._deserialized = deserialized
        with cuda.current():
            self._stream: Any = load_pycuda().Stream(NON_BLOCKING)
            self._context = deserialized.create_execution_context()
        self._said(self._context, "make an execution context for windows")
        if self._batch > 1:
            # The last batch of a volume is run whole too, so that no shape changes under way; `merge` takes its windows
            # alone.
            said = self._context.set_input_shape(self._input.name, (self._batch, *self._input.shape))
            self._said(said, f"take {self._batch} windows")

    def hold(self, volumes: Mapping[int, WindowPlan], weights: str = "mlperf", depth: int = 1) -> None:
        """Take memory to label volumes that lie at these addresses, `depth` at a time; that of before is given back."""
        kernels = {address: self._kernels_of(plan, weights) for address, plan in volumes.items()}
        rooms = [each.room for each in kernels.values()]
        largest = max(int(np.prod(plan.shape)) for plan in volumes.values())
        self._give_back()
        self._room = {name: self._cuda.private(max(room[name] for room in rooms)) for name in rooms[0]}
        self._slots = [Slot(self._cuda.allocate(largest), self._cuda.event()) for _ in range(depth)]
        self._kernels = kernels
        axis_weights = next(iter(kernels.values())).axis_weights()
        with self._cuda.current():
            self._launcher = Launcher(kernels.values(), self._stream)
            load_pycuda().memcpy_htod(self._room["weights"].address, axis_weights)

    def enqueue(self, slot: int, addresses: Sequence[int], samples: int) -> None:
        """Start the next windows of the volume that lies at the one address; see `orin.board.LoadedEngine`."""
        self._cuda.attach()
        assert self._launcher is not None, "hold() comes before enqueue()"
        state, (address,) = self._slots[slot], addresses
        kernels = self._kernels[address]
        if not state.windows:
            state.address, state.enqueued_ns = address, time.monotonic_ns()
        left = len(kernels.plan) - state.windows
        if address != state.address or samples != min(self._batch, left):
            raise OrinError(
                f"gpu got {samples} windows of a volume that has {left} left, expected them in turn, "
                f"{self._batch} at a time"
            )
        windows = range(state.windows, state.windows + samples)
        room = {name: tensor.address for name, tensor in self._room.items()}
        buffers = Buffers(volume=address, labels=state.labels.address, **room)
        state.windows += samples  # before what can fail: `close` waits for what is under way
        self._launcher.run(kernels, buffers, windows, self._infer)
        state.end.record(self._stream)

    def wait(self, slot: int) -> tuple[int, int]:
        """Block until a volume is labelled; return its begin and end, as `JetsonEngine.wait` does."""
        self._cuda.attach()
        state = self._slots[slot]
        if not state.windows:
            raise OrinError(f"gpu slot {slot} holds no volume: enqueue comes before wait")
        state.end.synchronize()
        state.windows = 0
        begin_ns, end_ns = max(state.enqueued_ns, self._last_end_ns), self._cuda.clock.at_ns(state.end)
        self._last_end_ns = end_ns = max(begin_ns, end_ns)
        return begin_ns, end_ns

    def outputs(self, slot: int) -> list[NDArray[Any]]:
        """Return the labels of the slot's last volume, int8 [1,D,H,W] in the slot's own memory.

        EngineError where the network gave NaN.
        """
        state = self._slots[slot]
        shape = self._kernels[state.address].plan.shape
        labels = state.labels.array[: int(np.prod(shape))].view(np.int8).reshape(shape)
        return [checked(labels)[None]]

    def segment(self, split: Split, weights: str = "mlperf") -> Labelled:
        """Label one volume, whose windows have the engine's size; real values become INT8 in the range of its input.

        Memory is kept for the next volume of the same size. EngineError where the kernels do not compile, memory does
        not suffice or the network gives NaN.
        """
        tensor = self._memory_for(split.plan, weights)
        quantise(split, self._scale, tensor.array.view(np.int8).reshape(split.plan.shape))
        try:
            for windows in self._kernels[tensor.address].batches():
                self.enqueue(0, (tensor.address,), len(windows))
            begin_ns, end_ns = self.wait(0)
        except BaseException:
            self._give_back()
            raise
        return Labelled(self.outputs(0)[0][0].copy(), begin_ns, end_ns)

    def close(self) -> None:
        """Release everything, the context before its engine."""
        if self.closed:
            return
        self.closed = True
        with self._cuda.current():
            self._give_back()
            self._context = self._deserialized = self._stream = None

    def _memory_for(self, plan: WindowPlan, weights: str) -> SharedTensor:
        """Return memory for a volume of this plan that nothing else uses."""
        if self._own is None or self._own[0] != (plan, weights):
            self._give_back()
            tensor = self._cuda.allocate(int(np.prod(plan.shape)))
            self.hold({tensor.address: plan}, weights)
            self._own = (plan, weights), tensor
        return self._own[1]

    def _kernels_of(self, plan: WindowPlan, weights: str) -> Kernels:
        window = self._input.shape[1:]
        if plan.window != window:
            raise OrinError(f"windows are {plan.window}, the engine was built for {window}: build it for them")
        pad = int(np.clip(np.rint(PAD / self._scale), -INT8_MAX, INT8_MAX))
        classes = self._output.shape[0]
        return Kernels(plan, self._batch, classes, self._output.dtype, "float32", weights, pad)

    def _give_back(self) -> None:
        """Release what is held, once nothing uses it: a volume may have failed midway."""
        if self._slots:
            with self._cuda.current():
                self._stream.synchronize()
                for slot in self._slots:
                    slot.end.close()
        self._kernels, self._room, self._slots, self._own, self._launcher = {}, {}, [], None, None

    def _infer(self, windows: int, logits: int, count: int, stream: Any) -> None:
        for binding, address in ((self._input, windows), (self._output, logits)):
            self._said(self._context.set_tensor_address(binding.name, address), f"bind {binding.name}")
        self._said(self._context.execute_async_v3(stream.handle), f"enqueue {count} windows")

    def _said(self, answer: object, what: str) -> None:
        """Raise where TensorRT answers with false or nothing."""
        if not answer:
            raise OrinError(f"TensorRT did not {what}: {self._last_error()}")


def _ends(engine: Engine) -> tuple[Binding, Binding]:
    """Return input and output; OrinError unless they are windows in INT8 and their logits, as the kernels have them."""
    inputs, outputs = engine.manifest.inputs, engine.manifest.outputs
    if len(inputs) == len(outputs) == 1:
        (taken,), (given,) = inputs, outputs
        linear = taken.format == given.format == TensorFormat.LINEAR.value
        fits = len(taken.shape) == 4 and taken.shape[0] == 1 and given.shape[1:] == taken.shape[1:]
        if linear and fits and taken.dtype == "int8" and given.dtype in C_TYPES:
            return taken, given
    seen = "; ".join(f"{each.name} {each.dtype} {list(each.shape)} {each.format}" for each in (*inputs, *outputs))
    raise OrinError(
        f"engine {engine.path.name} has {seen}; expected int8 windows [1,d,h,w] and float logits [C,d,h,w], LINEAR"
    )
