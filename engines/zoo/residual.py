"""Residual networks, batch normalisation folded: the stem and the stages that several networks share.

Source: torchvision `resnet34`, `resnet50` (v1.5: stride 2 in the 3x3 convolution), `resnext50_32x4d`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engines.zoo.builder import NetworkBuilder, Spread, Window

BRANCH_END = Spread(gain=0.25)  # last convolution of a branch: sixteen sums neither grow nor amplify INT8 rounding
PROJECTION = Spread(gain=1.0)
NORMALISED_STEM = Spread(gain=4.0, zero_sum=False)  # images of standard deviation 1, mostly smooth


@dataclass(frozen=True)
class Stage:
    """Blocks of one resolution: `width` inside a block, `channels` at its end, `stride` of the first one."""

    width: int
    channels: int
    blocks: int
    stride: int = 2
    groups: int = 1


Block = Callable[[NetworkBuilder, str, str, Stage, int], str]


def stem(net: NetworkBuilder, image: str, spread: Spread = NORMALISED_STEM) -> str:
    """Add the 7x7 convolution and the max pooling, stride 2 each."""
    x = net.conv(image, "conv1", 64, Window(7, 2, 3), spread)
    return net.max_pool(net.relu(x, "relu1"), "maxpool", Window(3, 2, 1))


def stages(net: NetworkBuilder, x: str, block: Block, layout: Sequence[Stage]) -> list[str]:
    """Add the stages `layer1` on; returns the output of each."""
    outputs = []
    for number, stage in enumerate(layout, start=1):
        for index in range(stage.blocks):
            x = block(net, x, f"layer{number}.{index}", stage, 1 if index else stage.stride)
        outputs.append(x)
    return outputs


def bottleneck(net: NetworkBuilder, x: str, name: str, stage: Stage, stride: int) -> str:
    """Add 1x1, 3x3 with the stride and the groups, 1x1, and the shortcut."""
    middle = Window(3, stride, 1, groups=stage.groups)
    y = net.relu(net.conv(x, f"{name}.conv1", stage.width, Window(1)), f"{name}.relu1")
    y = net.relu(net.conv(y, f"{name}.conv2", stage.width, middle), f"{name}.relu2")
    y = net.conv(y, f"{name}.conv3", stage.channels, Window(1), BRANCH_END)
    return net.relu(net.add(y, _shortcut(net, x, name, stage, stride), f"{name}.add"), f"{name}.relu3")


def basic(net: NetworkBuilder, x: str, name: str, stage: Stage, stride: int) -> str:
    """Add 3x3 with the stride, 3x3, and the shortcut."""
    y = net.relu(net.conv(x, f"{name}.conv1", stage.width, Window(3, stride, 1)), f"{name}.relu1")
    y = net.conv(y, f"{name}.conv2", stage.channels, Window(3, 1, 1), BRANCH_END)
    return net.relu(net.add(y, _shortcut(net, x, name, stage, stride), f"{name}.add"), f"{name}.relu2")


def _shortcut(net: NetworkBuilder, x: str, name: str, stage: Stage, stride: int) -> str:
    """Return the block's input, projected where the block changes its shape."""
    if stride == 1 and net.shape(x)[1] == stage.channels:
        return x
    return net.conv(x, f"{name}.downsample", stage.channels, Window(1, stride), PROJECTION)
