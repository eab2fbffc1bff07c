"""The doctor on machines made of files and answered programs."""

import json
import sys

import pytest

from orin.cli.main import main
from orin.doctor import Fact, examine, healthy
from orin.jetson.detect import run_program
from tests.orin.machines import jetson, machine

GOOD = {
    "tensorrt": {"path": "/usr/lib/python3.10/dist-packages/tensorrt/__init__.py", "version": "10.3.0", "dla_cores": 2},
    "onnxruntime": {"path": "/x/onnxruntime/__init__.py", "version": "1.20.0"},
    "mlperf_loadgen": {"path": "/x/mlperf_loadgen.so", "version": "6.0.17"},
    "cv2": {"path": "/x/cv2/__init__.py", "version": "4.10.0"},
    "pycuda.driver": {"path": "/x/pycuda/driver.py", "version": "2024.1", "gpu": "Orin, compute capability 8.7"},
}
ABSENT = {"error": "ModuleNotFoundError: No module named 'it'"}


def answers(modules=None, **programs):
    """A runner: imports answer from `modules`, other programs by their name; what has no answer fails."""
    known = {**GOOD, **(modules or {})}

    def run(command):
        if command[0] == sys.executable:
            return json.dumps(known[command[3]]) if known[command[3]] is not None else None
        return programs.get(command[0].replace("-", "_"))

    return run


def facts(root, run):
    return {fact.name: fact for fact in examine(root, run)}


def test_a_board_with_everything_is_well(tmp_path):
    found = facts(jetson(tmp_path), answers(sudo="/usr/sbin/nvpmodel"))
    assert healthy(list(found.values()))
    assert found["machine"].value == "NVIDIA Jetson AGX Orin Developer Kit"
    assert found["module"].value == "p3701-0005, Jetson AGX Orin 64 GB"
    assert found["system"].value == "L4T 36.4.4 (JetPack 6.2.1)"
    assert found["DLA hardware"].value == "2 cores"
    assert found["DLA driver"].value == "bound to 2 of 2"
    assert found["DLA in TensorRT"].value == "2 cores"
    assert found["orin bench uses"].value == "jetson"
    assert all(fact.mend is None for fact in found.values() if fact.ok)


def test_the_four_dla_facts_fail_one_by_one(tmp_path):
    root = jetson(tmp_path)
    host = root / "sys/devices/platform/bus@0/13e00000.host1x"
    for name in ("15880000.nvdla0", "158c0000.nvdla1"):
        (host / name / "driver").rmdir()
    (root / "usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so").write_text("")
    found = facts(root, answers({"tensorrt": {**GOOD["tensorrt"], "dla_cores": 0}}))
    assert found["DLA hardware"].ok
    assert (found["DLA driver"].ok, found["DLA driver"].mend) == (False, "sudo modprobe nvhost-nvdla")
    assert "stub" in found["DLA compiler"].value
    assert "nvidia-l4t-dla-compiler" in found["DLA compiler"].mend
    assert found["DLA in TensorRT"].value == "0 cores"
    assert found["DLA in TensorRT"].ok is False


def test_the_compiler_of_jetpack_5_is_found_too(tmp_path):
    assert facts(jetson(tmp_path, compiler="tegra"), answers())["DLA compiler"].ok


def test_an_orin_nano_lacks_nothing(tmp_path):
    root = jetson(tmp_path, module="p3767-0005")
    found = facts(root, answers({"tensorrt": {**GOOD["tensorrt"], "dla_cores": 0}}))
    assert "Jetson Orin Nano, developer kit has no DLA" in found["DLA in TensorRT"].value
    assert healthy(list(found.values()))


def test_pips_server_build_is_wrong_on_a_board(tmp_path):
    wrong = {"path": "/venv/lib/python3.10/site-packages/tensorrt/__init__.py", "version": "10.9.0"}
    found = facts(jetson(tmp_path), answers({"tensorrt": {**wrong, "server_build": True, "dla_cores": 0}}))
    assert found["TensorRT"].ok is False
    assert "site-packages/tensorrt" in found["TensorRT"].value
    assert "pip uninstall" in found["TensorRT"].mend
    assert "--system-site-packages" in found["TensorRT"].mend
    assert "TensorRT 10.9.0 has no DLA" in found["DLA in TensorRT"].mend


def test_a_tensorrt_that_crashes_on_import_is_a_fact(tmp_path):
    found = facts(jetson(tmp_path), answers({"tensorrt": None}))
    assert found["TensorRT"].value == "cannot be imported: the import ends in a crash"
    assert found["TensorRT"].ok is False


def test_what_only_a_board_needs_is_no_fault_of_a_pc(tmp_path):
    found = facts(tmp_path, answers({"tensorrt": ABSENT, "pycuda.driver": ABSENT}))
    assert healthy(list(found.values()))
    assert "no Jetson" in found["machine"].value
    assert "virtual board" in found["machine"].value
    assert found["orin bench uses"].value == "virtual:agx-orin-64gb (simulated)"
    assert {found[name].ok for name in ("TensorRT", "DLA compiler", "tegrastats", "pycuda")} == {None}


def test_a_missing_base_package_is_a_fault_anywhere(tmp_path):
    found = facts(tmp_path, answers({"mlperf_loadgen": ABSENT}))
    assert found["LoadGen"] == Fact(
        "LoadGen", "not installed", False, f"{sys.executable} -m pip install mlcommons-loadgen"
    )
    assert not healthy(list(found.values()))


def test_everything_missing_on_a_board_has_a_command_and_none_installs_tensorrt(tmp_path):
    root = tmp_path / "proc/device-tree"
    root.mkdir(parents=True)
    (root / "compatible").write_text("nvidia,p3701-0005\0nvidia,tegra234\0")
    found = facts(tmp_path, answers(dict.fromkeys(GOOD, ABSENT)))
    faults = [fact for fact in found.values() if fact.ok is False]
    assert len(faults) == 11
    assert all(fact.mend for fact in faults)
    assert not any("pip install tensorrt" in fact.mend for fact in faults)


@pytest.mark.parametrize(
    "name,module,uses",
    [
        ("agx-orin-64gb", "p3701-0005, Jetson AGX Orin 64 GB", "jetson"),
        ("agx-orin-32gb", "p3701-0004, Jetson AGX Orin 32 GB", "jetson"),
        ("orin-nx-jetpack-7.2", "p3767-0000, Jetson Orin NX 16 GB", "jetson"),
        ("agx-xavier", "p2888-0004, Jetson AGX Xavier", "nothing"),
        ("agx-thor", "p3834-0008, Jetson AGX Thor", "nothing"),
        ("pc", None, "virtual:agx-orin-64gb (simulated)"),
    ],
)
def test_recorded_machines_are_told_apart(tmp_path, name, module, uses):
    found = facts(machine(tmp_path, name), answers())
    assert (found["module"].value if "module" in found else None) == module
    assert found["orin bench uses"].value.startswith(uses)


def test_jetpack_7_shows_its_dla_devices_and_no_cores(tmp_path):
    trt = {**GOOD["tensorrt"], "version": "10.16.2.10", "dla_cores": 0}
    found = facts(machine(tmp_path, "orin-nx-jetpack-7.2"), answers({"tensorrt": trt}))
    assert found["system"].value == "L4T 39.2.0 (JetPack 7.2)"
    assert found["DLA hardware"].ok and found["DLA compiler"].ok
    assert found["DLA in TensorRT"].ok is False
    assert "10.16.2.10 has no DLA: flash JetPack 6.1" in found["DLA in TensorRT"].mend


def test_jetpack_7_without_tensorrt_is_named_too(tmp_path):
    found = facts(machine(tmp_path, "orin-nx-jetpack-7.2"), answers({"tensorrt": ABSENT}))
    assert "L4T 39.2.0 (JetPack 7.2) has no DLA software" in found["DLA in TensorRT"].mend


def test_a_thor_has_no_dla_and_lacks_none(tmp_path):
    found = facts(machine(tmp_path, "agx-thor"), answers({"tensorrt": {**GOOD["tensorrt"], "dla_cores": 0}}))
    assert found["DLA hardware"].value == "0 cores: Jetson AGX Thor has no DLA"
    assert healthy(list(found.values()))


def test_a_gpu_that_cuda_does_not_see(tmp_path):
    blind = {"path": "/x/pycuda/driver.py", "version": "2024.1", "gpu_error": "Error: no CUDA-capable device"}
    found = facts(jetson(tmp_path), answers({"pycuda.driver": blind}))
    assert found["pycuda"].ok and found["GPU in CUDA"].ok is False
    assert "no CUDA-capable device" in found["GPU in CUDA"].value and "--runtime nvidia" in found["GPU in CUDA"].mend
    assert facts(tmp_path, answers())["GPU in CUDA"].value == "Orin, compute capability 8.7"


def test_device_nodes_that_may_not_be_opened(tmp_path, monkeypatch):
    root = jetson(tmp_path)
    (root / "dev").mkdir()
    (root / "dev/nvmap").write_text("")
    assert facts(root, answers())["device rights"].ok
    monkeypatch.setattr("os.access", lambda path, mode: "nvmap" not in str(path))
    closed = facts(root, answers())["device rights"]
    assert closed.ok is False and "nvmap" in closed.value and "usermod" in closed.mend


def test_rights_are_asked_of_sudo_and_never_needed(tmp_path, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    root = jetson(tmp_path)
    assert "may be run" in facts(root, answers(sudo="/usr/sbin/nvpmodel"))["rights"].value
    without = facts(root, answers())["rights"]
    assert without.ok is None
    assert "sudoers" in without.mend


def test_programs_that_fail_say_nothing():
    assert run_program([sys.executable, "-c", "print('hi')"]) == "hi\n"
    assert run_program([sys.executable, "-c", "raise SystemExit(3)"]) is None
    assert run_program(["/no/such/program"]) is None


def test_the_probe_tells_version_path_and_cores_of_a_tensorrt(tmp_path, monkeypatch):
    package = tmp_path / "tensorrt"
    package.mkdir()
    (package / "__init__.py").write_text(
        "__version__ = '10.3.0'\n"
        "class Logger:\n    ERROR = 0\n    def __init__(self, level): print('a chatty library')\n"
        "class Runtime:\n    num_DLA_cores = 2\n    def __init__(self, logger): pass\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(command):
        return run_program(command) if command[3:4] == ["tensorrt"] else answers()(command)

    found = facts(jetson(tmp_path / "root"), run)
    assert found["TensorRT"].value == f"10.3.0, {package}/__init__.py"
    assert found["DLA in TensorRT"].value == "2 cores"
    (tmp_path / "tensorrt_libs").mkdir()
    assert "server build" in facts(tmp_path / "root", run)["TensorRT"].value


def test_the_command_on_this_machine(capsys):
    code = main(["doctor", "--json", "--quiet"])
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert captured.err == ""
    assert code == (0 if found["ok"] else 1)
    assert found["ok"] == all(fact["ok"] is not False for fact in found["facts"])
    assert {"name", "value", "ok", "mend"} == set(found["facts"][0])
