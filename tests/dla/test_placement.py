import json
from pathlib import Path

import pytest

from dla.partition import partition
from dla.placement import place
from dla.rewrite import rewrite
from dla.rules import CBUF_BANKS, cbuf_banks
from engines import zoo
from engines.graph import read_graph
from tests.dla.networks import CUSTOM_DOMAIN, conv, model, node

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "dla_cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="recorded TensorRT placements are not here")


def loadables(nodes, outputs=("y",), inputs=None, weights=None, **more):
    network = model(nodes, inputs or {"x": (1, 4, 8, 8)}, dict.fromkeys(outputs), weights, **more)
    return place(read_graph(network)).loadables


def test_resnet50_as_exported_has_two_gpu_layers():
    placement = place(zoo.graph("resnet50"))
    assert placement.gpu_layers == ("avgpool", "reshape_after_fc")
    assert placement.device_by_layer == {"avgpool": "gpu"}
    assert [len(group) for group in placement.loadables] == [119, 1]
    assert not placement.zero_gpu_layers


def test_resnet50_rewritten_is_one_loadable_and_leaves_the_gpu_alone():
    network, changes = rewrite(zoo.model("resnet50", with_weights=False), ("global-pool", "gemm-to-conv", "cut-tail"))
    graph = read_graph(network)
    placement = place(graph)
    assert placement.zero_gpu_layers
    assert [len(group) for group in placement.loadables] == [len(graph.layers)]
    assert {entry.final for entry in placement.layers} == {"dla"}
    assert [change.rewrite for change in changes] == ["global-pool", "gemm-to-conv"]
    assert graph.tensors["logits"].shape == (1, 1000, 1, 1)


@needs_cases
def test_resnet50_is_placed_as_tensorrt_10_3_did_on_agx_orin():
    case = json.loads((CASES / "c01_resnet50_tv_int8_trt10.3.json").read_text())
    placement = place(zoo.graph("resnet50"))
    ours = [entry for entry in placement.layers if entry.op]
    word = {"DLA": "dla", "GPU": "gpu", "FOLDED_OR_FUSED": "folded"}
    real = [(entry["op"], word[entry["final_assignment"]], entry.get("reason")) for entry in case["onnx_nodes"]]
    reasons = [entry.message and entry.message.removeprefix(f"{entry.node}: ") for entry in ours]
    assert [(entry.op, entry.final, reason) for entry, reason in zip(ours, reasons, strict=True)] == real
    assert len(placement.loadables) == len(case["trt"]["dla_loadables_final"])
    assert len(placement.gpu_layers) == len(case["trt"]["layers_running_on_gpu"])


@needs_cases
def test_the_convolution_buffer_check_refuses_no_convolution_that_tensorrt_10_3_took():
    case = json.loads((CASES / "c03_detr_r50_fp16_trt10.3.json").read_text())
    convolutions = [entry for entry in case["onnx_nodes"] if entry["op"] == "Conv"]
    assert all(entry["final_assignment"] == "DLA" for entry in convolutions)
    banks = [
        cbuf_banks(
            entry["inputs"][0]["shape"][1], tuple(entry["inputs"][1]["shape"][2:]), 1, entry["inputs"][0]["shape"][3]
        )
        for entry in convolutions
    ]
    assert len(banks) == 54
    assert max(banks) < CBUF_BANKS


def test_a_gpu_layer_cuts_a_chain():
    nodes = [node("Relu", "x", "a"), node("Elu", "a", "b"), node("Relu", "b", "c"), node("Sigmoid", "c", "y")]
    assert loadables(nodes) == (("a_node",), ("c_node", "y_node"))


def test_a_branch_around_a_gpu_layer_does_not_close_a_cycle():
    # a -> Elu -> y and a -> b -> y: {a, b, y} in one piece would wait for what waits for itself.
    nodes = [node("Relu", "x", "a"), node("Elu", "a", "e"), node("Relu", "a", "b"), node("Add", "b e", "y")]
    assert loadables(nodes) == (("a_node", "b_node"), ("y_node",))


def test_a_branch_from_elsewhere_does_not_cut():
    nodes = [node("Relu", "x", "a"), node("Elu", "z", "e"), node("Add", "a e", "y")]
    assert loadables(nodes, inputs={"x": (1, 4, 8, 8), "z": (1, 4, 8, 8)}) == (("a_node", "y_node"),)


def test_two_loadables_never_wait_for_each_other():
    # a -> gpu -> w and b -> gpu -> v; v also reads a, w also reads b: {a, v} and {b, w} would wait for each other.
    order = ["a", "b", "g1", "g2", "v", "w"]
    reads = {"a": [], "b": [], "g1": ["a"], "g2": ["b"], "v": ["a", "g2"], "w": ["b", "g1"]}
    groups = partition(order, reads, {"a": [], "b": [], "v": ["a"], "w": ["b"]})
    assert groups == (("a", "v"), ("b",), ("w",))


def test_tensors_of_less_than_four_axes_cut_and_cost_shuffles():
    nodes = [node("Gemm", "x w", "a"), node("Relu", "a", "y")]
    network = model(nodes, {"x": (2, 8)}, {"y": None}, {"w": (8, 4)})
    placement = place(read_graph(network))
    assert placement.loadables == (("a_node",), ("y_node",))
    assert placement.gpu_layers == (
        "reshape_before_a_node",
        "reshape_after_a_node",
        "reshape_before_y_node",
        "reshape_after_y_node",
    )
    assert placement.device_by_layer == {}


def test_a_flatten_between_pool_and_gemm_is_absorbed():
    # As TensorRT 8.4 did for a small classifier on AGX Orin: one loadable, and the shuffle after the Gemm on the GPU.
    nodes = [
        conv("x", "a", "w"),
        node("AveragePool", "a", "p", kernel_shape=[2, 2]),
        node("Flatten", "p", "f"),
        node("Gemm", "f v", "y"),
    ]
    network = model(nodes, {"x": (32, 3, 4, 4)}, {"y": None}, {"w": (8, 3, 3, 3), "v": (8, 10)})
    placement = place(read_graph(network))
    assert placement.loadables == (("a_node", "p_node", "y_node"),)
    assert placement.gpu_layers == ("reshape_after_y_node",)


def test_a_flatten_of_a_larger_map_is_the_gpus():
    nodes = [node("Relu", "x", "a"), node("Flatten", "a", "f"), node("Gemm", "f v", "y")]
    network = model(nodes, {"x": (1, 2, 2, 2)}, {"y": None}, {"v": (8, 10)})
    placement = place(read_graph(network))
    assert placement.gpu_layers == ("f_node", "reshape_before_y_node", "reshape_after_y_node")


def test_beyond_the_limit_the_largest_loadables_stay_and_ties_go_to_the_first():
    # Three chains of 1, 2 and 2 layers, cut by Elu.
    ops = ["Relu", "Elu", "Relu", "Relu", "Elu", "Relu", "Relu"]
    names = ["x", *"abcdefy"[: len(ops) - 1], "y"]
    nodes = [node(op, names[index], names[index + 1]) for index, op in enumerate(ops)]
    network = model(nodes, {"x": (1, 4, 8, 8)}, {"y": None})
    two, one = (place(read_graph(network), limit=limit) for limit in (2, 1))
    assert two.loadables == (("c_node", "d_node"), ("f_node", "y_node"))
    assert one.loadables == (("c_node", "d_node"),)
    dropped = {entry.node: entry for entry in one.layers if entry.rule == "loadable-limit"}
    assert set(dropped) == {"a_node", "f_node", "y_node"}
    assert (dropped["y_node"].candidate, dropped["y_node"].final) == ("dla", "gpu")
    assert dropped["y_node"].message == (
        "DLA supports only 1 subgraphs per DLA core. Switching to GPU for layer f_node"
    )


def test_constants_identities_and_dropout_are_folded():
    nodes = [node("Relu", "x", "a"), node("Identity", "a", "b"), node("Dropout", "b", "c"), node("Relu", "c", "y")]
    network = model(nodes, {"x": (1, 4, 8, 8)}, {"y": None})
    placement = place(read_graph(network))
    assert [entry.final for entry in placement.layers] == ["dla", "folded", "folded", "dla"]
    assert placement.loadables == (("a_node", "y_node"),)
    assert placement.zero_gpu_layers


def test_a_custom_operator_is_one_gpu_layer():
    nodes = [node("Relu", "x", "a"), node("Fancy", "a", "f", domain=CUSTOM_DOMAIN)]
    entry = place(read_graph(model(nodes, {"x": (1, 4, 8, 8)}, {"f": None}))).layers[1]
    assert (entry.final, entry.trt_layer, entry.rule) == ("gpu", "PLUGIN", "no-dla-layer")
