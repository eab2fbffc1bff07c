"""Broken networks: 500 damaged ONNX files, each ends in a placement or in one clear line."""

import functools
from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from dla.errors import DlaError
from dla.placement import place
from engines.errors import EngineError
from engines.graph import read_graph
from tests.dla.networks import CUSTOM_DOMAIN, conv, model, node

FILES = 500
SLOWEST_MS = 5_000  # of one file: more is a hang
NUMBERS = (-(2**63), -(2**31), -7, -1, 0, 1, 2, 5, 33, 4097, 8193, 2**31, 2**40, 2**63 - 1)
NAMES = ("", "x", "w", "y", "nowhere", "ünï \n", "a" * 300)
OPS = ("Conv", "Gemm", "MatMul", "Clip", "Resize", "Slice", "Split", "Reshape", "Transpose", "Concat", "Pad", "If")
OPS += ("MaxPool", "ReduceMean", "Softmax", "ConvTranspose", "PRelu", "Expand", "Loop", "QuantizeLinear", "Mish", "")


def classifier():
    nodes = [
        conv("x", "a", "w", pads=(1, 1, 1, 1)),
        node("Relu", "a", "b"),
        node("MaxPool", "b", "c", kernel_shape=(2, 2), strides=(2, 2)),
        node("GlobalAveragePool", "c", "d"),
        node("Flatten", "d", "e"),
        node("Gemm", "e v", "f", transB=1),
        node("Softmax", "f", "y", axis=1),
    ]
    return model(nodes, {"x": (1, 3, 8, 8)}, {"y": None}, {"w": (4, 3, 3, 3), "v": (5, 4)})


def segmenter():
    weights = {"w": (8, 3, 3, 3), "u": (8, 4, 2, 2), "low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    weights |= {"scales": np.array([1, 1, 2, 2], np.float32), "none": np.array([], np.float32)}
    weights |= {"starts": np.array([0]), "ends": np.array([4]), "axes": np.array([1])}
    nodes = [
        conv("x", "a", "w", pads=(1, 1, 1, 1), strides=(2, 2)),
        node("Clip", "a low high", "b"),
        node("Slice", "b starts ends axes", "c"),
        node("Sigmoid", "c", "d"),
        node("Mul", "c d", "e"),
        node("Concat", "e c", "f", axis=1),
        node("ConvTranspose", "f u", "g", strides=(2, 2)),
        node("Resize", "a none scales", "h", mode="nearest"),
        node("Split", "h", "i j", axis=1),
        node("Add", "g i", "k"),
        node("Transpose", "k", "y", perm=(0, 2, 3, 1)),
    ]
    return model(nodes, {"x": (2, 3, 16, 16)}, {"y": None}, weights)


def oddities():
    """Opsets and forms that are rare: a custom operator, a branch, integers, attention, quantisation."""
    weights = {"cond": np.array(True), "m": (6, 6), "scale": np.array(0.1, np.float32), "zero": np.array(0, np.int8)}
    branch = [
        helper.make_graph([helper.make_node(op, ["a"], ["r"])], op, [], [helper.make_tensor_value_info("r", 1, None)])
        for op in ("Relu", "Neg")
    ]
    nodes = [
        node("QuantizeLinear", "x scale zero", "q"),
        node("DequantizeLinear", "q scale zero", "a"),
        node("If", "cond", "b", then_branch=branch[0], else_branch=branch[1]),
        node("MatMul", "a m", "c"),
        node("Softmax", "c", "d", axis=-1),
        node("MatMul", "d a", "e"),
        node("Special", "e", "s", domain=CUSTOM_DOMAIN),
        node("Cast", "e", "i", to=TensorProto.INT64),
        node("ArgMax", "i", "y", axis=2),
    ]
    return model(nodes, {"x": (1, 6, 6)}, {"y": TensorProto.INT64}, weights)


NETWORKS = (classifier, segmenter, oddities)


@functools.cache
def original(index):
    return NETWORKS[index]().SerializeToString()


# Each way to damage takes a model (or its bytes) and hypothesis' means to draw.


def cut(data, draw):
    return data[: draw(st.integers(0, len(data)))]


def flip(data, draw):
    damaged = bytearray(data)
    for place_ in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=6)):
        damaged[place_] = draw(st.integers(0, 255))
    return bytes(damaged)


def splice(data, draw):
    at, end = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
    return data[:at] + draw(st.binary(max_size=20)) + data[end:]


def drop_node(network, draw):
    del network.graph.node[draw(st.integers(0, len(network.graph.node) - 1))]


def rewire(network, draw):
    entry = draw(st.sampled_from(list(network.graph.node)))
    ends = draw(st.sampled_from([entry.input, entry.output]))
    if ends:
        ends[draw(st.integers(0, len(ends) - 1))] = draw(st.sampled_from(NAMES + tuple("abcdef")))


def unplug(network, draw):
    entry = draw(st.sampled_from(list(network.graph.node)))
    del entry.input[draw(st.integers(0, len(entry.input))) :]


def change_op(network, draw):
    entry = draw(st.sampled_from(list(network.graph.node)))
    entry.op_type = draw(st.sampled_from(OPS))


def change_attribute(network, draw):
    entry = draw(st.sampled_from(list(network.graph.node)))
    numbers = st.sampled_from(NUMBERS)
    value = draw(
        st.one_of(numbers, st.lists(numbers, min_size=1, max_size=9), st.floats(width=32), st.text(max_size=5))
    )
    known = [attribute.name for attribute in entry.attribute] + ["pads", "axis", "group", "kernel_shape", "strides"]
    name = draw(st.sampled_from(known))
    kept = [attribute for attribute in entry.attribute if attribute.name != name]
    del entry.attribute[:]
    entry.attribute.extend([*kept, helper.make_attribute(name, value)])


def change_shape(network, draw):
    tensors = [value.type.tensor_type for value in (*network.graph.input, *network.graph.output)]
    shape = draw(st.sampled_from(tensors)).shape
    if draw(st.booleans()):
        del shape.dim[draw(st.integers(0, len(shape.dim))) :]
    elif shape.dim:
        draw(st.sampled_from(list(shape.dim))).dim_value = draw(st.sampled_from(NUMBERS))


def change_weight(network, draw):
    tensor = draw(st.sampled_from(list(network.graph.initializer)))
    if draw(st.booleans()):
        tensor.data_type = draw(st.integers(-1, 30))
    elif tensor.dims and draw(st.booleans()):
        tensor.dims[0] = draw(st.sampled_from(NUMBERS))
    else:
        del tensor.dims[:]


def change_type(network, draw):
    values = [*network.graph.input, *network.graph.output]
    draw(st.sampled_from(values)).type.tensor_type.elem_type = draw(st.integers(0, 30))


def change_opset(network, draw):
    network.opset_import[0].version = draw(st.sampled_from((0, 7, 11, 18, 21, 99, -1)))


BYTES = (cut, flip, splice)
PARTS = (
    drop_node,
    rewire,
    unplug,
    change_op,
    change_attribute,
    change_shape,
    change_weight,
    change_type,
    change_opset,
)


@st.composite
def damaged_files(draw):
    data = original(draw(st.integers(0, len(NETWORKS) - 1)))
    if draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(BYTES))(data, draw)
    network = onnx.load_from_string(data)
    for damage in draw(st.lists(st.sampled_from(PARTS), min_size=1, max_size=3)):
        if network.graph.node:
            damage(network, draw)
    return network.SerializeToString()


def outcome(path, tensorrt):
    """Place a file; returns "placed", or "refused" where that ended in one clear line."""
    try:
        graph = read_graph(path)
        placement = place(graph, tensorrt)
    except (EngineError, DlaError) as error:
        line = str(error)
        assert 10 < len(line) < 2_000 and "\n" not in line, line
        return "refused"
    placed = {layer.node for layer in placement.layers}
    assert placed >= {layer.name for layer in graph.layers}
    return "placed"


def test_damaged_files_end_in_a_placement_or_one_line(tmp_path):
    outcomes = Counter()

    @settings(
        max_examples=FILES,
        derandomize=True,
        database=None,
        deadline=SLOWEST_MS,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(data=damaged_files(), tensorrt=st.sampled_from(("8.5", "8.6", "10.3", "11.4")))
    def damage_and_place(data, tensorrt):
        path = tmp_path / "network.onnx"
        path.write_bytes(data)
        outcomes[outcome(path, tensorrt)] += 1

    damage_and_place()
    assert outcomes.total() == FILES
    assert min(outcomes["placed"], outcomes["refused"]) > FILES // 10  # neither too slight a damage nor too great


@pytest.mark.parametrize("make", NETWORKS)
def test_the_networks_themselves_are_placed(make):
    graph = read_graph(make(), "whole")
    assert len([layer for layer in place(graph).layers if layer.op]) == len(graph.layers)
