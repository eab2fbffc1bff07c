"""What an engine's ends are, decided before it is built."""

import pytest

from engines.bindings import check_dla_precision, float_outputs, input_bindings, native_outputs
from engines.errors import EngineError
from engines.graph import read_graph
from engines.importer import NodeNames
from engines.spec import EngineSpec

from .models import AMAX, small

GRAPH = read_graph(small(), "small")


def spec(**changes):
    values = {"network": "small", "device": "dla", "batch": 2, "amax_by_tensor": {**AMAX, "y": 9.0}}
    return EngineSpec(**{**values, "io_formats": {"x": "DLA_HWC4", "y": "DLA_LINEAR"}, **changes})


def kinds(bindings):
    return [(binding.name, binding.dtype, binding.format) for binding in bindings]


def test_an_input_with_a_range_is_int8_in_its_format():
    (x,) = input_bindings(GRAPH, spec())
    assert (x.dtype, x.format, x.shape, x.sample_bytes) == ("int8", "DLA_HWC4", (3, 8, 8), 8 * 64)
    assert x.scale == pytest.approx(3 / 127)
    assert kinds(input_bindings(GRAPH, spec(amax_by_tensor={}, io_formats={}))) == [("x", "float32", "LINEAR")]


def outputs_at(tensor, **changes):
    """Ends of the network cut behind a tensor."""
    model = small()
    made = next(index for index, node in enumerate(model.graph.node) if tensor in node.output)
    del model.graph.node[made + 1 :]
    shape = GRAPH.tensors[tensor].shape
    model.graph.output[0].name = tensor
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for size in shape:
        model.graph.output[0].type.tensor_type.shape.dim.add(dim_value=size)
    return kinds(native_outputs(read_graph(model, "cut"), spec(**changes)))


def test_a_dla_keeps_its_outputs_in_its_own_types_and_formats():
    assert outputs_at("a") == [("a", "int8", "DLA_LINEAR")]
    assert outputs_at("a", io_formats={"a": "CHW32"}) == [("a", "int8", "CHW32")]
    assert outputs_at("a", fp16_layers=("add",)) == [("a", "float16", "DLA_LINEAR")]
    assert outputs_at("a", precision="fp16") == [("a", "float16", "DLA_LINEAR")]
    assert outputs_at("a", amax_by_tensor={"x": 3.0}) == [("a", "float16", "DLA_LINEAR")]


def test_what_the_gpu_makes_or_shuffles_is_linear_float32():
    assert outputs_at("a", device_by_layer={"add": "gpu"}) == [("a", "float32", "LINEAR")]
    assert outputs_at("a", device="gpu") == [("a", "float32", "LINEAR")]
    assert kinds(native_outputs(GRAPH, spec())) == [("y", "float32", "LINEAR")]  # two axes
    assert kinds(float_outputs(GRAPH)) == [("y", "float32", "LINEAR")]


def test_a_dla_does_not_mix_int8_samples_with_fp16():
    inputs = input_bindings(GRAPH, spec())
    check_dla_precision(inputs, spec())
    check_dla_precision(inputs, spec(device="gpu", precision="fp16"))
    with pytest.raises(EngineError, match="computes in fp16 and its input 'x' is int8.*set precision to int8"):
        check_dla_precision(inputs, spec(precision="fp16"))
    check_dla_precision(input_bindings(GRAPH, spec(amax_by_tensor={})), spec(precision="fp16"))
    with pytest.raises(EngineError, match="computes in int8 or fp16, precision is fp32"):
        check_dla_precision((), spec(precision="fp32"))


def test_layers_of_tensorrt_are_found_again_as_nodes():
    names = NodeNames(GRAPH)
    assert [names.node(name) for name in ("conv1", "relu1", "fc")] == ["conv1", "relu1", "fc"]
    assert names.node("fc_1") == "fc"  # the second layer of a node
    assert names.node("node_of_c2") == "Conv_2"  # a node without a name
    assert names.node("reshape_before_fc") is None
