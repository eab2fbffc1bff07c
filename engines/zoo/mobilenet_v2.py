"""MobileNet-v2 1.0, batch normalisation folded into the convolutions.

Source: torchvision `mobilenet_v2`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.zoo.builder import NetworkBuilder, Spread, Window

if TYPE_CHECKING:
    import onnx

    from engines.zoo.store import Store

SEED = 2
CLASSES = 1000
LAYOUT = (  # expansion, channels, blocks, stride of the first one
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM = Spread(gain=2.0, zero_sum=False)
EXPAND = Spread(gain=1.0, zero_sum=False)  # reads a linear bottleneck, whose mean is about zero
DEPTHWISE = Spread(gain=2.0, zero_sum=False)  # nine taps of one channel: a zero sum would leave an edge filter
PROJECT = Spread(gain=1.0)
BACKBONE = ("features.18.relu_output",)


def build(store: Store | None, side: int = 224) -> onnx.ModelProto:
    """Return the network, `input` [1,3,side,side] to `logits` [1,1000]."""
    net = NetworkBuilder(SEED, store)
    image = net.input("input", (1, 3, side, side))
    x = net.relu6(net.conv(image, "features.0.conv", 32, Window(3, 2, 1), STEM), "features.0.relu")
    number = 1
    for expansion, channels, blocks, stride in LAYOUT:
        for block in range(blocks):
            middle = Window(3, 1 if block else stride, 1, groups=expansion * net.shape(x)[1])
            x = _inverted_residual(net, x, f"features.{number}", channels, middle)
            number += 1
    x = net.relu6(net.conv(x, f"features.{number}.conv", 1280, Window(1), EXPAND), f"features.{number}.relu")
    x = net.flatten(net.global_average_pool(x, "avgpool"), "flatten")
    net.output(net.linear(x, "classifier", CLASSES), "logits")
    return net.model("mobilenet-v2")


def _inverted_residual(net: NetworkBuilder, x: str, name: str, channels: int, middle: Window) -> str:
    """Add 1x1 to as many channels as `middle` has groups (none where they are already), depthwise 3x3, 1x1, the sum."""
    y = x
    if middle.groups > net.shape(x)[1]:
        y = net.relu6(net.conv(x, f"{name}.expand", middle.groups, Window(1), EXPAND), f"{name}.expand_relu")
    y = net.relu6(net.conv(y, f"{name}.depthwise", middle.groups, middle, DEPTHWISE), f"{name}.depthwise_relu")
    y = net.conv(y, f"{name}.project", channels, Window(1), PROJECT)
    return net.add(y, x, f"{name}.add") if net.shape(y) == net.shape(x) else y
