"""How far INT8 moves each tensor of a network: signal to quantisation noise in dB, streamed over batches.

The INT8 network is the one with Q/DQ pairs that `engines.qdq` makes, run as `engines.numerics` runs it: exact products
of rounded values, float32 sums. A tensor is compared in the form that the next layer reads: rounded, where it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from engines.graph import read_graph
from engines.onnx_model import keeps_batch, with_batch

if TYPE_CHECKING:
    import onnx

FLOATS = ("float32", "float64")
BATCH = "N"


@dataclass
class Noise:
    """Energy of a tensor and of its difference from what it should be, summed over batches in float64."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, expected: NDArray[Any], seen: NDArray[Any]) -> None:
        """Take one batch of a tensor."""
        wide = expected.astype(np.float64)
        self.signal += float(np.square(wide).sum())
        self.noise += float(np.square(seen - wide).sum())

    @property
    def share(self) -> float:
        """Noise energy as a share of the signal's: 0 where nothing differs."""
        if not self.noise:
            return 0.0
        return self.noise / self.signal if self.signal else math.inf

    @property
    def sqnr_db(self) -> float:
        """Signal over noise in dB: infinite where nothing differs."""
        if not self.share:
            return math.inf
        return -10 * math.log10(self.share) if self.share < math.inf else -math.inf


class Runner:
    """A network of one input in ONNX Runtime, with the tensors that are asked for as its outputs.

    CalibrationError where ONNX Runtime refuses the network or a batch.
    """

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str]) -> None:
        import onnxruntime

        batch: int | str = BATCH if keeps_batch(model, BATCH) else 1
        self._names = list(tensors)
        self._whole = batch == BATCH
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what it logs comes back as the exception
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # as `engines.numerics`
        encoded = _ending_at(with_batch(model, batch), tensors).SerializeToString()
        try:
            self._session = onnxruntime.InferenceSession(encoded, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no base class of their own
            raise CalibrationError(f"ONNX Runtime cannot load the network: {_line(error)}") from error
        self._input = self._session.get_inputs()[0].name

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the tensors of a batch [B,...], by name."""
        if self._whole:
            return self._run(batch)
        parts = [self._run(batch[index : index + 1]) for index in range(len(batch))]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._names}

    def _run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        try:
            return dict(zip(self._names, self._session.run(self._names, {self._input: batch}), strict=True))
        except Exception as error:  # as above
            raise CalibrationError(
                f"the network does not run on a batch {list(batch.shape)}: {_line(error)}"
            ) from error


class NoiseMeter:
    """An INT8 network that runs beside the float one; `noise` holds what it adds to each tensor so far."""

    def __init__(self, quantised: onnx.ModelProto, tensors: Sequence[str]) -> None:
        outputs = {value.name for value in quantised.graph.output}
        rounded = {name: form for name, form in rounded_forms(quantised).items() if name not in outputs}
        self._forms = {name: rounded.get(name, name) for name in tensors}
        self._runner = Runner(quantised, list(self._forms.values()))
        self.noise = {name: Noise() for name in tensors}

    def compare(self, batch: NDArray[Any], expected: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a batch and hold it against the float network's tensors; return the INT8 network's, by the same names."""
        made = self._runner.run(batch)
        seen = {name: made[form] for name, form in self._forms.items()}
        for name, noise in self.noise.items():
            noise.add(expected[name], seen[name])
        return seen


def measure_noise(
    model: onnx.ModelProto, quantised: onnx.ModelProto, batches: Iterable[NDArray[Any]]
) -> dict[str, Noise]:
    """Return the noise of every activation of a network in its INT8 form, the input's first; one batch is in memory."""
    names = activations(model)
    reference, meter = Runner(model, names), NoiseMeter(quantised, names)
    for batch in batches:
        meter.compare(batch, reference.run(batch))
    return meter.noise


def activations(model: onnx.ModelProto) -> list[str]:
    """Return the inputs and all that layers make, floating point, in the graph's order."""
    graph = read_graph(model)
    made = (name for layer in graph.layers if layer.inputs for name in layer.outputs)
    return [name for name in (*graph.inputs, *made) if graph.tensors[name].dtype in FLOATS]


def rounded_forms(quantised: onnx.ModelProto) -> dict[str, str]:
    """Return which tensor holds the values of another rounded to INT8, for each that has a Q/DQ pair."""
    sources = {node.output[0]: node.input[0] for node in quantised.graph.node if node.op_type == "QuantizeLinear"}
    back = [node for node in quantised.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in sources]
    return {sources[node.input[0]]: node.output[0] for node in back}


def _ending_at(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """Return the model with these tensors as its outputs."""
    from onnx import ValueInfoProto

    known = {value.name: value for value in model.graph.output}
    values = [known.get(name) or ValueInfoProto(name=name) for name in tensors]
    del model.graph.output[:]
    model.graph.output.extend(values)
    return model


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
