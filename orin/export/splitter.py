"""A client of Triton that splits samples between the GPU's model and the DLA's, by the rates it sees.

Each accelerator has a lane with a few requests in flight; lanes take from the pipeline's own work queue, so that at
the tail a slow one takes no batch that the others would finish earlier.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.engine import Binding
from engines.formats import pack, unpack
from engines.preprocess import quantise
from engines.spec import INT8_MAX
from orin.errors import OrinError
from orin.export.triton import SPLIT, SPLIT_VERSION
from orin.work import Chunk, Taker, WorkItem, WorkQueue

REQUEST_TIMEOUT_S = 60.0
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
TYPES = {"float32": "FP32", "float16": "FP16"}  # Triton's names; of the others they are NumPy's in capitals


@dataclass(frozen=True)
class LaneFacts:
    """One accelerator as the client sees it: the model to ask, its batch, and how many requests are in flight."""

    accelerator: str
    model: str
    batch: int
    static: bool
    depth: int


@dataclass(frozen=True)
class Ends:
    """A model's inputs and outputs."""

    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]


@dataclass(frozen=True)
class Split:
    """What `split.json` says: the lanes, and each model's ends."""

    lanes: tuple[LaneFacts, ...]
    models: Mapping[str, Ends]

    @classmethod
    def load(cls, folder: Path) -> Split:
        """Read an exported repository's `split.json`; OrinError where it is none."""
        path = folder / SPLIT
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["version"] != SPLIT_VERSION:
                raise ValueError(f"version {values['version']!r}, expected {SPLIT_VERSION}")
            models = {
                name: Ends(*(_bindings(ends[key]) for key in ("inputs", "outputs")))
                for name, ends in values["models"].items()
            }
            return cls(tuple(LaneFacts(**lane) for lane in values["lanes"]), models)
        except OSError as error:
            raise OrinError(
                f"{path} cannot be read ({error.strerror}): name a folder of `orin export triton`"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OrinError(f"{path} is damaged ({error}): export the repository again") from None


def _bindings(values: Sequence[Mapping[str, Any]]) -> tuple[Binding, ...]:
    return tuple(Binding(**{**entry, "shape": tuple(entry["shape"])}) for entry in values)


class Splitter:
    """A connection to a Triton server that answers samples on all of a repository's models at once.

    `dispatched` counts requests. OrinError where the server cannot be reached, lacks a model, or refuses a request.
    """

    def __init__(self, split: Split, url: str, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        self.split, self.url = split, url
        self.dispatched = dict.fromkeys((lane.accelerator for lane in split.lanes), 0)
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(url, options=UNLIMITED)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def check(self) -> None:
        """Ask the server for each model; OrinError names the first one that it does not serve."""
        import grpc
        from tritonclient.grpc.service_pb2 import ModelReadyRequest

        for model in self.split.models:
            try:
                ready = self._stub.ModelReady(ModelReadyRequest(name=model), timeout=self._timeout_s).ready
            except grpc.RpcError as error:
                raise self._refused(model, error) from None
            if not ready:
                raise OrinError(f"Triton at {self.url} does not serve {model}: start it with the repository's start.sh")

    def infer(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        """Answer samples, one array [N,...] an input (float32, or INT8 as the engines read it); returns each output
        as real values, samples first, in the order of the samples."""
        return _Run(self, inputs).outputs()

    def send(self, lane: LaneFacts, arrays: Sequence[NDArray[Any]]) -> Any:
        """Send one batch and return the call; a static batch is filled up with zeros."""
        self.dispatched[lane.accelerator] += 1
        return self._stub.ModelInfer.future(
            _request(lane, self.split.models[lane.model], arrays), timeout=self._timeout_s
        )

    def answer(self, lane: LaneFacts, call: Any, samples: int) -> list[NDArray[Any]]:
        """Wait for a call and return its first samples as real values."""
        import grpc

        try:
            response = call.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            raise self._refused(lane.model, error) from None
        raw = dict(zip((output.name for output in response.outputs), response.raw_output_contents))
        return [_values(raw, output, lane.model)[:samples] for output in self.split.models[lane.model].outputs]

    def _refused(self, model: str, error: Exception) -> OrinError:
        details = getattr(error, "details", lambda: str(error))()
        return OrinError(f"Triton at {self.url}, model {model}: {' '.join(str(details).split())}")

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Splitter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Run:
    """One call of `infer`: a thread a lane, one queue, and the answers as they come."""

    def __init__(self, splitter: Splitter, inputs: Sequence[NDArray[Any]]) -> None:
        self._splitter = splitter
        ends = next(iter(splitter.split.models.values()))
        self._inputs = _int8(inputs, ends.inputs)
        self._samples = len(inputs[0])
        takers = {lane: Taker(lane.accelerator, lane.batch, 1, lane.static) for lane in splitter.split.lanes}
        self._queue = WorkQueue(list(takers.values()), ordered=False)
        self._takers = takers
        self._results: list[NDArray[Any] | None] = [None] * len(ends.outputs)
        self._lock = threading.Lock()
        self._failure: Exception | None = None

    def outputs(self) -> list[NDArray[Any]]:
        """Run to the end and return the outputs."""
        numbers = range(self._samples)
        if numbers:
            self._queue.put([Chunk(numbers, numbers)])
        self._queue.close()
        threads = [threading.Thread(target=self._work, args=(lane,), daemon=True) for lane in self._takers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure
        return [result for result in self._results if result is not None]

    def _work(self, lane: LaneFacts) -> None:
        try:
            self._drain(lane)
        except Exception as error:  # raised again by the thread that waits for all lanes
            self._failure = self._failure or error
            self._queue.abandon()

    def _drain(self, lane: LaneFacts) -> None:
        flying: deque[tuple[WorkItem, Any]] = deque()
        last_end_ns = 0
        while self._failure is None:
            if len(flying) < lane.depth:
                chunks = self._queue.take(self._takers[lane], block=not flying)
                if chunks:
                    item = WorkItem(lane.accelerator, 0, chunks[0].ids, [], begin_ns=time.monotonic_ns())
                    rows = list(item.ids)
                    flying.append((item, self._splitter.send(lane, [array[rows] for array in self._inputs])))
                    continue
                if chunks is None and not flying:
                    return
            if flying:
                item, call = flying.popleft()
                outputs = self._splitter.answer(lane, call, len(item.ids))
                item.begin_ns = max(item.begin_ns, last_end_ns)  # before that the lane was busy with another request
                item.end_ns = last_end_ns = time.monotonic_ns()
                self._queue.finished(item)
                self._keep(item, outputs)

    def _keep(self, item: WorkItem, outputs: Sequence[NDArray[Any]]) -> None:
        with self._lock:
            for index, output in enumerate(outputs):
                if self._results[index] is None:
                    self._results[index] = np.empty((self._samples, *output.shape[1:]), output.dtype)
                self._results[index][list(item.ids)] = output  # type: ignore[index]


def _int8(inputs: Sequence[NDArray[Any]], bindings: Sequence[Binding]) -> list[NDArray[Any]]:
    """Return samples as the engines' type has them; OrinError where they do not fit."""
    if len(inputs) != len(bindings):
        raise OrinError(f"{len(inputs)} arrays are given, the models have {len(bindings)} inputs")
    made = []
    for array, binding in zip(inputs, bindings):
        if array.shape[1:] != binding.shape:
            raise OrinError(
                f"input {binding.name} has the shape {list(array.shape)}, "
                f"expected [N,{','.join(map(str, binding.shape))}]"
            )
        if binding.scale is not None and array.dtype != np.int8:
            made.append(quantise(array, binding.scale * INT8_MAX))
        else:
            made.append(array.astype(binding.dtype, copy=False))
    return made


def _request(lane: LaneFacts, ends: Ends, arrays: Sequence[NDArray[Any]]) -> Any:
    from tritonclient.grpc.service_pb2 import ModelInferRequest

    tensor = ModelInferRequest.InferInputTensor
    samples = lane.batch if lane.static else len(arrays[0])
    request = ModelInferRequest(model_name=lane.model)
    for array, binding in zip(arrays, ends.inputs):
        kind = TYPES.get(binding.dtype, binding.dtype.upper())
        request.inputs.append(tensor(name=binding.name, datatype=kind, shape=(samples, *binding.shape)))
        packed = pack(array, binding.format).tobytes()
        request.raw_input_contents.append(packed.ljust(samples * binding.sample_bytes, b"\0"))
    return request


def _values(raw: Mapping[str, bytes], binding: Binding, model: str) -> NDArray[Any]:
    """Return an output's real values, [samples, ...]."""
    data = raw.get(binding.name, b"")
    if not data or len(data) % binding.sample_bytes:
        raise OrinError(
            f"model {model} answers {len(data)} bytes for {binding.name}, expected a multiple of "
            f"{binding.sample_bytes}: the server runs another repository, export it again"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, binding.sample_bytes)
    values = unpack(rows, binding.format, binding.shape, binding.dtype)
    if binding.scale is not None:
        real: NDArray[Any] = values * np.float32(binding.scale)
        return real
    return values.astype(np.float32) if values.dtype == np.float16 else values
