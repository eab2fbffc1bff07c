import numpy as np
import onnx
import pytest
from onnx import helper

from engines import zoo
from engines.errors import EngineError
from engines.graph import read_graph
from engines.importer import import_layers
from engines.onnx_model import keeps_batch, with_batch

from .models import make, small, value


def test_resnet50_counts_equal_the_published_ones():
    graph = zoo.graph("resnet50")
    work = graph.workload
    assert work.weight_bytes == 25_530_472
    assert work.macs == pytest.approx(4.0892e9, rel=1e-5)
    ops = [layer.op for layer in graph.layers]
    assert (ops.count("Conv"), ops.count("Gemm"), ops.count("Relu"), ops.count("Add")) == (53, 1, 49, 16)
    assert graph.tensors["layer4.2.relu3_output"].shape == (1, 2048, 7, 7)
    assert graph.tensors["logits"].shape == (1, 1000)


def test_workload_is_that_of_one_sample():
    one, four = read_graph(small()).workload, read_graph(small(batch=4)).workload
    assert one == four
    assert one.macs == 6 * 64 * 27 + 6 * 64 * 6 + 5 * 6
    assert one.weight_bytes == 6 * 27 + 6 + 36 + 30 + 5
    # x and c1 are read once, r1 twice, c2, a, p and f once, y never
    assert one.activation_bytes == 2 * 192 + 2 * 384 + 3 * 384 + 2 * 384 + 2 * 384 + 2 * 6 + 2 * 6 + 5


def test_layers_carry_names_attributes_and_split_weights_from_activations():
    conv, _, unnamed, *_ = read_graph(small()).layers
    assert (conv.name, conv.inputs, conv.weights, conv.outputs) == ("conv1", ("x",), ("w1", "b1"), ("c1",))
    assert conv.attributes["pads"] == (1, 1, 1, 1)
    assert unnamed.name == "Conv_2"


def test_macs_of_transposed_convolution_grouped_convolution_matmul_and_gemm():
    weights = {
        "t": np.zeros((4, 3, 2, 2), np.float32),
        "g": np.zeros((6, 1, 3, 3), np.float32),
        "m": np.zeros((9, 7), np.float32),
        "k": np.zeros((2, 11), np.float32),
    }
    nodes = [
        helper.make_node("ConvTranspose", ["x", "t"], ["u"], strides=[2, 2]),
        helper.make_node("Conv", ["z", "g"], ["v"], group=6),
        helper.make_node("MatMul", ["q", "m"], ["w"]),
        helper.make_node("Gemm", ["s", "k"], ["r"], transA=1),
    ]
    inputs = [value("x", 1, 4, 5, 5), value("z", 1, 6, 5, 5), value("q", 1, 13, 9), value("s", 2, 4)]
    outputs = [value("u", 1, 3, 10, 10), value("v", 1, 6, 3, 3), value("w", 1, 13, 7), value("r", 4, 11)]
    macs = [layer.macs for layer in read_graph(make(nodes, inputs, outputs, weights)).layers]
    assert macs == [4 * 25 * 3 * 4, 6 * 9 * 9, 13 * 7 * 9, 4 * 11 * 2]


def test_weights_are_not_needed_and_not_read(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save_model(small(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    assert read_graph(path).workload == read_graph(small()).workload


def test_a_custom_operator_is_one_plugin_layer():
    nodes = [
        helper.make_node("Mystery", ["x"], ["m"], name="mystery", domain="acme"),
        helper.make_node("Relu", ["m"], ["y"], name="relu"),
    ]
    model = make(nodes, [value("x", 1, 3)], [helper.make_tensor_value_info("y", 1, None)], {})
    model.opset_import.append(helper.make_opsetid("acme", 1))
    graph = read_graph(model)
    assert (graph.tensors["m"].dtype, graph.tensors["m"].shape) == ("unknown", ())
    assert [layer.kind for layer in import_layers(graph)] == ["PLUGIN", "ACTIVATION"]
    assert [layer.domain for layer in graph.layers] == ["acme", ""]


def test_small_constants_carry_their_values_and_weights_do_not():
    tensor = onnx.numpy_helper.from_array(np.array([1, -1], np.int64))
    nodes = [
        helper.make_node("Constant", [], ["shape"], value=tensor),
        helper.make_node("Constant", [], ["high"], value_float=6.0),
        helper.make_node("Clip", ["x", "low", "high"], ["c"]),
        helper.make_node("Reshape", ["c", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    weights = {"low": np.array(0.5, np.float32), "w": np.ones((6, 11), np.float32)}
    graph = read_graph(make(nodes, [value("x", 1, 2, 3)], [value("y", 1, 11)], weights))
    assert {name: graph.tensors[name].values for name in ("shape", "high", "low", "w", "x")} == {
        "shape": (1, -1), "high": (6.0,), "low": (0.5,), "w": None, "x": None
    }  # fmt: skip
    assert graph.layers[2].operands == ("x", "low", "high")


def test_operands_keep_their_places_where_one_is_left_out():
    resize = helper.make_node("Resize", ["x", "", "scales"], ["y"])
    weights = {"scales": np.array([1, 1, 2, 2], np.float32)}
    graph = read_graph(make([resize], [value("x", 1, 3, 4, 4)], [value("y", 1, 3, 8, 8)], weights))
    assert graph.layers[0].operands == ("x", "", "scales")
    assert graph.layers[0].weights == ("scales",)
    assert graph.tensors["scales"].values == (1, 1, 2, 2)


def test_shapes_given_for_inputs_replace_dynamic_and_static_ones():
    assert read_graph(_dynamic(small()), shapes={"x": (1, 3, 8, 8)}) == read_graph(small())
    wide = read_graph(small(), shapes={"x": (2, 3, 16, 4)})
    assert (wide.tensors["c1"].shape, wide.tensors["y"].shape) == ((2, 6, 16, 4), (2, 5))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1, 3)}, "net has no input 'z' to give a shape; its inputs: x"),
        ({"x": (1, 3)}, "shape 1x3 of input 'x' does not fit, expected 4 axes"),
        ({"x": (1, 3, 0, 8)}, "shape 1x3x0x8 of input 'x' does not fit"),
    ],
)
def test_shapes_that_do_not_fit_get_one_line(shapes, message):
    with pytest.raises(EngineError, match=message):
        read_graph(small(), "net", shapes)


def _dynamic(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_dynamic(small()), r"input 'x' has shape \[1,3,height,8\], which is dynamic.*: --shape x=1x3x224x8$"),
        (small(opset=10), "opset 10, expected 11 or later"),
        (make([], [value("x", 1)], [], {}), "no layers"),
        (make([helper.make_node("Relu", ["z"], ["y"], name="r")], [value("x", 1)], [value("y", 1)], {}), "reads 'z'"),
    ],
)
def test_unusable_networks_get_one_line(model, message):
    with pytest.raises(EngineError, match=message) as caught:
        read_graph(model, "net")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ((("b", "y"), ("x", "b")), "layer 'first' reads 'b' before any layer makes it"),
        ((("x", "b"), ("b", "b")), "layer 'second' makes 'b', which is there already"),
    ],
)
def test_a_network_out_of_order_gets_one_line(links, message):
    nodes = [helper.make_node("Relu", [a], [b], name=name) for name, (a, b) in zip(("first", "second"), links)]
    with pytest.raises(EngineError, match=message):
        read_graph(make(nodes, [value("x", 1, 3)], [value(links[0][1], 1, 3)], {}))


def test_a_constant_of_impossible_size_gets_one_line():
    model = small()
    model.graph.initializer[0].dims[0] = -(2**63)
    with pytest.raises(EngineError, match="net: constant 'w1' has the shape -9223372036854775808x3x3x3"):
        read_graph(model, "net")


def test_a_small_constant_whose_data_do_not_fit_its_shape_gets_one_line():
    reshape = helper.make_node("Reshape", ["x", "shape"], ["y"])
    model = make([reshape], [value("x", 1, 6)], [helper.make_tensor_value_info("y", 1, None)], {"shape": np.array([6])})
    model.graph.initializer[0].dims[0] = 3
    with pytest.raises(EngineError, match="constant 'shape' cannot be read|shape inference refuses"):
        read_graph(model, "net")


def test_unusable_files_get_one_line_with_their_name(tmp_path):
    path = tmp_path / "bad.onnx"
    with pytest.raises(EngineError, match="bad.onnx cannot be read: No such file"):
        read_graph(path)
    path.write_bytes(b"\xff\xd8 not a network")
    with pytest.raises(EngineError, match="bad.onnx is not an ONNX file"):
        read_graph(path)


def test_a_constant_reshape_that_fixes_the_batch_is_seen():
    assert keeps_batch(small(), "N")
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    fixed = make(nodes, [value("x", 1, 3, 2)], [value("y", 1, 6)], {"shape": np.array([1, 6])})
    assert not keeps_batch(fixed, "N")
    assert read_graph(with_batch(small(), 7)).tensors["y"].shape == (7, 5)
