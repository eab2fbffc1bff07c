"""What fails below the toolkit ends a command in one line (what, value, expected, what to do) and exit code 2.

Each row of `FAILURES` injects one failure at the boundary to TensorRT, CUDA or the machine and runs a command as a user
does. Afterwards nothing is left: nothing of TensorRT's while the board is still open, nothing of CUDA's once it is
closed.
"""

from __future__ import annotations

import re
import shutil

import pytest

from engines.engine import Manifest
from tests.board.boards import TEGRASTATS
from tests.board.injections import (
    at_board,
    calibrate,
    closed_nodes,
    cuda,
    disk_full,
    dla_cores,
    forged,
    misaligned,
    module,
    no_core_and_no_compiler,
    not_a_folder,
    orin,
    server_build,
    slot,
    standalone,
    strange_operator,
    taken_off_the_dla,
    tegrastats,
)
from tests.orin.classifier import lay_out
from tests.standins.nvinfer import control

pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT 10.1")

OUT_OF_MEMORY, NO_DEVICE, LAUNCH_FAILED, UNSUPPORTED, UNKNOWN = 2, 100, 719, 801, 999  # CUresult
GPU, DLA, SINGLE = "--gpu-batch 4 --dla-cores 0", "--gpu-batch 0 --dla-batch 2", "--gpu-batch 1 --dla-cores 0"
BUILD, BUILD_DLA = f"build NET {GPU} -o OUT", f"build NET {DLA} -o OUT"
RUN, RUN_DLA, RUN_SINGLE = (f"run NET {plan} -o ANSWERS" for plan in (GPU, DLA, SINGLE))
BENCH = "bench NET --gpu-batch 4 --dla-batch 2 --seconds 1 --runs RUNS"
SERIALIZE = "Builder.buildSerializedNetwork"
ENQUEUE = "ExecutionContext.enqueueV3"
OFF = "the GPU has fallen off"
NO_CUDA = "CUDA initialization failure with error: 100"
LARGE = "Requested amount of GPU memory (1073741824 bytes) could not be allocated: out of memory"
DYNAMIC = "DLA Layer conv does not support dynamic shapes in any dimension."
NO_FALLBACK = "Layer relu cannot run on DLA and GPU fallback is not enabled"
SPARE_MEMORY = "the memory that CPU, GPU and DLA share is full; close other programs"
STOPPED = "the accelerator stopped: see `sudo dmesg`"
LIBRARY = "raise ImportError('{}: cannot open shared object file')"
NOT_FOUND = "raise ModuleNotFoundError('no pycuda', name='pycuda')"

# fmt: off
FAILURES = [  # what fails, the command, how it fails, the words that the line has
    # -- building: TensorRT's objects
    ("null builder", BUILD, slot("create.Builder", NO_CUDA), "no builder: CUDA init.* 100; .*`orin doctor`"),
    ("null network", BUILD, slot("Builder.createNetworkV2", "no memory"), "no network: no memory; .*--verbose-log"),
    ("null configuration", BUILD, slot("Builder.createBuilderConfig"), "no builder configuration: .*--verbose-log"),
    ("null parser", BUILD, slot("create.Parser", "out of memory"), f"no ONNX parser: out of memory; .*{SPARE_MEMORY}"),
    ("null profile", BUILD, slot("Builder.createOptimizationProfile"), "gives no profile: .*--verbose-log"),
    ("null runtime after the build", BUILD, slot("create.Runtime", "out of memory"), f"no runtime: .*{SPARE_MEMORY}"),
    ("null inspector", BUILD_DLA, slot("CudaEngine.createEngineInspector"), "no inspector .*--verbose-log"),
    # -- building: what TensorRT refuses
    ("unsupported operator", f"build NET {SINGLE} --precision fp16 -o OUT", strange_operator,
     r"parser refuses odd \(Fancy\): .*Plugin not found.*`orin rewrite`"),
    ("parser refuses without an error", BUILD, slot("Parser.parse", "model is no model"),
     "parser refuses the model: model is no model; .*--verbose-log"),
    ("profile refused", BUILD, slot("BuilderConfig.addOptimizationProfile", answer=-1),
     "refuses batches from 1 to 4; ask for another gpu_batch"),
    ("range refused", BUILD, slot("Tensor.setDynamicRange"), "refuses the range 2.64 of tensor 'input'; calibrate"),
    ("no INT8 ranges", BUILD, slot("Tensor.setDynamicRange", answer=1, times=-1),
     "no scaling factors detected.*a tensor has no dynamic range; calibrate the network: `orin calibrate`"),
    ("flags that do not go together", BUILD_DLA + " --allow-gpu-layers", standalone,
     "kDLA_STANDALONE needs the DLA as default device and no kGPU_FALLBACK"),
    ("build returns null", BUILD, slot(SERIALIZE), "refuses the build: TensorRT gives no reason; .*--verbose-log"),
    ("build runs out of memory", BUILD, slot(SERIALIZE, LARGE), f"1073741824 bytes.*out of memory; .*{SPARE_MEMORY}"),
    ("no kernel for a layer", BUILD, slot(SERIALIZE, "Could not find any implementation for node conv."),
     "node conv; that is: no kernel fits a layer.*try a smaller batch"),
    ("plan not read back", BUILD, slot("Runtime.deserializeCudaEngine", "Serialization assertion failed"),
     "does not load the engine it built: Serialization assertion failed"),
    # -- building for the DLA
    ("no DLA core", BUILD_DLA, dla_cores(0), "sees no DLA core: JetPack 6 has a DLA .*or set dla_cores to 0"),
    ("server's TensorRT", BUILD_DLA, server_build, "no DLA core: package tensorrt-cu12 .*pip uninstall tensorrt-cu12"),
    ("DLA compiler missing", BUILD_DLA, slot(SERIALIZE, "Unable to load library: libnvdla_compiler.so"),
     "libnvdla_compiler.so; that is: .*apt install nvidia-l4t-dla-compiler"),
    ("DLA batch too large", BUILD_DLA, slot("Builder.getMaxDLABatchSize", answer=1),
     "batch 2 is over the DLA's 1; lower dla_batch"),
    ("dynamic shape on the DLA", BUILD_DLA, slot(SERIALIZE, DYNAMIC), "static shapes; export the network with static"),
    ("layer taken off the DLA", BUILD_DLA, taken_off_the_dla("relu"),
     "does not run 'relu' on the DLA.*`orin place MODEL`.*--allow-gpu-layers"),
    ("GPU fallback needed", BUILD_DLA, slot(SERIALIZE, NO_FALLBACK), "cannot run on the DLA; .*--allow-gpu-layers"),
    ("DIRECT_IO refused", BUILD_DLA, slot(SERIALIZE, "kDIRECT_IO is set, but input x needs a reformat"),
     "would need a reformat on the GPU; give it a format that the DLA takes"),
    ("DLA memory pool refused", BUILD_DLA, slot("BuilderConfig.getMemoryPoolLimit"),
     "refuses 1048576 bytes for the pool DLA_MANAGED_SRAM; expected a power of two"),
    # -- building: the disk
    ("disk full", BUILD, disk_full, "cannot be stored: No space left on device; free space or choose another cache"),
    ("cache is no folder", BUILD, not_a_folder, "cache/.* cannot be written: Not a directory; choose another cache"),
    # -- loading engines
    ("engine of another version", RUN, forged(control.of_another_version),
     "does not load in TensorRT 10.3.0: .*Version tag does not match.*delete it and build it here"),
    ("garbage for an engine", RUN, forged(lambda data: b"garbage" * 20), "does not load .*Magic tag.*delete it and"),
    ("engine cut short", RUN_DLA, forged(lambda data: data[:-100]), "does not load .*cut short.*delete it and build"),
    ("no memory for an engine", RUN, slot("Runtime.deserializeCudaEngine", "out of memory"),
     f"does not load .*: out of memory; .*{SPARE_MEMORY}"),
    ("null runtime", RUN, slot("create.Runtime", "no driver"), "makes no runtime: no driver; .*`orin doctor`"),
    ("null context", RUN, slot("CudaEngine.createExecutionContext", "out of memory"),
     f"did not make an execution context for gpu: out of memory; .*{SPARE_MEMORY}"),
    ("second DLA core absent", RUN_DLA, dla_cores(1), "sees 1 DLA cores, the plan asks for dla1: lower dla_cores"),
    ("DLA compiler is an empty file", RUN_DLA, no_core_and_no_compiler, "is an empty file: sudo apt install"),
    # -- CUDA's objects and memory
    ("no CUDA device", RUN, cuda("cuInit", NO_DEVICE), "no CUDA-capable device.*--runtime nvidia"),
    ("CUDA does not start", RUN, cuda("cuInit", UNKNOWN), "cuInit failed: unknown error; see `sudo dmesg`"),
    ("no rights for CUDA", RUN, closed_nodes("orin.jetson.cuda"), "cuInit.*no right to open /dev/nvmap: sudo usermod"),
    ("no rights for the board", RUN, closed_nodes("orin.jetson.board"), "no right to open /dev/nvmap: sudo usermod"),
    ("no primary context", RUN, cuda("cuDevicePrimaryCtxRetain", OUT_OF_MEMORY), "CtxRetain failed: out of memory"),
    ("context not pushed", RUN, cuda("cuCtxPushCurrent", UNKNOWN), "cuCtxPushCurrent failed: unknown error; .*dmesg"),
    ("context not pushed later", RUN, cuda("cuCtxPushCurrent", UNKNOWN, 12), "cuCtxPushCurrent failed: .*dmesg"),
    ("thread not attached", RUN, cuda("cuCtxSetCurrent", UNKNOWN), "gpu failed: CUDA: cuCtxSetCurrent failed: .*dmesg"),
    ("no stream", RUN, cuda("cuStreamCreateWithPriority", OUT_OF_MEMORY), "WithPriority failed: out of memory; memory"),
    ("no stream for the second core", RUN_DLA, cuda("cuStreamCreateWithPriority", OUT_OF_MEMORY, 2),
     "cuStreamCreateWithPriority failed: out of memory; memory is shared with the CPU"),
    ("no event", RUN, cuda("cuEventCreate", OUT_OF_MEMORY, 4), "cuEventCreate failed: out of memory; memory is shared"),
    ("no host memory", RUN, cuda("cuMemHostAlloc", OUT_OF_MEMORY), "MiB of mapped memory: .*; .*smaller batches or"),
    ("no device memory", RUN + " --memory device", cuda("cuMemAlloc", OUT_OF_MEMORY), "MiB of device memory: .*out of"),
    ("no managed memory", RUN + " --memory managed", cuda("cuMemAllocManaged", OUT_OF_MEMORY), "MiB of managed memory"),
    ("no graph", RUN_SINGLE, cuda("cuGraphInstantiateWithFlags", UNSUPPORTED), "WithFlags failed: .*`orin doctor`"),
    ("no capture", RUN_SINGLE, cuda("cuStreamBeginCapture", UNSUPPORTED), "Capture failed: .*`orin doctor`"),
    # -- running
    ("address not set", RUN, slot("ExecutionContext.setTensorAddress", answer=1),
     "gpu failed: TensorRT did not enqueue the batch: .*address of input tensor 'input'"),
    ("address misaligned", RUN, misaligned, "gpu failed: TensorRT did not bind input to address 0x.*256 bytes"),
    ("shape refused", RUN, slot("ExecutionContext.setInputShape", "out of range"),
     "gpu failed: TensorRT did not take . samples of input: out of range; .*`orin doctor`"),
    ("enqueue false on the GPU", RUN, slot(ENQUEUE, OFF), f"gpu failed: .* enqueue the batch: {OFF}; .*`orin doctor`"),
    ("enqueue false on DLA0", RUN_DLA + " --dla-cores 1", slot(ENQUEUE, OFF), f"dla0 failed: .* the batch: {OFF}"),
    ("enqueue false amid LoadGen", BENCH, slot(ENQUEUE, OFF, after=200, times=-1), f"failed: .* the batch: {OFF}"),
    ("event not recorded", RUN, cuda("cuEventRecord", LAUNCH_FAILED, 3), f"cuEventRecord failed: .*; {STOPPED}"),
    ("accelerator stops", RUN_DLA, cuda("cuEventSynchronize", LAUNCH_FAILED, 3), f"dla. failed: .*; {STOPPED}"),
    ("graph not launched", RUN_SINGLE, cuda("cuGraphLaunch", LAUNCH_FAILED), f"GraphLaunch failed: .*{STOPPED}"),
    ("no copy into a graph", RUN_SINGLE, cuda("cuMemcpyDtoDAsync", LAUNCH_FAILED), f"gpu failed: .*{STOPPED}"),
    # -- what is installed, and the sensor
    ("no TensorRT", BUILD, module("tensorrt", None), r"module is missing \(tensorrt\): .*apt install"),
    ("another tensorrt", RUN, module("tensorrt", ""), "is not NVIDIA's: it has no Builder; remove it"),
    ("TensorRT without libraries", RUN, module("tensorrt", LIBRARY.format("libnvinfer.so.10")),
     "libraries do not load .*libnvinfer.so.10.*apt install"),
    ("TensorRT without DLA compiler", RUN_DLA, module("tensorrt", LIBRARY.format("libnvdla_compiler.so")),
     "lacks the DLA's compiler .*apt install nvidia-l4t-dla-compiler"),
    ("old TensorRT", RUN, module("tensorrt", "Builder, __version__ = 0, '8.5.2'"), "8.5.2 is older than 10: flash"),
    ("no pycuda", RUN, module("pycuda", NOT_FOUND), "pycuda is not installed; `pip install pycuda`"),
    ("pycuda of another Python", RUN, module("pycuda", "raise ImportError('undefined symbol: _Py')"),
     "not built for this Python and CUDA .*undefined symbol: _Py.*pip install .*--force-reinstall"),
    ("no tegrastats", BENCH, tegrastats(None), "'tegrastats' is not on this machine: it comes with JetPack"),
    ("tegrastats ends amid the run", BENCH, tegrastats(TEGRASTATS.replace("while True", "for _ in range(20)")),
     "tegrastats --interval 100 ended by itself with exit code 0"),
]
# fmt: on


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A user's folder with a network, its calibration, photos, and the engines of a first run."""
    folder = tmp_path_factory.mktemp("warm")
    lay_out(folder)
    calibrate(folder)
    with pytest.MonkeyPatch.context() as patch, at_board(folder, patch):
        for words in (RUN, RUN_DLA, RUN_SINGLE):
            assert orin(folder, words) == 0
    return folder


@pytest.fixture
def world(warm, tmp_path, monkeypatch):
    shutil.copytree(warm, tmp_path / "user", ignore=shutil.ignore_patterns("root"))
    with at_board(tmp_path / "user", monkeypatch) as made:
        yield made


@pytest.mark.parametrize("words, inject, said", [row[1:] for row in FAILURES], ids=[row[0] for row in FAILURES])
def test_a_failure_below_ends_in_one_line_and_leaves_nothing(world, capsys, words, inject, said):
    if words.startswith("build"):
        shutil.rmtree(world.folder / "cache")
    inject(world)
    code, printed = orin(world.folder, words), capsys.readouterr()
    assert (code, printed.out) == (2, "")
    (line,) = printed.err.splitlines()
    assert line.startswith(f"orin {words.split()[0]}: ") and len(line) < 1000
    assert re.search(said, line), line
    assert "None" not in line and not list(world.folder.glob("out/*.engine"))


def manifest(engine):
    return Manifest.loads(engine.with_suffix(".json").read_text())


def test_what_only_costs_time_is_said_and_goes_on(world, capsys):
    """Timings of another TensorRT, and an engine whose bytes are damaged, are made again."""
    (engine,) = [
        path for path in world.engines if Manifest.loads(path.with_suffix(".json").read_text()).spec.batch == 4
    ]
    engine.write_bytes(b"damaged")
    (engine.parent / "timing.cache").write_bytes(b"garbage")
    assert orin(world.folder, f"build NET {GPU} -o OUT", quiet=False) == 0
    said = capsys.readouterr().err
    assert "is rebuilt: its bytes are damaged" in said and "starting afresh" in said
    assert (world.folder / "out/gpu.engine").read_bytes() == engine.read_bytes() != b"damaged"
