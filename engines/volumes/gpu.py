"""The kernels at work: a volume segmented where CPU and GPU, or the GPU alone, keep it.

On a board, where both share DRAM, volume and labels are mapped and nothing is copied at all; elsewhere the INT8 volume
goes to the GPU and the labels come back. A CUDA context has to be current.

    gpu = GpuVolume(kernels)
    gpu.volume[...] = int8_volume
    labels = gpu.segment(infer)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.volumes.kernels import Buffers, Kernels, Launch
from engines.volumes.nvcc import cubin

# Enqueues the network on a stream: addresses of its windows and of its logits, how many windows, the stream.
Infer = Callable[[int, int, int, Any], None]


class Launcher:
    """Enqueues kernels on a stream, compiled for the GPU at hand; its context has to be current on this thread.

    EngineError where pycuda or nvcc is missing, or the kernels do not compile.
    """

    def __init__(self, many: Iterable[Kernels], stream: Any = None) -> None:
        self._cuda, self._stream = _pycuda(), stream
        with cuda_errors(self._cuda):
            architecture = "sm_{}{}".format(*self._cuda.Context.get_device().compute_capability())
            compiled = {kernels.options: cubin(kernels.options, architecture) for kernels in many}
            self._modules = {options: self._cuda.module_from_buffer(code) for options, code in compiled.items()}

    def launch(self, kernels: Kernels, launch: Launch) -> None:
        """Enqueue one kernel."""
        with cuda_errors(self._cuda):
            function = self._modules[kernels.options].get_function(launch.kernel)
            function(launch.job, grid=launch.grid, block=launch.block, stream=self._stream)

    def run(self, kernels: Kernels, buffers: Buffers, windows: range, infer: Infer) -> None:
        """Enqueue a batch of windows: cut them, ask the network, merge what it says."""
        self.launch(kernels, kernels.cut(buffers, windows))
        infer(buffers.windows, buffers.logits, len(windows), self._stream)
        self.launch(kernels, kernels.merge(buffers, windows))


class GpuVolume:
    """Everything that one volume needs on the GPU; `volume` and `labels` are the CPU's views, int8 [D,H,W].

    EngineError where memory does not suffice, and as from `Launcher`.
    """

    def __init__(self, kernels: Kernels, stream: Any = None) -> None:
        self._cuda = _pycuda()
        self._kernels, self._stream = kernels, stream
        self._launcher = Launcher([kernels], stream)
        with cuda_errors(self._cuda):
            device = self._cuda.Context.get_device()
            self._mapped = bool(device.get_attribute(self._cuda.device_attribute.INTEGRATED))
            self.volume, volume = self._shared()
            self.labels, labels = self._shared()
            room = {name: self._cuda.mem_alloc(nbytes) for name, nbytes in kernels.room.items()}
            self._cuda.memcpy_htod(room["weights"], kernels.axis_weights())
        self._memory = {**room, "volume": volume, "labels": labels}
        self.buffers = Buffers(**{name: int(memory) for name, memory in self._memory.items()})

    def segment(self, infer: Infer) -> NDArray[Any]:
        """Run every window and return `labels`, complete; EngineError where the network gave NaN."""
        with cuda_errors(self._cuda):
            if not self._mapped:
                self._cuda.memcpy_htod_async(self._memory["volume"], self.volume, self._stream)
            for windows in self._kernels.batches():
                self._launcher.run(self._kernels, self.buffers, windows, infer)
            if not self._mapped:
                self._cuda.memcpy_dtoh_async(self.labels, self._memory["labels"], self._stream)
            self._wait()
        return checked(self.labels)

    def launch(self, launch: Launch) -> None:
        """Enqueue one kernel."""
        self._launcher.launch(self._kernels, launch)

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


def checked(labels: NDArray[Any]) -> NDArray[Any]:
    """Return the labels of a volume; EngineError with the first voxel for which the network gave NaN."""
    if labels.min() < 0:
        at = np.unravel_index(int(labels.argmin()), labels.shape)
        raise EngineError(f"the network gave NaN at voxel {tuple(map(int, at))}; check its weights and the volume")
    return labels


@contextmanager
def cuda_errors(cuda: Any) -> Iterator[None]:
    """Turn what pycuda raises into one line."""
    try:
        yield
    except cuda.Error as error:
        raise EngineError(f"volume kernels: {' '.join(str(error).split())}") from None


def _pycuda() -> Any:
    try:
        import pycuda.driver
    except ImportError as error:
        raise EngineError(f"the volume kernels need pycuda ({error}); pip install 'orin-toolkit[jetson]'") from None
    return pycuda.driver
