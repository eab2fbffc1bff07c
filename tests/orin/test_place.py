"""`orin place`: what it says of a network, as text, JSON, a page and a trtexec line; and with the log of a build."""

import argparse
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from dla.loadable import Loadable
from dla.placement import LayerPlacement, Placement
from engines.graph import Graph, Layer, Tensor
from orin.cli import place as command
from orin.cli.main import main
from orin.errors import OrinError
from orin.place import Answer, Question, answer, as_json, parse_shape, reasons, trtexec
from orin.report.drawing import MOST_COLUMNS, colour, drawing, legend, places
from orin.report.placement import placement_page, summary
from tests.dla.networks import conv, model, node

LAYER_KEYS = ["node", "op", "trt_layer", "candidate", "final", "rule", "message", "fix", "confidence"]
KEYS = ["layers", "loadables", "candidates", "kept", "gpu_layers", "reformats"]


def classifier():
    """Convolution and ReLU on the DLA, then a global average pool that is not."""
    nodes = [
        conv("x", "a", "w", pads=(1, 1, 1, 1)),
        node("Relu", "a", "b"),
        node("GlobalAveragePool", "b", "c"),
        conv("c", "y", "v"),
    ]
    return model(nodes, {"x": (1, 3, 8, 8)}, {"y": None}, {"w": (8, 3, 3, 3), "v": (4, 8, 1, 1)})


def backbone():
    nodes = [conv("x", "a", "w"), node("Relu", "a", "y")]
    return model(nodes, {"x": (1, 3, 8, 8)}, {"y": None}, {"w": (8, 3, 3, 3)})


@pytest.fixture
def saved(tmp_path):
    """Saves a model under a name and returns the path as the command line takes it."""

    def save(made, name="net.onnx"):
        onnx.save(made, tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.fixture
def run(capsys):
    """Runs the command as the door does; returns stdout and stderr."""

    def run_(*words):
        parser = argparse.ArgumentParser()
        command.configure(parser)
        options = parser.parse_args(list(map(str, words)))
        assert options.handler(options) == 0
        said = capsys.readouterr()
        return said.out, said.err

    return run_


def test_the_summary_comes_first_then_only_what_falls_back(saved, run):
    out, _ = run(saved(classifier()))
    lines = out.splitlines()
    assert lines[0] == "PREDICTED: net, TensorRT 10.3, int8, DLA of Orin"
    assert "layers on the DLA  3 of 4" in lines[1]
    assert "GlobalAveragePool" not in out and "c_node: DLA cores do not support AVG Reduce operation." in out
    assert "--only global-pool" in out
    assert "a_node" not in out and "b_node" not in out  # what the DLA takes is not listed
    table = out[: out.index("trtexec ")]
    assert max(map(len, table.splitlines())) <= 100


def test_side_by_side_is_decided_by_the_gpu_layers(saved, run):
    alone, _ = run(saved(backbone()))
    assert "yes: no GPU layer inside" in alone and "on the GPU  0" in alone
    shared, _ = run(saved(classifier()))
    assert "no: 1 GPU layer inside the DLA's engine" in shared


def test_json_has_the_promised_keys(saved, run):
    out, _ = run(saved(classifier()), "--json")
    values = json.loads(out)
    assert list(values) == KEYS
    assert all(list(layer) == LAYER_KEYS for layer in values["layers"])
    assert values["loadables"] == [["a_node", "b_node"], ["y_node"]]
    assert (values["candidates"], values["kept"], values["gpu_layers"]) == (2, 2, ["c_node"])
    pool = next(layer for layer in values["layers"] if layer["node"] == "c_node")
    assert (pool["candidate"], pool["final"], pool["trt_layer"]) == ("gpu", "gpu", "REDUCE")
    assert pool["rule"] and pool["fix"] and pool["confidence"]


def test_a_shape_makes_a_dynamic_network_placeable(saved, run):
    made = backbone()
    for axis, name in ((0, "n"), (2, "h"), (3, "w")):
        made.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    del made.graph.value_info[:]
    made.graph.output[0].type.tensor_type.ClearField("shape")
    out, _ = run(saved(made), "--shape", "x=2x3x32x48")
    assert "--shapes=x:2x3x32x48" in out and "layers on the DLA  2 of 2" in out


def test_a_shape_goes_into_the_rewrite_that_is_advised(saved, run, tmp_path, monkeypatch):
    made = classifier()
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    saved(made)
    monkeypatch.chdir(tmp_path)
    out, _ = run("net.onnx", "--shape", "x=1x3x8x8")
    assert "orin rewrite net.onnx -o OUT.onnx --only global-pool --shape=x=1x3x8x8" in out


@pytest.mark.parametrize("text", ["x", "=1x2", "x=", "x=1x", "x=1xa", "x=0x3", "x=-1x3", "x=1,3"])
def test_a_shape_that_is_none_is_one_line(text):
    with pytest.raises(OrinError, match="input=1x3x224x224"):
        parse_shape(text)


def test_a_shape_whose_input_has_an_equals_sign():
    assert parse_shape("a=b:0=1x3") == ("a=b:0", (1, 3))


def test_trtexec_takes_the_formats_of_a_network_without_gpu_layers(saved):
    question = Question(saved(backbone()))
    line = trtexec(answer(question))
    assert f"--onnx={question.model} --int8 --fp16 --calib=net.cache --useDLACore=0" in line
    assert "--inputIOFormats=int8:dla_hwc4 --outputIOFormats=int8:dla_linear" in line
    assert "--allowGPUFallback" not in line and "--skipInference" in line and "dlaSRAM:1," in line


def test_trtexec_leaves_the_rest_to_the_gpu(saved):
    line = trtexec(answer(Question(saved(classifier()), tensorrt="8.5", precision="fp16")))
    assert "--fp16 --useDLACore=0 --allowGPUFallback" in line and "--int8" not in line
    assert "IOFormats" not in line and "--buildOnly" in line


def test_hwc4_is_only_asked_for_where_a_convolution_reads_images(saved):
    made = model([node("Relu", "x", "y")], {"x": (1, 16, 8, 8)}, {"y": None})
    assert "--inputIOFormats=fp16:dla_linear" in trtexec(answer(Question(saved(made), precision="fp16")))


# Text and page of placements made by hand: their numbers follow from nothing but what stands here.


def layer(name, final, rule=None, message=None, op="Conv", fix=None, candidate=None):
    return LayerPlacement(name, op, "CONVOLUTION", candidate or final, final, rule, message, fix, "documented")


def made_up(places_, edges=None):
    """An answer of nodes in a row with these devices; consecutive "dla" ones are a loadable."""
    names = [f"n{index}" for index in range(len(places_))]
    layers = tuple(
        Layer(name, "Conv", (edges or {}).get(name, (f"t{index}",)), (), (f"t{index + 1}",), {}, 0)
        for index, name in enumerate(names)
    )
    tensors = {f"t{index}": Tensor(f"t{index}", (1, 8, 8, 8), "float32") for index in range(len(places_) + 1)}
    graph = Graph("made up", 17, ("t0",), (f"t{len(places_)}",), layers, tensors)
    runs = re.findall("d+", "".join(place[0] for place in places_))
    starts = [match.start() for match in re.finditer("d+", "".join(place[0] for place in places_))]
    kept = [Loadable(tuple(names[start : start + len(run)]), (), (), {}) for start, run in zip(starts, runs)]
    entries = tuple(
        layer(name, place, "a-rule" if place == "gpu" else None, f"{name}: no.") for name, place in zip(names, places_)
    )
    placement = Placement("10.3", "int8", entries, tuple(loadable.nodes for loadable in kept), tuple(kept), ())
    return Answer(Question("made-up.onnx"), graph, placement)


def test_layers_of_one_reason_are_one_group_the_largest_first():
    entries = (
        layer("a", "gpu", "mean", "a: no AVG.", fix="rewrite global-pool: a window"),
        layer("b", "gpu", "shape", "b: no.", fix="rewrite gemm-to-conv"),  # which changes nothing here
        layer("c", "gpu", "shape", "c: no.", fix="rewrite gemm-to-conv"),
        layer("d", "dla"),
        layer("e", "gpu", "loadable-limit", "only 16, layer e", candidate="dla"),
        layer("f", "gpu", "loadable-limit", "only 16, layer e", candidate="dla"),
        layer("g", "gpu", "loadable-limit", "only 16, layer g", candidate="dla"),
    )
    placement = Placement("10.3", "int8", entries, (), (), ())
    found = reasons(Answer(Question("net.onnx"), made_up(["dla"]).graph, placement, rewrites=("global-pool",)))
    assert [(reason.rule, reason.layers) for reason in found] == [
        ("loadable-limit", ("e", "f", "g")),
        ("shape", ("b", "c")),
        ("mean", ("a",)),
    ]
    assert found[2].rewrites == ("global-pool",) and found[1].rewrites == ()
    assert found[1].message == "b: no."


def test_the_summary_counts_what_the_limit_dropped():
    answered = made_up(["dla", "gpu", "dla", "folded"])
    dropped = Placement("10.3", "int8", answered.placement.layers, (("n0",), ("n2",)), answered.placement.kept[:1], ())
    rows = dict(summary(Answer(answered.question, answered.graph, dropped)))
    assert rows["layers on the DLA"] == "2 of 3 (1 more folded away)"
    assert rows["loadables"].startswith("1 of 2:")


def rects(svg):
    """Title, fill and text of each cell of a drawing."""
    root = ElementTree.fromstring(svg)
    cells = [group for group in root.iter("g") if group.find("title") is not None]
    return [(cell.find("title").text, cell.find("rect").get("fill"), cell.findtext("text")) for cell in cells]


def test_each_node_is_drawn_in_the_colour_of_its_place():
    answered = made_up(["dla", "dla", "gpu", "dla", "folded"])
    found = rects(drawing(answered.graph, answered.placement))
    assert [title for title, *_ in found][:3] == [
        "n0 (Conv): DLA loadable 1",
        "n1 (Conv): DLA loadable 1",
        "n2 (Conv): GPU",
    ]
    assert [fill for _, fill, _ in found] == list(map(colour, ("1", "1", "gpu", "2", "folded")))
    assert len({colour("1"), colour("2"), colour("gpu"), colour("folded")}) == 4


def test_branches_lie_below_each_other():
    answered = made_up(["dla"] * 4, edges={"n2": ("t1",), "n3": ("t2", "t3")})
    svg = ElementTree.fromstring(drawing(answered.graph, answered.placement))
    at = [(float(rect.get("x")), float(rect.get("y"))) for rect in svg.iter("rect")]
    assert at[1][0] == at[2][0] > at[0][0] and at[1][1] != at[2][1] and at[3][0] > at[1][0]
    assert len(list(svg.iter("path"))) == 4  # n0 to both, both to n3


def test_five_thousand_nodes_are_runs_of_equal_colour():
    runs = ["dla"] * 2000 + ["gpu"] * 1500 + ["dla"] * 1500
    answered = made_up(runs)
    found = rects(drawing(answered.graph, answered.placement))
    assert [text for *_, text in found] == ["2000", "1500", "1500"]
    assert found[1][0] == "GPU: 1500 nodes, n2000 ... n3499"
    assert len(runs) > MOST_COLUMNS


def test_the_legend_counts_every_node():
    answered = made_up(["dla", "gpu", "dla", "dla", "folded"])
    words = [text for _, text in legend(places(answered.graph, answered.placement))]
    assert words == ["GPU: 1", "folded away: 1", "loadable 1: 1", "loadable 2: 2"]


class _Page(HTMLParser):
    """Checks that tags are closed in order and nothing is loaded from elsewhere."""

    VOID = {"meta", "br", "rect", "path"}

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.words = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_stands_alone_and_escapes_names(saved):
    made = classifier()
    made.graph.node[2].name = "<script>alert(1)</script>"
    page = placement_page(answer(Question(saved(made))))
    parsed = _Page(page)
    assert parsed.open == [] and parsed.sources == [] and "<script>" not in page
    words = " ".join(parsed.words)
    assert "<script>alert(1)</script>: DLA cores do not support AVG Reduce operation." in words
    assert "orin rewrite" in words and "trtexec" in words and "no: 1 GPU layer" in words


def test_the_command_writes_the_page(saved, run, tmp_path):
    _, err = run(saved(classifier()), "--html", tmp_path / "page.html")
    assert "page.html" in err and (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")


LOG = """&&&& RUNNING TensorRT.trtexec [TensorRT v8602] # trtexec --onnx=net.onnx
[I] [TRT] ---------- Layers Running on DLA ----------
[I] [TRT] [DlaLayer] {ForeignNode[a_node]}
[I] [TRT] ---------- Layers Running on GPU ----------
[I] [TRT] [GpuLayer] ACTIVATION: b_node
[I] [TRT] [GpuLayer] REDUCE: c_node
[I] [TRT] [GpuLayer] CONVOLUTION: y_node
"""


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "build.log"
    path.write_text(LOG)
    return path


def test_a_log_is_shown_and_the_prediction_held_against_it(saved, run, log):
    out, _ = run(saved(classifier()), "--log", log)
    assert out.startswith("FROM THE LOG OF A BUILD: net, TensorRT 8.6.2")
    assert "layers on the DLA  1 of 4" in out
    assert "b_node (Relu): predicted dla, really gpu" in out and "y_node (Conv): predicted dla, really gpu" in out


def test_the_confusion_in_json(saved, log):
    values = as_json(answer(Question(saved(classifier()), log=log)))
    assert list(values) == [*KEYS, "confusion"]
    counted = {(entry["predicted"], entry["real"]): entry["nodes"] for entry in values["confusion"]["final"]}
    assert counted == {("dla", "dla"): 1, ("dla", "gpu"): 2, ("gpu", "gpu"): 1}
    assert [miss["node"] for miss in values["confusion"]["misses"]] == ["b_node", "y_node"]


def test_the_page_of_a_log_names_the_misses(saved, log):
    words = " ".join(_Page(placement_page(answer(Question(saved(classifier()), log=log)))).words)
    assert "Nodes that ran elsewhere than predicted" in words and "from a build log" in words


def test_a_network_of_the_zoo_goes_by_its_name():
    answered = answer(Question("resnet50"))
    convolutions = [entry for entry in answered.placement.layers if entry.op == "Conv"]
    assert len(convolutions) == 53 and {entry.final for entry in convolutions} == {"dla"}
    assert np.sum([entry.op == "GlobalAveragePool" for entry in answered.placement.layers]) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("place", "digits", "--json"),
        ("rewrite", "digits", "--dry-run", "--json"),
        ("cache", "show", "digits.cache", "--network", "digits", "--json"),
        ("accuracy", "digits", "--images", "1", "--method", "minmax", "--json"),
    ],
    ids=lambda words: words[0],
)
def test_a_folder_called_like_a_network_does_not_hide_it(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits.cache").write_text("TRT-100300-EntropyCalibration2\ninput: 3c010204\n")
    assert main(words) == 0, capsys.readouterr().err
