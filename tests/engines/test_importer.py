import numpy as np
import onnx
from onnx import helper

from engines.graph import read_graph
from engines.importer import Imported, import_layers

from .models import make, small, value


def graph_of(nodes, shape, weights=None, outputs=("y",), opset=13):
    made = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    return read_graph(make(nodes, [value("x", *shape)], made, weights or {}, opset))


def test_the_layers_that_tensorrt_makes_of_a_small_classifier():
    layers = import_layers(read_graph(small()))
    assert [layer.kind for layer in layers] == [
        "CONVOLUTION", "ACTIVATION", "CONVOLUTION", "ELEMENTWISE", "REDUCE", "CONVOLUTION", "SHUFFLE"
    ]  # fmt: skip
    assert layers[0].nodes == ("conv1",)
    # The Flatten of [1,6,1,1] goes into the convolution that the Gemm becomes; its result is [1,5] again.
    assert layers[5].nodes == ("fc", "flatten")
    assert layers[6].name == "reshape_after_fc"


def test_a_gemm_of_two_axes_has_a_shuffle_on_either_side():
    graph = graph_of([helper.make_node("Gemm", ["x", "w"], ["y"], name="fc")], (3, 8), {"w": np.ones((8, 5), "f4")})
    assert [(layer.name, layer.kind) for layer in import_layers(graph)] == [
        ("reshape_before_fc", "SHUFFLE"), ("fc", "CONVOLUTION"), ("reshape_after_fc", "SHUFFLE")
    ]  # fmt: skip


def test_a_product_of_two_activations_stays_one():
    graph = graph_of([helper.make_node("MatMul", ["x", "x"], ["y"])], (1, 4, 4))
    assert [layer.kind for layer in import_layers(graph)] == ["MATRIX_MULTIPLY"]


def test_constants_are_folded_and_a_split_is_a_slice_for_each_output():
    constant = helper.make_node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(np.ones(3, np.float32)))
    nodes = [
        constant,
        helper.make_node("Add", ["x", "k"], ["a"], name="add"),
        helper.make_node("Split", ["a"], ["s", "t", "u"], name="split", axis=1),
    ]
    graph = graph_of(nodes, (1, 3), outputs="stu")
    assert graph.layers[1].weights == ("k",)
    assert [(layer.name, layer.kind) for layer in import_layers(graph)] == [
        ("add", "ELEMENTWISE"), ("split", "SLICE"), ("split_1", "SLICE"), ("split_2", "SLICE")
    ]  # fmt: skip


def test_what_is_computed_from_shapes_is_constant():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], name="shape"),
        helper.make_node("Gather", ["s", "i"], ["n"], name="gather", axis=0),
        helper.make_node("Concat", ["n", "rest"], ["t"], name="concat", axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"], name="reshape"),
    ]
    network = Imported(graph_of(nodes, (2, 3, 4), {"i": np.array([0]), "rest": np.array([12])}))
    assert network.folded == {"shape": "", "gather": "", "concat": ""}
    assert network.layers[3].weights == ("t",)
    assert [layer.kind for layer in network.trt_layers] == ["SHUFFLE"]


def test_constants_keep_their_places_when_folded():
    nodes = [
        helper.make_node("Identity", ["c"], ["low"], name="identity"),
        helper.make_node("Clip", ["x", "low", "high"], ["y"], name="clip"),
    ]
    weights = {"c": np.array(0, np.float32), "high": np.array(6, np.float32)}
    assert Imported(graph_of(nodes, (1, 3), weights)).layers[1].weights == ("low", "high")


def test_a_normalisation_that_another_layer_also_reads_around_stays_one():
    weights = {"w": np.ones((4, 4, 1, 1), "f4"), "s": np.ones(4, "f4")}
    conv = helper.make_node("Conv", ["x", "w"], ["a"], name="conv")
    normalise = helper.make_node("BatchNormalization", ["a", "s", "s", "s", "s"], ["b"], name="bn")
    plain = Imported(graph_of([conv, normalise], (1, 4, 8, 8), weights, outputs="b"))
    assert plain.folded == {"bn": "conv"}
    assert plain.trt_layers[0].nodes == ("conv", "bn")
    forked = Imported(graph_of([conv, normalise], (1, 4, 8, 8), weights, outputs="ab"))
    assert [layer.kind for layer in forked.trt_layers] == ["CONVOLUTION", "SCALE"]


def test_casts_that_change_nothing_are_folded():
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], name="same", to=onnx.TensorProto.FLOAT),
        helper.make_node("Cast", ["a"], ["b"], name="other", to=onnx.TensorProto.INT32),
        helper.make_node("Cast", ["b"], ["y"], name="back", to=onnx.TensorProto.FLOAT),
    ]
    assert Imported(graph_of(nodes, (1, 3))).folded == {"same": ""}


def test_origin_and_readers_look_through_what_is_folded():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node("Identity", ["a"], ["b"], name="nothing"),
        helper.make_node("Dropout", ["b"], ["c"], name="dropout"),
        helper.make_node("Relu", ["c"], ["y"], name="second"),
    ]
    network = Imported(graph_of(nodes, (1, 3)))
    assert network.origin("c") == "a"
    assert network.maker("c").name == "first"
    assert [layer.name for layer in network.readers("a")] == ["second"]
    assert network.maker("x") is None


def test_operators_that_become_several_layers():
    nodes = [helper.make_node("HardSwish", ["x"], ["y"], name="swish")]
    layers = import_layers(graph_of(nodes, (1, 3), opset=14))
    assert [(layer.name, layer.kind) for layer in layers] == [("swish", "ACTIVATION"), ("swish_1", "ELEMENTWISE")]


def test_an_onnx_name_in_another_domain_is_a_plugin():
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="mine", domain="acme")]
    model = make(nodes, [value("x", 1, 3)], [value("y", 1, 3)], {})
    model.opset_import.append(helper.make_opsetid("acme", 1))
    assert [layer.kind for layer in import_layers(read_graph(model))] == ["PLUGIN"]
