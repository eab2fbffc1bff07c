"""The networks that the toolkit knows by name, as facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

# Not `from engines.zoo import`: the package itself imports this table.
import engines.zoo.bert as bert
import engines.zoo.digits as digits
import engines.zoo.mobilenet_v2 as mobilenet_v2
import engines.zoo.resnet50 as resnet50
import engines.zoo.retinanet as retinanet
import engines.zoo.ssd_mobilenet as ssd_mobilenet
import engines.zoo.ssd_resnet34 as ssd_resnet34
import engines.zoo.unet3d as unet3d
import engines.zoo.unet3d_small as unet3d_small
import engines.zoo.yolov5s as yolov5s

if TYPE_CHECKING:
    import onnx

    from engines.zoo.store import Store


@dataclass(frozen=True)
class Network:
    """What is fixed about a network.

    Every input has `input_shape` behind its batch axis. `preprocess` names an entry of `PREPROCESS`, or the one that
    it will have. `tail` says what turns the graph's outputs into answers and is no part of it; `backbone_outputs` are
    the tensors that leave the feature extractor. Parameters and multiply-accumulates are as published, batch
    normalisation not folded; where `source` says that nothing is published, they are those of the public
    implementation. `qsl_samples` is how many samples MLPerf wants loaded; `build(store)` makes the model at batch 1;
    `weights` says what those are that it comes with.
    """

    name: str
    title: str
    input_shape: tuple[int, ...]
    classes: int
    preprocess: str
    tail: str
    published_params: int
    published_gmacs: float
    source: str
    build: Callable[[Store | None], onnx.ModelProto] = field(repr=False, compare=False)
    backbone_outputs: tuple[str, ...]
    inputs: int = 1
    qsl_samples: int = 1024
    weights: str = "untrained (seeded)"


_ALL = (
    Network(
        name="resnet50",
        title="ResNet-50 v1.5",
        input_shape=(3, 224, 224),
        classes=1000,
        preprocess="imagenet",
        tail="top-1",
        published_params=25_557_032,
        published_gmacs=4.089,
        source="torchvision ResNet50_Weights.IMAGENET1K_V1 metadata; MLPerf Inference (1,024 samples in the QSL)",
        build=resnet50.build,
        backbone_outputs=resnet50.BACKBONE,
    ),
    Network(
        name="ssd-mobilenet",
        title="SSD-MobileNet v1 300",
        input_shape=(3, 300, 300),
        classes=ssd_mobilenet.CLASSES,
        preprocess="ssd-mobilenet",
        tail="cut at the 12 head convolutions: sigmoid, box decoding on 1,917 priors, per-class NMS (0.6, best 100)",
        published_params=6_807_000,
        published_gmacs=1.247,
        source="Open Model Zoo ssd_mobilenet_v1_coco (6.807 M folded, 2.494 GFLOP); MLPerf Inference v2.0",
        build=ssd_mobilenet.build,
        backbone_outputs=ssd_mobilenet.BACKBONE,
        qsl_samples=256,
    ),
    Network(
        name="ssd-resnet34",
        title="SSD-ResNet34 1200",
        input_shape=(3, 1200, 1200),
        classes=ssd_resnet34.CLASSES,
        preprocess="ssd-resnet34",
        tail="cut at the 12 head convolutions: softmax, box decoding on 15,130 priors, per-class NMS (0.5, best 200)",
        published_params=20_058_000,
        published_gmacs=216.7055,
        source="Open Model Zoo ssd-resnet34-1200-onnx (20.058 M, presumably with priors; 433.411 GFLOP); MLPerf v2.0",
        build=ssd_resnet34.build,
        backbone_outputs=ssd_resnet34.BACKBONE,
        qsl_samples=64,
    ),
    Network(
        name="retinanet",
        title="RetinaNet ResNeXt-50 32x4d FPN",
        input_shape=(3, 800, 800),
        classes=retinanet.CLASSES,
        preprocess="retinanet",
        tail="cut at the 10 head convolutions: sigmoid, top 1,000 a level, box decoding on 120,087 anchors, NMS (0.5)",
        published_params=37_060_652,
        published_gmacs=201.208,
        source="no counts published; those of torchvision's modules, batch norm frozen; MLPerf Inference v2.1 on",
        build=retinanet.build,
        backbone_outputs=retinanet.BACKBONE,
        qsl_samples=64,
    ),
    Network(
        name="retinanet-resnet34",
        title="RetinaNet ResNet-34 FPN",
        input_shape=(3, 768, 1280),
        classes=retinanet.WAYMO_CLASSES,
        preprocess="waymo",
        tail="cut at the 10 head convolutions: sigmoid, top 1,000 a level, box decoding on 184,140 anchors, NMS (0.5)",
        published_params=29_920_895,
        published_gmacs=184.372,
        source="no counts published; those of torchvision's modules, the head a guess (NVIDIA/retinanet-examples)",
        build=retinanet.build_resnet34,
        backbone_outputs=retinanet.WAYMO_BACKBONE,
    ),
    Network(
        name="bert-large",
        title="BERT-large SQuAD, 384 tokens",
        input_shape=(bert.TOKENS,),
        classes=2,
        preprocess="squad",
        tail="cut at the start and end logits: search of the n best spans",
        published_params=333_960_000,
        published_gmacs=123.465,
        source="Open Model Zoo bert-large-uncased-whole-word-masking-squad-0001 (333.96 M, 246.93 GFLOP); MLPerf",
        build=bert.build,
        backbone_outputs=bert.BACKBONE,
        inputs=len(bert.INPUTS),
        qsl_samples=10_833,
    ),
    Network(
        name="unet3d",
        title="3D-UNet KiTS19, one window",
        input_shape=(1, 128, 128, 128),
        classes=unet3d.CLASSES,
        preprocess="kits19",
        tail="cut at the window's logits: Gaussian blending of overlapping windows, argmax",
        published_params=31_190_243,
        published_gmacs=477.299,
        source="no counts published; those of MONAI's DynUNet configured the same; MLPerf Inference v3.0 (43 samples)",
        build=unet3d.build,
        backbone_outputs=unet3d.BACKBONE,
        qsl_samples=43,
    ),
    Network(
        name=unet3d_small.FORM.name,
        title="small 3D-UNet of phantoms, one window",
        input_shape=(1, *(unet3d_small.FORM.side,) * 3),
        classes=unet3d_small.CLASSES,
        preprocess="kits19-half",
        tail="cut at the window's logits: Gaussian blending of overlapping windows, argmax",
        published_params=85_195,
        published_gmacs=3.114_271,
        source="ours: nothing published, counted from the graph; trained by scripts/train_unet3d.py",
        build=unet3d_small.build,
        backbone_outputs=unet3d_small.BACKBONE,
        qsl_samples=43,
        weights="trained on phantoms",
    ),
    Network(
        name="yolov5s",
        title="YOLOv5s v6",
        input_shape=(3, yolov5s.SIDE, yolov5s.SIDE),
        classes=yolov5s.CLASSES,
        preprocess="yolov5",
        tail="cut at the 3 head convolutions: sigmoid, box decoding on 25,200 cells, NMS",
        published_params=7_235_389,
        published_gmacs=8.25,
        source="Ultralytics YOLOv5 (7,235,389 parameters, 16.5 GFLOP)",
        build=yolov5s.build,
        backbone_outputs=yolov5s.BACKBONE,
    ),
    Network(
        name="mobilenet-v2",
        title="MobileNet-v2 1.0",
        input_shape=(3, 224, 224),
        classes=mobilenet_v2.CLASSES,
        preprocess="torchvision",
        tail="top-1",
        published_params=3_504_872,
        published_gmacs=0.301,
        source="torchvision MobileNet_V2_Weights.IMAGENET1K_V1 metadata",
        build=mobilenet_v2.build,
        backbone_outputs=mobilenet_v2.BACKBONE,
    ),
    Network(
        name="digits",
        title="residual classifier of 16x16 digits",
        input_shape=(3, digits.SIDE, digits.SIDE),
        classes=digits.CLASSES,
        preprocess="digits",
        tail="top-1",
        published_params=28_554,
        published_gmacs=0.002_765,
        source="ours: nothing published, counted from the graph; trained by scripts/train_digits.py",
        build=digits.build,
        backbone_outputs=digits.BACKBONE,
        weights="trained on scikit-learn's digits",
    ),
)

NETWORKS: dict[str, Network] = {entry.name: entry for entry in _ALL}
