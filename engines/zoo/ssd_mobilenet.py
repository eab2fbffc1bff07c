"""SSD-MobileNet v1 300 of the TensorFlow Object Detection API, batch normalisation folded into the convolutions.

Every padding is TensorFlow's SAME: at stride 2 an even side gets its one row at the end, an odd side one at each end.
Source: MLPerf Inference v0.5 to v2.0, `ssd_mobilenet_v1_coco_2018_01_28`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.zoo.builder import NetworkBuilder, Spread, Window

if TYPE_CHECKING:
    import onnx

    from engines.zoo.store import Store

SEED = 300
CLASSES = 91  # the background is class 0
SEPARABLE = (  # channels, stride
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
FIRST_MAP = 11  # the separable block that makes the first of six feature maps; the last block makes the second
EXTRAS = ((256, 512), (128, 256), (128, 256), (64, 128))  # 1x1 channels, 3x3 stride 2 channels
ANCHORS = (3, 6, 6, 6, 6, 6)  # of a feature map's cell
STEM = Spread(gain=2.0, zero_sum=False)
DEPTHWISE = Spread(gain=1.7, zero_sum=False)  # nine taps of one channel: a zero sum would leave an edge filter
HEAD = Spread(gain=1.0)
BACKBONE = ("conv_11.pointwise_relu_output", "conv_13.pointwise_relu_output")


def build(store: Store | None, side: int = 300) -> onnx.ModelProto:
    """Return the network, `input` [1,3,side,side] to `boxes_0`, `classes_0` ... `classes_5`.

    Channels of a cell are anchor-major: [anchors * 4] and [anchors * 91].
    """
    net = NetworkBuilder(SEED, store)
    maps = _feature_maps(net, net.input("input", (1, 3, side, side)))
    for level, (x, anchors) in enumerate(zip(maps, ANCHORS)):
        for name, values in (("boxes", 4), ("classes", CLASSES)):
            head = net.conv(x, f"head_{level}.{name}", anchors * values, Window(1), HEAD)
            net.output(head, f"{name}_{level}")
    return net.model("ssd-mobilenet")


def _feature_maps(net: NetworkBuilder, image: str) -> list[str]:
    x = net.relu6(net.conv(image, "conv_0", 32, _same(net, image, 2), STEM), "conv_0_relu")
    maps = []
    for number, (channels, stride) in enumerate(SEPARABLE, start=1):
        x = _separable(net, x, f"conv_{number}", channels, stride)
        if number in (FIRST_MAP, len(SEPARABLE)):
            maps.append(x)
    for number, (narrow, wide) in enumerate(EXTRAS, start=2):
        x = net.relu6(net.conv(x, f"extra_{number}.1", narrow, Window(1)), f"extra_{number}.1_relu")
        x = net.relu6(net.conv(x, f"extra_{number}.2", wide, _same(net, x, 2)), f"extra_{number}.2_relu")
        maps.append(x)
    return maps


def _separable(net: NetworkBuilder, x: str, name: str, channels: int, stride: int) -> str:
    depth = net.shape(x)[1]
    x = net.conv(x, f"{name}.depthwise", depth, _same(net, x, stride, groups=depth), DEPTHWISE)
    x = net.conv(net.relu6(x, f"{name}.depthwise_relu"), f"{name}.pointwise", channels, Window(1))
    return net.relu6(x, f"{name}.pointwise_relu")


def _same(net: NetworkBuilder, x: str, stride: int, groups: int = 1) -> Window:
    return Window.same(net.shape(x)[-1], 3, stride, groups)
