import json
import re
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from calibration.cache import CalibrationCache, read_cache
from calibration.names import is_numbered, missing, parser_tensors, unknown, with_parser_names
from engines.graph import read_graph
from engines.spec import Ranges
from tests.dla.networks import conv, model, node
from tests.engines.models import AMAX, small

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
NUMBER = re.compile(r"(.+) \+ \(Unnamed Layer\* (\d+)\) \[ElementWise\]")

SCALES = {**AMAX, "y": 9.0}


def test_the_product_in_front_of_a_bias_is_named_after_its_layer():
    graph = read_graph(small())
    assert [(tensor.name, tensor.result) for tensor in parser_tensors(graph)] == [("fc_output", "y")]


def test_a_product_without_a_bias_is_the_nodes_own_output():
    nodes = [node("Gemm", "x w", "g"), node("MatMul", "g v", "y")]
    graph = read_graph(model(nodes, {"x": (1, 4)}, {"y": None}, {"w": (4, 4), "v": (4, 4)}))
    assert parser_tensors(graph) == ()


def test_ranges_for_tensorrt_name_the_product_with_the_range_of_the_result():
    graph = read_graph(small())
    ranges = with_parser_names(graph, Ranges(SCALES, "minmax", 3))
    assert dict(ranges.amax_by_tensor) == {**SCALES, "fc_output": 9.0}
    assert (ranges.method, ranges.images) == ("minmax", 3)
    assert with_parser_names(graph, ranges) == ranges
    assert dict(with_parser_names(graph, Ranges(AMAX, "minmax", 3)).amax_by_tensor) == AMAX
    assert missing(graph, CalibrationCache.from_ranges(ranges).scales) == ()


def test_tensors_that_a_cache_lacks_are_named_in_the_networks_order():
    graph = read_graph(small())
    assert missing(graph, {}) == ("x", "c1", "r1", "c2", "a", "p", "f", "fc_output", "y")
    assert missing(graph, {"x": 1.0, "r1": 0.0, "a": 1.0, "y": 1.0}) == ("c1", "c2", "p", "f", "fc_output")


def test_constants_integers_and_second_names_need_no_scale():
    nodes = [
        node("Identity", "k", "kk"),
        node("Identity", "x", "i"),
        node("Add", "i kk", "a"),
        node("ArgMax", "a", "n"),
        node("Flatten", "a", "r"),
        node("Identity", "r", "y"),
    ]
    outputs = {"y": None, "n": TensorProto.INT64}
    graph = read_graph(model(nodes, {"x": (1, 4, 2, 2)}, outputs, {"k": (1, 4, 1, 1)}))
    assert missing(graph, {}) == ("x", "a", "r", "y")


def test_names_that_a_network_does_not_have_are_unknown():
    graph = read_graph(small())
    names = ["x", "w1", "fc_output", "fc/Gemm_output", "(Unnamed Layer* 4) [Shuffle]_output"]
    assert unknown(graph, names) == ("fc/Gemm_output", "(Unnamed Layer* 4) [Shuffle]_output")
    assert [is_numbered(name) for name in names] == [False, False, False, False, True]


@pytest.mark.skipif(not SHARED.is_dir(), reason="real logs are not here")
@pytest.mark.parametrize(
    ("case", "constants_before"),
    [("c01_resnet50_tv_int8_trt10.3", {}), ("c03_detr_r50_fp16_trt10.3", {"/model/encoder/layers.0/self_attn/Add": 1})],
    ids=["resnet50", "detr"],
)
def test_real_logs_number_the_sum_of_a_bias_four_layers_behind_its_first_constant(case, constants_before):
    """The product has the node's name, hence `<node>_output` lies between it and the sum that the log numbers."""
    log = json.loads((SHARED / "dla_cases" / f"{case}.json").read_text())
    numbers = {
        match[1]: int(match[2]) for name in log["trt"]["layers_running_on_dla"] if (match := NUMBER.fullmatch(name))
    }
    assert numbers
    index, seen = 0, 0
    for layer in log["onnx_nodes"]:
        index += constants_before.get(layer["name"], 0)
        if layer["op"] == "Gemm" and len(layer["inputs"]) == 3:
            assert numbers[layer["name"]] == index + 4
            index, seen = index + 4, seen + 1
        if seen == 3 or layer["name"] not in numbers and layer["op"] == "MatMul":
            break
        index += 1
    assert seen == min(3, len(numbers))


@pytest.mark.skipif(not SHARED.is_dir(), reason="real calibration caches are not here")
def test_numbered_names_are_in_the_caffe_parsers_caches_alone():
    counts = {
        path.stem: sum(map(is_numbered, read_cache(path).scales))
        for path in sorted((SHARED / "calibration_caches").glob("*.cache"))
    }
    assert {name for name, count in counts.items() if count} <= {"haxconn_resnet101", "haxconn_googlenet"}
    assert counts["haxconn_resnet101"] == 510


@pytest.mark.skipif(not SHARED.is_dir(), reason="real calibration caches are not here")
def test_a_real_cache_of_an_onnx_network_names_its_tensors():
    """YOLOv5s as PyTorch exports it: the first block's names, and one that the cache leaves to fusion."""
    names = read_cache(SHARED / "calibration_caches" / "cudla_yolov5s_qat2ptq.cache").scales
    first, second = "/model.0/conv/Conv_output_0", "/model.0/act/Sigmoid_output_0"
    nodes = [
        conv("images", first, "w"),
        node("Sigmoid", first, second),
        node("Mul", f"{first} {second}", "/model.0/act/Mul_output_0"),
        node("Softplus", "/model.0/act/Mul_output_0", "/model.99/none"),
    ]
    weights = {"w": np.ones((4, 3, 6, 6), np.float32)}
    graph = read_graph(model(nodes, {"images": (1, 3, 8, 8)}, {"/model.99/none": None}, weights))
    assert missing(graph, names) == ("/model.99/none",)
    assert len(unknown(graph, names)) == len(names) - 4
