"""ResNet-50 v1.5 in torchvision's form, batch normalisation folded into the convolutions.

Source: torchvision `resnet50` (stride 2 in the 3x3 convolution of the bottleneck); MLPerf Inference v0.5 on for the
pre-processing (RGB minus the mean, no scaling), so that one INT8 photo serves this network and MLPerf's checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engines.zoo.builder import NetworkBuilder, Spread, Window

if TYPE_CHECKING:
    import onnx

SEED = 50
CLASSES = 1000
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # bottleneck width, blocks
EXPANSION = 4
STEM = Spread(gain=0.3, zero_sum=False)  # photos minus their mean have a standard deviation of about 64, mostly smooth
BRANCH_END = Spread(gain=0.25)  # last convolution of a branch: sixteen sums neither grow nor amplify INT8 rounding
PROJECTION = Spread(gain=1.0)


def build(with_weights: bool = True, batch: int = 1) -> onnx.ModelProto:
    """Return the network, `input` [batch,3,224,224] to `logits` [batch,1000]; untrained weights, or none at all."""
    from onnx import TensorProto
    from onnx.helper import make_tensor_value_info

    net = NetworkBuilder(np.random.default_rng(SEED) if with_weights else None)
    x = net.conv(net.input("input", 3), "conv1", 64, Window(7, 2, 3), STEM)
    x = net.max_pool(net.relu(x, "relu1"), "maxpool", Window(3, 2, 1))
    for stage, (width, blocks) in enumerate(STAGES, start=1):
        for block in range(blocks):
            x = _bottleneck(net, x, f"layer{stage}.{block}", width, stride=2 if stage > 1 and block == 0 else 1)
    x = net.flatten(net.global_average_pool(x, "avgpool"), "flatten")
    net.linear(x, "fc", CLASSES, output="logits")
    image = make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 224, 224])
    logits = make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])
    return net.model("resnet50", [image], [logits])


def _bottleneck(net: NetworkBuilder, x: str, name: str, width: int, stride: int) -> str:
    """Add 1x1, 3x3 with the stride, 1x1 times four, and the shortcut: a projection in a stage's first block."""
    y = net.relu(net.conv(x, f"{name}.conv1", width, Window(1)), f"{name}.relu1")
    y = net.relu(net.conv(y, f"{name}.conv2", width, Window(3, stride, 1)), f"{name}.relu2")
    y = net.conv(y, f"{name}.conv3", EXPANSION * width, Window(1), BRANCH_END)
    if name.endswith(".0"):
        x = net.conv(x, f"{name}.downsample", EXPANSION * width, Window(1, stride), PROJECTION)
    return net.relu(net.add(y, x, f"{name}.add"), f"{name}.relu3")
