"""RetinaNet on a ResNeXt-50 (MLPerf, OpenImages) and on a ResNet-34 (NVIDIA, Waymo), batch normalisation folded.

Sources: MLPerf Inference v2.1 on, torchvision `resnext50_32x4d`, `FeaturePyramidNetwork` and RetinaNet head; for the
ResNet-34 NVIDIA/Deep-Learning-Accelerator-SW (input 1280x768, ends at the head convolutions) and, for what it does not
say, NVIDIA/retinanet-examples: P6 from C5, nine anchors; three classes are a guess (vehicle, pedestrian, cyclist).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engines.zoo.builder import NetworkBuilder, Spread, Window
from engines.zoo.residual import Stage, basic, bottleneck, stages, stem

if TYPE_CHECKING:
    import onnx

    from engines.zoo.store import Store

SEED = 800
CLASSES = 264  # no background class
WAYMO_CLASSES = 3
ANCHORS = 9  # of a cell
RESNEXT50 = (
    Stage(128, 256, 3, stride=1, groups=32),
    Stage(256, 512, 4, groups=32),
    Stage(512, 1024, 6, groups=32),
    Stage(1024, 2048, 3, groups=32),
)
RESNET34 = (Stage(64, 64, 3, stride=1), Stage(128, 128, 4), Stage(256, 256, 6), Stage(512, 512, 3))
PYRAMID_CHANNELS = 256
TOWER = 4  # convolutions in front of a head's last one
LINEAR = Spread(gain=1.0)  # convolutions with no activation behind them
BACKBONE = tuple(f"{block}.relu3_output" for block in ("layer2.3", "layer3.5", "layer4.2"))
WAYMO_BACKBONE = tuple(f"{block}.relu2_output" for block in ("layer2.3", "layer3.5", "layer4.2"))


def build(store: Store | None, side: int = 800) -> onnx.ModelProto:
    """Return the ResNeXt-50 network, `input` [1,3,side,side] to five classification and five regression heads.

    Heads are named by their grid, e.g. `classification_head_100x100`; channels of a cell are anchor-major.
    """
    net = NetworkBuilder(SEED, store)
    *_, c3, c4, c5 = stages(net, stem(net, net.input("input", (1, 3, side, side))), bottleneck, RESNEXT50)
    levels = _pyramid(net, (c3, c4, c5))
    _heads(net, [*levels, *_coarse(net, levels[-1])], CLASSES)
    return net.model("retinanet")


def build_resnet34(store: Store | None, height: int = 768, width: int = 1280) -> onnx.ModelProto:
    """Return the ResNet-34 network, `input` [1,3,height,width] to heads named like those of `build`."""
    net = NetworkBuilder(SEED, store)
    *_, c3, c4, c5 = stages(net, stem(net, net.input("input", (1, 3, height, width))), basic, RESNET34)
    levels = _pyramid(net, (c3, c4, c5))
    _heads(net, [*levels, *_coarse(net, c5)], WAYMO_CLASSES)
    return net.model("retinanet-resnet34")


def _pyramid(net: NetworkBuilder, maps: Sequence[str]) -> list[str]:
    """Add P3 to P5: a 1x1 convolution on each map, coarser ones added to finer ones, a 3x3 convolution on each sum."""
    merged: list[str] = []
    for level, x in reversed(list(enumerate(maps, start=3))):
        lateral = net.conv(x, f"fpn.lateral_{level}", PYRAMID_CHANNELS, Window(1), LINEAR)
        if merged:
            lateral = net.add(lateral, net.upsample(merged[0], f"fpn.upsample_{level}"), f"fpn.add_{level}")
        merged.insert(0, lateral)
    window = Window(3, 1, 1)
    return [net.conv(x, f"fpn.p{level}", PYRAMID_CHANNELS, window, LINEAR) for level, x in enumerate(merged, start=3)]


def _coarse(net: NetworkBuilder, x: str) -> tuple[str, str]:
    """Add P6 on a map and P7 on P6's ReLU, stride 2 each; the heads see P6 in front of that ReLU."""
    p6 = net.conv(x, "fpn.p6", PYRAMID_CHANNELS, Window(3, 2, 1), LINEAR)
    return p6, net.conv(net.relu(p6, "fpn.p6_relu"), "fpn.p7", PYRAMID_CHANNELS, Window(3, 2, 1), LINEAR)


def _heads(net: NetworkBuilder, levels: Sequence[str], classes: int) -> None:
    for name, values in (("classification_head", classes), ("regression_head", 4)):
        channels = (*[PYRAMID_CHANNELS] * TOWER, ANCHORS * values)
        for level, x in enumerate(levels, start=3):
            grid = "x".join(map(str, net.shape(x)[2:]))
            net.output(_tower(net, x, f"{name}.{{}}.p{level}", channels), f"{name}_{grid}")


def _tower(net: NetworkBuilder, x: str, name: str, channels: Sequence[int]) -> str:
    """Add 3x3 convolutions with ReLUs between them; every level behind the first has the weights of P3's."""
    first = f"{name.rpartition('.')[0]}.p3"
    for index, width in enumerate(channels):
        conv, last = name.format(index), index == len(channels) - 1
        if name == first:
            x = net.conv(x, conv, width, Window(3, 1, 1), LINEAR if last else Spread())
        else:
            x = net.conv_again(x, conv, first.format(index))
        x = x if last else net.relu(x, f"{conv}_relu")
    return x
