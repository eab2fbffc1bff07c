"""Fused layers as plain facts: sums that agree with the graph, sizes by hand."""

import pytest

from engines import zoo
from engines.costs import LayerWork
from engines.graph import read_graph


@pytest.mark.parametrize("name", ["resnet50", "ssd-mobilenet", "yolov5s", "unet3d", "mobilenet-v2"])
def test_fused_layers_hold_all_of_the_work_and_none_twice(name):
    work = zoo.graph(name).workload
    assert sum(layer.macs for layer in work.layers) == work.macs
    # bounds of a Clip and scales of a Resize are one weight of many layers
    assert sum(layer.weight_bytes for layer in work.layers) == pytest.approx(work.weight_bytes, rel=1e-4)
    for layer in work.layers:
        assert layer.macs == layer.rows * layer.columns * layer.depth * layer.groups, layer.name


def test_shared_weights_are_read_at_every_level():
    work = zoo.graph("retinanet").workload  # its heads run on five maps
    assert sum(layer.weight_bytes for layer in work.layers) > 1.5 * work.weight_bytes


def test_fusion_leaves_what_a_kernel_reads_and_writes():
    by_name = {layer.name: layer for layer in zoo.graph("resnet50").workload.layers}
    # 56 x 56 positions, 64 to 64 channels by 3x3: the batch norm is folded, the ReLU is in the kernel
    assert by_name["layer1.0.conv2"] == LayerWork(
        name="layer1.0.conv2",
        op="conv",
        macs=56 * 56 * 64 * 64 * 9,
        rows=56 * 56,
        columns=64,
        depth=64 * 9,
        groups=1,
        window=9,
        weight_bytes=64 * 64 * 9 + 64,
        input_bytes=56 * 56 * 64,
        output_bytes=56 * 56 * 64,
        curve_bytes=0,
    )
    # The addition of the shortcut is in the last of a block: it reads that tensor too
    assert by_name["layer1.1.conv3"].input_bytes == 56 * 56 * (64 + 256)


def test_kinds():
    kinds = {name: {layer.op for layer in zoo.graph(name).workload.layers} for name in ("ssd-mobilenet", "unet3d")}
    assert kinds == {"ssd-mobilenet": {"conv", "depthwise"}, "unet3d": {"conv", "deconv"}}


def test_curves_that_are_no_relu_count_their_own_passes():
    curves = {name: sum(one.curve_bytes for one in zoo.graph(name).workload.layers) for name in ("resnet50", "yolov5s")}
    assert curves["resnet50"] == 0 and curves["yolov5s"] > zoo.graph("yolov5s").workload.output_bytes


def test_work_is_that_of_one_sample_at_any_batch():
    made = zoo.model("resnet50", with_weights=False)
    name = made.graph.input[0].name
    four = read_graph(made, "resnet50", shapes={name: (4, 3, 224, 224)}).workload
    one = zoo.graph("resnet50").workload
    assert (four.macs, four.output_bytes) == (one.macs, one.output_bytes)
    assert [layer.input_bytes for layer in four.layers] == [layer.input_bytes for layer in one.layers]


def test_outputs_are_counted():
    assert zoo.graph("resnet50").workload.output_bytes == 1000
    assert zoo.graph("retinanet").workload.output_bytes == 120_087 * (264 + 4)
