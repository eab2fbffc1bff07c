"""`orin rewrite`: what it prints, what it writes, and what it says of bad input."""

import argparse
import json

import numpy as np
import onnx
import pytest

from dla.errors import DlaError
from engines.errors import EngineError
from orin.cli import rewrite as command
from orin.errors import OrinError
from tests.dla.networks import conv, model, node
from tests.dla.test_rewrite import ops


def orin(*words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    options = parser.parse_args([*map(str, words), "--quiet"])
    return options.handler(options)


@pytest.fixture
def network(tmp_path):
    nodes = [
        conv("x", "c", "w"),
        node("InstanceNormalization", "c s s", "n"),
        node("GlobalAveragePool", "n", "p"),
        node("Resize", "x none none sizes", "r", mode="cubic"),
        node("GlobalAveragePool", "r", "q"),
    ]
    nodes[3].input[1] = nodes[3].input[2] = ""
    weights = {"w": (250, 100, 1, 1), "s": (250,), "sizes": np.array([1, 100, 14, 14])}
    path = tmp_path / "net.onnx"
    onnx.save(model(nodes, {"x": (1, 100, 7, 7)}, {"p": None, "q": None}, weights), path)
    return path


def test_a_file_is_rewritten_and_the_object_says_how(network, tmp_path, capsys):
    out = tmp_path / "out.onnx"
    assert orin(network, "-o", out, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert [(change["rewrite"], change["node"]) for change in said["changes"]] == [
        ("global-pool", "p_node"),
        ("global-pool", "q_node"),
    ]
    assert [(entry["rewrite"], entry["node"]) for entry in said["refused"]] == [("resize-scales", "r_node")]
    assert [entry["op"] for entry in said["advice"]] == ["InstanceNormalization"]
    assert (said["nodes_before"], said["nodes_after"], said["outputs"]) == (5, 6, ["p", "q"])
    assert len(said["new_tensors"]) == 1
    written = onnx.load(out)
    onnx.checker.check_model(written, full_check=True)
    assert ops(written).count("AveragePool") == 3


def test_an_open_axis_takes_the_shape_that_is_asked_for(network, tmp_path):
    opened = onnx.load(network)
    opened.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(opened, tmp_path / "open.onnx")
    with pytest.raises(EngineError, match="give it a static one: --shape x=1x100x7x7"):
        orin(tmp_path / "open.onnx", "--dry-run")
    assert orin(tmp_path / "open.onnx", "-o", tmp_path / "out.onnx", "--shape", "x=1x100x7x7") == 0
    assert orin(network, "-o", tmp_path / "same.onnx") == 0
    assert onnx.load(tmp_path / "out.onnx").graph.node == onnx.load(tmp_path / "same.onnx").graph.node


def test_a_dry_run_writes_nothing_and_prints_tables(network, tmp_path, capsys):
    assert orin(network, "--dry-run", "-o", tmp_path / "out.onnx") == 0
    assert not (tmp_path / "out.onnx").exists()
    words = " ".join(capsys.readouterr().out.split())
    assert "2 changes" in words and "1 left as they are" in words and "1 layers that no rewrite mends" in words


def test_only_what_is_named(network, tmp_path, capsys):
    assert orin(network, "-o", tmp_path / "out.onnx", "--only", "fold-pad,hard-swish") == 0
    assert "nothing to rewrite" in capsys.readouterr().out
    assert onnx.load(tmp_path / "out.onnx") == onnx.load(network)


def test_a_network_of_the_zoo(capsys):
    assert orin("resnet50", "--dry-run", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert [change["rewrite"] for change in said["changes"]] == ["global-pool", "gemm-to-conv"]
    assert said["output"] is None


def test_large_weights_lie_beside_the_file(network, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "LARGE_BYTES", 10)
    out = tmp_path / "out.onnx"
    for _ in range(2):  # the second time over the first
        assert orin(network, "-o", out) == 0
    assert 100_000 <= (tmp_path / "out.onnx.data").stat().st_size < 120_000
    assert out.stat().st_size < 10_000
    assert ops(onnx.load(out)).count("AveragePool") == 3


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        (["net.onnx"], OrinError, "no file to write: name one with -o OUT"),
        (["net.onnx", "--dry-run", "--only", "magic"], DlaError, "rewrite 'magic' is not known; known: cut-tail"),
        (["missing.onnx", "--dry-run"], EngineError, "missing.onnx cannot be read"),
        (["resnet51", "--dry-run"], EngineError, "did you mean 'resnet50'"),
    ],
)
def test_bad_input_is_one_line(network, monkeypatch, words, error, text):
    monkeypatch.chdir(network.parent)
    with pytest.raises(error, match=text) as caught:
        orin(*words)
    assert "\n" not in str(caught.value)
