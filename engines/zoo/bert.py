"""BERT-large with the SQuAD head, as PyTorch exports it before opset 17: layer normalisation and GELU in their parts.

Source: MLPerf Inference v0.7 on, `language/bert`; Hugging Face `BertForQuestionAnswering` with BERT-large's sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from engines.zoo.builder import NetworkBuilder, Spread

if TYPE_CHECKING:
    import onnx

    from engines.zoo.store import Store

SEED = 384
LAYERS = 24
HIDDEN = 1024
HEADS = 16
HEAD = HIDDEN // HEADS
INNER = 4096  # features between the two linear layers of a feed-forward part
WORDS = 30_522
POSITIONS = 512
SEGMENTS = 2
TOKENS = 384
MASKED = -10_000.0  # added to the scores of what is no token
EPSILON = 1e-12
INPUTS = ("input_ids", "input_mask", "segment_ids")
EMBEDDING = Spread(zero_sum=False)
BRANCH_END = 0.3  # gain of the attention's last layer: it mixes tokens, and 48 sums shall not make them all alike
BACKBONE = (f"encoder.{LAYERS - 1}.output.norm.shifted_output",)


def build(store: Store | None, layers: int = LAYERS) -> onnx.ModelProto:
    """Return the network, three int64 inputs [1,384] to `output_start_logits` and `output_end_logits` [1,384]."""
    net = _Transformer(SEED, store)
    ids, mask, segments = (net.input(name, (1, TOKENS), np.int64) for name in INPUTS)
    x = net.embeddings(ids, segments)
    hidden = net.hidden_scores(mask)
    for layer in range(layers):
        x = net.attention(x, hidden, f"encoder.{layer}.attention")
        x = net.feed_forward(x, f"encoder.{layer}.output")
    net.answer(net.linear_last(x, "qa_outputs", 2))
    return net.model("bert-large")


class _Transformer(NetworkBuilder):
    """A builder with the parts of a post-normalised transformer encoder, on tensors [batch, tokens, features]."""

    def embeddings(self, ids: str, segments: str) -> str:
        """Add the sum of word, position and segment embeddings, normalised."""
        position_ids = self.constant("position_ids", np.arange(TOKENS, dtype=np.int64).reshape(1, TOKENS))
        words = self._gather("embeddings.words", WORDS, ids)
        positions = self._gather("embeddings.positions", POSITIONS, position_ids)
        x = self.add(words, self._gather("embeddings.segments", SEGMENTS, segments), "embeddings.sum")
        return self.normalised(self.add(x, positions, "embeddings.all"), "embeddings.norm")

    def hidden_scores(self, mask: str) -> str:
        """Add what hides padding: 0 for a token, -10,000 for none, [batch,1,1,tokens]."""
        batch, tokens = self.shape(mask)
        axes = self.constant("mask.axes", np.array([1, 2]))
        x = self.node("Unsqueeze", [mask, axes], "mask.unsqueeze", (batch, 1, 1, tokens))
        x = self.node("Cast", [x], "mask.float", self.shape(x), to=1)  # TensorProto.FLOAT
        x = self.node("Sub", [self._scalar(1.0), x], "mask.inverse", self.shape(x))
        return self.node("Mul", [x, self._scalar(MASKED)], "mask.scores", self.shape(x))

    def attention(self, x: str, hidden: str, name: str) -> str:
        """Add multi-head self-attention with its output layer, the sum and the normalisation."""
        batch, tokens, _ = self.shape(x)
        query = self._heads(x, f"{name}.query", (0, 2, 1, 3))
        key = self._heads(x, f"{name}.key", (0, 2, 3, 1))
        value = self._heads(x, f"{name}.value", (0, 2, 1, 3))
        scores = self.node("MatMul", [query, key], f"{name}.scores", (batch, HEADS, tokens, tokens))
        scores = self._elementwise("Div", scores, math.sqrt(HEAD), f"{name}.scaled")
        scores = self.add(scores, hidden, f"{name}.masked")
        shares = self.node("Softmax", [scores], f"{name}.softmax", self.shape(scores), axis=-1)
        mixed = self.node("MatMul", [shares, value], f"{name}.mixed", (batch, HEADS, tokens, HEAD))
        mixed = self.node("Transpose", [mixed], f"{name}.back", (batch, tokens, HEADS, HEAD), perm=[0, 2, 1, 3])
        mixed = self._reshape(mixed, f"{name}.joined", (HIDDEN,))
        y = self.linear_last(mixed, f"{name}.dense", HIDDEN, BRANCH_END)
        return self.normalised(self.add(y, x, f"{name}.add"), f"{name}.norm")

    def feed_forward(self, x: str, name: str) -> str:
        """Add linear, GELU, linear, the sum and the normalisation."""
        y = self._gelu(self.linear_last(x, f"{name}.inner", INNER), f"{name}.gelu")
        y = self.linear_last(y, f"{name}.dense", HIDDEN)
        return self.normalised(self.add(y, x, f"{name}.add"), f"{name}.norm")

    def answer(self, logits: str) -> None:
        """Split [batch,tokens,2] into the two outputs [batch,tokens]."""
        from onnx.helper import make_node

        batch, tokens, _ = self.shape(logits)
        sizes, axes = self.constant("split.sizes", np.array([1, 1])), self.constant("split.axes", np.array([-1]))
        halves = ["split.start", "split.end"]
        self._model.graph.node.append(make_node("Split", [logits, sizes], halves, name="split", axis=-1))
        for half, name in zip(halves, ("output_start_logits", "output_end_logits")):
            self.output(self.node("Squeeze", [half, axes], f"{half}.squeeze", (batch, tokens)), name)

    def linear_last(self, x: str, name: str, features: int, gain: float = 1.0) -> str:
        """Add a linear layer over the last axis, as MatMul and Add."""
        *axes, depth = self.shape(x)
        spread = Spread(gain * math.sqrt(features / depth), zero_sum=False)  # [in, out]: the fan in is the first axis
        weight = self.normal(f"{name}.weight", (depth, features), spread)
        y = self.node("MatMul", [x, weight], f"{name}.matmul", (*axes, features))
        return self.add(y, self.full(f"{name}.bias", 0.0, features), f"{name}.biased")

    def normalised(self, x: str, name: str) -> str:
        """Add layer normalisation over the last axis."""
        column = (*self.shape(x)[:-1], 1)
        mean = self.node("ReduceMean", [x], f"{name}.mean", column, axes=[-1])
        centred = self.node("Sub", [x, mean], f"{name}.centred", self.shape(x))
        squared = self._elementwise("Pow", centred, 2.0, f"{name}.squared")
        variance = self.node("ReduceMean", [squared], f"{name}.variance", column, axes=[-1])
        deviation = self._elementwise("Add", variance, EPSILON, f"{name}.epsilon")
        deviation = self.node("Sqrt", [deviation], f"{name}.deviation", column)
        y = self.node("Div", [centred, deviation], f"{name}.divided", self.shape(x))
        weight, bias = self.full(f"{name}.weight", 1.0, HIDDEN), self.full(f"{name}.bias", 0.0, HIDDEN)
        return self.add(self.node("Mul", [y, weight], f"{name}.scaled", self.shape(x)), bias, f"{name}.shifted")

    def _gelu(self, x: str, name: str) -> str:
        """Add x (1 + erf(x / sqrt 2)) / 2."""
        y = self._elementwise("Div", x, math.sqrt(2.0), f"{name}.divided")
        y = self.node("Erf", [y], f"{name}.erf", self.shape(x))
        y = self.node("Mul", [x, self._elementwise("Add", y, 1.0, f"{name}.raised")], f"{name}.product", self.shape(x))
        return self._elementwise("Mul", y, 0.5, f"{name}.halved")

    def _heads(self, x: str, name: str, order: Sequence[int]) -> str:
        """Add a projection, cut into heads [batch,tokens,heads,64] and transposed."""
        x = self._reshape(self.linear_last(x, name, HIDDEN), f"{name}.heads", (HEADS, HEAD))
        shape = tuple(self.shape(x)[axis] for axis in order)
        return self.node("Transpose", [x], f"{name}.transposed", shape, perm=list(order))

    def _reshape(self, x: str, name: str, last: Sequence[int]) -> str:
        """Add a reshaping of all behind batch and tokens; both are kept as they come."""
        shape = self.constant(f"shape.{'x'.join(map(str, last))}", np.array([0, 0, *last]))
        return self.node("Reshape", [x, shape], name, (*self.shape(x)[:2], *last))

    def _gather(self, name: str, rows: int, indices: str) -> str:
        table = self.normal(f"{name}.weight", (rows, HIDDEN), EMBEDDING)
        return self.node("Gather", [table, indices], name, (*self.shape(indices), HIDDEN), axis=0)

    def _elementwise(self, op: str, x: str, scalar: float, name: str) -> str:
        return self.node(op, [x, self._scalar(scalar)], name, self.shape(x))

    def _scalar(self, value: float) -> str:
        return self.constant(f"{value:g}", np.float32(value))
