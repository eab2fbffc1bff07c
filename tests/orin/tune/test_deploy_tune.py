"""`orin deploy --tune N`: the tuner's plan is the one that is built and kept."""

import json

import orin.deploy
from orin.build import Desk
from orin.deploy import TUNED, Job, deploy
from orin.plan import Plan
from orin.soc import AGX_ORIN_64GB_SOC
from orin.steps import Done
from orin.virtual.board import VirtualBoard
from tests.orin.classifier import lay_out


def test_a_deployment_is_tuned_before_it_is_built(tmp_path, monkeypatch):
    benched = []
    monkeypatch.setattr(orin.deploy, "TUNE_S", 0.05)  # of so small a network that still is thousands of items
    monkeypatch.setattr(orin.deploy, "_bench", lambda job, plan, *_: benched.append(plan) or Done({"run": "none"}))
    lay_out(tmp_path)
    photos = tuple(sorted((tmp_path / "photos").iterdir()))
    job = Job(Plan(network="digits", gpu_batch=4, dla_batch=2), tmp_path / "out", photos, tune_runs=2)
    said = []
    done = deploy(job, VirtualBoard(AGX_ORIN_64GB_SOC), Desk(say=said.append))
    kept = json.loads((tmp_path / "out" / "tuning" / "tune.json").read_text())
    assert len(kept["runs"]) == done.steps["tune"]["runs"] == 2
    chosen = done.steps["tune"]["plan"]
    assert {name: getattr(done.plan, name) for name in TUNED} == chosen
    assert chosen in [{name: run["plan"][name] for name in TUNED} for run in kept["runs"]]
    assert benched == [done.plan]
    assert Plan.load(tmp_path / "out" / "plan.yaml") == done.plan
    assert (tmp_path / "out" / "tuning" / "report.html").is_file()
    assert sum("run " in line and "/2" in line for line in said) == 2
