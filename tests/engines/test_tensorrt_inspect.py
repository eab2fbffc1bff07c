"""What a plan holds, as TensorRT's inspector lists it; inputs and outputs; numbers beside a reference."""

import json
import math
import types
from pathlib import Path

import numpy as np
import pytest

from engines.engine import Binding, Engine, Manifest, Workload
from engines.errors import EngineError
from engines.formats import unpack
from engines.spec import EngineSpec
from engines.tensorrt.check import SAMPLES, check_numbers, noise, sqnr_db
from engines.tensorrt.device import listed
from engines.tensorrt.inspect import PlanLayer, check_ends, gpu_layers, layers_of, parse_layers

LAYERS = [
    {"Name": "input to nvm", "LayerType": "Reformat"},
    {"Name": "{ForeignNode[conv1...relu9]}", "LayerType": "DLA"},
    {"Name": "output from nvm"},
    {"Name": "{ForeignNode[softmax...topk]}", "LayerType": "Myelin"},
    {"Name": "pool + relu", "LayerType": "CaskPooling"},
    {"Name": "Reformatting CopyNode for Output Tensor 0 to fc", "LayerType": "Reformat"},
    {"Name": "squeeze", "LayerType": "NoOp"},
    {"Name": "output copy finish"},
]


def test_layers_and_reformats_on_the_gpu_are_named():
    layers = parse_layers(json.dumps({"Layers": LAYERS, "Bindings": ["input", "output"]}))
    assert gpu_layers(layers) == (
        "input to nvm",
        "output from nvm",
        "{ForeignNode[softmax...topk]}",
        "pool + relu",
        "Reformatting CopyNode for Output Tensor 0 to fc",
    )
    assert [layer.reformats for layer in layers] == [True, False, True, False, False, True, False, False]


def test_loadables_of_either_kind_are_the_dlas():
    named = PlanLayer("{ForeignNode[a...b]}", "ForeignNode"), PlanLayer("conv1", "ForeignNode")
    assert [layer.runs_on_dla for layer in named] == [True, False]


def test_names_alone_are_read_too():
    layers = parse_layers('{"Layers": ["{ForeignNode[a...b]}", "pool"]}')
    assert layers == (PlanLayer("{ForeignNode[a...b]}"), PlanLayer("pool"))
    assert gpu_layers(layers) == ("pool",)


@pytest.mark.parametrize("text", ["", "[]", '{"Layers": 3}', '{"Layers": [{}]}', "Layers: a\nb"])
def test_what_is_no_list_of_layers_is_one_line(text):
    with pytest.raises(EngineError, match="expected JSON with the engine's Layers") as caught:
        parse_layers(text)
    assert "\n" not in str(caught.value)


def test_an_engine_without_an_inspector_is_an_error():
    with pytest.raises(EngineError, match="no inspector"):
        layers_of(None, types.SimpleNamespace(create_engine_inspector=lambda: None))


class Named(str):
    @property
    def name(self):
        return str(self)


class Loaded:
    """What `check_ends` asks of an engine with one tensor."""

    num_io_tensors = 1

    def __init__(self, name, dtype, layout):
        self.name, self.dtype, self.layout = name, Named(dtype), Named(layout)

    def get_tensor_name(self, index):
        return self.name

    def get_tensor_dtype(self, name):
        return self.dtype

    def get_tensor_format(self, name):
        return self.layout


TRT = types.SimpleNamespace(
    DataType=types.SimpleNamespace(INT8=Named("INT8"), FLOAT=Named("FLOAT")),
    TensorFormat=types.SimpleNamespace(CHW4=Named("CHW4"), LINEAR=Named("LINEAR")),
)
X = Binding("x", (3, 2, 2), "int8", "CHW4", 0.5, 16)


def test_ends_are_those_that_were_asked_for():
    check_ends(TRT, Loaded("x", "INT8", "CHW4"), (X,), "net")
    with pytest.raises(EngineError, match="'x' is FLOAT LINEAR, asked for was INT8 CHW4"):
        check_ends(TRT, Loaded("x", "FLOAT", "LINEAR"), (X,), "net")
    with pytest.raises(EngineError, match=r"has the tensors \['other'\]"):
        check_ends(TRT, Loaded("other", "INT8", "CHW4"), (X,), "net")


def engine(*inputs):
    spec = EngineSpec("net", "gpu", 4)
    output = Binding("y", (2,), "float32", "LINEAR", None, 8)
    return Engine(Path("net.engine"), Manifest(spec, "b", "w", "", "", inputs, (output,), Workload(1, 1, 1)))


def test_both_sides_get_the_same_samples_and_their_difference_is_measured():
    seen = []

    def reference(packed):
        (rows,) = packed
        seen.append(rows)
        values = unpack(rows, "CHW4", (3, 2, 2)).reshape(SAMPLES, -1).astype(np.float64)
        return [values[:, :2], np.ones((SAMPLES, 1))]

    def runner(packed):
        first, second = reference(packed)
        return [first + 0.5, second]

    found = check_numbers(engine(X), runner, reference)
    assert np.array_equal(seen[0], seen[1])
    power = np.mean(unpack(seen[0], "CHW4", (3, 2, 2)).reshape(SAMPLES, -1)[:, :2].astype(np.float64) ** 2)
    assert found == [pytest.approx(10 * np.log10(power / 0.25)), math.inf]


def test_samples_for_int8_are_symmetric_and_use_its_range():
    wide = Binding("x", (3, 64, 64), "int8", "LINEAR", 0.5, 3 * 64 * 64)
    (values,) = noise([wide])
    assert values.shape == (SAMPLES, 3, 64, 64) and (values.min(), values.max()) == (-127, 127)
    assert np.array_equal(values, noise([wide])[0])


def test_given_samples_are_used_and_floats_stay_floats():
    real = Binding("x", (4,), "float32", "LINEAR", None, 16)
    samples = [np.arange(8, dtype=np.float32).reshape(2, 4)]
    echo = []
    assert check_numbers(engine(real), lambda p: p, lambda p: echo.append(p) or p, samples) == [math.inf]
    assert np.array_equal(echo[0][0].view(np.float32), samples[0])
    check_numbers(engine(real), lambda p: p, lambda p: echo.append(p) or p)
    drawn = echo[1][0].view(np.float32)
    assert drawn.shape == (SAMPLES, 4) and 0.3 < drawn.std() < 2


def test_outputs_of_another_shape_are_no_comparison():
    with pytest.raises(EngineError, match=r"computes outputs \[\[8, 1\]\], its network \[\[8, 2\]\]"):
        check_numbers(engine(X), lambda _: [np.ones((8, 1))], lambda _: [np.ones((8, 2))])


def test_sqnr_by_hand():
    assert sqnr_db(np.array([1.0, 2.1]), np.array([1.0, 2.0])) == pytest.approx(10 * math.log10(5 / 0.01))
    assert sqnr_db(np.zeros(2), np.zeros(2)) == math.inf
    assert sqnr_db(np.ones(2), np.zeros(2)) == -math.inf
    assert sqnr_db(np.array([np.nan]), np.ones(1)) == -math.inf


def test_long_lists_of_layers_are_cut():
    assert listed("abcd") == "'a', 'b', 'c', 'd'"
    assert listed("abcdef") == "'a', 'b', 'c', 'd' and 2 more"
