"""A network for TensorRT 11.4: constrained ranges as Q/DQ pairs that the DLA takes where they stand."""

import onnx
import pytest

from dla.placement import place
from dla.scales import fit
from engines.graph import read_graph
from engines.importer import QUANTISING
from engines.qdq import insert_qdq
from engines.spec import Ranges
from tests.dla.networks import conv, model, node

NODES = [
    conv("x", "c", "w"),
    node("Relu", "c", "r"),
    node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
    conv("p", "d", "w"),
    node("Sigmoid", "d", "s"),
    node("Mul", "d s", "m"),
    node("Add", "m p", "a"),
    node("Concat", "a p", "j", axis=1),
    node("AveragePool", "j", "y", kernel_shape=[4, 4]),
]
AMAX = {name: 1.0 + index for index, name in enumerate("xcrpdsmajy")}


@pytest.fixture(scope="module")
def networks():
    network = model(NODES, {"x": (1, 4, 8, 8)}, {"y": None}, {"w": (4, 4, 1, 1)})
    graph = read_graph(network)
    ranges = fit(graph, place(graph, "11.4"), Ranges(AMAX, "minmax", 1)).ranges
    return graph, insert_qdq(network, ranges.amax_by_tensor, target="tensorrt-dla")


def test_the_dla_takes_the_same_layers_with_pairs_as_without(networks):
    graph, explicit = networks
    onnx.checker.check_model(explicit, full_check=True)
    placement = place(read_graph(explicit), "11.4")
    assert placement.zero_gpu_layers
    assert placement.loadables == place(graph, "11.4").loadables


def test_before_tensorrt_11_it_takes_no_pair(networks):
    placement = place(read_graph(networks[1]), "10.3")
    kinds = {entry.op: entry.final for entry in placement.layers}
    assert {kinds[op] for op in QUANTISING} == {"gpu"}


def test_every_tensor_that_a_layer_reads_or_writes_has_a_pair(networks):
    graph = read_graph(networks[1])
    made = {name: layer for layer in graph.layers for name in layer.outputs}
    readers = {name: [layer for layer in graph.layers if name in layer.inputs] for name in made}
    layers = [layer for layer in graph.layers if layer.op not in QUANTISING]
    assert len(layers) == len(NODES)
    for layer in layers:
        assert {made[name].op for name in layer.inputs} == {"DequantizeLinear"}
        assert [reader.op for reader in readers[layer.outputs[0]]] == ["QuantizeLinear"]
    assert made["y"].op == "DequantizeLinear"
