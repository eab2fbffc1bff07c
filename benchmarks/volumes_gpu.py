"""The volume kernels on the GPU at hand: bandwidth beside a plain copy's, the whole merge beside PyTorch's and CuPy's.

Bytes are those that have to move at least: what is cut is read and written once; a merge reads the logits, reads sums
that an earlier launch left, and writes sums or labels. Needs pycuda and nvcc; without a GPU it says so and ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from common import arguments, emit, median

from engines.errors import EngineError
from engines.volumes.gpu import GpuVolume
from engines.volumes.kernels import CDHW32, Buffers, Kernels, Launch
from engines.volumes.plan import plan_windows

SHAPE = (320, 448, 448)  # the largest case of KiTS19
QUICK_SHAPE = (192, 256, 256)
BATCHES = (1, 2, 8)
REPEATS = 7
COPY_BYTES = 1 << 28
WANTED_SHARE = 0.8


def copy_bytes_per_s(cuda: Any) -> float:
    """Bytes read and written a second by the driver's own copy, the best of a few."""
    source, target = cuda.mem_alloc(COPY_BYTES), cuda.mem_alloc(COPY_BYTES)
    return 2 * COPY_BYTES / min(seconds(cuda, lambda: cuda.memcpy_dtod_async(target, source, COPY_BYTES)))


def seconds(cuda: Any, work: Any) -> list[float]:
    """Time that the GPU takes for what `work` enqueues, the first time left out."""
    begin, end = cuda.Event(), cuda.Event()
    found = []
    for _ in range(REPEATS + 1):
        begin.record()
        work()
        end.record()
        end.synchronize()
        found.append(begin.time_till(end) * 1e-3)
    return found[1:]


def merge_bytes(kernels: Kernels) -> int:
    """Bytes that merging a whole volume moves: each launch counts the sums that it finds and those that it leaves."""
    plan, logit, kept = kernels.plan, np.dtype(kernels.logits).itemsize, np.dtype(kernels.sums).itemsize
    starts, left = list(plan), np.zeros(plan.shape, np.int16)
    for start in starts:
        left[plan.inside(start)] += 1
    begun, moved = np.zeros(plan.shape, bool), 0
    for windows in kernels.batches():
        reached = np.zeros(plan.shape, bool)
        for start in starts[windows.start : windows.stop]:
            box = plan.inside(start)
            reached[box] = True
            left[box] -= 1
            moved += left[box].size * kernels.classes * logit
        moved += int(np.count_nonzero(reached & begun)) * kernels.classes * kept
        begun |= reached
        moved += int(np.count_nonzero(reached & (left > 0))) * kernels.classes * kept
        moved += int(np.count_nonzero(reached & (left == 0)))
    return moved


def cut_bytes(kernels: Kernels) -> int:
    """Bytes that cutting a whole volume moves."""
    windows = len(kernels.plan) * math.prod(kernels.plan.window)
    return windows * (1 + (CDHW32 if kernels.cdhw32 else 1))


def kernel_rates(cuda: Any, shape: tuple[int, int, int], batch: int) -> dict[str, float]:
    """Bytes a second of each kernel over a whole volume."""
    linear = Kernels(plan_windows(shape), batch)
    deep = replace(linear, cdhw32=True)
    moved = {
        "cut": (linear, linear.cut, cut_bytes(linear)),
        "cut32": (deep, deep.cut, cut_bytes(deep)),
        "merge": (linear, linear.merge, merge_bytes(linear)),
    }
    return {name: nbytes / launched_s(cuda, kernels, launch) for name, (kernels, launch, nbytes) in moved.items()}


def launched_s(cuda: Any, kernels: Kernels, launch: Callable[[Buffers, range], Launch]) -> float:
    """Time of one kind of launch over a whole volume."""
    gpu = GpuVolume(kernels)
    launches = [launch(gpu.buffers, windows) for windows in kernels.batches()]

    def work() -> None:
        for each in launches:
            gpu.launch(each)

    return median(seconds(cuda, work))


def merge_s(cuda: Any, shape: tuple[int, int, int]) -> float:
    """Time of merging a whole volume, windows one by one."""
    kernels = Kernels(plan_windows(shape))
    return launched_s(cuda, kernels, kernels.merge)


def cupy_merge(shape: tuple[int, int, int]) -> Callable[[], object]:
    """The same written with CuPy, window after window, in half precision."""
    import cupy

    plan = plan_windows(shape)
    logits, weights = cupy.zeros((3, *plan.window), cupy.float16), cupy.ones(plan.window, cupy.float16)

    def merge() -> object:
        sums = cupy.zeros((3, *shape), cupy.float16)
        for start in plan:
            z, y, x = plan.inside(start)
            sums[:, z, y, x] += logits * weights
        return sums.argmax(axis=0).astype(cupy.int8)

    return merge


def torch_merge(shape: tuple[int, int, int]) -> Callable[[], object]:
    """The same written with PyTorch, which fuses weight and sum; on the stream whose events are measured."""
    import torch

    plan = plan_windows(shape)
    logits = torch.zeros((3, *plan.window), dtype=torch.float16, device="cuda")
    weights = torch.ones(plan.window, dtype=torch.float16, device="cuda")

    def merge() -> object:
        sums = torch.zeros((3, *shape), dtype=torch.float16, device="cuda")
        for start in plan:
            z, y, x = plan.inside(start)
            sums[:, z, y, x].addcmul_(logits, weights)
        return sums.argmax(0).to(torch.int8)

    return merge


OTHERS = {"torch": torch_merge, "cupy": cupy_merge}


def others_s(cuda: Any, shape: tuple[int, int, int]) -> dict[str, float | None]:
    """Time of the same merge in each library; None where it is not installed, or not for this GPU."""
    found: dict[str, float | None] = {}
    for name, made in OTHERS.items():
        try:
            merge = made(shape)
            merge()
        except (ImportError, RuntimeError, AssertionError):  # what PyTorch for CPUs alone raises
            found[name] = None
            continue
        found[name] = median(seconds(cuda, merge))
    return found


def measured(quick: bool) -> tuple[dict[str, object], list[tuple[str, str, str]]]:
    """Run everything in one context; the first GPU's primary one, which PyTorch and CuPy use too."""
    import pycuda.driver as cuda

    cuda.init()
    device = cuda.Device(0)
    context = device.retain_primary_context()
    context.push()
    try:
        shape = QUICK_SHAPE if quick else SHAPE
        copied = copy_bytes_per_s(cuda)
        rows = [("copy, read and written", f"{copied / 1e9:.0f} GB/s", device.name())]
        rates = {batch: kernel_rates(cuda, shape, batch) for batch in BATCHES}
        for batch, each in rates.items():
            for name, rate in each.items():
                seen = f"{rate / 1e9:.0f} GB/s, {rate / copied:.0%}"
                rows.append((f"{name}, {batch} windows a launch", seen, f"{WANTED_SHARE:.0%} of the copy or more"))
        ours_s, theirs_s = merge_s(cuda, shape), others_s(cuda, shape)
        rows.append((f"merge of {'x'.join(map(str, shape))}", f"{ours_s * 1e3:.2f} ms", ""))
        for name, each_s in theirs_s.items():
            seen = f"{each_s * 1e3:.2f} ms, {each_s / ours_s:.1f} x" if each_s else "not installed"
            rows.append((f"the same in {name}", seen, "more than 1 x"))
    finally:
        context.pop()
        context.detach()
    found = {"device": device.name(), "shape": shape, "copy_bytes_per_s": copied, "bytes_per_s": rates}
    return {"volumes_gpu": {**found, "merge_s": ours_s, "others_merge_s": theirs_s}}, rows


def main() -> None:
    """Measure and print, or say in one line why not."""
    options = arguments(__doc__ or "")
    try:
        import pycuda.driver as cuda

        cuda.init()
        cuda.Device(0)
    except Exception as error:  # no pycuda, no driver, no GPU
        print(f"volumes_gpu: nothing measured, there is no GPU ({' '.join(str(error).split())})")
        return
    try:
        results, rows = measured(options.quick)
    except EngineError as error:
        raise SystemExit(str(error)) from None
    emit(results, rows, options)


if __name__ == "__main__":
    main()
