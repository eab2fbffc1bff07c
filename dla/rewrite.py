"""Named rewrites that bring a network's layers into forms that the DLA takes; each is algebraically identical."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dla.edit import Edit
from dla.errors import DlaError
from dla.rewrites.change import Change, NodeRewrite, Outcome, Refusal, each_node
from dla.rewrites.concat import channel_concat
from dla.rewrites.linear import gemm_to_conv
from dla.rewrites.padding import approximate_pad, fold_pad
from dla.rewrites.pointwise import constant_arithmetic, hard_swish
from dla.rewrites.pooling import global_pool
from dla.rewrites.shuffles import channel_shuffle, depth_to_space
from dla.rewrites.tails import cut_tail
from dla.rewrites.upsampling import approximate_resize, resize_scales, valid_deconv

if TYPE_CHECKING:
    import onnx

__all__ = ["IDENTICAL", "REWRITES", "Change", "Refusal", "Rewrite", "Rewritten", "rewrite", "rewrite_all"]


@dataclass(frozen=True)
class Rewrite:
    """One rewrite: what it does to a model under change, in a sentence, and whether the result is identical."""

    apply: Callable[[Edit], Iterator[Outcome]]
    summary: str
    identical: bool = True


@dataclass(frozen=True)
class Rewritten:
    """A rewritten model, what changed and what was refused; `new_tensors` are activations that it did not have before.

    A calibration cache of the original has no ranges for the new ones.
    """

    model: onnx.ModelProto
    changes: tuple[Change, ...]
    refusals: tuple[Refusal, ...]
    new_tensors: tuple[str, ...]


def rewrite(model: onnx.ModelProto, names: Sequence[str]) -> tuple[onnx.ModelProto, tuple[Change, ...]]:
    """Return a copy of a model with the named rewrites applied, and what changed: nothing where none applies.

    Rewrites run in the order of `REWRITES`, whatever the order of `names`. Tensors that stay keep their names, so that
    a calibration cache still fits. Weights that are not loaded stay so. DlaError where a name is unknown.
    """
    done = rewrite_all(model, names)
    return done.model, done.changes


def rewrite_all(model: onnx.ModelProto, names: Sequence[str] | None = None) -> Rewritten:
    """Apply rewrites as `rewrite` does, without names all that are identical; say too what was refused, and why."""
    names = IDENTICAL if names is None else names
    unknown = [name for name in names if name not in REWRITES]
    if unknown:
        raise DlaError(f"rewrite {unknown[0]!r} is not known; known: {', '.join(REWRITES)}")
    edit = Edit(model)
    outcomes = [outcome for name, entry in REWRITES.items() if name in names for outcome in entry.apply(edit)]
    changes = tuple(outcome for outcome in outcomes if isinstance(outcome, Change))
    refusals = tuple(outcome for outcome in outcomes if isinstance(outcome, Refusal))
    rewritten = edit.proto() if changes else _copy(model)
    return Rewritten(rewritten, changes, refusals, _new_tensors(model, rewritten))


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def _new_tensors(before: onnx.ModelProto, after: onnx.ModelProto) -> tuple[str, ...]:
    known = {name for node in before.graph.node for name in node.output}
    return tuple(name for node in after.graph.node for name in node.output if name not in known)


def _each(name: str, apply: NodeRewrite, summary: str, identical: bool = True) -> dict[str, Rewrite]:
    return {name: Rewrite(partial(each_node, name=name, apply=apply), summary, identical)}


# In the order in which they run: a tail that is cut no longer asks the classifier for [N,M].
REWRITES: Mapping[str, Rewrite] = {
    "cut-tail": Rewrite(cut_tail, "decoding, softmax and selection at the end become a step after the engine"),
    **_each("global-pool", global_pool, "means over height and width become average pools, in steps on large maps"),
    **_each("gemm-to-conv", gemm_to_conv, "fully connected layers become convolutions on what was flattened"),
    **_each("hard-swish", hard_swish, "HardSwish and HardSigmoid become Add, Clip and Mul"),
    **_each("constant-arithmetic", constant_arithmetic, "Neg, and Div and Sub with a constant, become Mul and Add"),
    **_each("fold-pad", fold_pad, "a Pad of zeros becomes padding of the convolutions and pools that read it"),
    **_each("valid-deconv", valid_deconv, "a padded ConvTranspose becomes one without padding, and a crop"),
    **_each("resize-scales", resize_scales, "a Resize gets constant whole scales, in a form that the DLA has"),
    **_each("depth-to-space", depth_to_space, "DepthToSpace and SpaceToDepth become (transposed) convolutions"),
    **_each("channel-shuffle", channel_shuffle, "a shuffle of channels between groups becomes a 1x1 convolution"),
    **_each("channel-concat", channel_concat, "a Concat on height or width moves to the channels, between Transposes"),
    **_each("approximate-pad", approximate_pad, "any Pad is taken for zeros: borders change", identical=False),
    **_each("approximate-resize", approximate_resize, "any sampling is taken for the DLA's", identical=False),
}
IDENTICAL = tuple(name for name, entry in REWRITES.items() if entry.identical)
