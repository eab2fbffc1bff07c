"""How long each fused layer takes, alone on the SoC: the law behind every network, measured or not.

A layer's time is the soft maximum of arithmetic and DRAM traffic, `(c^p + m^p)^(1/p)`, plus a fixed overhead.
GPU: a product is cut into tiles that the SMs share; narrow channels, short sums and few tiles waste lanes; the more
waves of tiles, the more of the traffic they cover; tensors that fit the L2 stay there. DLA: channels fill atoms of a
multiplier array; curves other than ReLU are passes of their own; tensors that fit its SRAM stay there. Weights are read
once an enqueue on both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.costs import LayerWork
from engines.engine import Workload

DLA_CHANNEL_ATOM, DLA_KERNEL_ATOM = 64, 32  # input channels in step, output channels in step (open NVDLA: 64 and 32)
DLA_RESIDENT_BYTES = 1 << 19  # TensorRT's default managed SRAM pool, half of what a core has
GPU_ATOM = 32  # channels that an INT8 tensor-core instruction takes at once
GPU_TILES = ((256, 128), (128, 128), (128, 64), (64, 64), (64, 32), (32, 32))  # rows x columns of a block's product
GPU_RESIDENT_BYTES = 2 << 20  # half of the L2: the next kernel still finds it there
GPU_SPLITS, GPU_SPLIT_DEPTH = 8, 256  # a long sum is cut for idle SMs: at most so often, into parts at least so long


@dataclass(frozen=True)
class Rates:
    """An accelerator at given clocks: INT8 multiply-accumulates, DRAM bytes, its clock; units that share the work."""

    macs_per_s: float
    bytes_per_s: float
    clock_mhz: float
    units: int = 1


@dataclass(frozen=True)
class Spent:
    """Time and traffic of every layer of one enqueue; compute and memory add up to what is not hidden."""

    compute_ms: NDArray[Any]
    memory_ms: NDArray[Any]
    overhead_ms: NDArray[Any]
    dram_bytes: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Table:
    """The layers of a network as columns, each float64 [layers]; `kernels` is 0 for parts of the kernel before."""

    op: NDArray[Any]
    macs: NDArray[Any]
    rows: NDArray[Any]
    columns: NDArray[Any]
    depth: NDArray[Any]
    groups: NDArray[Any]
    window: NDArray[Any]
    weight_bytes: NDArray[Any]
    input_bytes: NDArray[Any]
    output_bytes: NDArray[Any]
    curve_bytes: NDArray[Any]
    kernels: NDArray[Any]


@lru_cache(maxsize=64)
def table(work: Workload, one_kernel: tuple[int, int] | None = None) -> Table:
    """Return a workload's layers as columns; one that names none counts as one large convolution.

    The layers of the stretch `one_kernel` (first, end) run as one kernel: tensors between them stay on the chip.
    """
    if one_kernel is not None:
        return _merged(table(work), *one_kernel)
    layers = work.layers or (_whole(work),)
    numbers = [name for name in Table.__dataclass_fields__ if name not in ("op", "kernels")]
    columns = {name: np.array([float(getattr(layer, name)) for layer in layers]) for name in numbers}
    return Table(op=np.array([layer.op for layer in layers]), kernels=np.ones(len(layers)), **columns)


def _merged(layers: Table, first: int, end: int) -> Table:
    kernels, read, written = layers.kernels.copy(), layers.input_bytes.copy(), layers.output_bytes.copy()
    kernels[first + 1 : end] = 0
    read[first + 1 : end] = 0
    written[first : end - 1] = 0
    return replace(layers, kernels=kernels, input_bytes=read, output_bytes=written)


def pruned(layers: Table, on_gpu: bool) -> NDArray[Any]:
    """Return bool [layers]: which products have weights that 2:4 sparsity applies to, by kind and input channels.

    A GPU's sparse INT8 instruction takes 64 channels at once; a DLA's takes convolutions of more than 64 (its guide).
    """
    channels = layers.depth / np.maximum(layers.window, 1)
    dense = (layers.weight_bytes > 0) & (layers.macs > 0) & (layers.groups <= 1)
    fits: NDArray[Any] = dense & (channels >= 64 if on_gpu else (layers.op == "conv") & (channels > 64))
    return fits


def _whole(work: Workload) -> LayerWork:
    half = work.activation_bytes // 4  # fusion keeps about half of the tensors' bytes on the chip
    rows = max(1, work.macs // (256 * 2304))
    return LayerWork("", "conv", work.macs, rows, 256, 2304, 1, 9, work.weight_bytes, half, half, 0)


def dla_times(layers: Table, batch: int, rates: Rates, known: Mapping[str, float]) -> Spent:
    """Return what an INT8 enqueue of a batch takes on one DLA core."""
    macs = _dla_macs(layers) / (known["dla_efficiency"] * rates.macs_per_s)
    per_depthwise = known["dla_depthwise_macs_per_clk"] * rates.clock_mhz * 1e6
    compute_ms = 1e3 * batch * np.where(layers.op == "depthwise", layers.macs / per_depthwise, macs)
    moved = _kept_or_moved(layers, batch, DLA_RESIDENT_BYTES)
    passes = known["dla_curve_share"] * batch * layers.curve_bytes
    dram_bytes = moved + passes + layers.weight_bytes
    memory_ms = 1e3 * dram_bytes / rates.bytes_per_s
    overhead_ms = np.full_like(memory_ms, known["dla_layer_clk"] / rates.clock_mhz * 1e-3)
    return _spent(compute_ms, memory_ms, overhead_ms, dram_bytes, known["dla_overlap"])


def _dla_macs(layers: Table) -> NDArray[Any]:
    """Multiply-accumulates with the idle lanes of atoms that channels do not fill."""
    channels = layers.depth / np.maximum(layers.window, 1)
    # Few input channels (images, groups): kernel positions, or other groups, fill the atom instead.
    along = np.where(channels < DLA_CHANNEL_ATOM, layers.depth, channels)
    grouped = np.minimum(layers.groups, np.maximum(1.0, DLA_CHANNEL_ATOM / np.maximum(channels, 1)))
    dense = _padding(along, DLA_CHANNEL_ATOM) * _padding(layers.columns, DLA_KERNEL_ATOM)
    used: NDArray[Any] = layers.macs * np.where(layers.groups > 1, grouped, dense)
    return used


def gpu_times(layers: Table, batch: int, rates: Rates, known: Mapping[str, float], element_bytes: int = 1) -> Spent:
    """Return what an enqueue of a batch takes on the GPU; its arithmetic is that of INT8 times `element_bytes`."""
    per_clk = known["gpu_depthwise_macs_per_clk"] * rates.units * rates.clock_mhz * 1e6
    seconds, waves = _gpu_products_s(layers, batch, rates, known)
    dense = seconds * element_bytes
    curves = batch * layers.curve_bytes / (known["gpu_curve_bytes_per_clk"] * rates.units * rates.clock_mhz * 1e6)
    compute_ms = 1e3 * (np.where(layers.op == "depthwise", batch * layers.macs / per_clk, dense) + curves)
    moved = sum(_spilled(part, batch * element_bytes) for part in (layers.input_bytes, layers.output_bytes))
    dram_bytes = moved + element_bytes * layers.weight_bytes
    memory_ms = 1e3 * dram_bytes / (known["gpu_memory_share"] * rates.bytes_per_s)
    overhead_ms = layers.kernels * known["gpu_layer_clk"] / rates.clock_mhz * 1e-3
    # The first wave of blocks waits for its operands and nothing covers the last one's results.
    power = 1 + (known["gpu_overlap"] - 1) * waves / (waves + 1)
    return _spent(compute_ms, memory_ms, overhead_ms, dram_bytes, power)


def _gpu_products_s(
    layers: Table, batch: int, rates: Rates, known: Mapping[str, float]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Seconds of each product with its best tile, and its waves of blocks over the SMs.

    Groups too narrow for a tile are computed together, zeros between.
    """
    columns, depth = np.maximum(layers.columns, 1), np.maximum(layers.depth, 1)
    merged = np.minimum(np.maximum(layers.groups, 1), np.ceil(GPU_ATOM / columns))
    columns, depth, groups = columns * merged, depth * merged, np.maximum(layers.groups, 1) / merged
    rows = batch * layers.rows
    sums = np.ceil(depth / GPU_ATOM) * GPU_ATOM + known["gpu_fill_depth"]
    splits = np.clip(depth / GPU_SPLIT_DEPTH, 1, GPU_SPLITS)
    best, waves = np.full_like(depth, np.inf), np.zeros_like(depth)
    least = 1 + known["gpu_tile_loss"] * sum(1 / side for side in GPU_TILES[0])
    for tall, wide in GPU_TILES:
        tiles = np.ceil(rows / tall) * np.ceil(columns / wide) * groups
        rounds = np.maximum(tiles / rates.units, 1 / splits)
        loads = (1 + known["gpu_tile_loss"] * (1 / tall + 1 / wide)) / least
        taken = rounds * tall * wide * sums * loads
        waves = np.where(taken < best, rounds, waves)
        best = np.minimum(best, taken)
    seconds = best * rates.units / (known["gpu_efficiency"] * rates.macs_per_s)
    return np.where(layers.macs > 0, seconds, 0.0), waves


def _padding(size: NDArray[Any], atom: int) -> NDArray[Any]:
    filled: NDArray[Any] = np.ceil(np.maximum(size, 1) / atom) * atom / np.maximum(size, 1)
    return filled


def _kept_or_moved(layers: Table, batch: int, resident: int) -> NDArray[Any]:
    """Bytes of a batch's tensors that software places off the chip: a tensor stays in SRAM whole or not at all."""
    sizes = batch * np.stack([layers.input_bytes, layers.output_bytes])
    moved: NDArray[Any] = np.where(sizes <= resident, 0.0, sizes).sum(axis=0)
    return moved


def _spilled(tensor_bytes: NDArray[Any], count: int) -> NDArray[Any]:
    """Bytes of tensors that leave the L2, which keeps less and less of what grows: half of one of its useful size."""
    moved = count * tensor_bytes
    spilled: NDArray[Any] = moved * moved / (moved + GPU_RESIDENT_BYTES)
    return spilled


def _spent(
    compute_ms: NDArray[Any],
    memory_ms: NDArray[Any],
    overhead_ms: NDArray[Any],
    dram_bytes: NDArray[Any],
    power: float | NDArray[Any],
) -> Spent:
    """Share the soft maximum of both between them, by what each weighs in it."""
    compute, memory = compute_ms**power, memory_ms**power
    both = np.maximum(compute + memory, 1e-300)
    whole_ms = both ** (1 / power)
    return Spent(whole_ms * compute / both, whole_ms * memory / both, overhead_ms, dram_bytes)
