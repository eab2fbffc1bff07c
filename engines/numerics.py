"""Running an engine's numbers on any machine through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.engine import Binding, Engine
from engines.errors import EngineError
from engines.formats import unpack

PROVIDER = "CPUExecutionProvider"
CHUNK = 8  # samples a run: more only costs memory on a CPU


class OrtRunner:
    """Computes an engine's outputs: INT8 values, exact products, float32 sums; the same on every CPU.

    `threads` is the number of threads (None: one a core).
    """

    def __init__(self, engine: Engine, threads: int | None = None) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        # Integer kernels of x86 CPUs without VNNI saturate; float32 arithmetic on dequantised values does not.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = ort.InferenceSession(str(engine.path), options, providers=[PROVIDER])
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            reason = " ".join(str(error).split())[:300]
            raise EngineError(f"engine {engine.path} does not load in ONNX Runtime: {reason}; delete it") from None
        if self._session.get_providers() != [PROVIDER]:
            raise EngineError(f"ONNX Runtime runs on {self._session.get_providers()}, expected {PROVIDER} alone")
        self._inputs = engine.manifest.inputs
        self._outputs = [binding.name for binding in engine.manifest.outputs]
        batch = self._session.get_inputs()[0].shape[0]
        self._chunk = batch if isinstance(batch, int) else CHUNK

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Compute the outputs, samples first, of packed inputs: uint8 [N, sample_bytes] each, in manifest order."""
        if len(inputs) != len(self._inputs) or len({len(packed) for packed in inputs}) != 1 or not len(inputs[0]):
            seen = [list(packed.shape) for packed in inputs]
            raise EngineError(
                f"inputs have shapes {seen}, expected {len(self._inputs)} of [N, bytes] with one N over 0"
            )
        starts = range(0, len(inputs[0]), self._chunk)
        parts = [self._run_chunk([packed[start : start + self._chunk] for packed in inputs]) for start in starts]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _run_chunk(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        feed = {binding.name: _real(binding, packed) for binding, packed in zip(self._inputs, inputs, strict=True)}
        outputs: list[NDArray[Any]] = self._session.run(self._outputs, feed)
        return outputs


def _real(binding: Binding, packed: NDArray[Any]) -> NDArray[Any]:
    """Return the real values of one packed input."""
    values = unpack(packed, binding.format, binding.shape, binding.dtype)
    return values if binding.scale is None else values * np.float32(binding.scale)
