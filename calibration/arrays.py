"""Arrays as calibration data: .npy and .npz files, read in order, one sample at a time."""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.source import Batch, Input, grouped, relative_names

BATCH_ELEMENTS = 4 * 3 * 224 * 224  # as many input values as in a batch of photos
BATCH_SAMPLES = 32
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
READ_ERRORS = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class _Member:
    """One array of a file: the input that it feeds, its name inside an .npz ("" in an .npy), shape and type."""

    path: Path
    label: str
    inside: str
    input: Input
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def single(self) -> bool:
        """Whether the file holds one sample, without an axis for many."""
        return len(self.shape) < len(self.input.shape)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return 1 if self.single else self.shape[0]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.shape if self.single else self.shape[1:]


class Arrays:
    """Samples from .npy files (of a network with one input) or .npz files (one array an input, under its name).

    A file holds samples [N,...], or one sample. What an .npz holds besides is not read. At most `limit` samples are
    used, `fixed_batch` at a time or as many as memory likes. CalibrationError where an array's shape or type is not
    its input's, or differs from file to file.
    """

    def __init__(
        self, paths: Sequence[Path], inputs: Sequence[Input], limit: int | None = None, fixed_batch: int | None = None
    ) -> None:
        self._files = [_members(path, name, inputs) for path, name in relative_names(paths).items()]
        _check_alike([member for members in self._files for member in members])
        held = sum(members[0].samples for members in self._files)
        self._total = held if limit is None else min(held, limit)
        self.batch = fixed_batch or _batch(self._files[0])

    @property
    def total(self) -> int:
        """Number of samples."""
        return self._total

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the samples beside the files."""
        inputs = {member.input.name: list(member.sample_shape) for member in self._files[0]}
        return {"kind": "arrays", "inputs": inputs, "batch": self.batch, "samples": self.total}

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield every batch; samples of those before `first` are read and hashed alone."""
        return grouped(self._samples(first * self.batch), self.batch)

    def _samples(self, passed: int) -> Iterator[Batch]:
        left = self.total
        for members in self._files:
            taken = min(left, members[0].samples)
            if not taken:
                return
            with _opened(members) as streams:
                for _ in range(taken):
                    values = [stream.sample() for stream in streams]
                    files = {stream.member.label: stream.digest for stream in streams}
                    passed -= 1
                    yield Batch({} if passed >= 0 else _arrays(members, values), files)
            left -= taken


class _Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


class _Stream:
    """The samples of one member, read in order; `digest` is the SHA-256 of all bytes read so far."""

    def __init__(self, member: _Member, file: IO[bytes]) -> None:
        self.member = member
        self._file = file
        self._hash = hashlib.sha256()
        self._sample_bytes = math.prod(member.sample_shape) * member.dtype.itemsize
        self._done = 0
        _header(self)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def read(self, size: int = -1) -> bytes:
        """Read bytes as a file does."""
        data = self._file.read(size)
        self._hash.update(data)
        return data

    def sample(self) -> NDArray[Any]:
        """Read the next sample [1,...]."""
        try:
            data = self.read(self._sample_bytes)
        except READ_ERRORS as error:
            raise _unreadable(self.member.label, error) from None
        if len(data) < self._sample_bytes:
            member = self.member
            raise CalibrationError(
                f"{member.label} ends in sample {self._done} of {member.samples}: the file is cut; write it again"
            )
        self._done += 1
        return np.frombuffer(data, self.member.dtype).reshape(1, *self.member.sample_shape)


@contextmanager
def _opened(members: Sequence[_Member]) -> Iterator[list[_Stream]]:
    """Open the members of one file."""
    with ExitStack() as stack:
        yield [_Stream(member, stack.enter_context(_open(member.path, member.inside))) for member in members]


@contextmanager
def _open(path: Path, inside: str) -> Iterator[IO[bytes]]:
    """Open an .npy file, or the array `inside` an .npz."""
    if not inside:
        with path.open("rb") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive, archive.open(f"{inside}.npy") as member:
        yield member


def _members(path: Path, name: str, inputs: Sequence[Input]) -> list[_Member]:
    """Return the arrays of a file that feed the inputs; CalibrationError where one lacks or does not fit."""
    try:
        if path.suffix.lower() == ".npz":
            inside = _inside(path, inputs)
        elif len(inputs) == 1:
            inside = [""]
        else:
            names = ", ".join(entry.name for entry in inputs)
            raise CalibrationError(f"{path} holds one array, expected one for each of {names}: save them as .npz")
        return [_member(path, name, part, entry) for part, entry in zip(inside, inputs, strict=True)]
    except READ_ERRORS as error:
        raise _unreadable(str(path), error) from None


def _inside(path: Path, inputs: Sequence[Input]) -> list[str]:
    """Return the names of the inputs' arrays in an .npz; a single array feeds a single input, whatever its name."""
    with zipfile.ZipFile(path) as archive:
        held = [name.removesuffix(".npy") for name in archive.namelist()]
    wanted = [entry.name for entry in inputs]
    if len(held) == len(wanted) == 1:
        return held
    missing = [name for name in wanted if name not in held]
    if missing:
        raise CalibrationError(
            f"{path} holds the arrays {', '.join(held) or 'none'}, expected {', '.join(wanted)}: "
            f"{missing[0]!r} is missing; name each after its input"
        )
    return wanted


def _member(path: Path, name: str, inside: str, entry: Input) -> _Member:
    label = f"{name}:{inside}" if inside else name
    with _open(path, inside) as file:
        shape, fortran, dtype = _header(file)
    member = _Member(path, label, inside, entry, shape, dtype)
    expected = [len(entry.shape), len(entry.shape) - 1]
    sizes_fit = all(want in (None, size) for size, want in zip(member.sample_shape, entry.shape[1:], strict=False))
    if len(shape) not in expected or not sizes_fit or 0 in shape:
        raise CalibrationError(
            f"{label} has the shape {list(shape)}, expected {_text(entry.shape)} for input {entry.name!r}, "
            "or that without the first axis"
        )
    if dtype.kind != entry.dtype.kind and {dtype.kind, entry.dtype.kind} != {"i", "u"}:
        raise CalibrationError(f"{label} holds {dtype}, expected {entry.dtype} for input {entry.name!r}")
    if fortran and len(shape) > 1:
        raise CalibrationError(f"{label} is in Fortran order, expected C order; save numpy.ascontiguousarray of it")
    return member


def _header(file: _Readable) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an array: shape, whether it is in Fortran order, type; ValueError where it is none."""
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"format version {version[0]}.{version[1]} is not one for plain arrays")
    shape, fortran, dtype = HEADERS[version](file)
    return shape, fortran, dtype


def _batch(members: Sequence[_Member]) -> int:
    """Return how many samples go through the network together."""
    if len(members) > 1 or members[0].input.dtype.kind != "f":
        return 1  # tokens: little goes in, large activations come of it
    return min(BATCH_SAMPLES, max(1, BATCH_ELEMENTS // math.prod(members[0].sample_shape)))


def _check_alike(members: Sequence[_Member]) -> None:
    """Refuse files whose samples do not stack, and inputs of one file that differ in number."""
    first_of: dict[str, _Member] = {}
    samples_of: dict[Path, int] = {}
    for member in members:
        first = first_of.setdefault(member.input.name, member)
        if member.sample_shape != first.sample_shape:
            shapes = f"{list(member.sample_shape)}, expected {list(first.sample_shape)} as in {first.label}"
            raise CalibrationError(f"a sample of {member.label} has the shape {shapes}")
        samples = samples_of.setdefault(member.path, member.samples)
        if member.samples != samples:
            raise CalibrationError(f"{member.label} holds {member.samples} samples, expected {samples} as its fellows")


def _arrays(members: Sequence[_Member], values: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return one sample as its inputs take it; CalibrationError where an integer does not fit."""
    arrays: dict[str, NDArray[Any]] = {}
    for member, value in zip(members, values, strict=True):
        taken = value.astype(member.input.dtype)
        if value.dtype.kind in "iu" and not np.array_equal(taken, value):
            raise CalibrationError(f"{member.label} holds {value.max()}, more than {taken.dtype} of its input takes")
        arrays[member.input.name] = taken
    return arrays


def _unreadable(name: str, error: Exception) -> CalibrationError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return CalibrationError(f"array file {name} cannot be read: {reason}; write it with numpy.save or numpy.savez")


def _text(shape: tuple[int | None, ...]) -> str:
    return "[" + ",".join(["N", *("?" if size is None else str(size) for size in shape[1:])]) + "]"
