"""Zero-copy memory: the loaded samples in one shared allocation, in each layout that the engines read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.engine import Binding, Engine
from engines.formats import pack, same_bytes
from engines.spec import TensorFormat
from orin.board import Board, SharedTensor
from orin.errors import OrinError

ALIGNMENT = 256  # bytes; what TensorRT asks of a tensor's address


@dataclass(frozen=True)
class Region:
    """Where one input's samples lie in one layout: byte offset of the first, bytes from one to the next."""

    binding: Binding
    offset: int
    stride: int


class SampleSet:
    """Up to `capacity` samples of a network's inputs, where every engine can read them without a copy.

    Layouts whose bytes coincide (GPU CHW4 and DLA HWC4 at 224x224) share one region; others are held twice, which
    `layouts` shows.
    """

    def __init__(self, board: Board, engines: Sequence[Engine], capacity: int) -> None:
        self.capacity = capacity
        self._regions: list[Region] = []
        self._of_engine: dict[str, tuple[Region, ...]] = {}
        size = 0
        for engine in engines:
            regions = []
            for binding in engine.manifest.inputs:
                region = self._same(binding)
                if region is None:
                    region = Region(binding, size, binding.sample_bytes)
                    self._regions.append(region)
                    size += -(-binding.sample_bytes * capacity // 4096) * 4096
                regions.append(region)
            self._of_engine[engine.manifest.engine_sha256] = tuple(regions)
        self.memory: SharedTensor = board.allocate(size)
        # Positions that are multiples of this lie on 256-byte addresses in every layout.
        self.align = math.lcm(*(ALIGNMENT // math.gcd(ALIGNMENT, region.stride) for region in self._regions))

    def _same(self, binding: Binding) -> Region | None:
        for region in self._regions:
            other = region.binding
            if (other.name, other.shape) == (binding.name, binding.shape) and same_bytes(
                TensorFormat(other.format), TensorFormat(binding.format), binding.shape
            ):
                return region
        return None

    @property
    def layouts(self) -> list[dict[str, object]]:
        """Name, layout and bytes of each region, for the record."""
        return [
            {"input": r.binding.name, "format": r.binding.format, "bytes": r.stride * self.capacity}
            for r in self._regions
        ]

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample in its largest layout, all inputs together."""
        by_input: dict[str, int] = {}
        for region in self._regions:
            by_input[region.binding.name] = max(by_input.get(region.binding.name, 0), region.stride)
        return sum(by_input.values())

    def store(self, position: int, inputs: Sequence[NDArray[Any]]) -> int:
        """Write one sample's inputs (INT8 [C,H,W] each) in every layout; return the bytes written."""
        by_name = {r.binding.name: array for r, array in zip(self._inputs(), inputs)}
        written = 0
        for region in self._regions:
            packed = pack(by_name[region.binding.name][None], TensorFormat(region.binding.format))
            begin = region.offset + position * region.stride
            self.memory.array[begin : begin + region.stride] = packed.reshape(-1).view(np.uint8)
            written += region.stride + self.memory.publish(begin, begin + region.stride)
        return written

    def store_packed(self, position: int, packed: NDArray[Any]) -> int:
        """Write one sample (uint8 [bytes]) that already lies in the layout of the one region; return the bytes written.

        OrinError where there are several layouts, or its size is not theirs.
        """
        stride = self._regions[0].stride
        if len(self._regions) != 1 or packed.shape != (stride,):
            layouts = ", ".join(f"{r.binding.format} of {r.stride} bytes" for r in self._regions)
            raise OrinError(f"a packed sample has {packed.size} bytes, expected one layout alone: {layouts}")
        begin = self._regions[0].offset + position * stride
        self.memory.array[begin : begin + stride] = packed
        return stride + self.memory.publish(begin, begin + stride)

    def _inputs(self) -> tuple[Region, ...]:
        return next(iter(self._of_engine.values()))

    def addresses(self, engine: Engine, position: int) -> tuple[int, ...]:
        """Return where an engine finds each input of the samples from `position` on."""
        base = self.memory.address
        regions = self._of_engine[engine.manifest.engine_sha256]
        return tuple([base + region.offset + position * region.stride for region in regions])

    def gather(self, engine: Engine, positions: Sequence[int], target: Staging) -> int:
        """Copy scattered samples next to each other; return the bytes copied."""
        copied = 0
        for region, begin in zip(self._of_engine[engine.manifest.engine_sha256], target.offsets):
            for row, position in enumerate(positions):
                source = region.offset + position * region.stride
                to = begin + row * region.stride
                target.memory.array[to : to + region.stride] = self.memory.array[source : source + region.stride]
            copied += len(positions) * region.stride + target.memory.publish(
                begin, begin + len(positions) * region.stride
            )
        return copied


class Staging:
    """Room for one batch of an engine's inputs, where samples that do not lie together are gathered."""

    def __init__(self, board: Board, engine: Engine, batch: int) -> None:
        self.offsets: list[int] = []
        size = 0
        for binding in engine.manifest.inputs:
            self.offsets.append(size)
            size += -(-binding.sample_bytes * batch // 4096) * 4096
        self.memory = board.allocate(size)

    @property
    def addresses(self) -> tuple[int, ...]:
        """Address of each input's batch."""
        return tuple(self.memory.address + offset for offset in self.offsets)
