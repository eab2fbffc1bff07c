"""Networks of varying length: how much work one sample of a data set holds, and RNN-T as a table of its parts.

A graph of the zoo has one length. A sample of the data set holds another amount of work on average; a mean is all that
this gives, no distribution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engines.costs import LayerWork
from engines.engine import Workload

RNNT = "rnnt"


@dataclass(frozen=True)
class Length:
    """What the mean sample of a data set holds, in units of the zoo's graph, and where that is from.

    A sample is so many runs of the whole graph, one after another, or, where it is `cut`, one run of a shorter one.
    """

    graphs: float
    source: str
    cut: bool = False

    def work(self, whole: Workload) -> Workload:
        """Return what one enqueue of the mean sample holds."""
        return cut(whole, self.graphs) if self.cut else whole

    @property
    def runs(self) -> float:
        """How many enqueues the mean sample takes."""
        return 1.0 if self.cut else self.graphs


# 64 225 280 voxels are 320 x 448 x 448, hence (320/64 - 1) (448/64 - 1)^2 = 144 windows
LENGTHS = {
    "bert-large": Length(
        178 / 384, "SQuAD v1.1: about 178 tokens a sample of at most 384 (not counted here), no padding", cut=True
    ),
    "unet3d": Length(
        144 * 1.96 / 4.37,
        "KiTS19: the largest case has 144 windows and took 4.37 s in MLPerf v3.1's log, the mean one 1.96 s",
    ),
}
ONE = Length(1.0, "")


@dataclass(frozen=True)
class Part:
    """A part of a recurrent network: weights that a step multiplies, elements that it reads and writes.

    It takes `per_step` steps of its own in one of the sample's. A `recurrent` part needs the step before and reads its
    weights at each; the others take all steps as one product.
    """

    name: str
    weights: int
    reads: int
    writes: int
    per_step: float
    recurrent: bool = True


# MLPerf's RNN-T (LibriSpeech): weights are multiply-accumulates a step. dev-clean has 5.4 h in 2,703 utterances, MLPerf
# keeps the 2,513 of at most 15 s: about 6.3 s each, 15 letters a second. LSTMs: 1024 wide, two before stacking (240 and
# 1024 inputs), three behind it (2048, 1024, 1024): four gates, each of inputs and of the state before; what the inputs
# come to is written for all steps, read one by one. Prediction: two LSTMs of 320. Joint: 1024 + 320 to 512 to 29.
RNNT_STEP_S, RNNT_STEPS = 0.03, 210  # of the mean utterance
_LETTERS = 15.0 * RNNT_STEP_S
_STATE, _GATES = 1024, 4 * 1024
RNNT_PARTS = (
    Part("encoder inputs, before stacking", _GATES * 1264, 1264, 2 * _GATES, 1.0, recurrent=False),
    Part("encoder, before stacking", _GATES * 2 * _STATE, 2 * (_GATES + _STATE), 2 * _STATE, 1.0),
    Part("encoder inputs, after stacking", _GATES * 4096, 4096, 3 * _GATES, 0.5, recurrent=False),
    Part("encoder, after stacking", _GATES * 3 * _STATE, 3 * (_GATES + _STATE), 3 * _STATE, 0.5),
    Part("prediction", 1_638_400, 4 * 320, 2 * 320, _LETTERS),
    Part("joint", 702_976, 1024 + 320 + 512, 512 + 29, 0.5 + _LETTERS),
)


def cut(work: Workload, share: float) -> Workload:
    """Return a network of sequences at a share of their length: attention shrinks with its square."""
    layers = tuple(_cut(layer, share) for layer in work.layers)
    return replace(
        work,
        macs=sum(layer.macs for layer in layers) if layers else round(share * work.macs),
        activation_bytes=round(share * work.activation_bytes),
        output_bytes=round(share * work.output_bytes),
        layers=layers,
    )


def _cut(layer: LayerWork, share: float) -> LayerWork:
    rows = max(1, round(share * layer.rows)) if layer.rows else 0
    shorter = replace(
        layer,
        macs=round(share * layer.macs),
        rows=rows,
        input_bytes=round(share * layer.input_bytes),
        output_bytes=round(share * layer.output_bytes),
        curve_bytes=round(share * layer.curve_bytes),
    )
    if layer.op != "matmul" or layer.groups < 2:
        return shorter
    macs = round(share * share * layer.macs)
    if layer.columns == layer.rows:  # scores: queries by keys
        return replace(shorter, macs=macs, columns=round(share * layer.columns))
    return replace(shorter, macs=macs, depth=round(share * layer.depth))


def rnnt_workload(steps: float = RNNT_STEPS) -> Workload:
    """Return the work of one utterance of so many steps."""
    layers = tuple(_part(part, steps * part.per_step) for part in RNNT_PARTS)
    macs, weights = sum(layer.macs for layer in layers), sum(layer.weight_bytes for layer in layers)
    activations = sum(layer.input_bytes + layer.output_bytes for layer in layers)
    return Workload(macs=macs, weight_bytes=weights, activation_bytes=activations, layers=layers)


def _part(part: Part, steps: float) -> LayerWork:
    """A product of rows by a matrix of 1024 inputs: of one row once a step, or of all steps at once."""
    times = max(1, round(steps))
    rows, groups = (1, times) if part.recurrent else (times, 1)
    return LayerWork(
        name=part.name,
        op="matmul",
        macs=round(part.weights * steps),
        rows=rows,
        columns=max(1, part.weights // 1024),
        depth=1024,
        groups=groups,
        window=1,
        weight_bytes=part.weights * groups,
        input_bytes=part.reads * times,
        output_bytes=part.writes * times,
        curve_bytes=0,
    )
