"""`orin qdq` and `orin cache show --network`: what they write, print and refuse."""

import argparse
import json

import numpy as np
import onnx
import pytest

from calibration.cache import CalibrationCache, read_cache
from calibration.errors import CalibrationError
from engines.errors import EngineError
from engines.onnx_model import with_batch
from engines.qdq import insert_qdq
from engines.spec import Ranges
from orin.cli import cache as cache_command
from orin.cli import qdq as qdq_command
from orin.errors import OrinError
from tests.engines.models import AMAX, small

EVERY = {**AMAX, "y": 9.0}


def run(command, *words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    options = parser.parse_args([*map(str, words)])
    return options.handler(options)


@pytest.fixture
def place(tmp_path):
    onnx.save(insert_qdq(small(), EVERY, ["fc"], "tensorrt-dla"), tmp_path / "qdq.onnx")
    onnx.save(small(), tmp_path / "float.onnx")
    return tmp_path


def test_clean_network_cache_and_fp16_layers(place, capsys):
    words = (place / "qdq.onnx", "-o", place / "clean.onnx", "--cache", place / "net.cache", "--json")
    assert run(qdq_command, *words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["fp16_layers"] == ["fc"]
    assert said["layer_precisions"] == "fc:fp16"
    assert said["notes"] == []
    clean = onnx.load(place / "clean.onnx")
    onnx.checker.check_model(clean, full_check=True)
    assert [node.op_type for node in clean.graph.node] == [node.op_type for node in small().graph.node]
    cache = read_cache(place / "net.cache")
    assert (cache.version, cache.algorithm) == (100300, "EntropyCalibration2")
    assert set(cache.scales) == {*EVERY, "fc_output"}
    assert {name: cache.scales[name] for name in EVERY} == {n: float(np.float32(a / 127)) for n, a in EVERY.items()}
    assert said["tensors"] == len(cache.scales)
    assert sorted(path.name for path in place.iterdir()) == ["clean.onnx", "float.onnx", "net.cache", "qdq.onnx"]


def test_a_table_without_json(place, capsys):
    assert run(qdq_command, place / "qdq.onnx", "-o", place / "clean.onnx") == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "--layerPrecisions=fc:fp16"
    assert max(map(len, printed.splitlines()[1:])) <= 100
    assert not (place / "net.cache").exists()


def test_a_dynamic_input_takes_a_shape(place, capsys):
    network = insert_qdq(with_batch(small(), "n"), EVERY)
    network.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(network, place / "dynamic.onnx")
    words = (place / "dynamic.onnx", "-o", place / "clean.onnx", "--json")
    with pytest.raises(EngineError, match="--shape x="):
        run(qdq_command, *words)
    assert not (place / "clean.onnx").exists()
    assert run(qdq_command, *words, "--shape", "x=1x3x8x8") == 0
    clean = onnx.load(place / "clean.onnx")
    assert clean.graph.input[0].type.tensor_type.shape.dim[2].dim_param == "height"


def test_what_cannot_be_read_back_writes_nothing(place):
    network = insert_qdq(small(), EVERY)
    for tensor in network.graph.initializer:
        if tensor.name == "int8_zero":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(1, np.int8), "int8_zero"))
    onnx.save(network, place / "odd.onnx")
    with pytest.raises(CalibrationError, match="tensor 'x' has the zero point 1"):
        run(qdq_command, place / "odd.onnx", "-o", place / "clean.onnx", "--cache", place / "net.cache")
    assert not (place / "clean.onnx").exists()
    assert not (place / "net.cache").exists()


def test_a_shape_of_another_form_is_refused(place):
    with pytest.raises(OrinError, match="cannot be read"):
        run(qdq_command, place / "qdq.onnx", "-o", place / "clean.onnx", "--shape", "x:1,3")


def test_cache_show_says_what_the_network_has_and_the_cache_lacks(place, capsys):
    scales = {"x": 127.0, "r1": 12.7, "(Unnamed Layer* 4) [Shuffle]_output": 0.0}
    (place / "net.cache").write_text(CalibrationCache.from_ranges(Ranges(scales, "minmax", 1)).dumps())
    words = ("show", place / "net.cache", "--network", place / "float.onnx")
    assert run(cache_command, *words, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["missing"] == ["c1", "c2", "a", "p", "f", "fc_output", "y"]
    assert said["unknown"] == ["(Unnamed Layer* 4) [Shuffle]_output"]
    assert run(cache_command, *words) == 0
    printed = capsys.readouterr()
    assert "7 tensors that" in printed.out
    assert "fc_output" in printed.out
    assert "parser that made the cache" in printed.err
    assert run(cache_command, "show", place / "net.cache", "--json") == 0
    assert "missing" not in json.loads(capsys.readouterr().out)


def test_cache_show_takes_the_shape_of_a_dynamic_input(place, capsys):
    network = small()
    network.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    onnx.save(network, place / "dynamic.onnx")
    (place / "net.cache").write_text("TRT-8001-EntropyCalibration2\nx: 3f810204\n")
    words = ("show", place / "net.cache", "--network", place / "dynamic.onnx", "--json")
    with pytest.raises(EngineError, match="--shape x="):
        run(cache_command, *words)
    assert run(cache_command, *words, "--shape", "x=1x3x8x8") == 0
    assert json.loads(capsys.readouterr().out)["missing"][0] == "c1"


def test_cache_show_knows_the_networks_of_the_zoo(place, capsys):
    (place / "net.cache").write_text("TRT-8001-EntropyCalibration2\ninput: 3f810204\n")
    assert run(cache_command, "show", place / "net.cache", "--network", "resnet50", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["unknown"] == []
    assert len(said["missing"]) > 100
    assert "input" not in said["missing"]
