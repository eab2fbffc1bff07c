import pytest

from dla.errors import DlaError
from dla.io import io_formats, pools_bytes
from engines import zoo
from engines.graph import read_graph
from tests.dla.networks import conv, model, node

RESNET = zoo.graph("resnet50")


@pytest.mark.parametrize("input_format", ["DLA_LINEAR", "DLA_HWC4", "CHW32"])
@pytest.mark.parametrize("output_format", ["DLA_LINEAR", "CHW32"])
def test_native_int8_formats(input_format, output_format):
    assert io_formats(RESNET, input_format, output_format) == {"input": input_format, "logits": output_format}


def test_native_fp16_formats():
    assert io_formats(RESNET, "CHW16", "CHW16", "fp16") == {"input": "CHW16", "logits": "CHW16"}


@pytest.mark.parametrize(
    ("input_format", "output_format", "precision", "words"),
    [
        ("CHW4", "CHW32", "int8", "input format 'CHW4'"),
        ("LINEAR", "CHW32", "int8", "input format 'LINEAR'"),
        ("CHW16", "CHW32", "int8", "input format 'CHW16'"),
        ("DLA_HWC4", "DLA_HWC4", "int8", "output format 'DLA_HWC4'"),
        ("CHW32", "CHW16", "fp16", "input format 'CHW32'"),
        ("nonsense", "CHW16", "fp16", "'nonsense'"),
        ("DLA_LINEAR", "DLA_LINEAR", "fp32", "precision 'fp32'"),
    ],
)
def test_formats_that_need_a_reformat_are_refused(input_format, output_format, precision, words):
    with pytest.raises(DlaError, match=words):
        io_formats(RESNET, input_format, output_format, precision)


def test_hwc4_wants_up_to_four_channels_and_a_convolution():
    five = read_graph(model([conv("x", "y", "w")], {"x": (1, 5, 8, 8)}, {"y": None}, {"w": (2, 5, 1, 1)}))
    with pytest.raises(DlaError, match=r"shape \[1, 5, 8, 8\]"):
        io_formats(five, "DLA_HWC4", "CHW32")
    relu = read_graph(model([node("Relu", "x", "y")], {"x": (1, 3, 8, 8)}, {"y": None}))
    with pytest.raises(DlaError, match="feeds 'y_node'"):
        io_formats(relu, "DLA_HWC4", "CHW32")


def test_pools_are_powers_of_two_and_the_sram_is_one_core_s():
    pools = pools_bytes()
    assert pools == {"DLA_MANAGED_SRAM": 1048576, "DLA_LOCAL_DRAM": 1073741824, "DLA_GLOBAL_DRAM": 536870912}
