"""Split, predict, merge: a volume's labels in one pass of bounded memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.volumes.adding import add, compiled
from engines.volumes.dice import CLASSES
from engines.volumes.merge import FLOAT_BYTES, Merge, Write, accumulator_bytes, into_labels, into_logits
from engines.volumes.plan import OVERLAP, WINDOW, Triple, WindowPlan, plan_windows
from engines.volumes.split import Split
from engines.volumes.weights import window_weights

Predict = Callable[[NDArray[Any]], NDArray[Any]]  # float32 [N,1,d,h,w] to logits [N,C,d,h,w]
Progress = Callable[[int, int], None]  # windows done, of how many
WORTH_SHARING = 1 << 18  # numbers of a window; threads would cost more than they save on fewer


@dataclass(frozen=True)
class Sliding:
    """How a network slides over volumes; `batch` windows a call, `threads` for all but the network (None: cores).

    `compiled` adds with Numba, in half the time, once a second or two have gone into compiling: worth it where windows
    come every few milliseconds.
    """

    window: Triple = WINDOW
    overlap: float = OVERLAP
    weights: str = "mlperf"
    classes: int = CLASSES
    batch: int = 1
    threads: int | None = None
    compiled: bool = False

    def plan(self, shape: Sequence[int]) -> WindowPlan:
        """Return the windows of a volume [D,H,W]."""
        return plan_windows(shape, self.window, self.overlap)

    def peak_bytes(self, shape: Sequence[int]) -> int:
        """Return what `segment` takes beside volume and network: accumulators, labels, weights, windows in and out.

        Each thread takes less than a megabyte more.
        """
        plan, side = self.plan(shape), math.prod(self.window)
        windows = FLOAT_BYTES * side * (1 + self.batch * (1 + self.classes))
        return accumulator_bytes(plan, self.classes) + windows + math.prod(shape)


def segment(split: Split, predict: Predict, sliding: Sliding, progress: Progress | None = None) -> NDArray[Any]:
    """Return the labels of a volume, int8 [D,H,W]; EngineError where the network's logits do not fit or are NaN."""
    labels = np.empty(split.plan.shape, np.int8)
    _slide(split, predict, sliding, into_labels(labels), progress)
    return labels


def logits(split: Split, predict: Predict, sliding: Sliding, progress: Progress | None = None) -> NDArray[Any]:
    """Return a volume's logits, float32 [C,D,H,W]: the weighed mean over the windows that cover a voxel."""
    made = np.empty((sliding.classes, *split.plan.shape), np.float32)
    write = into_logits(made, split.plan, window_weights(sliding.weights, sliding.window))
    _slide(split, predict, sliding, write, progress)
    return made


def _slide(split: Split, predict: Predict, sliding: Sliding, write: Write, progress: Progress | None) -> None:
    """Run every window; what no window reaches any more is written at once."""
    plan, done = split.plan, 0
    how = compiled() if sliding.compiled else add
    merge = Merge(plan, window_weights(sliding.weights, sliding.window), sliding.classes, write, how)
    windows = np.zeros((sliding.batch, 1, *sliding.window), np.float32)  # the last call may be short of windows
    with ThreadPoolExecutor(sliding.threads or os.cpu_count()) as pool:
        share = pool.map if sliding.classes * math.prod(sliding.window) >= WORTH_SHARING else map
        for starts in _batches(plan, sliding.batch):
            for start, window in zip(starts, windows[:, 0]):
                split.cut_into(start, window, share)
            answers = _checked(predict(windows), sliding)
            for start, answer in zip(starts, answers):
                merge.add(start, answer, share)
            done += len(starts)
            if progress:
                progress(done, len(plan))


def _batches(plan: WindowPlan, batch: int) -> Iterator[list[Triple]]:
    starts = iter(plan)
    while part := list(islice(starts, batch)):
        yield part


def _checked(answers: NDArray[Any], sliding: Sliding) -> NDArray[Any]:
    wanted = (sliding.batch, sliding.classes, *sliding.window)
    if answers.shape != wanted:
        raise EngineError(f"the network gave {list(answers.shape)}, expected logits {list(wanted)} for its windows")
    return answers
