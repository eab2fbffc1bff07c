"""Two engines as one: a backbone on its accelerator, and behind it a tail on the GPU, which reads its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from numpy.typing import NDArray

from orin.jetson.engine import JetsonEngine


class JetsonChain:
    """A backbone with its tail; see `orin.board.LoadedEngine`.

    Each has a stream: the tail's waits for the backbone's event, so that neither the host nor the accelerator, which
    goes on with the next slot, waits for the tail. The outputs of a slot's backbone are free again when its tail is
    done.
    """

    def __init__(self, backbone: JetsonEngine, tail: JetsonEngine) -> None:
        self.accelerator = backbone.accelerator
        self._backbone, self._tail = backbone, tail

    @property
    def copied_bytes(self) -> int:
        """What the backbone had to copy to run on its inputs; the tail copies nothing."""
        return self._backbone.copied_bytes + self._tail.copied_bytes

    def enqueue(self, slot: int, addresses: Sequence[int], samples: int) -> None:
        """Start one batch, and its tail behind it; see `orin.board.LoadedEngine`."""
        self._backbone.enqueue(slot, addresses, samples)
        end, lie_at = self._backbone.latest(slot)
        self._tail.enqueue(slot, [lie_at[name] for name in self._tail.inputs], samples, after=end)

    def wait(self, slot: int) -> tuple[int, int]:
        """Block until a slot's tails are done; it begins with the backbone and ends with the tail."""
        begin_ns, _ = self._backbone.wait(slot)
        _, end_ns = self._tail.wait(slot)
        return begin_ns, end_ns

    def outputs(self, slot: int) -> list[NDArray[Any]]:
        """Return the tail's outputs of the slot's last wait."""
        return self._tail.outputs(slot)

    def close(self) -> None:
        """Release both, the tail first: it reads the backbone's memory."""
        with ExitStack() as steps:
            steps.callback(self._backbone.close)
            steps.callback(self._tail.close)
