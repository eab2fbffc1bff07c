"""`orin deploy` on the virtual board: every step once, again only what has changed, and what is kept when it stops."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from calibration.cache import read_cache
from orin.build import Desk
from orin.deploy import Job, deploy, starting_plan
from orin.errors import OrinError
from orin.plan import Plan
from orin.record import load_record
from orin.soc import AGX_ORIN_64GB_SOC
from orin.steps import Done, Steps
from orin.virtual.board import VirtualBoard
from tests.orin.classifier import lay_out
from tests.orin.commands import command

STEPS = ["place", "rewrite", "calibrate", "build", "bench"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A user's folder with a network and photos."""
    folder = tmp_path_factory.mktemp("deploy")
    lay_out(folder)
    return folder


def job(place, **changes):
    plan = Plan(network=str(place / "net.onnx"), gpu_batch=4, dla_batch=2)
    photos = tuple(sorted((place / "photos").iterdir()))
    return replace(Job(plan, place / "out", photos, seconds=1.0, idle_s=0.0), **changes)


def run(wanted):
    said = []
    board = VirtualBoard(AGX_ORIN_64GB_SOC)
    return deploy(wanted, board, Desk(say=said.append)), said


@pytest.fixture(scope="module")
def first(place):
    return run(job(place))[0]


def test_every_step_leaves_what_it_says(place, first):
    assert list(first.steps) == STEPS and first.skipped == ()
    out = place / "out"
    assert first.steps["place"]["gpu_layers"] == [] and len(first.steps["place"]["gpu_layers_before"]) >= 2
    assert {change["rewrite"] for change in first.steps["rewrite"]["changes"]} == {"global-pool", "gemm-to-conv"}
    ranges = read_cache(out / "calibration.cache").to_ranges()
    assert {"input", "c", "r", "p", "scores"} <= set(ranges.amax_by_tensor)
    assert first.steps["calibrate"]["images"] == 5 and first.steps["calibrate"]["method"].startswith("entropy")
    for device in ("gpu", "dla"):
        assert (out / first.steps["build"][device]["file"]).is_file()
    assert first.steps["bench"]["provenance"] == "simulated"
    assert load_record(first.run).finished
    plan = Plan.load(out / "plan.yaml")
    assert plan == first.plan and plan.calibration == str(out / "calibration.cache")


def test_a_second_time_nothing_is_done_again(place, first):
    again, said = run(job(place))
    assert again.skipped == tuple(STEPS) and again.steps == first.steps and again.run == first.run
    assert said == [line for line in said if "done before" in line] and len(said) == len(STEPS)


@pytest.fixture
def no_bench(monkeypatch, first):
    """Steps in front of the run, without another one: it answers with what the first has found."""
    monkeypatch.setattr("orin.deploy._bench", lambda *_: Done(first.steps["bench"]))


def test_only_what_depends_on_a_change_is_done_again(place, first, no_bench):
    copy = place / "copy"
    shutil.copytree(place / "out", copy)
    longer, _ = run(job(place, folder=copy, seconds=2.0))
    assert longer.skipped == ("place", "rewrite", "calibrate", "build")
    photos, _ = run(job(place, folder=copy, seconds=2.0, photos=job(place).photos[:3]))
    assert photos.skipped == ("place", "rewrite") and photos.steps["calibrate"]["images"] == 3


def test_a_damaged_file_is_made_again(place, first, no_bench):
    copy = place / "damaged"
    shutil.copytree(place / "out", copy)
    (copy / "dla.onnx").write_bytes(b"cut")
    again, _ = run(job(place, folder=copy))
    assert "rewrite" not in again.skipped and "place" in again.skipped
    assert (copy / "dla.onnx").read_bytes() == (place / "out/dla.onnx").read_bytes()


def test_the_command_prints_one_json_object_or_a_table(place, first, capsys):
    words = f"deploy {place}/net.onnx --data {place}/photos -o {place}/out --board virtual:agx-orin-64gb --seconds 1"
    words = [*words.split(), "--gpu-batch", "4", "--quiet"]
    assert command([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"folder": f"{place}/out", "skipped": STEPS, "steps": first.steps}
    assert command(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("SIMULATED") and "place, rewrite, calibrate, build, bench" in printed
    assert f"orin bench --plan {place}/out/plan.yaml" in printed and (first.run / "report.html").is_file()


@pytest.mark.parametrize(
    "words,said",
    [
        ("--memory auto", "--memory auto measures, and virtual:agx-orin-64gb is simulated"),
        ("--calibration /no/such.cache", "calibration cache /no/such.cache cannot be read"),
        ("--seconds 0", "--seconds is 0"),
    ],
)
def test_mistakes_are_one_line(place, first, capsys, words, said):
    start = f"deploy {place}/net.onnx --data {place}/photos -o {place}/wrong --board virtual:agx-orin-64gb {words}"
    assert command([*start.split(), "--quiet"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and said in captured.err and captured.err.count("\n") == 1


def test_plans_to_start_from():
    assert starting_plan("resnet50") == Plan(gpu_batch=256, dla_batch=2, dla_loop=4)
    assert starting_plan("retinanet").gpu_batch == 4
    assert starting_plan("net.onnx") == Plan(network="net.onnx", gpu_batch=8, dla_batch=2)


# -- steps ------------------------------------------------------------------------------------------------------------


def test_a_stopped_job_goes_on_where_it_was(tmp_path):
    ran = []

    def step(name, fails=False):
        def work():
            ran.append(name)
            if fails:
                raise OrinError("stopped")
            (tmp_path / name).write_text(name)
            return Done({"was": name}, [tmp_path / name])

        return work

    steps = Steps(tmp_path / "state.json", lambda line: None)
    steps.take("a", {"x": 1}, step("a"))
    with pytest.raises(OrinError):
        steps.take("b", {"x": 1}, step("b", fails=True))
    later = Steps(tmp_path / "state.json", lambda line: None)
    assert later.take("a", {"x": 1}, step("a")) == {"was": "a"}
    assert later.take("b", {"x": 1}, step("b")) == {"was": "b"}
    assert ran == ["a", "b", "b"] and later.skipped == ["a"]


def test_a_folder_may_be_moved(tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    (old / "file").write_text("content")
    Steps(old / "state.json", lambda line: None).take("a", {}, lambda: Done({}, [old / "file"]))
    old.rename(tmp_path / "new")
    moved = Steps(tmp_path / "new/state.json", lambda line: None)
    moved.take("a", {}, lambda: pytest.fail("done before"))
    (tmp_path / "new/file").unlink()
    moved.take("a", {}, lambda: Done({"again": True}))
    assert moved.skipped == ["a"]


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}', '{"version": 2, "steps": {}}'])
def test_a_state_that_cannot_be_used_is_named(tmp_path, text):
    path = Path(tmp_path / "state.json")
    path.write_text(text)
    with pytest.raises(OrinError, match=f"{path} .*delete it"):
        Steps(path, lambda line: None)
