"""The Jetson board through NVIDIA's real bindings and the real pycuda, on the stand-ins for what is below them."""

import dataclasses
import subprocess
import sys
import types

import numpy as np
import pytest

import orin.jetson.board as jetson
from engines.build import OrtBuilder, build
from engines.cache import EngineCache
from engines.engine import Engine
from engines.errors import EngineError
from engines.formats import pack
from engines.numerics import OrtRunner
from orin.doctor import examine
from orin.errors import OrinError
from orin.jetson.board import open_jetson
from orin.jetson.detect import Machine, run_program
from orin.memory import fastest_memory, with_memory
from orin.pipeline import Pipeline
from orin.plan import MEMORY_KINDS, Plan
from orin.soc import AGX_ORIN_64GB_SOC
from power.errors import PowerError
from tests.board.boards import attached
from tests.contract.networks import STEP, network, spec
from tests.orin.machines import machine
from tests.power.test_hwmon import chip
from tests.standins import install, libcuda
from tests.standins.nvinfer import control

pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT 10.1")
PLAN = Plan(network="net", gpu_batch=4, dla_batch=2)
SAMPLES = np.random.default_rng(0).integers(-127, 128, (12, 3, 8, 8)).astype(np.int8)
ALONE = {"gpu": {"dla_cores": 0}, "dla": {"gpu_batch": 0, "dla_cores": 1}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Engines of one network: for the GPU with batches of 4 and of 1, for the DLAs, and ONNX Runtime's of the same."""
    import tensorrt as trt

    from engines.tensorrt.builder import Options, TensorRtBuilder

    cache = EngineCache(tmp_path_factory.mktemp("engines"), print)
    builder = TensorRtBuilder(trt, Options())
    specs = {"gpu": spec("gpu", 4), "single": spec("gpu", 1), "dla": spec("dla", 2)}
    built = {name: build(network(), wanted, cache, "random", builder) for name, wanted in specs.items()}
    return {**built, "reference": build(network(), spec("gpu", 4), cache, "random", OrtBuilder())}


@pytest.fixture(scope="module")
def expected(made):
    """What ONNX Runtime computes for SAMPLES, in float32."""
    return OrtRunner(made["reference"]).run([pack(SAMPLES, "CHW4")])[0]


@pytest.fixture
def board(tmp_path):
    """The attached board."""
    with attached(tmp_path) as opened:
        yield opened


def close_to(answer, wanted, steps=0.0):
    return np.abs(answer - wanted).max() <= steps * STEP + 1e-5


@pytest.mark.parametrize("kind", MEMORY_KINDS)
def test_all_three_accelerators_answer_as_onnx_runtime_does(board, made, expected, kind):
    plan = dataclasses.replace(PLAN, memory=kind)
    for used in ({}, ALONE["gpu"], ALONE["dla"]):
        with Pipeline(dataclasses.replace(plan, **used), board, made, capacity=16) as pipeline:
            answers = [pipeline.submit(sample) for sample in SAMPLES]
            for answer, wanted in zip(answers, expected, strict=True):
                assert close_to(answer.result(30)[0], wanted, steps=0.51)  # half a step of the DLA's INT8 output
            assert pipeline.copied_bytes == 0


def test_the_gpus_answers_are_exact(board, made, expected):
    with Pipeline(dataclasses.replace(PLAN, **ALONE["gpu"]), board, made, capacity=16) as pipeline:
        answers = [pipeline.submit(sample).result(30)[0] for sample in SAMPLES]
    assert np.array_equal(np.stack(answers), expected)


def test_answers_stay_when_their_slot_is_used_again(board, made, expected):
    plan = dataclasses.replace(PLAN, gpu_batch=4, gpu_depth=1, dla_cores=0)
    with Pipeline(plan, board, made, capacity=4) as pipeline:
        first = pipeline.submit(SAMPLES[0]).result(30)[0]
        for sample in SAMPLES[1:]:
            pipeline.submit(sample).result(30)
    assert np.array_equal(first, expected[0])


def stored(board, engine, samples, fmt):
    memory = board.allocate(len(samples) * engine.manifest.inputs[0].sample_bytes)
    memory.array[:] = pack(samples, fmt).reshape(-1)
    memory.publish(0, len(memory.array))
    return memory


def test_a_work_item_of_several_enqueues_answers_in_order(board, made, expected):
    loaded = board.load(made["dla"], "dla1", 2)
    memory = stored(board, made["dla"], SAMPLES, "DLA_HWC4")
    size = made["dla"].manifest.inputs[0].sample_bytes
    for at in (0, 2, 4):
        loaded.enqueue(0, (memory.address + at * size,), 2)
    loaded.enqueue(1, (memory.address + 6 * size,), 1)
    first, second = loaded.wait(0), loaded.wait(1)
    assert first[0] <= first[1] <= second[1]
    assert close_to(loaded.outputs(0)[0], expected[:6], steps=0.51)
    assert loaded.outputs(1)[0].shape == (1, 5, 8, 8)
    assert close_to(loaded.outputs(1)[0], expected[6:7], steps=0.51)
    assert loaded.copied_bytes == 0 and libcuda.calls("cuGraphLaunch") == 0


def test_single_samples_run_as_a_graph_whose_copies_are_counted(board, made, expected):
    loaded = board.load(made["single"], "gpu", 1)
    memory = stored(board, made["single"], SAMPLES[:3], "CHW4")
    size = made["single"].manifest.inputs[0].sample_bytes
    for number in range(3):
        loaded.enqueue(0, (memory.address + number * size,), 1)
        loaded.wait(0)
        assert np.array_equal(loaded.outputs(0)[0], expected[number : number + 1])
    assert loaded.copied_bytes == 3 * size
    assert libcuda.calls("cuGraphLaunch") == 3


def test_a_query_of_several_single_samples_has_a_graph_for_each(board, made, expected):
    plan = Plan(network="net", gpu_batch=1, dla_cores=0)
    with Pipeline(plan, board, {"gpu": made["single"]}, capacity=16) as pipeline:
        for position, sample in enumerate(SAMPLES[:8]):
            pipeline.samples.store(position, [sample])
        _, outputs = pipeline.run_now(list(range(8)), 0)
        assert np.array_equal(outputs[0], expected[:8])
        assert pipeline.copied_bytes == 8 * pipeline.samples.sample_bytes


def test_streams_of_the_dlas_go_first(board, made):
    gpu, dla = board.load(made["gpu"], "gpu", 1), board.load(made["dla"], "dla0", 1)
    assert dla._stream.priority < gpu._stream.priority  # lower numbers go first; only this shows it without a GPU


class Recorded:
    """An execution context that notes which addresses it is given."""

    def __init__(self, context, noted):
        self.context, self.noted = context, noted

    def set_tensor_address(self, name, address):
        self.noted.append((name, address))
        return self.context.set_tensor_address(name, address)

    def __getattr__(self, name):
        return getattr(self.context, name)


@pytest.mark.parametrize("version,clears", [("10.3.0", False), ("11.4.1", True)])
def test_a_dlas_address_is_cleared_before_another_is_set_since_tensorrt_11(board, made, monkeypatch, version, clears):
    import tensorrt as trt

    board._trt = types.SimpleNamespace(**{**vars(trt), "__version__": version})
    loaded = board.load(made["dla"], "dla0", 1)
    noted = []
    step = loaded._slots[0].steps[0]
    step.context = Recorded(step.context, noted)
    memory = stored(board, made["dla"], SAMPLES[:4], "DLA_HWC4")
    size = made["dla"].manifest.inputs[0].sample_bytes
    for at in (0, 2, 2):
        loaded.enqueue(0, (memory.address + at * size,), 2)
        loaded.wait(0)
    inputs = [address for name, address in noted if name == "x"]
    second = memory.address + 2 * size
    assert inputs == ([memory.address, 0, second] if clears else [memory.address, second])
    assert [name for name, _ in noted].count("y") == 1
    step.context = None


def test_auto_memory_measures_the_three_kinds_and_names_the_fastest(board, made):
    kind, seconds = fastest_memory(PLAN, board, made)
    assert set(seconds) == set(MEMORY_KINDS) and seconds[kind] == min(seconds.values())
    plan, measured = with_memory(dataclasses.replace(PLAN, memory="auto"), board, made)
    assert plan.memory in MEMORY_KINDS and set(measured) == set(MEMORY_KINDS)
    assert with_memory(PLAN, board, made) == (PLAN, None)


# -- what goes wrong --------------------------------------------------------------------------------------------------


def refused(board, engine, accelerator, said):
    with pytest.raises((OrinError, EngineError)) as refusal:
        board.load(engine, accelerator, 1)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_engines_that_cannot_run_there(board, made):
    refused(board, made["gpu"], "dla0", "was built for gpu, it cannot run on dla0")
    refused(board, made["dla"], "gpu", "was built for dla, it cannot run on gpu")
    refused(board, made["dla"], "dla2", "jetson has no 'dla2': it has gpu, dla0, dla1")
    refused(board, made["reference"], "gpu", "a Jetson runs TensorRT's: build it with `orin build --board jetson`")


def damaged(engine, tmp_path, data):
    path = tmp_path / "some.engine"
    path.write_bytes(data)
    return Engine(path, engine.manifest)


def test_engine_files_that_do_not_load(board, made, tmp_path):
    data = made["gpu"].path.read_bytes()
    refused(board, damaged(made["gpu"], tmp_path, b"garbage"), "gpu", "does not load in TensorRT 10.3.0")
    other = damaged(made["gpu"], tmp_path, control.of_another_version(data))
    refused(board, other, "gpu", "delete it and build it here")
    refused(board, Engine(tmp_path / "gone.engine", made["gpu"].manifest), "gpu", "cannot be read: No such file")
    dla_file = damaged(made["gpu"], tmp_path, made["single"].path.read_bytes())
    manifest = dataclasses.replace(made["gpu"].manifest, outputs=())
    refused(board, Engine(dla_file.path, manifest), "gpu", "they do not belong together, build it again")


def test_no_dla_core_and_why(board, made, tmp_path):
    control.dla_cores(1)
    refused(board, made["dla"], "dla1", "TensorRT sees 1 DLA cores, the plan asks for dla1: lower dla_cores")
    control.dla_cores(0)
    refused(board, made["dla"], "dla0", "sees no DLA core")
    board._machine.dla_compiler.write_text("")
    refused(board, made["dla"], "dla0", "the DLA's compiler libnvdla_compiler.so is an empty file")


@pytest.mark.parametrize(
    "slot,said",
    [
        ("CudaEngine.createExecutionContext", "TensorRT did not make an execution context for gpu: out of memory"),
        ("Runtime.deserializeCudaEngine", "does not load in TensorRT 10.3.0: out of memory; that is: the memory"),
        ("create.Runtime", "TensorRT makes no runtime: out of memory; that is: the memory that CPU"),
    ],
)
def test_failures_of_tensorrt_while_loading(board, made, slot, said):
    control.fail(slot, "out of memory")
    refused(board, made["gpu"], "gpu", said)


@pytest.mark.parametrize(
    "function,code,said",
    [
        ("cuStreamCreateWithPriority", 2, "CUDA: cuStreamCreateWithPriority failed: out of memory; memory is shared"),
        ("cuEventCreate", 700, "an engine read or wrote outside its memory"),
        ("cuMemHostAlloc", 2, "out of memory"),
    ],
)
def test_failures_of_cuda_while_loading(board, made, function, code, said):
    board.allocate(1)  # the context is there
    libcuda.fail(function, code)
    refused(board, made["gpu"], "gpu", said)
    libcuda.fail(function, 0)


def test_a_graph_that_cannot_be_captured(board, made):
    board.allocate(1)
    libcuda.fail("cuGraphInstantiateWithFlags", 801)
    refused(board, made["single"], "gpu", "CUDA: cuGraphInstantiateWithFlags failed")
    libcuda.fail("cuGraphInstantiateWithFlags", 0)


def test_enqueue_false_ends_the_pipeline_with_its_reason(board, made):
    with pytest.raises(OrinError, match="^gpu failed: TensorRT did not enqueue the batch: the GPU has fallen off; "):
        with Pipeline(dataclasses.replace(PLAN, **ALONE["gpu"]), board, made, capacity=8) as pipeline:
            pipeline.submit(SAMPLES[0]).result(30)
            control.fail("ExecutionContext.enqueueV3", "the GPU has fallen off", times=-1)
            pipeline.submit(SAMPLES[1]).result(30)


def test_addresses_and_shapes_that_tensorrt_refuses(board, made):
    loaded = board.load(made["gpu"], "gpu", 1)
    memory = stored(board, made["gpu"], SAMPLES[:4], "CHW4")
    with pytest.raises(OrinError, match=r"TensorRT did not bind x to address 0x\w+: .*256"):
        loaded.enqueue(0, (memory.address + 64,), 4)
    control.fail("ExecutionContext.setInputShape", "out of range")
    with pytest.raises(OrinError, match="TensorRT did not take 3 samples of x: .*out of range"):
        loaded.enqueue(0, (memory.address,), 3)


def test_slots_are_used_as_the_seam_says(board, made):
    loaded = board.load(made["gpu"], "gpu", 1)
    memory = board.allocate(4096)
    for samples in (0, 5):
        with pytest.raises(OrinError, match=f"a batch of {samples} samples, its engine takes 1 to 4"):
            loaded.enqueue(0, (memory.address,), samples)
    with pytest.raises(OrinError, match="holds no batch: enqueue comes before wait"):
        loaded.wait(0)
    assert loaded.outputs(0) == []
    loaded.enqueue(0, (memory.address,), 4)
    loaded.close()  # what is in flight is waited for
    loaded.close()


# -- power, modes, opening --------------------------------------------------------------------------------------------


def test_memory_of_one_kind_is_held_and_given_back(board):
    with pytest.raises(OrinError, match="measured first"), board.hold(Plan(memory="auto")):
        pass
    with board.hold(Plan(memory="device")) as clocks:
        assert board.allocate(10).publish(0, 10) == 10 and clocks == AGX_ORIN_64GB_SOC.clocks("30W")
        assert board.in_force is None
    assert board.allocate(10).publish(0, 10) == 0
    assert board.keeps_pace() is None and board.provenance == "measured" and board.computes_outputs


@pytest.fixture
def programs(board):
    """What the board's power modes are held with."""
    return board._machine.power


def test_a_mode_is_proven_while_it_is_held_and_what_was_there_comes_back(board, programs):
    before = programs.everything()
    with board.hold(Plan(mode="15W")):  # other TPCs, which may need a reboot: the attempt is made
        assert programs.get("/sys/devices/platform/gpu.0/tpc_pg_mask") == "248"
        with board.hold(Plan(clocks_mhz={"gpu": 816.0, "dla": 780.2})) as clocks:
            assert (clocks.gpu_mhz, clocks.dla_mhz, clocks.sms) == (816.0, 780.2, 16)
            assert programs.get("/sys/kernel/locked") == "1" and board.in_force.asked == "gpu_mhz=816, dla_mhz=780.2"
        seen = board.in_force.as_json()
        assert (seen["asked"], seen["held"], seen["proven"], seen["missing"]) == ("15W", True, True, [])
        with board.hold(Plan(memory="managed")) as clocks:
            assert clocks == AGX_ORIN_64GB_SOC.clocks("15W") and board.in_force.asked == "15W"
    assert board.in_force is None and programs.everything() == before


def test_a_mode_comes_back_after_an_error(board, programs):
    before = programs.everything()
    with pytest.raises(ZeroDivisionError), board.hold(Plan(mode="50W", memory="device")):
        raise ZeroDivisionError
    assert programs.everything() == before and board.in_force is None
    assert board.allocate(10).publish(0, 10) == 0


def test_modes_that_do_not_come_into_force_are_refused(board, programs):
    with pytest.raises(PowerError, match="'40W' is not one of this board's: MAXN, 15W, 30W, 50W"):
        with board.hold(Plan(mode="40W")):
            pass
    programs.fault("nvpmodel", "lie")
    with pytest.raises(PowerError, match="50W did not come into force.*the board is in 30W again"):
        with board.hold(Plan(mode="50W", memory="device")):
            pass
    assert board.allocate(10).publish(0, 10) == 0 and board.in_force is None


def test_without_rights_the_run_goes_on_in_the_mode_that_is_there_and_says_so(tmp_path):
    said = []
    with attached(tmp_path, say=said.append) as board:
        board._machine.power.fault("sudo", "refuse")
        with board.hold(Plan(mode="50W")) as clocks:
            assert clocks == AGX_ORIN_64GB_SOC.clocks("30W") and not board.in_force.held
            assert said == board.in_force.as_json()["missing"] and len(said) == 1
            assert "power mode 50W is not held: sudo -n refuses (sudo: a password is required)" in said[0]


def test_power_is_read_from_tegrastats(board):
    lines = []
    with board.meter(lambda at_ns, line: lines.append(line)) as meter:
        assert meter.samples[0].rails_mw["VDD_GPU_SOC"] == 3200
        assert meter.tau_s == AGX_ORIN_64GB_SOC.board.filter_tau_s
    assert lines


def test_the_sensors_filter_is_that_of_their_chips(board, tmp_path):
    rails = [("VDD_GPU_SOC", 20000, 160), ("VDD_CPU_CV", 20000, 20), ("VIN_SYS_5V0", 5000, 800)]
    chip(tmp_path, "1-0040", "hwmon3", rails, samples=256, update_interval=1)
    with board.meter() as meter:
        assert meter.tau_s == pytest.approx(256 * 3 * 0.28e-3)  # three channels, two conversions of 140 us each


def test_opening_the_board_says_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(OrinError, match="this machine is no Jetson"):
        open_jetson(Machine(machine(tmp_path / "pc", "pc")))

    def missing():
        raise EngineError("TensorRT's Python module is missing")

    monkeypatch.setattr(jetson, "load_tensorrt", missing)
    with pytest.raises(EngineError, match="is missing"):
        open_jetson(Machine(machine(tmp_path / "orin", "agx-orin-64gb")))


def test_an_opened_board_is_closed_when_the_program_ends(tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr("atexit.register", ended.append)
    opened = open_jetson(Machine(machine(tmp_path, "agx-orin-64gb")))
    assert opened.allocate(1).address % 4096 == 0
    assert ended == [opened.close]
    opened.close()
    opened.close()


def test_the_doctor_sees_tensorrt_its_dla_cores_and_the_gpu(tmp_path):
    def run(command):
        return run_program(command) if command[0] == sys.executable else None

    facts = {fact.name: fact for fact in examine(machine(tmp_path, "agx-orin-64gb"), run)}
    assert facts["TensorRT"].value.startswith("10.3.0, ") and facts["DLA in TensorRT"].value == "2 cores"
    assert facts["pycuda"].ok and "compute capability 8.7" in facts["GPU in CUDA"].value


PROGRAM = """
import sys
from pathlib import Path
from orin.jetson.board import open_jetson
from orin.jetson.detect import Machine, run_program

board = open_jetson(Machine(Path(sys.argv[1]), lambda command: None))
memory = board.allocate(4096)
kept = board.cuda.stream(), memory.array
print("opened", board.soc.name)
"""


def test_a_program_that_leaves_its_board_open_ends_well(tmp_path):
    words = [sys.executable, "-c", PROGRAM, str(machine(tmp_path, "agx-orin-64gb"))]
    done = subprocess.run(words, capture_output=True, text=True, env=install.environment(), timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "opened agx-orin-64gb\n", "")
