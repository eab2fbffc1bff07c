"""The step after the engines: answers of `orin run`, responses for LoadGen, and tails that cannot be."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from engines.engine import Workload
from engines.nms import OUTPUTS
from engines.tails import DETECTORS
from orin.answer import answers
from orin.bench import Bench, bench
from orin.build import Desk, build_engines
from orin.cli.main import main
from orin.deploy import Job, deploy
from orin.errors import OrinError
from orin.plan import Plan
from orin.predict import predict_plan, workloads
from orin.soc import AGX_ORIN_64GB_SOC
from orin.tails import answers_of, responses_of, tail_of
from orin.virtual.board import VirtualBoard
from orin.virtual.model import CostModel, EngineShape
from orin.virtual.predict import plan_shapes
from tests.instruments import engine
from tests.orin.classifier import lay_out
from tests.orin.commands import command
from tests.orin.detector import DETECTOR, network, same

PLAN = Plan(network="ssd-mobilenet")
NAMES = [head.format(level) for level in range(6) for head in DETECTORS["ssd-mobilenet"].heads]


def heads():
    """Two images; the second has one thing: class 7 on the one cell of the last level, moved from its prior."""
    outputs = []
    for boxes in DETECTORS["ssd-mobilenet"].priors():
        anchors, rows, columns = boxes.shape[:3]
        outputs += [np.full((2, anchors * 91, rows, columns), -9.0, np.float32)]
        outputs += [np.zeros((2, anchors * 4, rows, columns), np.float32)]
    outputs[-2][1, 7, 0, 0] = 2.0
    outputs[-1][1, :4, 0, 0] = (1.0, -2.0, 0.0, 0.0)  # y, x: a tenth of the prior, each
    return outputs


def test_a_classifier_answers_with_its_best_class():
    scores = np.array([[0.1, 0.7, 0.2], [3.0, -1.0, 2.0]], np.float32)[:, :, None, None]
    answers = answers_of(Plan(), ["logits"])([scores])
    assert answers == [{"class": 1, "score": pytest.approx(0.7)}, {"class": 0, "score": 3.0}]
    data, sizes = responses_of(Plan(), ["logits"])([scores], [5, 6])
    assert data.dtype == np.int32 and data.tolist() == [1, 0] and sizes == [4, 4]


def test_a_detector_answers_with_boxes_of_the_photo():
    empty, one = answers_of(PLAN, NAMES)(heads())
    assert empty == {"detections": []}
    (found,) = one["detections"]
    # the last level's first prior is the unit square's middle with sides 0.95; it moves by 0.1 * 0.95 and -0.2 * 0.95
    side, x, y = 0.95, 0.5 - 0.2 * 0.95, 0.5 + 0.1 * 0.95
    assert found["class"] == 7 and found["score"] == pytest.approx(1 / (1 + np.exp(-2)))
    assert found["box"] == pytest.approx([0.0, y - side / 2, x + side / 2, 1.0])


def test_a_detectors_responses_are_mlperfs_rows():
    data, sizes = responses_of(PLAN, NAMES)(heads(), [41, 42])
    assert data.dtype == np.float32 and data.shape == (1, 7) and sizes == [0, 28]
    index, ymin, xmin, ymax, xmax, score, label = data[0].tolist()
    assert (index, xmin, ymax, label) == (42.0, 0.0, 1.0, 7.0)
    assert (ymin, xmax, score) == pytest.approx((0.12, 0.785, 0.880797), abs=1e-5)


def test_a_detector_without_its_step_is_refused():
    with pytest.raises(OrinError, match="finds its boxes after the engine and tail is 'none': set tail to cpu or gpu"):
        answers_of(Plan(network="retinanet", tail="none"), [])
    assert answers_of(Plan(tail="none"), [])  # a classifier's top-1 costs nothing


def test_a_tail_engines_answers_are_boxes_of_the_photo():
    outputs = [
        np.array([[0], [1]]),
        np.full((2, 3, 4), (-0.5, 0.25, 0.5, 1.5)),
        np.full((2, 3), 0.75),
        np.full((2, 3), 9),
    ]
    empty, one = answers_of(replace(PLAN, tail="gpu"), NAMES)(outputs)
    assert empty == {"detections": []}
    assert one == {"detections": [{"class": 9, "score": 0.75, "box": [0.0, 0.25, 0.5, 1.0]}]}
    data, sizes = responses_of(replace(PLAN, tail="gpu"), NAMES)(outputs, [3, 4])
    assert data.tolist() == [[4.0, 0.25, 0.0, 1.0, 0.5, 0.75, 9.0]] and sizes == [0, 28]


def test_a_classifiers_tail_engine_has_found_the_class():
    outputs = [np.array([[0.5], [2.0]], np.float32), np.array([[7], [3]], np.int32)]
    plan = Plan(tail="gpu")
    assert answers_of(plan, [])(outputs) == [{"class": 7, "score": 0.5}, {"class": 3, "score": 2.0}]
    assert responses_of(plan, [])(outputs, [1, 2])[0].tolist() == [7, 3]


def test_a_network_without_a_tail_for_the_gpu_is_refused():
    built = engine("gpu", 4)
    heads = tuple(replace(built.manifest.outputs[0], name=name, shape=(255, 8, 8)) for name in ("a", "b"))
    several = replace(built, manifest=replace(built.manifest, outputs=heads))
    with pytest.raises(OrinError, match="yolov5s has no tail for the GPU: .*; set tail to cpu or none"):
        tail_of(Plan(network="yolov5s", tail="gpu"), several)
    assert tail_of(Plan(network="yolov5s"), several) is None


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the small detector and three photos; caches go there too."""
    monkeypatch.setitem(DETECTORS, str(tmp_path / "net.onnx"), DETECTOR)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lay_out(tmp_path, 3)
    onnx.save(network(), tmp_path / "net.onnx")
    return tmp_path


def photos_of(place):
    return tuple(sorted((place / "photos").iterdir()))


def test_pipelines_on_the_virtual_board_find_the_same_with_a_tail_engine(place):
    desk = Desk(cache=place / "cache", photos=photos_of(place))
    board = VirtualBoard(AGX_ORIN_64GB_SOC, pacing="numerics")
    plan = Plan(network=str(place / "net.onnx"), gpu_batch=0, dla_batch=2)
    cpu, gpu = (
        list(answers(each, board, desk, build_engines(each, desk))) for each in (plan, replace(plan, tail="gpu"))
    )
    assert [set(answer) for answer in gpu] == [{"file", "detections"}] * 3
    for seen, wanted in zip(gpu, cpu, strict=True):
        assert len(wanted["detections"]) > 3 and same(seen["detections"], wanted["detections"])


def test_a_plan_with_the_tail_on_the_gpu_is_built_and_answered(place, capsys):
    plan = Plan(network=str(place / "net.onnx"), gpu_batch=2, dla_batch=2, tail="gpu")
    (place / "plan.yaml").write_text(plan.dumps())
    words = f"--plan {place}/plan.yaml --board virtual:agx-orin-64gb --data {place}/photos --json --quiet"
    assert command(["build", *words.split(), "-o", str(place / "engines")]) == 0
    built = json.loads(capsys.readouterr().out)["engines"]
    assert list(built) == ["gpu", "dla", "gpu_tail", "dla_tail"]
    assert set(built["dla_tail"]["inputs"]) == set(built["dla"]["outputs"])
    assert list(built["gpu_tail"]["outputs"]) == list(OUTPUTS)
    assert command(["run", *words.split(), "-o", str(place / "out.jsonl")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["answered"], said["tail"]) == (3, "gpu")


def test_deploy_builds_tails(place):
    class Busy(VirtualBoard):
        def hold(self, plan):
            raise OrinError("somebody else is using it")

    plan = Plan(network=str(place / "net.onnx"), gpu_batch=2, dla_batch=2, precision="fp16", tail="gpu")
    wanted = Job(plan, place / "out", photos_of(place))
    with pytest.raises(OrinError, match="somebody else"):
        deploy(wanted, Busy(AGX_ORIN_64GB_SOC), Desk())
    built = json.loads(wanted.state.read_text())["steps"]["build"]
    assert list(built["summary"]) == ["gpu", "dla", "gpu_tail", "dla_tail"]
    assert len(built["files"]) == 3  # ONNX Runtime's engines all give float32, so that one tail fits both


def test_a_record_names_the_tail_that_ran(place):
    plan = Plan(network=str(place / "net.onnx"), gpu_batch=2, dla_cores=0, precision="fp16")
    desk = Desk(cache=place / "cache", photos=photos_of(place))
    asked = Bench(runs=place / "runs", accuracy=True)
    for tail, engines in (("cpu", {"gpu"}), ("gpu", {"gpu", "gpu_tail"})):
        board = VirtualBoard(AGX_ORIN_64GB_SOC, pacing="numerics")
        record = bench(replace(plan, tail=tail), board, desk, asked)
        assert record["tail"] == tail and set(record["network"]["engines"]) == engines


def test_run_finds_boxes_in_photos(tmp_path, capsys, monkeypatch):
    cv2 = pytest.importorskip("cv2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 255, (90, 120, 3), dtype=np.uint8)
        cv2.imwrite(str(photos / f"{number}.png"), noise)
    words = (
        f"run ssd-mobilenet --board virtual:agx-orin-64gb --gpu-batch 2 --dla-cores 0 --precision fp16 --data {photos}"
    )
    assert main([*words.split(), "-o", str(tmp_path / "out.jsonl"), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["answered"] == 2
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(0 < len(line["detections"]) <= 100 for line in lines)
    boxes = np.array([found["box"] for line in lines for found in line["detections"]])
    assert (boxes >= 0).all() and (boxes <= 1).all() and (boxes[:, 2:] >= boxes[:, :2]).all()


def with_tail(activation_bytes=1_000_000):
    """A DLA engine of batch 2, and one that reads its output."""
    backbone, tail = engine("dla", 2), engine("gpu", 2)
    read = tuple(replace(binding, format="LINEAR") for binding in backbone.manifest.outputs)
    work = Workload(0, 0, activation_bytes)
    spec = replace(tail.manifest.spec, precision="fp32")
    return backbone, replace(tail, manifest=replace(tail.manifest, spec=spec, inputs=read, workload=work))


def test_a_tail_costs_the_virtual_board_time_on_its_gpu():
    backbone, tail = with_tail()
    shape, work = EngineShape.of(backbone.manifest), tail.manifest.workload
    model = CostModel(AGX_ORIN_64GB_SOC, AGX_ORIN_64GB_SOC.max_clocks, Plan().stack)
    alone, both = model.cost(shape, 2), model.cost(replace(shape, tail=work), 2)
    assert (both.submit_ns, both.host_mj) == (alone.submit_ns, alone.host_mj)
    assert [part.solo_ns for part in both.segments] == [part.solo_ns for part in alone.segments]
    added = both.tail
    assert added.resource == "gpu" and added.solo_ns > 0
    assert 0 < added.dram_bytes <= 2 * 4 * 1e6  # two samples as FP32, less what the GPU's L2 keeps


@pytest.mark.parametrize("network", ["ssd-mobilenet", "resnet50"])
def test_a_prediction_holds_what_the_tail_costs(network):
    plan = Plan(network=network, gpu_batch=1, dla_cores=0, tail="gpu")
    model = CostModel(AGX_ORIN_64GB_SOC, AGX_ORIN_64GB_SOC.max_clocks, plan.stack)
    shape = plan_shapes(plan, AGX_ORIN_64GB_SOC, workloads(plan))["gpu"]
    alone = predict_plan(replace(plan, tail="cpu"), "agx-orin-64gb", "singlestream").latency_ms["p50"]
    both = predict_plan(plan, "agx-orin-64gb", "singlestream").latency_ms["p50"]
    assert both - alone == pytest.approx(model.cost(shape, 1).tail.solo_ns * 1e-6)
    read = {"ssd-mobilenet": 1917 * (91 + 4), "resnet50": 1000}
    assert shape.tail.macs == 0 and shape.tail.activation_bytes > read[network]


def test_the_tails_of_dlas_take_power_and_memory_traffic():
    plan = Plan(network="ssd-mobilenet", gpu_batch=0)
    cpu, gpu = (predict_plan(replace(plan, tail=tail), "agx-orin-64gb") for tail in ("cpu", "gpu"))
    a_sample_gb = [prediction.dram_gb_per_s / prediction.samples_per_s for prediction in (cpu, gpu)]
    outputs = 1917 * (91 + 4)
    law = CostModel(AGX_ORIN_64GB_SOC, AGX_ORIN_64GB_SOC.max_clocks, plan.stack).parameters.law
    assert a_sample_gb[1] - a_sample_gb[0] == pytest.approx(4e-9 * outputs * law["nms_passes"], rel=0.02)
    assert gpu.module_w.value / gpu.samples_per_s > cpu.module_w.value / cpu.samples_per_s


def test_the_paced_board_runs_both_as_one():
    backbone, tail = with_tail()
    board = VirtualBoard(AGX_ORIN_64GB_SOC)
    loaded = board.load(backbone, "dla0", 1, tail)
    loaded.enqueue(0, (0,), 2)
    begin_ns, end_ns = loaded.wait(0)
    assert begin_ns < end_ns and loaded.outputs(0) is None
    loaded.close()


def test_a_tail_that_reads_something_else_is_refused():
    backbone, tail = with_tail()
    (binding,) = tail.manifest.inputs
    wider = replace(tail, manifest=replace(tail.manifest, inputs=(replace(binding, sample_bytes=8),)))
    with pytest.raises(OrinError, match="reads 'logits' as float32 of 8 bytes, which nowhere does not make"):
        VirtualBoard(AGX_ORIN_64GB_SOC).load(backbone, "dla0", 1, wider)
    smaller = replace(tail, manifest=replace(tail.manifest, spec=replace(tail.manifest.spec, batch=1)))
    with pytest.raises(OrinError, match="takes 1 samples, nowhere makes 2: build them together"):
        VirtualBoard(AGX_ORIN_64GB_SOC).load(backbone, "dla0", 1, smaller)
