"""ResNet-50 v1.5 in torchvision's form, batch normalisation folded into the convolutions.

Source: torchvision `resnet50` (stride 2 in the 3x3 convolution of the bottleneck); MLPerf Inference v0.5 on for the
pre-processing (RGB minus the mean, no scaling), so that one INT8 photo serves this network and MLPerf's checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.zoo.builder import NetworkBuilder, Spread
from engines.zoo.residual import Stage, bottleneck, stages, stem

if TYPE_CHECKING:
    import onnx

    from engines.zoo.store import Store

SEED = 50
CLASSES = 1000
LAYOUT = (Stage(64, 256, 3, stride=1), Stage(128, 512, 4), Stage(256, 1024, 6), Stage(512, 2048, 3))
STEM = Spread(gain=0.3, zero_sum=False)  # photos minus their mean have a standard deviation of about 64, mostly smooth
BACKBONE = ("layer4.2.relu3_output",)


def build(store: Store | None, side: int = 224) -> onnx.ModelProto:
    """Return the network, `input` [1,3,side,side] to `logits` [1,1000]."""
    net = NetworkBuilder(SEED, store)
    x = stem(net, net.input("input", (1, 3, side, side)), STEM)
    x = stages(net, x, bottleneck, LAYOUT)[-1]
    x = net.flatten(net.global_average_pool(x, "avgpool"), "flatten")
    net.output(net.linear(x, "fc", CLASSES), "logits")
    return net.model("resnet50")
