"""trtexec lines: what a program that is called trtexec gets, and the files that its options name."""

import json
import os
import stat
import subprocess
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from calibration.cache import read_cache
from engines.spec import EngineSpec
from engines.tensorrt.job import Job
from orin.build import Desk, build_engines
from orin.errors import OrinError
from orin.export.jobs import jobs_of, tensorrt_of
from orin.export.trtexec import Target, build_options, export_trtexec
from orin.jetson.detect import Machine
from tests.orin.commands import command
from tests.orin.export.small import plan_with_cache

TRTEXEC = """#!/usr/bin/env python3
import json, pathlib, sys
name = pathlib.Path(sys.argv[0]).parent / f"call-{abs(hash(tuple(sys.argv)))}.json"
name.write_text(json.dumps(sys.argv[1:]))
for word in sys.argv[1:]:
    key, _, value = word.partition("=")
    if key in ("--onnx", "--calib", "--loadEngine"):
        assert pathlib.Path(value).is_file(), value
    if key == "--saveEngine":
        pathlib.Path(value).write_bytes(b"plan")
print("[I] Throughput: 100.0 qps")
"""


@pytest.fixture
def trtexec(tmp_path):
    program = tmp_path / "bin" / "trtexec"
    program.parent.mkdir()
    program.write_text(TRTEXEC)
    program.chmod(program.stat().st_mode | stat.S_IEXEC)

    def run(script):
        done = subprocess.run([script], env={**os.environ, "TRTEXEC": str(program)}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        calls = [json.loads(path.read_text()) for path in program.parent.glob("call-*.json")]
        for path in program.parent.glob("call-*.json"):
            path.unlink()
        return calls, done.stdout

    return run


def options_of(words):
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def by_device(calls):
    found = [options_of(call) for call in calls]
    return {("dla" + o["--useDLACore"]) if "--useDLACore" in o else "gpu": o for o in found}


def test_scripts_call_trtexec_with_files_that_are_there(tmp_path, trtexec):
    plan = plan_with_cache(tmp_path)
    export_trtexec(plan, jobs_of(plan, Desk()), tmp_path / "out", Target())
    calls, _ = trtexec(tmp_path / "out" / "build.sh")
    assert {o["--saveEngine"] for o in map(options_of, calls)} == {"gpu.plan", "dla.plan"}
    calls, said = trtexec(tmp_path / "out" / "run.sh")
    runs = by_device(calls)
    assert sorted(runs) == ["dla0", "dla1", "gpu"] and said.count("Throughput") == 3
    assert (runs["gpu"]["--shapes"], runs["gpu"]["--infStreams"]) == ("input:8x3x16x16", "2")
    assert runs["dla1"]["--loadEngine"] == "dla.plan" and runs["dla1"]["--infStreams"] == "3"


def test_lines_name_the_ends_that_orin_build_gives_its_engines(tmp_path):
    plan = plan_with_cache(tmp_path)
    jobs = jobs_of(plan, Desk())
    built = build_engines(plan, Desk(cache=tmp_path / "cache"))
    for name, job in jobs.items():
        manifest = built.engines[name].manifest
        assert job.spec == manifest.spec and job.inputs == manifest.inputs
        said = options_of(build_options(name, job, Target()))
        assert said["--inputIOFormats"] == ",".join(f"{b.dtype}:{b.format.lower()}" for b in manifest.inputs)


def test_the_network_and_its_cache_are_those_of_the_spec(tmp_path):
    plan = plan_with_cache(tmp_path)
    jobs = jobs_of(plan, Desk())
    export_trtexec(plan, jobs, tmp_path / "out", Target())
    for name, batch in (("gpu", "N"), ("dla", 4)):
        model = onnx.load(tmp_path / "out" / f"{name}.onnx")
        axis = model.graph.input[0].type.tensor_type.shape.dim[0]
        assert (axis.dim_param or axis.dim_value) == batch
        ranges = read_cache(tmp_path / "out" / f"{name}.cache").to_ranges().amax_by_tensor
        assert ranges == pytest.approx({k: v for k, v in jobs[name].spec.amax_by_tensor.items() if v}, rel=1e-6)


def test_tensorrt_11_gets_scales_in_the_network_and_no_flags_that_it_lacks(tmp_path):
    plan = plan_with_cache(tmp_path)
    export_trtexec(plan, jobs_of(plan, Desk()), tmp_path / "out", Target("11.4"))
    script = (tmp_path / "out" / "build.sh").read_text()
    assert not [flag for flag in ("--int8", "--fp16", "--calib", "--layerPrecisions") if flag in script]
    assert not list((tmp_path / "out").glob("*.cache"))
    model = onnx.load(tmp_path / "out" / "dla.onnx")
    assert "DequantizeLinear" in {node.op_type for node in model.graph.node}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT8


def job(nodes=None, weights=None, **spec):
    """A DLA job on one convolution [1,3,8,8] -> [1,4,8,8]."""
    from engines.bindings import input_bindings, native_outputs
    from engines.graph import read_graph

    value = helper.make_tensor_value_info
    float_ = onnx.TensorProto.FLOAT
    nodes = nodes or [helper.make_node("Conv", ["x:0", "w"], ["y"], name="conv:0")]
    tensors = [onnx.numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w")]
    graph = helper.make_graph(nodes, "g", [value("x:0", float_, (1, 3, 8, 8))], [value("y", float_, None)], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    values = {"network": "net", "device": "dla", "batch": 2, "amax_by_tensor": {"x:0": 1.0, "y": 2.0}}
    made = EngineSpec(**{**values, "io_formats": {"x:0": "DLA_HWC4", "y": "DLA_LINEAR"}, **spec})
    read = read_graph(model, "net")
    return Job(model, made, read, input_bindings(read, made), native_outputs(read, made))


def test_a_dla_line_by_hand():
    pools = {"DLA_MANAGED_SRAM": 1 << 20, "DLA_LOCAL_DRAM": 1 << 30, "DLA_GLOBAL_DRAM": 4096}
    assert build_options("dla", job(pools_bytes=pools, fp16_layers=("conv:0",), sparse=True), Target()) == [
        "--onnx=dla.onnx",
        "--saveEngine=dla.plan",
        "--int8",
        "--calib=dla.cache",
        "--fp16",
        "--precisionConstraints=prefer",
        "--layerPrecisions='conv:0':fp16",
        "--inputIOFormats=int8:dla_hwc4",
        "--outputIOFormats=fp16:dla_linear",
        "--useDLACore=0",
        "--memPoolSize=dlaSRAM:1M,dlaLocalDRAM:1024M,dlaGlobalDRAM:4096B",
        "--sparsity=enable",
        "--profilingVerbosity=detailed",
        "--timingCacheFile=timing.cache",
        "--skipInference",
    ]


def test_layers_on_the_gpu_are_pinned_and_allowed_there():
    options = build_options("dla", job(device_by_layer={"conv:0": "gpu"}), Target())
    assert "--allowGPUFallback" in options and "--layerDeviceTypes='conv:0':GPU" in options
    assert "--allowGPUFallback" not in build_options("dla", job(), Target())


def test_a_gpu_line_has_shapes_for_one_to_the_largest_batch_and_none_for_batch_one():
    made = job(device="gpu", io_formats={"x:0": "CHW4"})
    said = options_of(build_options("gpu", made, Target()))
    assert (said["--minShapes"], said["--maxShapes"]) == ("'x:0':1x3x8x8", "'x:0':2x3x8x8")
    assert said["--outputIOFormats"] == "fp32:chw" and "--useDLACore" not in said
    assert "--minShapes" not in options_of(
        build_options("gpu", replace(made, spec=replace(made.spec, batch=1)), Target())
    )


def test_a_name_that_trtexec_cannot_read_is_refused():
    with pytest.raises(OrinError, match="'a,b' cannot stand in a list"):
        build_options("dla", job(fp16_layers=("a,b",)), Target())


@pytest.mark.parametrize(
    "release,expected", [("R36 (release), REVISION: 4.3", "10.3"), ("R39 (release), REVISION: 2.2", "11.4")]
)
def test_tensorrt_is_that_of_the_machine(tmp_path, release, expected):
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/compatible").write_text("nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text(f"# {release}, GCID: 1")
    assert tensorrt_of(Machine(tmp_path, lambda _: None)) == expected
    assert tensorrt_of(Machine(tmp_path / "none", lambda _: None)) == "10.3"


def test_the_command_writes_one_json_object_and_refuses_a_missing_plan(tmp_path, capsys):
    plan = tmp_path / "plan.yaml"
    plan.write_text(plan_with_cache(tmp_path).dumps())
    assert command(["export", "trtexec", str(plan), "-o", str(tmp_path / "out"), "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["tensorrt"] == "10.3" and set(said["run"]) == {"gpu", "dla0", "dla1"}
    assert all((tmp_path / "out" / name).is_file() for name in ("gpu.onnx", "dla.cache", "plan.yaml"))
    assert command(["export", "trtexec", str(tmp_path / "no.yaml"), "-o", str(tmp_path / "out2")]) == 2
    assert "no.yaml" in capsys.readouterr().err
