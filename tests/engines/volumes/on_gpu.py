"""Volumes on a real GPU, a small CUDA kernel as their network; `python -m tests.engines.volumes.on_gpu` runs them all.

The latter is what compute-sanitizer watches.
"""

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from engines.volumes.gpu import GpuVolume
from engines.volumes.kernels import Kernels
from engines.volumes.nvcc import cubin
from engines.volumes.plan import plan_windows

# Logits of class c: slope[c] * voxel + base[c] * (column % 5 - 2); exact in half precision.
NETWORK = """
#include <cuda_fp16.h>
extern "C" __global__ void network(const signed char *windows, LOGIT *logits, int side, int width, int stride) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, slot = blockIdx.y;
    if (i >= side) return;
    const int voxel = windows[(static_cast<long long>(slot) * side + i) * stride], bend = i % width % 5 - 2;
    for (int c = 0; c < 3; ++c) {
        const int value = (c - 1) * voxel + c * c * bend;
        logits[(static_cast<long long>(slot) * 3 + c) * side + i] = static_cast<LOGIT>(static_cast<float>(value));
    }
}
"""

CASES = {  # shape, window, overlap; keywords of `Kernels`
    "one half": (((96, 96, 128), (64, 64, 64), 0.5), {"batch": 1}),
    "batch": (((96, 128, 96), (64, 64, 64), 0.5), {"batch": 3, "weights": "monai", "cdhw32": True}),
    "float": (((80, 64, 96), (64, 64, 64), 0.5), {"batch": 8, "logits": "float32", "sums": "float32"}),
    "odd": (((45, 37, 51), (32, 20, 18), 0.4), {"batch": 4, "pad": -106, "cdhw32": True}),
    "small": (((20, 50, 30), (32, 32, 32), 0.5), {"batch": 2, "pad": -106, "sums": "float32"}),
}


@contextmanager
def context():
    """The first GPU's context, current."""
    import pycuda.driver as cuda

    cuda.init()
    made = cuda.Device(0).make_context()
    try:
        yield cuda
    finally:
        made.pop()


def network(kernels):
    """The network as `GpuVolume.segment` calls it."""
    import pycuda.driver as cuda

    architecture = "sm_{}{}".format(*cuda.Context.get_device().compute_capability())
    with TemporaryDirectory() as folder:
        source = Path(folder) / "network.cu"
        source.write_text(NETWORK)
        function = cuda.module_from_buffer(cubin(kernels.options, architecture, source)).get_function("network")
    side = int(np.prod(kernels.plan.window))
    sizes = (np.int32(side), np.int32(kernels.plan.window[2]), np.int32(32 if kernels.cdhw32 else 1))

    def infer(windows, logits, count, stream):
        addresses = (np.uintp(windows), np.uintp(logits))
        function(*addresses, *sizes, grid=(-(-side // 256), count, 1), block=(256, 1, 1), stream=stream)

    return infer


def answer(windows):
    """What the network says of int8 windows [N,d,h,w]: float64 [N,3,d,h,w]."""
    bend = np.arange(windows.shape[-1]) % 5 - 2
    return np.stack([(c - 1) * windows.astype(np.float64) + c * c * bend for c in range(3)], axis=1)


def segmented(name):
    """The kernels of a case, its volume and the labels that the GPU gave."""
    sizes, change = CASES[name]
    kernels = Kernels(plan_windows(*sizes), **change)
    gpu = GpuVolume(kernels)
    gpu.volume[...] = np.random.default_rng(5).integers(-127, 128, kernels.plan.shape)
    volume = gpu.volume.copy()
    return kernels, volume, gpu.segment(network(kernels)).copy()


if __name__ == "__main__":
    with context():
        for case in CASES:
            segmented(case)
    print(f"{len(CASES)} volumes segmented")
