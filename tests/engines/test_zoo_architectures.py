"""Each network against the published tables of its layers: parameters, multiply-accumulates, shapes, geometry."""

import math
from collections import Counter
from pathlib import Path

import pytest

from engines import zoo
from engines.graph import read_graph
from engines.zoo import yolov5s

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
CACHES = SHARED / "data" / "calibration_caches"
GRAPHS = {name: zoo.graph(name) for name in zoo.NETWORKS}


def ops(name):
    return Counter(layer.op for layer in GRAPHS[name].layers)


def layer(name, layer_name):
    return next(layer for layer in GRAPHS[name].layers if layer.name == layer_name)


def shape(name, tensor):
    return GRAPHS[name].tensors[tensor].shape


def outputs(name):
    return {output: shape(name, output) for output in GRAPHS[name].outputs}


def gmacs(name, *prefixes):
    return sum(layer.macs for layer in GRAPHS[name].layers if layer.name.startswith(prefixes)) * 1e-9


def params(name, *prefixes):
    """Elements of the weights and biases of the layers of these names, each once."""
    weights = {weight for x in GRAPHS[name].layers if x.name.startswith(prefixes) for weight in x.weights}
    return sum(math.prod(shape(name, weight)) for weight in weights if weight.endswith((".weight", ".bias")))


@pytest.mark.parametrize(
    ("name", "folded", "gmacs", "digits"),
    [
        ("resnet50", 25_530_472, 4.0892, 4),
        ("ssd-mobilenet", 6_807_167, 1.2371, 4),
        ("ssd-resnet34", 19_967_606, 216.416, 3),
        ("retinanet", 37_094_764, 201.208, 3),
        ("retinanet-resnet34", 29_912_383, 184.372, 3),
        ("bert-large", 334_094_338, 123.213, 3),
        ("unet3d", 31_190_243, 477.299, 3),
        ("yolov5s", 7_225_885, 8.2168, 4),
        ("mobilenet-v2", 3_487_816, 0.3008, 4),
    ],
)
def test_counts_equal_the_published_ones_to_the_last_digit(name, folded, gmacs, digits):
    counts = zoo.counts(GRAPHS[name])
    assert counts.params == folded
    assert round(counts.macs * 1e-9, digits) == gmacs


@pytest.mark.parametrize(
    ("name", "convolutions", "others"),
    [
        ("resnet50", 53, {"Gemm": 1, "Relu": 49, "Add": 16, "MaxPool": 1, "GlobalAveragePool": 1, "Flatten": 1}),
        ("ssd-mobilenet", 35 + 12, {"Clip": 35}),
        ("ssd-resnet34", 29 + 10 + 12, {"Relu": 1 + 26 + 10, "Add": 13, "MaxPool": 1}),
        ("retinanet", 53 + 8 + 50, {"Relu": 49 + 1 + 40, "Add": 16 + 2, "Resize": 2, "MaxPool": 1}),
        ("retinanet-resnet34", 36 + 8 + 50, {"Relu": 33 + 1 + 40, "Add": 16 + 2, "Resize": 2, "MaxPool": 1}),
        ("unet3d", 23, {"InstanceNormalization": 22, "Relu": 22, "ConvTranspose": 5, "Concat": 5}),
        ("yolov5s", 60, {"Sigmoid": 57, "Mul": 57, "Concat": 13, "Add": 7, "MaxPool": 3, "Resize": 2}),
        ("mobilenet-v2", 52, {"Gemm": 1, "Clip": 35, "Add": 10, "GlobalAveragePool": 1, "Flatten": 1}),
    ],
)
def test_layers_are_as_many_as_the_tables_say(name, convolutions, others):
    assert ops(name) == {"Conv": convolutions, **others}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", [(1, 1000)]),
        ("mobilenet-v2", [(1, 1000)]),
        ("bert-large", [(1, 384), (1, 384)]),
        ("unet3d", [(1, 3, 128, 128, 128)]),
        ("yolov5s", [(1, 255, side, side) for side in (80, 40, 20)]),
    ],
)
def test_outputs_have_their_shapes(name, expected):
    assert list(outputs(name).values()) == expected


def test_ssd_mobilenet_has_1917_priors_with_285_and_570_channels_a_level():
    heads = list(outputs("ssd-mobilenet").values())
    levels = [(*boxes, *classes) for boxes, classes in zip(heads[::2], heads[1::2], strict=True)]
    assert [(level[1] + level[5], level[2]) for level in levels] == [
        (285, 19),
        *((570, side) for side in (10, 5, 3, 2, 1)),
    ]
    assert sum(boxes[1] // 4 * boxes[2] * boxes[3] for boxes in heads[::2]) == 1917
    assert sum(classes[1] // 91 * classes[2] * classes[3] for classes in heads[1::2]) == 1917


def test_ssd_mobilenet_pads_like_tensorflow():
    ends = {"conv_0": 150, "conv_2.depthwise": 75, "conv_6.depthwise": 19, "extra_2.2": 5, "extra_5.2": 1}
    both = {"conv_4.depthwise": 38, "conv_12.depthwise": 10, "extra_3.2": 3, "extra_4.2": 2}
    for names, pads in ((ends, (0, 0, 1, 1)), (both, (1, 1, 1, 1))):
        for name, side in names.items():
            conv = layer("ssd-mobilenet", name)
            assert conv.attributes["pads"] == pads
            assert conv.attributes["strides"] == (2, 2)
            assert shape("ssd-mobilenet", conv.outputs[0])[2:] == (side, side)


def test_ssd_mobilenet_clips_at_six():
    from onnx.numpy_helper import to_array

    model = zoo.model("ssd-mobilenet", with_weights=False)
    bounds = {tensor.name: to_array(tensor) for tensor in model.graph.initializer if not tensor.dims}
    clips = [node for node in model.graph.node if node.op_type == "Clip"]
    assert all([bounds[name] for name in clip.input[1:]] == [0, 6] for clip in clips)


def test_ssd_resnet34_has_15130_priors_with_340_and_510_channels_a_level():
    heads = list(outputs("ssd-resnet34").values())
    levels = [(loc[1] + conf[1], loc[2]) for loc, conf in zip(heads[::2], heads[1::2], strict=True)]
    assert levels == [(340, 50), (510, 25), (510, 13), (510, 7), (340, 3), (340, 3)]
    assert sum(loc[1] // 4 * loc[2] * loc[3] for loc in heads[::2]) == 15130
    assert sum(conf[1] // 81 * conf[2] * conf[3] for conf in heads[1::2]) == 15130


@pytest.mark.parametrize(
    ("part", "params_folded", "expected"),
    [  # folding: one bias a channel instead of gamma and beta
        ("conv1", 9_536 - 64, 3.387),
        ("layer1", 221_952 - 6 * 64, 19.906),
        ("layer2", 1_116_416 - 9 * 128, 25.068),
        ("layer3", 6_822_400 - 13 * 256, 153.354),
        ("extra_0", 1_245_952, 8.110),
        ("extra_1", 1_311_488, 2.441),
        ("extra_2", 360_832, 0.201),
        ("extra_3", 328_064, 0.036),
        ("extra_4", 328_064, 0.017),
        ("head", 8_227_830, 3.896),
    ],
)
def test_ssd_resnet34_part_by_part(part, params_folded, expected):
    assert params("ssd-resnet34", part) == params_folded
    assert gmacs("ssd-resnet34", part) == pytest.approx(expected, abs=0.001)


def test_ssd_resnet34_keeps_its_third_stage_large_and_its_last_extras_unpadded():
    strides = {name: layer("ssd-resnet34", name).attributes["strides"][0] for name in ("layer3.0.conv1", "head_0.loc")}
    assert strides == {"layer3.0.conv1": 1, "head_0.loc": 3}
    assert layer("ssd-resnet34", "layer3.0.downsample").attributes["strides"] == (1, 1)
    pads = [layer("ssd-resnet34", f"extra_{i}.2").attributes["pads"][0] for i in range(5)]
    assert pads == [1, 1, 1, 0, 0]
    sides = [shape("ssd-resnet34", f"extra_{i}.2_relu_output")[2] for i in range(5)]
    assert sides == [75, 38, 19, 9, 7]


@pytest.mark.parametrize(
    ("parts", "params_folded", "expected"),
    [
        (("conv1",), 9_536 - 64, 1.505),
        (("layer1",), 205_824 - 3 * 512 - 256, 8.090),
        (("layer2",), 1_197_056 - 4 * 1024 - 512, 13.844),
        (("layer3",), 7_022_592 - 6 * 2048 - 1024, 19.456),
        (("layer4",), 14_544_896 - 3 * 4096 - 2048, 11.039),
        (("fpn",), 3_868_672, 10.164),
        (("classification_head",), 7_837_000, 104.524),
        (("regression_head",), 2_443_300, 32.587),
    ],
)
def test_retinanet_part_by_part(parts, params_folded, expected):
    assert params("retinanet", *parts) == params_folded
    assert round(gmacs("retinanet", *parts), 3) == expected


def test_retinanet_has_120087_anchors_and_names_its_heads_by_their_grid():
    sides = (100, 50, 25, 13, 7)
    heads = {"classification_head": 2376, "regression_head": 36}
    expected = {f"{name}_{s}x{s}": (1, channels, s, s) for name, channels in heads.items() for s in sides}
    assert outputs("retinanet") == expected
    assert 9 * sum(side * side for side in sides) == 120_087


def test_retinanets_p6_comes_from_p5_and_the_waymo_ones_from_c5():
    assert layer("retinanet", "fpn.p6").inputs == ("fpn.p5_output",)
    assert layer("retinanet-resnet34", "fpn.p6").inputs == ("layer4.2.relu2_output",)


@pytest.mark.parametrize("name", ["retinanet", "retinanet-resnet34"])
def test_retinanets_heads_see_p6_in_front_of_the_relu_and_share_weights(name):
    readers = {x.name for x in GRAPHS[name].layers if "fpn.p6_output" in x.inputs}
    assert readers == {"fpn.p6_relu", "classification_head.0.p6", "regression_head.0.p6"}
    for head in ("classification_head", "regression_head"):
        for index in range(5):
            assert len({layer(name, f"{head}.{index}.p{level}").weights for level in range(3, 8)}) == 1


@pytest.mark.parametrize("name", ["retinanet", "retinanet-resnet34", "yolov5s"])
def test_resize_is_written_as_the_dla_takes_it(name):
    from onnx.numpy_helper import to_array

    model = zoo.model(name, with_weights=False)
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in (node for node in model.graph.node if node.op_type == "Resize"):
        assert len(node.input) == 3  # scales, no sizes
        assert to_array(values[node.input[2]]).tolist() == [1, 1, 2, 2]
        modes = {attribute.name: attribute.s.decode() for attribute in node.attribute}
        assert modes == {
            "mode": "nearest",
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        }


def test_the_waymo_retinanet_has_184140_anchors_on_a_backbone_of_72_gmacs():
    grids = ((96, 160), (48, 80), (24, 40), (12, 20), (6, 10))
    expected = {f"classification_head_{h}x{w}": (1, 27, h, w) for h, w in grids}
    assert outputs("retinanet-resnet34") == expected | {f"regression_head_{h}x{w}": (1, 36, h, w) for h, w in grids}
    assert 9 * sum(height * width for height, width in grids) == 184_140
    assert round(gmacs("retinanet-resnet34", "fpn"), 3) == 13.090
    assert params("retinanet-resnet34", "fpn") == 3_770_368
    backbone = zoo.counts(read_graph(zoo.backbone("retinanet-resnet34", with_weights=False)))
    assert backbone.params == 21_276_160
    assert round(backbone.macs * 1e-9, 3) == 71.770


def test_ssd_mobilenets_backbone_has_1_06_of_its_gmacs():
    backbone = zoo.counts(read_graph(zoo.backbone("ssd-mobilenet", with_weights=False)))
    assert round(backbone.macs * 1e-9, 4) == 1.0552


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet50", [(2048, 7, 7)]),
        ("mobilenet-v2", [(1280, 7, 7)]),
        ("ssd-mobilenet", [(512, 19, 19), (1024, 10, 10)]),
        ("ssd-resnet34", [(256, 150, 150)]),
        ("retinanet", [(512, 100, 100), (1024, 50, 50), (2048, 25, 25)]),
        ("retinanet-resnet34", [(128, 96, 160), (256, 48, 80), (512, 24, 40)]),
        ("bert-large", [(384, 1024)]),
        ("unet3d", [(c, s, s, s) for c, s in ((32, 128), (64, 64), (128, 32), (256, 16), (320, 8), (320, 4))]),
        ("yolov5s", [(128, 80, 80), (256, 40, 40), (512, 20, 20)]),
    ],
)
def test_backbones_end_at_the_feature_maps(name, shapes):
    assert [shape(name, tensor)[1:] for tensor in zoo.network(name).backbone_outputs] == shapes
    cut = read_graph(zoo.backbone(name, with_weights=False))
    assert [cut.tensors[tensor].shape[1:] for tensor in cut.outputs] == shapes


@pytest.mark.parametrize(
    ("parts", "count", "expected"),
    [
        (("embeddings",), 31_782_912, 0),
        (("encoder.0.",), 12_596_224, 5.134),
        (("encoder.23.",), 12_596_224, 5.134),
        (("encoder.5.attention.scores", "encoder.5.attention.mixed"), 0, 0.302),
        (("encoder.5.output",), 2 * 4096 * 1024 + 4096 + 3 * 1024, 3.221),
        (("qa_outputs",), 2_050, 0.001),
    ],
)
def test_bert_part_by_part(parts, count, expected):
    assert params("bert-large", *parts) == count
    assert round(gmacs("bert-large", *parts), 3) == expected


def test_bert_has_three_int64_inputs_and_its_operators():
    graph = GRAPHS["bert-large"]
    assert graph.inputs == ("input_ids", "input_mask", "segment_ids")
    assert {graph.tensors[name].dtype for name in graph.inputs} == {"int64"}
    assert graph.outputs == ("output_start_logits", "output_end_logits")
    found = ops("bert-large")
    assert found["MatMul"] == 24 * (4 + 2 + 2) + 1
    assert (found["Softmax"], found["Erf"], found["Gather"], found["ReduceMean"]) == (24, 24, 3, 2 * 49)


def test_unet3d_has_the_node_numbers_of_the_published_cache():
    names = [layer.name for layer in GRAPHS["unet3d"].layers]
    assert len(names) == 77
    assert [names[i] for i in (0, 36, 37, 73, 76)] == ["Conv_0", "ConvTranspose_36", "Concat_37", "Conv_73", "Conv_76"]
    assert layer("unet3d", "Concat_37").inputs == ("ConvTranspose_36_output", "Relu_29_output")
    assert layer("unet3d", "Concat_69").inputs == ("ConvTranspose_68_output", "Relu_5_output")


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (range(0, 6), 59.79),
        (range(6, 12), 43.49),
        (range(12, 18), 21.74),
        (range(18, 24), 10.87),
        (range(24, 30), 2.55),
        (range(30, 36), 0.35),
        (range(36, 44), 4.30),
        (range(44, 52), 22.08),
        (range(52, 60), 44.56),
        (range(60, 68), 89.12),
        (range(68, 76), 178.24),
        (range(76, 77), 0.20),
    ],
)
def test_unet3d_level_by_level(nodes, expected):
    assert sum(GRAPHS["unet3d"].layers[i].macs for i in nodes) * 1e-9 == pytest.approx(expected, abs=0.006)


def test_unet3ds_convolutions_have_a_bias_at_the_transposed_and_the_last_only():
    convolutions = [x for x in GRAPHS["unet3d"].layers if x.op in ("Conv", "ConvTranspose")]
    biased = [x.name for x in convolutions if len(x.weights) == 2]
    assert biased == [*(f"ConvTranspose_{i}" for i in (36, 44, 52, 60, 68)), "Conv_76"]


def cache_names(file):
    if not (CACHES / file).is_file():
        pytest.skip(f"{file} is not there")
    return {line.rpartition(":")[0] for line in (CACHES / file).read_text().splitlines()[1:] if line}


def test_nvidias_3d_unet_cache_names_our_nodes():
    scaled = {name.partition("__")[0] for name in cache_names("mlperf30_3d-unet.cache") if "plugin" not in name}
    ours = {x.name for x in GRAPHS["unet3d"].layers if x.op in ("Conv", "ConvTranspose", "InstanceNormalization")}
    # The last convolution is a plugin there, with a name of its own.
    assert scaled - {"input", "output", "conv3d1x1x1k4_out"} == ours - {"Conv_76"}


def test_nvidias_yolov5s_cache_names_our_tensors():
    named = cache_names("cudla_yolov5s_qat2ptq.cache")
    graph = GRAPHS["yolov5s"]
    tensors = {name for layer in graph.layers for name in (*layer.inputs, *layer.outputs)}
    assert tensors - named == set(graph.outputs)
    assert named <= tensors


def test_yolov5s_at_672_is_nvidias_dla_sample():
    graph = read_graph(yolov5s.build(None, 672))
    assert round(zoo.counts(graph).macs * 1e-9, 4) == 9.0590
    assert [graph.tensors[name].shape for name in graph.outputs] == [(1, 255, side, side) for side in (84, 42, 21)]
    assert sum(3 * side * side for side in (84, 42, 21)) == 27_783


def test_mobilenet_v2_adds_where_shapes_agree_and_never_behind_an_activation():
    adds = [x for x in GRAPHS["mobilenet-v2"].layers if x.op == "Add"]
    assert [x.name for x in adds] == [f"features.{i}.add" for i in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)]
    assert all(x.inputs[0].endswith(".project_output") for x in adds)
    strides = [x.attributes["strides"][0] for x in GRAPHS["mobilenet-v2"].layers if x.name.endswith(".depthwise")]
    assert [i for i, stride in enumerate(strides, start=1) if stride == 2] == [2, 4, 7, 14]
