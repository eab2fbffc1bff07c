"""Volumes on a Jetson: kernels cut windows and merge logits around a TensorRT engine, all of it on one stream.

The host enqueues a whole volume and waits once. The engine reads its windows where `cut` writes them and writes its
logits where `merge` reads them; volume and labels are mapped memory, nothing is copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.engine import Binding, Engine
from engines.spec import INT8_MAX, TensorFormat
from engines.volumes.gpu import GpuVolume
from engines.volumes.kernels import C_TYPES, Kernels
from engines.volumes.split import Split
from orin.errors import OrinError
from orin.jetson.cuda import CudaContext, load_pycuda
from orin.jetson.streams import NON_BLOCKING


@dataclass(frozen=True)
class Labelled:
    """Labels of a volume, int8 [D,H,W], and from its first enqueue to its last label on `time.monotonic_ns`."""

    labels: NDArray[Any]
    begin_ns: int
    end_ns: int


class WindowEngine:
    """An engine of windows with everything that one size of volume needs; made by `JetsonBoard.load_windows`.

    Memory is kept for the next volume of the same size, and given back before that of another size is taken.
    """

    def __init__(self, engine: Engine, deserialized: Any, cuda: CudaContext, last_error: Callable[[], str]) -> None:
        self.closed = False
        self._cuda, self._last_error = cuda, last_error
        self._batch = engine.manifest.spec.batch
        self._input, self._output = _ends(engine)
        self._logits, self._scale = self._output.dtype, self._input.scale or 1.0
        self._gpu: tuple[Kernels, GpuVolume] | None = None
        self._deserialized = deserialized
        with cuda.current():
            self._stream = load_pycuda().Stream(NON_BLOCKING)
            self._context = deserialized.create_execution_context()
        self._said(self._context, "make an execution context for windows")
        if self._batch > 1:
            # The last batch of a volume is run whole too, so that no shape changes under way; `merge` takes its windows
            # alone.
            said = self._context.set_input_shape(self._input.name, (self._batch, *self._input.shape))
            self._said(said, f"take {self._batch} windows")

    def segment(self, split: Split, weights: str = "mlperf") -> Labelled:
        """Label a volume, whose windows have the engine's size; real values become INT8 in the range of its input.

        EngineError where the kernels do not compile, memory does not suffice or the network gives NaN.
        """
        kernels = self._kernels(split, weights)
        with self._cuda.current():
            gpu = self._memory(kernels)
            quantise(split, self._scale, gpu.volume)
            begin_ns = time.monotonic_ns()
            labels = gpu.segment(self._infer)
            end_ns = time.monotonic_ns()
        return Labelled(labels.copy(), begin_ns, end_ns)

    def close(self) -> None:
        """Release everything, the context before its engine."""
        if self.closed:
            return
        self.closed = True
        with self._cuda.current():
            self._give_back()
            self._context = self._deserialized = self._stream = None

    def _kernels(self, split: Split, weights: str) -> Kernels:
        window = self._input.shape[1:]
        if split.plan.window != window:
            raise OrinError(f"windows are {split.plan.window}, the engine was built for {window}: build it for them")
        pad = int(np.clip(np.rint(split.pad / self._scale), -INT8_MAX, INT8_MAX))
        classes = self._output.shape[0]
        return Kernels(split.plan, self._batch, classes, self._logits, "float32", weights, pad)

    def _memory(self, kernels: Kernels) -> GpuVolume:
        if self._gpu is None or self._gpu[0] != kernels:
            self._give_back()
            self._gpu = kernels, GpuVolume(kernels, stream=self._stream)
        return self._gpu[1]

    def _give_back(self) -> None:
        """Release the memory of the last size, once nothing uses it: a volume may have failed midway."""
        gpu, self._gpu = self._gpu, None
        if gpu is not None:
            self._stream.synchronize()

    def _infer(self, windows: int, logits: int, count: int, stream: Any) -> None:
        for binding, address in ((self._input, windows), (self._output, logits)):
            self._said(self._context.set_tensor_address(binding.name, address), f"bind {binding.name}")
        self._said(self._context.execute_async_v3(stream.handle), f"enqueue {count} windows")

    def _said(self, answer: object, what: str) -> None:
        """Raise where TensorRT answers with false or nothing."""
        if not answer:
            raise OrinError(f"TensorRT did not {what}: {self._last_error()}")


def quantise(split: Split, scale: float, out: NDArray[Any]) -> None:
    """Write a volume's values in steps of `scale` into int8 [D,H,W], a plane at a time; OrinError where one is NaN."""
    steps = np.float32(split.scale / scale)
    for number, (plane, into) in enumerate(zip(split.volume, out, strict=True)):
        if np.isnan(plane).any():
            raise OrinError(f"volume holds NaN in plane {number} of {len(out)}, expected numbers; pre-process it again")
        into[...] = np.clip(np.rint(plane * steps), -INT8_MAX, INT8_MAX)


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
