"""3D-UNet of MLPerf (KiTS19): plain, with affine instance normalisation, which depends on the sample and so stays.

Nodes are numbered as in MLPerf's ONNX file, so that they can be found in NVIDIA's calibration cache.
Source: MLPerf Inference v1.1 on, `vision/medical_imaging/3d-unet-kits19`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.zoo.builder import NetworkBuilder, Spread, Window

if TYPE_CHECKING:
    import onnx

    from engines.zoo.store import Store

SEED = 19
CLASSES = 3
WIDTHS = (32, 64, 128, 256, 320)  # channels of each level, the finest first
BOTTLENECK = 320
LINEAR = Spread(gain=1.0)
SKIPS = tuple(f"Relu_{number}_output" for number in (5, 11, 17, 23, 29))  # what the decoder reads of each level
BACKBONE = (*SKIPS, "Relu_35_output")


@dataclass(frozen=True)
class Form:
    """A network's name, the window's side, the channels of each level (the finest first) and those of the bottom."""

    name: str
    side: int
    widths: tuple[int, ...] = WIDTHS
    bottleneck: int = BOTTLENECK


def build(store: Store | None, side: int = 128) -> onnx.ModelProto:
    """Return the network, `input` [1,1,side,side,side] to logits `output` [1,3,side,side,side]; side a multiple of 32.

    InstanceNormalization's epsilon is 1e-5; the upsampled tensor comes first in each concatenation.
    """
    return build_form(store, Form("unet3d", side))


def build_form(store: Store | None, form: Form) -> onnx.ModelProto:
    """Return the same network with other sides, levels and channels; the side is halved at each level."""
    net = _Numbered(SEED, store)
    x = net.input("input", (1, 1, form.side, form.side, form.side))
    skips = []
    for level, width in enumerate(form.widths):
        x = net.pair(x, width, stride=2 if level else 1)
        skips.append(x)
    x = net.pair(x, form.bottleneck, stride=2)
    for width, skip in zip(reversed(form.widths), reversed(skips)):
        x = net.concat([net.up(x, width), skip], net.numbered("Concat"))
        x = net.pair(x, width, stride=1)
    net.output(net.conv(x, net.numbered("Conv"), CLASSES, Window(1), LINEAR), "output")
    return net.model(form.name)


class _Numbered(NetworkBuilder):
    """A builder that names nodes by operator and number."""

    def __init__(self, seed: int, store: Store | None) -> None:
        super().__init__(seed, store)
        self._count = 0

    def numbered(self, op: str) -> str:
        """Return the next node's name."""
        self._count += 1
        return f"{op}_{self._count - 1}"

    def pair(self, x: str, channels: int, stride: int) -> str:
        """Add two blocks, the first with the stride."""
        return self._block(self._block(x, channels, Window(3, stride, 1)), channels, Window(3, 1, 1))

    def up(self, x: str, channels: int) -> str:
        """Add a transposed convolution with bias that doubles each side."""
        name, shape = self.numbered("ConvTranspose"), self.shape(x)
        fan_in = Spread(gain=(8 * channels / shape[1]) ** 0.5)  # each output reads one of the eight taps
        weight = self.normal(f"{name}.weight", (shape[1], channels, 2, 2, 2), fan_in)
        inputs = [x, weight, self.full(f"{name}.bias", 0.0, channels)]
        result = (shape[0], channels, *(2 * side for side in shape[2:]))
        return self.node("ConvTranspose", inputs, name, result, **Window(2, 2).attributes(axes=3))

    def _block(self, x: str, channels: int, window: Window) -> str:
        """Add a convolution without bias, instance normalisation and ReLU."""
        name, shape = self.numbered("Conv"), self.shape(x)
        weight = self.normal(f"{name}.weight", (channels, shape[1], *[window.kernel] * 3))
        result = (shape[0], channels, *map(window.over, shape[2:]))
        y = self.node("Conv", [x, weight], name, result, **window.attributes(axes=3))
        name = self.numbered("InstanceNormalization")
        affine = [self.full(f"{name}.weight", 1.0, channels), self.full(f"{name}.bias", 0.0, channels)]
        y = self.node("InstanceNormalization", [y, *affine], name, result, epsilon=1e-5)
        return self.relu(y, self.numbered("Relu"))
