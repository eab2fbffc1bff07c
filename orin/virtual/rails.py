"""What the virtual board publishes for its tegrastats: a small memory-mapped file, read across processes.

No locks: a sequence counter is odd while the one publisher writes, and a reader that saw it odd or changing reads
again. A checksum covers CPUs that let another core see stores in a different order.
"""

from __future__ import annotations

import mmap
import struct
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from orin.errors import OrinError

_MAGIC = b"orinrls1"
_RAILS = 4  # most that a board of the Orin family has
_SEQUENCE = struct.Struct("<Q")
_PAYLOAD = struct.Struct(f"<q{_RAILS}d4q4d?")
_CHECKSUM = struct.Struct("<I")
_SEQUENCE_AT = len(_MAGIC)
_PAYLOAD_AT = _SEQUENCE_AT + _SEQUENCE.size
_CHECKSUM_AT = _PAYLOAD_AT + _PAYLOAD.size
_SIZE = _CHECKSUM_AT + _CHECKSUM.size
_PATIENCE_S = 1.0  # a write takes microseconds: one that lasts this long was cut off


@dataclass(frozen=True)
class RailsState:
    """The board at one moment. Energies, busy times and DRAM traffic are cumulative, so that a reader at any cadence
    gets exact means; `energy_mj` is in the order of the board's rails, of which the file has room for four."""

    monotonic_ns: int
    energy_mj: tuple[float, ...]
    gpu_busy_ns: int
    dla0_busy_ns: int
    dla1_busy_ns: int
    dram_bytes: int
    gpu_mhz: float
    dla_mhz: float
    emc_mhz: float
    cpu_mhz: float
    stopped: bool = False


class RailsFile:
    """The file: one publisher (`create`), any number of readers (`open`)."""

    def __init__(self, memory: mmap.mmap, path: Path) -> None:
        self.path = path
        self._memory = memory
        self._sequence = 0

    @classmethod
    def create(cls, path: Path) -> RailsFile:
        """Make the file, holding a board whose counters and clocks are all zero; readers of an older one keep it."""
        try:
            path.unlink(missing_ok=True)  # to cut a file short under a reader's mapping would kill the reader
            with path.open("x+b") as file:
                file.write(_MAGIC.ljust(_SIZE, b"\0"))
                file.flush()
                rails = cls(mmap.mmap(file.fileno(), _SIZE), path)
        except OSError as error:
            raise OrinError(f"rails file {path} cannot be made: {error.strerror}") from None
        rails.publish(RailsState(time.monotonic_ns(), (0.0,) * _RAILS, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0))
        return rails

    @classmethod
    def open(cls, path: Path) -> RailsFile:
        """Open a file that `create` made; OrinError where it is missing or another file."""
        try:
            with path.open("rb") as file:
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise OrinError(f"rails file {path} cannot be opened: {error}; is the virtual board running?") from None
        if len(memory) != _SIZE or memory[:_SEQUENCE_AT] != _MAGIC:
            memory.close()
            raise OrinError(f"{path} is not the rails file of a virtual board of this version")
        return cls(memory, path)

    def publish(self, state: RailsState) -> None:
        """Replace the state; a few microseconds. Calls must not overlap."""
        payload = _PAYLOAD.pack(
            state.monotonic_ns,
            *(*state.energy_mj, *(0.0,) * (_RAILS - len(state.energy_mj))),
            state.gpu_busy_ns,
            state.dla0_busy_ns,
            state.dla1_busy_ns,
            state.dram_bytes,
            state.gpu_mhz,
            state.dla_mhz,
            state.emc_mhz,
            state.cpu_mhz,
            state.stopped,
        )
        memory = self._memory
        _SEQUENCE.pack_into(memory, _SEQUENCE_AT, self._sequence + 1)
        memory[_PAYLOAD_AT:_SIZE] = payload + _CHECKSUM.pack(zlib.crc32(payload))
        self._sequence += 2
        _SEQUENCE.pack_into(memory, _SEQUENCE_AT, self._sequence)

    def read(self) -> RailsState:
        """Return the last state; OrinError where its publisher died while writing."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            payload = self._try_read()
            if payload is not None:
                return _state(payload)
            if time.monotonic() > deadline:
                raise OrinError(f"rails file {self.path} holds a half-written state: its board has died")
            time.sleep(0)

    def close(self) -> None:
        """Unmap the file; it stays on disk."""
        self._memory.close()

    def _try_read(self) -> bytes | None:
        memory = self._memory
        (before,) = _SEQUENCE.unpack_from(memory, _SEQUENCE_AT)
        payload = memory[_PAYLOAD_AT:_CHECKSUM_AT]
        (checksum,) = _CHECKSUM.unpack_from(memory, _CHECKSUM_AT)
        (after,) = _SEQUENCE.unpack_from(memory, _SEQUENCE_AT)
        whole = before == after and before % 2 == 0 and zlib.crc32(payload) == checksum
        return payload if whole else None


def _state(payload: bytes) -> RailsState:
    stamp_ns, *values = _PAYLOAD.unpack(payload)
    return RailsState(stamp_ns, tuple(values[:_RAILS]), *values[_RAILS:])
