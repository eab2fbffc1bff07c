import pytest

from dla.placement import place
from dla.rules import CBUF_BANKS, cbuf_banks
from engines.graph import read_graph
from tests.dla.cases import CASES, load_case
from tests.dla.excerpts import EXCERPTS, recorded

needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="recorded TensorRT placements are not here")

# What is known to be predicted wrong. c27: TensorRT 8.2 allowed a batch of 32, 8.4 and later 4096.
WRONG = {"c27": {"product"}}


def predicted(case):
    placement = place(read_graph(case.model), case.tensorrt, precision=case.precision)
    return placement, {entry.node: entry for entry in placement.layers if entry.op}


def check(case):
    placement, layers = predicted(case)
    wrong = {node for node, device in case.real.items() if layers[node].candidate != device}
    assert wrong == WRONG.get(case.name, set())
    assert all(layers[node].final == device for node, device in case.final.items())
    for node, message in case.messages.items():
        assert layers[node].message == f"{node}: {message}"
    if case.candidates is not None:
        assert len(placement.candidates) == case.candidates
    return placement


@pytest.mark.parametrize("make", EXCERPTS)
def test_published_excerpts_are_placed_as_they_were(make):
    check(make())


@needs_cases
@pytest.mark.parametrize("name", ["c01", "c03"])
def test_recorded_networks_are_placed_node_by_node_as_tensorrt_10_3_did_on_agx_orin(name):
    case = recorded(name)
    placement = check(case)
    blocks = load_case(name)["trt"]["dla_loadables_final"]
    names = [tuple(layer["name"].split(" + ")[0] for layer in block["layers"]) for block in blocks]
    assert set(map(frozenset, names)) == set(map(frozenset, placement.loadables))


@needs_cases
def test_detr_keeps_161_nodes_on_the_dla_in_16_of_162_loadables():
    placement, layers = predicted(recorded("c03"))
    assert sum(entry.final == "dla" for entry in layers.values()) == 161
    assert (len(placement.candidates), len(placement.kept)) == (162, 16)


@needs_cases
def test_the_loadables_that_detr_loses_begin_where_tensorrt_says_but_for_one():
    real = {
        entry["name"]
        for entry in load_case("c03")["onnx_nodes"]
        if entry.get("lost_to_16_subgraph_limit_head_of_group")
    }
    placement, _ = predicted(recorded("c03"))
    lost = {group[0] for group in placement.candidates} - {group[0] for group in placement.loadables}
    # TensorRT pairs the class head Gemm_179 with the last layer of the box head, here it is the first one.
    assert (lost - real, real - lost) == ({"Gemm_183"}, {"Gemm_181"})


@needs_cases
def test_the_convolution_buffer_check_refuses_no_convolution_that_tensorrt_10_3_took():
    entries = [entry for entry in load_case("c03")["onnx_nodes"] if entry["op"] == "Conv"]
    assert all(entry["final_assignment"] == "DLA" for entry in entries)
    shapes = [[tensor["shape"] for tensor in entry["inputs"]] for entry in entries]
    banks = [cbuf_banks(image[1], tuple(weight[2:]), 1, image[3]) for image, weight, *_ in shapes]
    assert len(banks) == 54
    assert max(banks) < CBUF_BANKS
