"""What INT8 costs in answers: top-1 and top-5 beside the float network's, and which layers lose most.

Proportions carry Wilson's 95 % interval: it holds near 100 %, where the usual one has no width (E. B. Wilson, "Probable
Inference, the Law of Succession, and Statistical Inference", JASA 22, 1927).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.sqnr import Noise, NoiseMeter, Runner, activations, rounded_forms
from engines.graph import Graph, Layer, read_graph
from engines.qdq import insert_qdq

if TYPE_CHECKING:
    import onnx

Z95 = 1.959963984540054  # of the normal distribution, two-sided 95 %
TOP = 5
SUMS = ("Add", "Sub", "Sum")  # noise of independent inputs adds in energy


@dataclass(frozen=True)
class Share:
    """How many of a number of samples, with Wilson's 95 % interval."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """The share itself, 0 to 1."""
        return self.hits / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the 95 % interval."""
        n, p, square = self.total, self.value, Z95**2
        centre = (p + square / (2 * n)) / (1 + square / n)
        half = Z95 / (1 + square / n) * math.sqrt(p * (1 - p) / n + square / (4 * n**2))
        return (centre - half if self.hits else 0.0), (centre + half if self.hits < n else 1.0)

    def __add__(self, other: Share) -> Share:
        return Share(self.hits + other.hits, self.total + other.total)

    def as_json(self) -> dict[str, float]:
        """Return the share, its interval and the two counts."""
        low, high = self.interval
        return {"value": self.value, "low": low, "high": high, "hits": self.hits, "total": self.total}


@dataclass(frozen=True)
class LabelledBatch:
    """Float32 samples [B,...] of a network's one input, and the class of each, int64 [B]; None where unknown."""

    inputs: NDArray[Any]
    labels: NDArray[Any] | None = None


@dataclass(frozen=True)
class Int8Network:
    """A float network with what makes INT8 of it: ranges, and layers that stay in FP16."""

    network: onnx.ModelProto
    amax_by_tensor: Mapping[str, float]
    fp16_layers: tuple[str, ...] = ()

    def quantised(self, fp16_layers: Sequence[str] = ()) -> onnx.ModelProto:
        """Return the network with Q/DQ pairs, with more layers in FP16."""
        return insert_qdq(self.network, self.amax_by_tensor, (*self.fp16_layers, *fp16_layers))


@dataclass(frozen=True)
class Score:
    """How a network answers: shares are None without labels, or where it is no classifier.

    `agreement` is the share of samples with the float network's top-1; `sqnr_db` is at the network's outputs.
    """

    top1: Share | None = None
    top5: Share | None = None
    agreement: Share | None = None
    sqnr_db: float = math.inf

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; an SQNR without noise is infinite."""
        shares = {"top1": self.top1, "top5": self.top5, "agreement": self.agreement}
        return {**{name: share and share.as_json() for name, share in shares.items()}, "sqnr_db": self.sqnr_db}


@dataclass(frozen=True)
class LayerNoise:
    """What INT8 does to a layer's output; `layers` are those that run as one, `op` says which operators.

    `added` is the noise energy that comes in here, as a share of the signal's: what the output has, less what the
    inputs bring. Where a sum alone reads the output, it is a share of the sum's: that is where it ends up.
    """

    layers: tuple[str, ...]
    op: str
    tensor: str
    sqnr_db: float
    added: float


@dataclass(frozen=True)
class Fp16Gain:
    """How the network answers with one more layer in FP16."""

    layer: LayerNoise
    score: Score


@dataclass(frozen=True)
class Assessment:
    """A network in float and in INT8 on the same samples; `layers` from the one that adds most noise on."""

    samples: int
    fp32: Score
    int8: Score
    layers: tuple[LayerNoise, ...]
    gains: tuple[Fp16Gain, ...]


Progress = Callable[[int], None]


def assess(
    int8: Int8Network, batches: Iterable[LabelledBatch], worst: int = 0, progress: Progress | None = None
) -> Assessment:
    """Run a network in float and in INT8, then again with each of the `worst` layers in FP16.

    `batches` is gone through twice where `worst` is not 0, one batch in memory at a time; `progress` is called with
    the samples done, of both passes. CalibrationError where there is no sample, or a label is no class.
    """
    names, quantised = activations(int8.network), int8.quantised()
    graph, meter = read_graph(int8.network), NoiseMeter(quantised, names)
    outputs = [name for name in graph.outputs if name in names]
    fp32, (score,) = _measure(Runner(int8.network, names), [meter], outputs, batches, progress)
    layers = rank(graph, quantised, meter.noise)
    gains = _gains(int8, layers[:worst], batches, outputs, _shifted(progress, fp32.samples))
    return Assessment(fp32.samples, fp32.score(Noise()), score, layers, gains)


def rank(graph: Graph, quantised: onnx.ModelProto, noise: Mapping[str, Noise]) -> tuple[LayerNoise, ...]:
    """Return what each layer adds, most first; layers that run as one, such as Conv and ReLU, count once."""
    readers = _readers(graph)
    runs = _fused(graph, readers, set(rounded_forms(quantised)))
    found = [_layer_noise(layers, readers, noise) for layers in runs if layers[-1].outputs[0] in noise]
    return tuple(sorted(found, key=lambda entry: -entry.added))


def _layer_noise(
    layers: Sequence[Layer], readers: Mapping[str, Sequence[Layer]], noise: Mapping[str, Noise]
) -> LayerNoise:
    tensor = layers[-1].outputs[0]
    seen = noise[tensor]
    ends_up = [noise[layer.outputs[0]].signal for layer in readers.get(tensor, ()) if layer.op in SUMS]
    weight = seen.signal / ends_up[0] if len(ends_up) == len(readers.get(tensor, ())) == 1 and ends_up[0] else 1.0
    share = seen.share if seen.signal else 0.0  # a tensor that is always zero has nothing to lose
    return LayerNoise(
        layers=tuple(layer.name for layer in layers),
        op="+".join(layer.op for layer in layers),
        tensor=tensor,
        sqnr_db=seen.sqnr_db,
        added=max(0.0, share - _brought(layers, noise)) * weight,
    )


def _brought(run: Sequence[Layer], noise: Mapping[str, Noise]) -> float:
    """Return the noise that a run reads, as it arrives at its end, as a share; a sum adds that of its inputs."""
    shares: dict[str, float] = {}
    for layer in run:
        read = [name for name in layer.inputs if name in noise]
        share = {name: shares.get(name, noise[name].share) for name in read}
        came = max(share.values(), default=0.0)
        if layer.op in SUMS:
            came = Noise(noise[layer.outputs[0]].signal, sum(share[name] * noise[name].signal for name in read)).share
        shares.update(dict.fromkeys(layer.outputs, came))
    return shares[run[-1].outputs[0]]


def _readers(graph: Graph) -> dict[str, list[Layer]]:
    readers: dict[str, list[Layer]] = {}
    for layer in graph.layers:
        for name in layer.inputs:
            readers.setdefault(name, []).append(layer)
    return readers


def _fused(graph: Graph, readers: Mapping[str, Sequence[Layer]], rounded: set[str]) -> list[list[Layer]]:
    """Return the layers in runs: one whose result is not rounded belongs to its only reader."""
    behind: dict[str, list[Layer]] = {}
    runs = []
    for layer in (layer for layer in graph.layers if layer.inputs):
        run = [*(before for name in layer.inputs for before in behind.pop(name, ())), layer]
        result = layer.outputs[0]
        if result not in rounded and result not in graph.outputs and len(readers.get(result, ())) == 1:
            behind[result] = run
        else:
            runs.append(run)
    return runs


def _gains(
    int8: Int8Network,
    layers: Sequence[LayerNoise],
    batches: Iterable[LabelledBatch],
    outputs: Sequence[str],
    progress: Progress | None,
) -> tuple[Fp16Gain, ...]:
    if not layers:
        return ()
    meters = [NoiseMeter(int8.quantised(layer.layers), outputs) for layer in layers]
    _, scores = _measure(Runner(int8.network, outputs), meters, outputs, batches, progress)
    return tuple(Fp16Gain(layer, score) for layer, score in zip(layers, scores, strict=True))


def _measure(
    reference: Runner,
    meters: Sequence[NoiseMeter],
    outputs: Sequence[str],
    batches: Iterable[LabelledBatch],
    progress: Progress | None,
) -> tuple[_Tally, list[Score]]:
    """Run every network on every batch; returns the float network's tally and the others' scores."""
    first, others = _Tally(), [_Tally() for _ in meters]
    for batch in batches:
        expected = reference.run(batch.inputs)
        classes = _classes(expected, outputs)
        first.add(batch, classes)
        for tally, meter in zip(others, meters, strict=True):
            tally.add(batch, _classes(meter.compare(batch.inputs, expected), outputs), classes)
        if progress is not None:
            progress(first.samples)
    if not first.samples:
        raise CalibrationError("no sample to compare the networks on, expected one at least")
    return first, [tally.score(_at(meter.noise, outputs)) for tally, meter in zip(others, meters, strict=True)]


@dataclass
class _Tally:
    """Answers of one network, counted batch after batch."""

    samples: int = 0
    top1: Share | None = None
    top5: Share | None = None
    agreement: Share | None = None

    def add(self, batch: LabelledBatch, classes: NDArray[Any] | None, expected: NDArray[Any] | None = None) -> None:
        """Take the class scores [B,C] of a batch, beside those of the float network."""
        self.samples += len(batch.inputs)
        if classes is None:
            return
        if expected is not None:
            self.agreement = _more(self.agreement, classes.argmax(1) == expected.argmax(1))
        if batch.labels is not None:
            places = _places(classes, batch.labels)
            self.top1, self.top5 = _more(self.top1, places < 1), _more(self.top5, places < TOP)

    def score(self, noise: Noise) -> Score:
        """Return the shares so far, and the SQNR of the outputs' noise."""
        return Score(self.top1, self.top5, self.agreement, noise.sqnr_db)


def _more(share: Share | None, hits: NDArray[Any]) -> Share:
    new = Share(int(hits.sum()), hits.size)
    return new if share is None else share + new


def _classes(made: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> NDArray[Any] | None:
    """Return the scores [B,C] of a classifier: a network with one floating-point output, one row a sample."""
    scores = made[outputs[0]] if len(outputs) == 1 else None
    if scores is None or scores.ndim < 2 or scores[0].size != scores.shape[1]:
        return None
    return scores.reshape(len(scores), -1)


def _places(classes: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Return at which place (0: first) each label stands among the scores [B,C]; of equal ones the first wins."""
    wrong = labels[(labels < 0) | (labels >= classes.shape[1])]
    if wrong.size:
        raise CalibrationError(
            f"label {wrong[0]} is no class of the network: they are 0 to {classes.shape[1] - 1}; check the labels"
        )
    own = np.take_along_axis(classes, labels[:, None], axis=1)
    before = np.arange(classes.shape[1])[None, :] < labels[:, None]
    places: NDArray[Any] = ((classes > own) | ((classes == own) & before)).sum(axis=1)
    return places


def _at(noise: Mapping[str, Noise], outputs: Sequence[str]) -> Noise:
    """Return the noise of all outputs together."""
    seen = [noise[name] for name in outputs]
    return Noise(sum(each.signal for each in seen), sum(each.noise for each in seen))


def _shifted(progress: Progress | None, by: int) -> Progress | None:
    return None if progress is None else lambda done: progress(by + done)
