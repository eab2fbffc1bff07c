import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.collect import collect_ranges
from calibration.errors import CalibrationError
from calibration.observers import MinMax
from engines import zoo


def network(batch=1, dtype=TensorProto.FLOAT, opset=13):
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((8, 3, 3, 3)).astype(np.float32), "w1"),
        numpy_helper.from_array(rng.standard_normal((8, 8, 1, 1)).astype(np.float32), "w2"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="conv1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", kernel_shape=[1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["sum"], name="add"),
        helper.make_node("ArgMax", ["sum"], ["top"], name="top", axis=1, keepdims=0),
    ]
    image = helper.make_tensor_value_info("x", dtype, [batch, 3, 8, 8])
    outputs = [helper.make_tensor_value_info("top", TensorProto.INT64, [batch, 8, 8])]
    graph = helper.make_graph(nodes, "small", [image], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def batches(sizes=(2, 3, 1)):
    rng = np.random.default_rng(1)
    return [rng.normal(0, 40, (size, 3, 8, 8)).astype(np.float32) for size in sizes]


def reference(model, data):
    """Largest magnitudes with every float tensor as an output, nothing optimised."""
    names = ["c1", "r1", "c2", "sum"]
    full = onnx.ModelProto()
    full.CopyFrom(model)
    del full.graph.output[:]
    full.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    full.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(full.SerializeToString(), options, providers=["CPUExecutionProvider"])
    amax = {"x": max(float(np.abs(batch).max()) for batch in data)}
    for batch in data:
        for name, values in zip(names, session.run(names, {"x": batch}), strict=True):
            amax[name] = max(amax.get(name, 0.0), float(np.abs(values).max()))
    return amax


class Everything:
    """An observer that wants whole tensors."""

    method = "everything"
    extremes_only = False

    def __init__(self):
        self.seen = {}

    def update(self, name, values):
        self.seen.setdefault(name, []).append(values)

    @property
    def amax(self):
        return {name: float(max(np.abs(values).max() for values in seen)) for name, seen in self.seen.items()}


def test_every_range_equals_the_reference_to_the_last_digit():
    done = []
    ranges = collect_ranges(network(), batches(), MinMax(), done.append)
    assert dict(ranges.amax_by_tensor) == reference(network(), batches())
    assert (ranges.method, ranges.images, done) == ("minmax", 6, [2, 5, 6])


def test_an_observer_of_whole_tensors_gets_them():
    observer = Everything()
    ranges = collect_ranges(network(), batches(), observer)
    assert [values.shape for values in observer.seen["r1"]] == [(2, 8, 8, 8), (3, 8, 8, 8), (1, 8, 8, 8)]
    assert dict(ranges.amax_by_tensor) == reference(network(), batches())


def test_a_fixed_range_stays():
    ranges = collect_ranges(network(), batches(), MinMax(), fixed={"x": 128.0})
    assert ranges.amax_by_tensor["x"] == 128.0
    assert ranges.amax_by_tensor["c1"] == reference(network(), batches())["c1"]


def test_the_model_is_left_as_it_was():
    model = network()
    before = model.SerializeToString()
    collect_ranges(model, batches(), MinMax())
    assert model.SerializeToString() == before


def test_mistakes_are_one_line():
    with pytest.raises(CalibrationError, match="no sample"):
        collect_ranges(network(), [], MinMax())
    with pytest.raises(CalibrationError, match=r"batch \[1, 4, 8, 8\]"):
        collect_ranges(network(), [np.zeros((1, 4, 8, 8), np.float32)], MinMax())
    with pytest.raises(CalibrationError, match="'nope'"):
        collect_ranges(network(), batches(), MinMax(), fixed={"nope": 1.0})
    with pytest.raises(CalibrationError, match="'x' reaches nan"):
        collect_ranges(network(), [np.full((1, 3, 8, 8), np.nan, np.float32)], MinMax())
    with pytest.raises(CalibrationError, match="cannot load the network"):
        collect_ranges(network(dtype=TensorProto.INT32), batches(), MinMax())


def test_a_network_without_its_weights_is_refused():
    with pytest.raises(CalibrationError, match="is not loaded"):
        collect_ranges(zoo.model("resnet50", with_weights=False), batches(), MinMax())


def test_min_max_keeps_the_largest_magnitude():
    observer = MinMax()
    observer.update("x", np.array([1.0, -3.0], np.float32))
    observer.update("x", np.array([2.0], np.float32))
    observer.update("y", np.zeros((0,), np.float32))
    assert observer.amax == {"x": 3.0, "y": 0.0}
