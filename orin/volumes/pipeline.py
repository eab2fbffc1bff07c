"""The pipeline for volumes: a case is one work item of as many enqueues as its windows need.

The same on every board. A Jetson labels what lies at the address that is enqueued; a paced board takes its time for
every batch of windows and computes nothing, so that no voxels are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.engine import Engine
from engines.volumes.plan import Triple, WindowPlan
from engines.volumes.split import Split, quantise
from orin.board import Board, LoadedEngine
from orin.errors import OrinError
from orin.pipeline import Lane, Pipeline
from orin.plan import Plan
from orin.samples import SampleSet
from orin.soc import GPU
from orin.tails import Responses
from orin.work import Chunk, Enqueue, Taker, WorkItem

PAGE_BYTES = 4096


class VolumeSet(SampleSet):
    """INT8 volumes [D,H,W] of unequal size in shared memory, each from a page on."""

    def __init__(self, board: Board, shapes: Sequence[Triple]) -> None:
        self._shapes = shapes
        self._ends = list(accumulate((-(-math.prod(shape) // PAGE_BYTES) * PAGE_BYTES for shape in shapes), initial=0))
        self.capacity = len(shapes)
        self.memory = board.allocate(self._ends[-1])

    @property
    def sample_bytes(self) -> int:
        """Bytes of the largest volume."""
        return max(map(math.prod, self._shapes))

    def addresses(self, engine: Engine, position: int) -> tuple[int, ...]:
        """Return where a volume lies."""
        return (self.memory.address + self._ends[position],)

    def fill(self, position: int, split: Split, scale: float) -> None:
        """Write a volume in steps of `scale`; EngineError where it holds NaN."""
        shape, begin = self._shapes[position], self._ends[position]
        end = begin + math.prod(shape)
        quantise(split, scale, self.memory.array[begin:end].view(np.int8).reshape(shape))
        self.memory.publish(begin, end)


class VolumeLane(Lane):
    """The GPU's lane, taking one case at a time: its windows, batch by batch, on one slot."""

    def __init__(self, engine: Engine, plan: Plan, loaded: LoadedEngine, windows: Sequence[int]) -> None:
        self.engine, self.tail, self.loaded = engine, None, loaded
        self.depth = plan.depth(GPU)
        self.taker = Taker(GPU, batch=1, loop=1, static=False)
        self.copied_bytes = 0
        self._batch, self._windows = plan.gpu_batch, windows

    def item(self, chunks: Sequence[Chunk], slot: int, samples: SampleSet) -> WorkItem:
        """Bind one case where it lies."""
        (chunk,) = chunks
        (case,) = chunk.positions
        addresses, count = samples.addresses(self.engine, case), self._windows[case]
        sizes = (min(self._batch, count - begin) for begin in range(0, count, self._batch))
        return WorkItem(GPU, slot, chunk.ids, [Enqueue(self.loaded, addresses, size) for size in sizes])

    def item_at(self, position: int, ids: Sequence[int], samples: SampleSet) -> WorkItem:
        """Bind the one case of a query."""
        return self.item([Chunk([position], ids)], 0, samples)


class VolumePipeline(Pipeline):
    """A pipeline whose samples are the volumes of `cases`, and whose outputs are their labels, int8 [1,D,H,W].

    OrinError where the board computes, but not with volumes.
    """

    samples: VolumeSet

    def __init__(
        self, plan: Plan, board: Board, engine: Engine, cases: Sequence[WindowPlan], weights: str = "mlperf"
    ) -> None:
        self._cases, self._weights = cases, weights
        super().__init__(plan, board, {GPU: engine}, capacity=len(cases))

    def responses(self) -> Responses:
        """Return what makes a case's labels MLPerf's response, as they lie."""
        return lambda outputs, indices: (outputs[0], [outputs[0].nbytes])

    def _sample_set(self, engines: Sequence[Engine], capacity: int) -> VolumeSet:
        return VolumeSet(self.board, [case.shape for case in self._cases])

    def _lane(self, accelerator: str, engine: Engine, tail: Engine | None) -> VolumeLane:
        windows = [len(case) for case in self._cases]
        return VolumeLane(engine, self.plan, self._load(engine), windows)

    def _load(self, engine: Engine) -> LoadedEngine:
        if not self.board.computes_outputs:
            return self.board.load(engine, GPU, self.plan.gpu_depth)
        load_windows = getattr(self.board, "load_windows", None)
        if load_windows is None:
            raise OrinError(f"{self.board.name} labels no volumes; run them on a paced virtual board or a Jetson")
        volumes = {self.samples.addresses(engine, number)[0]: case for number, case in enumerate(self._cases)}
        loaded: Any = load_windows(engine)
        with ExitStack() as undo:
            undo.callback(loaded.close)
            loaded.hold(volumes, self._weights, self.plan.gpu_depth)
            undo.pop_all()
        made: LoadedEngine = loaded
        return made


class VolumeLibrary:
    """LoadGen's QSL of cases by number; `read` brings the voxels of each into memory, once, if it is given."""

    def __init__(self, pipeline: VolumePipeline, read: Callable[[int], Split] | None = None) -> None:
        self.count = pipeline.samples.capacity
        self.position: NDArray[Any] = np.arange(self.count)
        self._samples, self._read = pipeline.samples, read
        self._scale = pipeline.lanes[0].engine.manifest.inputs[0].scale or 1.0
        self._loaded: set[int] = set()

    def load(self, indices: Sequence[int]) -> None:
        """Load what is not in memory yet."""
        for index in sorted({*indices} - self._loaded):
            if self._read is not None:
                self._samples.fill(index, self._read(index), self._scale)
            self._loaded.add(index)

    def unload(self, indices: Sequence[int]) -> None:
        """Keep the memory: each volume has its own."""

    def place(self, indices: Sequence[int]) -> int:
        """Return the case of a query."""
        return indices[0]
