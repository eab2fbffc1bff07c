"""`orin selftest` on the virtual board: every part, what fails and goes on, and the one file."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import orin.selftest
from orin.build import Desk
from orin.doctor import Fact
from orin.plan import Plan
from orin.selftest import Case, Outcome, Selftest, cases, pack, selftest
from orin.soc import AGX_ORIN_64GB_SOC
from orin.virtual.board import VirtualBoard
from tests.orin.classifier import lay_out
from tests.orin.commands import command


def opened():
    return VirtualBoard(AGX_ORIN_64GB_SOC)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("selftest")
    lay_out(folder)
    return folder


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def tested(place, said):
    """Three runs: all accelerators, one that cannot be, single samples."""
    plan = Plan(network=str(place / "net.onnx"), gpu_batch=4, dla_batch=2)
    three = (
        Case("all", plan),
        Case("unknown", replace(plan, network="no-such-network")),
        Case("single", replace(plan, gpu_batch=1, dla_cores=0), "singlestream"),
    )
    photos = sorted((place / "photos").iterdir())
    desk = Desk(cache=place / "cache", photos=photos, say=said.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orin.selftest, "cases", lambda network: three)
        wanted = Selftest("net", seconds=0.2, idle_s=0.0, runs=place / "runs")
        return selftest(wanted, opened, desk, [Fact("machine", f"{Path.home()}/x")])


def test_parts_are_kept_and_one_that_fails_stops_no_other(tested, said):
    runs = {run["name"]: run for run in tested.values["runs"]}
    assert list(runs) == ["all", "unknown", "single"] and not tested.passed
    assert "'no-such-network' is not in the zoo" in runs["unknown"]["error"]
    assert any(line.startswith("unknown failed: ") for line in said)
    assert tested.values["provenance"] == "simulated" and tested.values["checks"] == {}
    assert runs["all"]["latency_p50_ms"] is None and runs["single"]["latency_p50_ms"]["seen"] > 0


def test_what_was_seen_stands_beside_what_the_virtual_board_expects(tested):
    for record in tested.records:
        figure = next(run for run in tested.values["runs"] if run.get("id") == record["id"])["samples_per_s"]
        expected = record["prediction"]["samples_per_s"]
        assert figure["virtual"] == expected
        assert figure["off"] == pytest.approx(figure["seen"] / expected - 1)


def test_one_file_holds_everything_and_no_name_of_machine_user_or_photo(tested, place):
    pack(tested, place / "out.zip")
    with zipfile.ZipFile(place / "out.zip") as archive:
        names = archive.namelist()
        texts = {name: archive.read(name).decode() for name in names}
    assert json.loads(texts["selftest.json"])["version"] == 1
    for record in tested.records:
        for file in ("record.json", "batches.csv", "tegrastats.log", "plan.yaml"):
            assert f"{record['id']}/{file}" in names
        kept = json.loads(texts[f"{record['id']}/record.json"])
        assert (
            "process" not in kept and isinstance(kept["data"]["sources"], int) and "command" not in kept["environment"]
        )
        assert "VDD_GPU_SOC" in texts[f"{record['id']}/tegrastats.log"]
    assert not any(str(Path.home()) + "/" in text or "photos/0.png" in text for text in texts.values())


def test_the_command_writes_the_file_and_says_simulated(tested, place, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(orin.selftest, "selftest", lambda test, *_: asked.append(test) or tested)
    words = ["selftest", "--quick", "--board", "virtual:agx-orin-64gb", "--data", str(place / "photos")]
    monkeypatch.setattr("orin.doctor.examine", lambda: [])
    monkeypatch.chdir(place)
    assert command([*words, "-o", "back.zip", "--quiet"]) == 1  # a part failed
    printed = capsys.readouterr().out
    assert printed.startswith("SIMULATED: net on virtual:agx-orin-64gb") and "failed" in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 100
    assert command([*words, "-o", "back.zip", "--json", "--quiet"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is False and found["file"] == "back.zip" and len(found["runs"]) == 3
    assert (place / "back.zip").is_file() and not (place / ".back.zip.part").exists()
    assert [(test.network, test.seconds) for test in asked] == [("mobilenet-v2", 1.0)] * 2


def test_a_file_that_cannot_be_written_is_said_before_anything_runs(tmp_path, capsys):
    words = ["selftest", "--board", "virtual:agx-orin-64gb", "--quiet", "-o"]
    for wrong in (tmp_path, tmp_path / "no/such/folder.zip"):
        assert command([*words, str(wrong)]) == 2
        assert "cannot be written; name a file in a folder that can" in capsys.readouterr().err


def test_runs_are_each_kind_alone_all_together_and_single_samples():
    used = [(case.plan.accelerators, case.scenario) for case in cases("resnet50")]
    assert used == [
        (("gpu",), "offline"),
        (("dla0",), "offline"),
        (("dla0", "dla1"), "offline"),
        (("gpu", "dla0", "dla1"), "offline"),
        (("gpu",), "singlestream"),
    ]
    assert {case.plan.gpu_batch for case in cases("resnet50")} == {0, 1, 256}


@pytest.mark.parametrize(
    "runs,checks,passed",
    [
        ([{"valid": True}], {}, True),
        ([{"error": "x"}], {}, False),
        ([], {"numbers": {"sqnr_db": {}, "doubts": ["far off"]}}, False),
        ([], {"memory": {"error": "x"}}, False),
        ([], {"numbers": {"doubts": []}, "memory": {"fastest": "mapped"}}, True),
    ],
)
def test_what_passes(runs, checks, passed):
    assert Outcome({"runs": runs, "checks": checks}).passed is passed
