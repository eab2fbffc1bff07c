"""SSD-ResNet34 1200 of MLPerf, batch normalisation folded into the convolutions.

Source: MLPerf Inference v0.5 to v2.0 (COCO, 81 classes); torchvision `resnet34` up to `layer3`, whose stride is 1 here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.zoo.builder import NetworkBuilder, Spread, Window
from engines.zoo.residual import Stage, basic, stages, stem

if TYPE_CHECKING:
    import onnx

    from engines.zoo.store import Store

SEED = 34
CLASSES = 81  # the background is class 0
LAYOUT = (Stage(64, 64, 3, stride=1), Stage(128, 128, 4), Stage(256, 256, 6, stride=1))
EXTRAS = (  # 1x1 channels, 3x3 channels and window
    (256, 512, Window(3, 2, 1)),
    (256, 512, Window(3, 2, 1)),
    (128, 256, Window(3, 2, 1)),
    (128, 256, Window(3, 2)),
    (128, 256, Window(3)),
)
ANCHORS = (4, 6, 6, 6, 4, 4)  # of a feature map's cell
HEAD_WINDOW = Window(3, 3, 1)
HEAD = Spread(gain=1.0)
BACKBONE = ("layer3.5.relu2_output",)


def build(store: Store | None, side: int = 1200) -> onnx.ModelProto:
    """Return the network, `image` [1,3,side,side] to `loc_0`, `conf_0` ... `conf_5`.

    Channels of a cell are value-major: [4 * anchors] and [81 * anchors].
    """
    net = NetworkBuilder(SEED, store)
    x = stem(net, net.input("image", (1, 3, side, side)))
    maps = [stages(net, x, basic, LAYOUT)[-1]]
    for number, (narrow, wide, window) in enumerate(EXTRAS):
        x = net.relu(net.conv(maps[-1], f"extra_{number}.1", narrow, Window(1)), f"extra_{number}.1_relu")
        maps.append(net.relu(net.conv(x, f"extra_{number}.2", wide, window), f"extra_{number}.2_relu"))
    for level, (x, anchors) in enumerate(zip(maps, ANCHORS)):
        for name, values in (("loc", 4), ("conf", CLASSES)):
            net.output(net.conv(x, f"head_{level}.{name}", values * anchors, HEAD_WINDOW, HEAD), f"{name}_{level}")
    return net.model("ssd-resnet34")
