"""A submission tree from runs, and the faults that its check knows by name."""

import hashlib
import json
import re
import shutil

import pytest
import yaml

from orin.errors import OrinError
from orin.export.mlperf import export_mlperf, load_submission, truncated
from orin.export.mlperf_check import check_tree
from orin.export.mlperf_rules import SYSTEM_PRESENT, SYSTEM_SAYING
from tests.orin.commands import command

# Seeds of MLPerf Inference v6.1, as its mlperf.conf has them: qsl, sample index, schedule.
SEEDS = {"qsl": 2085463073848966840, "sample_index": 2747215439041700203, "schedule": 16159082839903944936}
DETAIL = {
    "effective_min_duration_ms": 600000,
    "effective_samples_per_query": 33024,
    "result_validity": "VALID",
    **{f"effective_{name}_rng_seed": seed for name, seed in SEEDS.items()},
}
PLACE = "closed/ExampleOrg/results/AGX/3d-unet-99"


def detail(**changes):
    lines = [
        {"key": key, "value": value, "metadata": {"is_error": False}} for key, value in {**DETAIL, **changes}.items()
    ]
    return "".join(f":::MLLOG {json.dumps(line)}\n" for line in lines)


def run(folder, scenario, mode, **changes):
    values = {
        "version": 1,
        "id": folder.name,
        "status": "finished",
        "provenance": "measured",
        "board": "jetson",
        "stack": "trtexec-10.3",
        "network": {"name": "3d-unet"},
        "scenario": scenario,
        "mode": mode,
        "valid": True if mode == "performance" else None,
        "settings": {"expected": 50.0 if scenario == "offline" else 0.02, "seconds": 600.0},
    }
    (folder / "loadgen").mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps({**values, **changes}))
    (folder / "tegrastats.log").write_text("1 VDD_GPU_SOC 5000mW\n")
    (folder / "loadgen" / "mlperf_log_summary.txt").write_text("Result is : VALID\n")
    (folder / "loadgen" / "mlperf_log_detail.txt").write_text(detail())
    (folder / "loadgen" / "mlperf_log_accuracy.json").write_text(json.dumps([{"seq_id": 0, "data": "00" * 20_000}]))


def compliance_results(folder):
    (folder / "accuracy").mkdir(parents=True)
    (folder / "performance" / "run_1").mkdir(parents=True)
    (folder / "verify_accuracy.txt").write_text("TEST PASS\n")
    (folder / "verify_performance.txt").write_text("TEST PASS\n")
    (folder / "accuracy" / "mlperf_log_accuracy.json").write_text("[]")
    for name in ("mlperf_log_summary.txt", "mlperf_log_detail.txt"):
        (folder / "performance" / "run_1" / name).write_text("x")


@pytest.fixture
def place(tmp_path):
    """Four runs, their compliance results and a submission file."""
    runs = {}
    for scenario, name in (("offline", "Offline"), ("singlestream", "SingleStream")):
        run(tmp_path / f"{scenario}-p", scenario, "performance")
        run(tmp_path / f"{scenario}-a", scenario, "accuracy")
        compliance_results(tmp_path / f"{scenario}-test01")
        runs[name] = {
            "performance": f"{scenario}-p",
            "accuracy": f"{scenario}-a",
            "accuracy_txt": "accuracy.txt",
            "compliance": {"TEST01": f"{scenario}-test01"},
        }
    (tmp_path / "accuracy.txt").write_text("Accuracy: mean = 0.86000, kidney = 0.9, tumor = 0.8\n")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "run.py").write_text("pass\n")
    (tmp_path / "README.md").write_text("How it was run.\n")
    (tmp_path / "calibration.md").write_text("Entropy.\n")
    fields = {name: "something" for name in (*SYSTEM_SAYING, *SYSTEM_PRESENT)}
    values = {
        "submitter": "ExampleOrg",
        "name": "AGX",
        "benchmark": "3d-unet-99",
        "system": {**fields, "status": "available"},
        "measurements": {
            "input_data_types": "int8",
            "retraining": "no",
            "starting_weights_filename": "net.onnx",
            "weight_data_types": "int8",
            "weight_transformations": "none",
        },
        "src": "src",
        "readme": "README.md",
        "calibration": "calibration.md",
        "runs": runs,
    }
    (tmp_path / "submission.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


@pytest.fixture
def tree(place):
    export_mlperf(load_submission(place / "submission.yaml"), place / "tree")
    return place / "tree"


def test_a_tree_from_runs_is_complete_and_holds_no_power(tree):
    assert check_tree(tree) == []
    assert not [path for path in tree.rglob("*") if "power" in path.name or "tegrastats" in path.name]
    conf = (tree / PLACE / "Offline" / "user.conf").read_text()
    assert conf == "3d-unet-99.Offline.target_qps = 50\n3d-unet-99.Offline.min_duration = 600000\n"
    assert "SingleStream.target_latency = 20\n" in (tree / PLACE / "SingleStream" / "user.conf").read_text()
    system = json.loads((tree / "closed/ExampleOrg/systems/AGX.json").read_text())
    assert len(system) == 35 and system["submitter"] == "ExampleOrg" and system["division"] == "closed"


def test_the_accuracy_log_is_cut_and_its_hash_is_of_the_whole(place, tree):
    whole = (place / "offline-a" / "loadgen" / "mlperf_log_accuracy.json").read_bytes()
    kept = (tree / PLACE / "Offline/accuracy/mlperf_log_accuracy.json").read_bytes()
    assert len(kept) <= 10240 < len(whole) and kept.startswith(whole[:4096]) and kept.endswith(whole[-4096:])
    text = (tree / PLACE / "Offline/accuracy/accuracy.txt").read_text()
    assert text.splitlines()[-1] == f"hash={hashlib.sha256(whole).hexdigest()}"
    assert truncated(b"[]") == (b"[]", hashlib.sha256(b"[]").hexdigest())


def offline(tree, name):
    return tree / PLACE / "Offline" / name


def edit(path, change):
    path.write_text(change(path.read_text()))


def put_power(tree):
    (offline(tree, "performance/power")).mkdir()


def log(tree, **changes):
    offline(tree, "performance/run_1/mlperf_log_detail.txt").write_text(detail(**changes))


def system(tree, **changes):
    path = tree / "closed/ExampleOrg/systems/AGX.json"
    edit(path, lambda text: json.dumps({**json.loads(text), **changes}))


FAULTS = {
    "user-conf-missing": lambda tree: offline(tree, "user.conf").unlink(),
    "readme-empty": lambda tree: offline(tree, "README.md").write_text(" \n"),
    "accuracy-log-not-truncated": lambda tree: offline(tree, "accuracy/mlperf_log_accuracy.json").write_bytes(
        bytes(20480)
    ),
    "accuracy-hash-missing": lambda tree: edit(offline(tree, "accuracy/accuracy.txt"), lambda t: t.split("hash=")[0]),
    "accuracy-too-low": lambda tree: edit(
        offline(tree, "accuracy/accuracy.txt"), lambda t: t.replace("0.86000", "0.84000")
    ),
    "accuracy-missing": lambda tree: edit(
        offline(tree, "accuracy/accuracy.txt"), lambda t: t.replace("mean", "median")
    ),
    "accuracy-file-missing": lambda tree: offline(tree, "accuracy/mlperf_log_summary.txt").unlink(),
    "performance-file-missing": lambda tree: offline(tree, "performance/run_1/mlperf_log_detail.txt").unlink(),
    "duration-too-short": lambda tree: log(tree, effective_min_duration_ms=60000),
    "result-invalid": lambda tree: log(tree, result_validity="INVALID"),
    "seeds-differ": lambda tree: log(tree, effective_qsl_rng_seed=1780908523862526354),
    "too-few-samples": lambda tree: log(tree, effective_samples_per_query=42),
    "log-error": lambda tree: edit(
        offline(tree, "performance/run_1/mlperf_log_detail.txt"),
        lambda t: t + ':::MLLOG {"key": "error_invalid_config", "value": "x", "metadata": {"is_error": true}}\n',
    ),
    "compliance-missing": lambda tree: shutil.rmtree(offline(tree, "TEST01")),
    "compliance-file-missing": lambda tree: offline(tree, "TEST01/verify_accuracy.txt").unlink(),
    "compliance-failed": lambda tree: offline(tree, "TEST01/verify_performance.txt").write_text("TEST FAIL"),
    "scenario-missing": lambda tree: shutil.rmtree(tree / PLACE / "SingleStream"),
    "src-missing": lambda tree: shutil.rmtree(tree / "closed/ExampleOrg/src"),
    "documentation-missing": lambda tree: (tree / "closed/ExampleOrg/documentation/calibration.md").unlink(),
    "submitter-differs": lambda tree: system(tree, submitter="Other"),
    "submitter-missing": lambda tree: shutil.rmtree(tree / "closed"),
    "system-missing": lambda tree: (tree / "closed/ExampleOrg/systems/AGX.json").unlink(),
    "system-field-missing": lambda tree: system(tree, framework=""),
    "system-field-wrong": lambda tree: system(tree, status="soon"),
    "measurements-field-empty": lambda tree: edit(
        offline(tree, "measurements.json"), lambda t: json.dumps({**json.loads(t), "input_data_types": ""})
    ),
    "results-missing": lambda tree: shutil.rmtree(tree / "closed/ExampleOrg/results"),
    "benchmark-unknown": lambda tree: (tree / "closed/ExampleOrg/results/AGX/mynet").mkdir(),
    "power-not-mlperf": put_power,
    "file-too-large": lambda tree: (tree / "closed/ExampleOrg/src/big").open("wb").truncate(60 << 20),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught_by_its_name_and_no_other(tree, name):
    FAULTS[name](tree)
    faults = check_tree(tree)
    assert {fault.name for fault in faults} == {name}
    assert all(fault.text for fault in faults)


def submit(place):
    return export_mlperf(load_submission(place / "submission.yaml"), place / "out")


@pytest.mark.parametrize(
    "folder,changes,reason",
    [
        (
            "offline-p",
            {"provenance": "simulated", "board": "virtual:agx-orin-64gb"},
            "is simulated .* on a board alone",
        ),
        ("offline-a", {"provenance": "simulated"}, "is simulated"),
        ("offline-p", {"status": "failed"}, "status failed"),
        ("offline-p", {"valid": False, "invalid_reasons": ["too short"]}, "is not valid: too short"),
        ("offline-p", {"scenario": "server"}, "is Server performance, expected Offline performance"),
        ("offline-a", {"mode": "performance"}, "expected Offline accuracy"),
        ("offline-p", {"settings": {"expected": 1.0, "seconds": 60.0}}, "asked for 60 s, MLPerf for 600"),
    ],
)
def test_runs_that_cannot_stand_in_a_submission_are_refused_before_anything_is_written(place, folder, changes, reason):
    edit(place / folder / "record.json", lambda text: json.dumps({**json.loads(text), **changes}))
    with pytest.raises(OrinError, match=reason):
        submit(place)
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    "change,reason",
    [
        (lambda v: v.pop("src"), "lacks src"),
        (lambda v: v.update(extra=1), "unknown fields"),
        (lambda v: v.update(benchmark="alexnet"), "benchmark is 'alexnet'"),
        (lambda v: v.update(submitter="../x"), "expected a name for a folder"),
        (lambda v: v["runs"].update(Onlin={}), "scenario is 'Onlin'"),
        (lambda v: v["runs"]["Offline"].pop("accuracy"), "Offline has to name"),
    ],
)
def test_a_submission_file_that_lacks_something_is_refused(place, change, reason):
    values = yaml.safe_load((place / "submission.yaml").read_text())
    change(values)
    (place / "submission.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(OrinError, match=reason):
        submit(place)


def test_the_command_exports_checks_and_counts_faults(place, capsys):
    words = ["export", "mlperf", str(place / "submission.yaml"), "-o", str(place / "out")]
    assert command([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["faults"] == []
    offline(place / "out", "user.conf").unlink()
    assert command(["export", "mlperf", "--check", "-o", str(place / "out")]) == 1
    assert re.search(r"user-conf-missing +closed/", capsys.readouterr().out)
    assert command(["export", "mlperf", "-o", str(place / "out")]) == 2
    assert "RUNS is missing" in capsys.readouterr().err
