"""The one seam: what the toolkit asks of a board. `orin.jetson` and `orin.virtual` implement it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from numpy.typing import NDArray

from engines.engine import Engine
from orin.errors import OrinError
from orin.plan import Plan
from orin.soc import Clocks, Soc

if TYPE_CHECKING:
    from power.meter import Meter

Provenance = Literal["measured", "simulated"]
OnLine = Callable[[int, str], None]


def _same_memory(begin: int, end: int) -> int:
    return 0


@dataclass(frozen=True)
class SharedTensor:
    """Memory that CPU and accelerators share: `array` (uint8) on the CPU's side, `address` on the accelerators'.

    `publish(begin, end)` shows the accelerators what the CPU wrote there and returns how many bytes it had to copy:
    none where both sides are the same memory.
    """

    array: NDArray[Any]
    address: int
    publish: Callable[[int, int], int] = _same_memory


def check_tail(engine: Engine, tail: Engine) -> None:
    """Refuse a tail that reads anything but the outputs of an engine, byte by byte as they lie."""
    made = {binding.name: (binding.dtype, binding.sample_bytes) for binding in engine.manifest.outputs}
    for binding in tail.manifest.inputs:
        if made.get(binding.name) != (binding.dtype, binding.sample_bytes):
            raise OrinError(
                f"tail {tail.path.name} reads {binding.name!r} as {binding.dtype} of {binding.sample_bytes} bytes, "
                f"which {engine.path.name} does not make: build them together"
            )
    taken, given = tail.manifest.spec.batch, engine.manifest.spec.batch
    if taken < given:
        raise OrinError(
            f"tail {tail.path.name} takes {taken} samples, {engine.path.name} makes {given}: build them together"
        )


class LoadedEngine(Protocol):
    """An engine on an accelerator, with `depth` slots that can each hold one batch in flight.

    `copied_bytes` counts what it had to copy to run on its inputs: those of a CUDA graph lie in one fixed place.
    """

    accelerator: str

    @property
    def copied_bytes(self) -> int:
        """Bytes copied so far."""

    def enqueue(self, slot: int, addresses: Sequence[int], samples: int) -> None:
        """Start one batch: `addresses` of its inputs in the order of the manifest; the slot must be idle, or hold
        earlier enqueues of the same work item. Returns at once."""

    def wait(self, slot: int) -> tuple[int, int]:
        """Block until all that was enqueued on a slot is done; return its begin and end on `time.monotonic_ns`."""

    def outputs(self, slot: int) -> list[NDArray[Any]] | None:
        """Return the outputs of the slot's last wait, samples along the first axis; None where none are computed.

        They may lie in the slot's own memory: whoever keeps one beyond the slot's next batch copies it.
        """

    def close(self) -> None:
        """Release the engine."""


class Board(Protocol):
    """A board, real or virtual."""

    name: str
    soc: Soc
    provenance: Provenance
    computes_outputs: bool

    def load(self, engine: Engine, accelerator: str, depth: int, tail: Engine | None = None) -> LoadedEngine:
        """Load an engine onto an accelerator.

        With a `tail` each enqueue is two steps: the engine, then on the GPU the tail, which reads the engine's outputs
        where they lie; the outputs are the tail's.
        """

    def allocate(self, nbytes: int) -> SharedTensor:
        """Allocate zeroed shared memory, 4096-byte aligned."""

    def meter(self, on_line: OnLine | None = None) -> AbstractContextManager[Meter]:
        """Start reading power, stop when the context ends; `on_line` gets each raw line and its arrival time."""

    def keeps_pace(self) -> str | None:
        """Say in one line why the timing of this run is not to be trusted; None where it is."""

    def hold(self, plan: Plan) -> AbstractContextManager[Clocks]:
        """Hold the plan's power mode or clocks and its kind of memory, and restore what was there before; yields the
        clocks in force. What is allocated inside is of that kind."""


def close_board(board: object) -> None:
    """Close a board where it is one that can be closed: a Jetson's holds native memory, the virtual one nothing."""
    close = getattr(board, "close", None)
    if close is not None:
        close()
