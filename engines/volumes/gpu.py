"""The kernels at work: a volume segmented where CPU and GPU, or the GPU alone, keep it.

On a board, where both share DRAM, volume and labels are mapped and nothing is copied at all; elsewhere the INT8 volume
goes to the GPU and the labels come back. A CUDA context has to be current.

    gpu = GpuVolume(kernels)
    gpu.volume[...] = int8_volume
    labels = gpu.segment(infer)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.volumes.kernels import CDHW32, Buffers, Kernels, Launch
from engines.volumes.nvcc import cubin

# Enqueues the network on a stream: addresses of its windows and of its logits, how many windows, the stream.
Infer = Callable[[int, int, int, Any], None]


class GpuVolume:
    """Everything that one volume needs on the GPU; `volume` and `labels` are the CPU's views, int8 [D,H,W].

    EngineError where pycuda or nvcc is missing, the kernels do not compile, or memory does not suffice.
    """

    def __init__(self, kernels: Kernels, cdhw32: bool = False, stream: Any = None) -> None:
        self._cuda = _pycuda()
        self._kernels, self._cdhw32, self._stream = kernels, cdhw32, stream
        with self._errors():
            device = self._cuda.Context.get_device()
            architecture = "sm_{}{}".format(*device.compute_capability())
            self._module = self._cuda.module_from_buffer(cubin(kernels.options, architecture))
            self._mapped = bool(device.get_attribute(self._cuda.device_attribute.INTEGRATED))
            self.volume, volume = self._shared()
            self.labels, labels = self._shared()
            side = kernels.batch * math.prod(kernels.plan.window)
            self._memory = {
                "volume": volume,
                "windows": self._cuda.mem_alloc(side * (CDHW32 if cdhw32 else 1)),
                "logits": self._cuda.mem_alloc(side * kernels.classes * np.dtype(kernels.logits).itemsize),
                "weights": self._cuda.to_device(kernels.axis_weights()),
                "sums": self._cuda.mem_alloc(math.prod(kernels.sums_shape) * np.dtype(kernels.sums).itemsize),
                "labels": labels,
            }
        self.buffers = Buffers(**{name: int(memory) for name, memory in self._memory.items()})

    def segment(self, infer: Infer) -> NDArray[Any]:
        """Run every window and return `labels`, complete; EngineError where the network gave NaN."""
        with self._errors():
            if not self._mapped:
                self._cuda.memcpy_htod_async(self._memory["volume"], self.volume, self._stream)
            for windows in self._kernels.batches():
                self.launch(self._kernels.cut(self.buffers, windows, self._cdhw32))
                infer(self.buffers.windows, self.buffers.logits, len(windows), self._stream)
                self.launch(self._kernels.merge(self.buffers, windows))
            if not self._mapped:
                self._cuda.memcpy_dtoh_async(self.labels, self._memory["labels"], self._stream)
            self._wait()
        if self.labels.min() < 0:
            at = np.unravel_index(int(self.labels.argmin()), self.labels.shape)
            raise EngineError(f"the network gave NaN at voxel {tuple(map(int, at))}; check its weights and the volume")
        return self.labels

    def launch(self, launch: Launch) -> None:
        """Enqueue one kernel."""
        self._module.get_function(launch.kernel)(launch.job, grid=launch.grid, block=launch.block, stream=self._stream)

    def _wait(self) -> None:
        if self._stream is None:
            self._cuda.Context.synchronize()
        else:
            self._stream.synchronize()

    def _shared(self) -> tuple[NDArray[Any], Any]:
        """Return memory of the volume's size: the CPU's view, and what the GPU reaches it by."""
        flags = self._cuda.host_alloc_flags.DEVICEMAP if self._mapped else 0
        view = self._cuda.pagelocked_empty(self._kernels.plan.shape, np.int8, mem_flags=flags)
        return view, view.base.get_device_pointer() if self._mapped else self._cuda.mem_alloc(view.nbytes)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what pycuda raises into one line."""
        try:
            yield
        except self._cuda.Error as error:
            raise EngineError(f"volume kernels: {' '.join(str(error).split())}") from None


def _pycuda() -> Any:
    try:
        import pycuda.driver
    except ImportError as error:
        raise EngineError(f"the volume kernels need pycuda ({error}); pip install 'orin-toolkit[jetson]'") from None
    return pycuda.driver
