"""Networks that were never published: published ones made wider or narrower, on larger or smaller images.

A form is part of a network's name, `resnet50@0.5x1.4`: half as many channels, images 1.4 times as tall and wide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engines.costs import LayerWork
from engines.engine import Workload
from orin.virtual.predict import Workloads

FORMS = ((0.5, 1.0), (1.5, 1.0), (1.0, 0.6), (0.75, 1.4))  # channels, side of the image


@dataclass(frozen=True)
class Form:
    """A network's base and how its channels and its images differ from the base's."""

    base: str
    channels: float = 1.0
    side: float = 1.0

    @classmethod
    def of(cls, name: str) -> Form:
        """Read a name."""
        base, _, form = name.partition("@")
        return cls(base, *map(float, form.split("x"))) if form else cls(base)

    @property
    def name(self) -> str:
        """The name that `of` reads."""
        return f"{self.base}@{self.channels:g}x{self.side:g}"

    @property
    def macs(self) -> float:
        """Multiply-accumulates over the base's."""
        return self.channels**2 * self.side**2

    @property
    def tensors(self) -> float:
        """Bytes of tensors over the base's."""
        return self.channels * self.side**2

    @property
    def weights(self) -> float:
        """Bytes of weights over the base's."""
        return self.channels**2


def names(bases: tuple[str, ...]) -> tuple[str, ...]:
    """Return the bases and all their forms."""
    return (*bases, *(Form(base, *form).name for base in bases for form in FORMS))


def in_form(work: Workloads, form: Form) -> Workloads:
    """Return what a network's engines hold in another form, layer by layer."""
    return replace(work, gpu=_workload(work.gpu, form), dla=_workload(work.dla, form))


def _workload(work: Workload, form: Form) -> Workload:
    layers = tuple(_layer(layer, form) for layer in work.layers)
    return replace(
        work,
        macs=sum(layer.macs for layer in layers),
        weight_bytes=sum(layer.weight_bytes for layer in layers),
        activation_bytes=round(form.tensors * work.activation_bytes),
        output_bytes=round(form.side**2 * work.output_bytes),
        layers=layers,
    )


def _layer(layer: LayerWork, form: Form) -> LayerWork:
    """Depthwise layers have more groups where others have larger products; a classifier's one row stays one."""
    apart = layer.groups > 1
    wider = {"groups": form.channels} if apart else {"columns": form.channels, "depth": form.channels}
    taller = form.side**2 if layer.rows > 1 else 1.0
    product = {name: max(1, round(factor * getattr(layer, name))) for name, factor in wider.items()}
    across = form.channels if apart else form.weights
    return replace(
        layer,
        macs=round(layer.macs * taller * across),
        rows=round(layer.rows * taller),
        weight_bytes=round(layer.weight_bytes * across),
        input_bytes=round(layer.input_bytes * form.tensors),
        output_bytes=round(layer.output_bytes * form.tensors),
        curve_bytes=round(layer.curve_bytes * form.tensors),
        **product,
    )
