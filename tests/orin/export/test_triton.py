"""The model repository: configurations read with Triton's own protobuf definition, scripts run with a fake docker."""

import json
import os
import subprocess

import pytest

from orin.build import Desk
from orin.errors import OrinError
from orin.export.jobs import jobs_of
from orin.export.splitter import Split
from orin.export.triton import Repository, config_text, export_triton, start_script
from tests.orin.commands import command
from tests.orin.export.small import plan_with_cache

text_format = pytest.importorskip("google.protobuf.text_format")
pytest.importorskip("tritonclient.grpc")

DOCKER = '#!/bin/sh\necho "$@" >> "$(dirname "$0")/calls"\ncase "$*" in *engines/build.sh) touch "$BUILT";; esac\n'


def parsed(text):
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.fixture
def made(tmp_path):
    plan = plan_with_cache(tmp_path)
    return Repository(plan, jobs_of(plan, Desk()), "digits", "10.3")


def test_the_gpu_model_batches_by_itself_and_has_no_dla(made):
    from tritonclient.grpc import model_config_pb2 as pb

    config = parsed(config_text(made, "gpu"))
    assert (config.name, config.platform, config.max_batch_size) == ("digits_gpu", "tensorrt_plan", 8)
    assert config.default_model_filename == "model.plan"
    (x,), (y,) = config.input, config.output
    assert (x.data_type, list(x.dims), x.is_non_linear_format_io) == (pb.TYPE_INT8, [3, 16, 16], True)
    assert (y.data_type, y.is_non_linear_format_io) == (pb.TYPE_FP32, False)
    (group,) = config.instance_group
    assert (group.count, group.kind, list(group.gpus)) == (2, pb.ModelInstanceGroup.KIND_GPU, [0])
    assert not group.secondary_devices
    assert list(config.dynamic_batching.preferred_batch_size) == [8]


def test_the_dla_model_is_complete_with_its_batch_in_the_dimensions_and_a_group_for_each_core(made):
    from tritonclient.grpc import model_config_pb2 as pb

    config = parsed(config_text(made, "dla"))
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert [list(entry.dims)[0] for entry in (*config.input, *config.output)] == [4, 4]
    assert all(entry.is_non_linear_format_io for entry in (*config.input, *config.output))
    assert {entry.data_type for entry in config.output} <= {pb.TYPE_INT8, pb.TYPE_FP16}
    nvdla = pb.ModelInstanceGroup.SecondaryDevice.KIND_NVDLA
    devices = [[(d.kind, d.device_id) for d in group.secondary_devices] for group in config.instance_group]
    assert devices == [[(nvdla, 0)], [(nvdla, 1)]]  # one secondary device an instance is all that the backend takes
    assert [group.count for group in config.instance_group] == [3, 3]
    assert not config.optimization.cuda.graphs
    assert config.parameters["execution_context_allocation_strategy"].string_value == "STATIC"


def test_ends_are_those_of_the_engines(made):
    for device, job in made.jobs.items():
        config = parsed(config_text(made, device))
        rest = 1 if device == "dla" else 0
        assert {e.name: tuple(e.dims)[rest:] for e in config.input} == {b.name: b.shape for b in job.inputs}
        assert {e.name: tuple(e.dims)[rest:] for e in config.output} == {b.name: b.shape for b in job.outputs}


def test_a_gpu_engine_of_batch_one_is_static(tmp_path):
    plan = plan_with_cache(tmp_path, gpu_batch=1, dla_cores=0)
    repository = Repository(plan, jobs_of(plan, Desk()), "one", "10.3")
    config = parsed(config_text(repository, "gpu"))
    assert config.max_batch_size == 0 and list(config.input[0].dims)[0] == 1
    assert not config.HasField("dynamic_batching")
    export_triton(repository, tmp_path / "repo")
    (lane,) = Split.load(tmp_path / "repo").lanes
    assert lane.static and lane.accelerator == "gpu"
    assert "dla" not in (tmp_path / "repo" / "start.sh").read_text()


def test_the_split_has_a_lane_for_each_accelerator_and_the_ends_as_they_lie_in_memory(made, tmp_path):
    export_triton(made, tmp_path)
    split = Split.load(tmp_path)
    lanes = [(lane.accelerator, lane.model, lane.batch, lane.static, lane.depth) for lane in split.lanes]
    assert lanes == [
        ("gpu", "digits_gpu", 8, False, 2),
        ("dla0", "digits_dla", 4, True, 3),
        ("dla1", "digits_dla", 4, True, 3),
    ]
    assert split.models["digits_dla"].inputs == made.jobs["dla"].inputs
    assert split.models["digits_gpu"].outputs == made.jobs["gpu"].outputs


def test_start_builds_what_is_missing_once_and_serves_both_models(made, tmp_path):
    export_triton(made, tmp_path / "repo")
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    env = {**os.environ, "PATH": f"{docker.parent}:{os.environ['PATH']}", "BUILT": str(tmp_path / "built")}

    def calls():
        subprocess.run([tmp_path / "repo" / "start.sh"], env=env, check=True)
        lines = (docker.parent / "calls").read_text().splitlines()
        (docker.parent / "calls").unlink()
        return lines

    first = calls()
    assert [line.split(" -w /repo ")[1].split()[1] for line in first] == ["engines/build.sh", "tritonserver"]
    assert all("nvcr.io/nvidia/tritonserver:24.08-py3-igpu" in line for line in first)
    assert "--disable-auto-complete-config" in first[1] and "--load-model=digits_dla" in first[1]
    for model in ("digits_gpu", "digits_dla"):
        plan = tmp_path / "repo" / "models" / model / "1" / "model.plan"
        plan.parent.mkdir(parents=True)
        plan.write_bytes(b"plan")
    assert len(calls()) == 1
    build = (tmp_path / "repo" / "engines" / "build.sh").read_text()
    assert "--saveEngine=../models/digits_dla/1/model.plan" in build


def test_tensorrt_11_names_no_image_by_itself(made):
    script = start_script(Repository(made.plan, made.jobs, "digits", "11.4"))
    assert "11.4.1 or later" in script and "nvcr.io" not in script


def test_what_is_wrong_with_a_split_is_said(tmp_path, made):
    with pytest.raises(OrinError, match="cannot be read"):
        Split.load(tmp_path)
    (tmp_path / "split.json").write_text('{"version": 7}')
    with pytest.raises(OrinError, match="version 7, expected 1"):
        Split.load(tmp_path)
    with pytest.raises(OrinError, match="without '/'"):
        export_triton(Repository(made.plan, made.jobs, "a/b", "10.3"), tmp_path)


def test_the_command_says_where_the_models_are(tmp_path, capsys):
    plan = tmp_path / "plan.yaml"
    plan.write_text(plan_with_cache(tmp_path).dumps())
    words = ["export", "triton", str(plan), "-o", str(tmp_path / "repo"), "--name", "net", "--json", "--quiet"]
    assert command(words) == 0
    assert json.loads(capsys.readouterr().out)["models"] == {"gpu": "net_gpu", "dla": "net_dla"}
    assert parsed((tmp_path / "repo" / "models" / "net_dla" / "config.pbtxt").read_text()).name == "net_dla"
