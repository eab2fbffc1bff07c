"""Programs that know nothing of the stand-ins: a user's script, Polygraphy, the bindings of TensorRT 11."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import onnx
import pytest

from tests.board.small import model
from tests.standins import install

SCRIPT = """
    import sys
    import numpy as np
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(sys.argv[1])
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.FP16)
    plan = builder.build_serialized_network(network, config)
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    print([engine.get_tensor_name(i) for i in range(engine.num_io_tensors)])
"""

ON_THIS_THREAD = """
    values = np.zeros(4096, np.float32)
    buffers = {name: values[-values.ctypes.data % 256 // 4 + 1024 * k:] for k, name in enumerate("xy")}
    for name, buffer in buffers.items():
        assert context.set_tensor_address(name, buffer.ctypes.data)
    buffers["x"][:384] = 1
    assert context.execute_async_v3(0)
    print(bool(buffers["y"][:256].any()))
"""

POLYGRAPHY = """
    import sys
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.backend.trt import CreateConfig, EngineFromNetwork, NetworkFromOnnxPath, Profile, TrtRunner
    from polygraphy.comparator import Comparator

    path = sys.argv[1]
    profile = Profile().add("x", (1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))
    engine = EngineFromNetwork(NetworkFromOnnxPath(path), CreateConfig(fp16=True, profiles=[profile]))
    results = Comparator.run([TrtRunner(engine), OnnxrtRunner(SessionFromOnnx(path))])
    print("same:", bool(Comparator.compare_accuracy(results)))
"""


@pytest.fixture
def run(tmp_path):
    def run_(script, *command, batch=2, packages=("python",), **variables):
        onnx.save(model(batch=batch), tmp_path / "small.onnx")
        (tmp_path / "script.py").write_text(dedent(script))
        done = subprocess.run(
            [sys.executable, *command, str(tmp_path / "script.py"), str(tmp_path / "small.onnx")],
            env={**install.environment(packages=packages), **variables},
            cwd=install.ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_


def test_a_script_runs_as_on_a_board(run):
    assert run(SCRIPT) == "['x', 'y']\n"


def test_a_script_runs_through_the_loader(run):
    assert run(SCRIPT, "-m", "tests.standins.run", packages=()) == "['x', 'y']\n"


def test_without_a_cuda_driver_work_runs_at_once(run, tmp_path):
    for library in install.LIBRARIES:
        (tmp_path / f"{library}.so.10").symlink_to(install.FOLDER / "lib" / f"{library}.so.10")
    assert run(SCRIPT + ON_THIS_THREAD, LD_LIBRARY_PATH=str(tmp_path)) == "['x', 'y']\nTrue\n"


def test_polygraphy_builds_and_runs_a_network_unchanged(run):
    assert run(POLYGRAPHY, batch="N", packages=("python", "polygraphy")).endswith("same: True\n")


def test_the_bindings_of_tensorrt_11_are_imported(run):
    script = "import tensorrt as trt; print(trt.__version__, hasattr(trt.BuilderFlag, 'INT8'), trt.DeviceType.DLA)"
    assert run(script, packages=("python-11",)) == "11.4.0.106 False DeviceType.DLA\n"
