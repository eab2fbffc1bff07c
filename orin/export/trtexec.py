"""The trtexec lines that build and run a plan's engines, and the files that they read.

Sources: trtexec's options (samples/common/sampleOptions.cpp, sampleEngines.cpp, release/10.3); TensorRT 11 has neither
--int8, --fp16, --calib nor --layerPrecisions: there the network carries types and scales.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.cache import CalibrationCache
from engines.cache import write_atomically
from engines.engine import Binding
from engines.importer import Imported
from engines.spec import Ranges, TensorFormat
from engines.tensorrt.explicit import typed
from engines.tensorrt.job import Job
from orin.errors import OrinError
from orin.export.jobs import TENSORRT
from orin.plan import Plan
from orin.soc import GPU

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"  # where JetPack and NVIDIA's containers have it
TYPES = {"float32": "fp32", "float16": "fp16"}  # trtexec's names; of the others they are NumPy's
POOLS = {"DLA_MANAGED_SRAM": "dlaSRAM", "DLA_LOCAL_DRAM": "dlaLocalDRAM", "DLA_GLOBAL_DRAM": "dlaGlobalDRAM"}
MIB = 1 << 20
WARM_UP_MS = 1000


@dataclass(frozen=True)
class Target:
    """Whom the lines are for: TensorRT's version, the folder's path of an engine, and how long a run lasts."""

    tensorrt: str = TENSORRT[0]
    engine: str = "{name}.plan"
    seconds: int = 10

    @property
    def implicit(self) -> bool:
        """Whether INT8 is flags and a calibration cache."""
        return self.tensorrt == TENSORRT[0]

    def plan_of(self, name: str) -> str:
        """Return the path of an engine, relative to the lines' folder."""
        return self.engine.format(name=name)


def build_options(name: str, job: Job, target: Target) -> list[str]:
    """Return trtexec's options that build one engine."""
    device = _gpu_options(job) if name == GPU else _dla_options(job)
    return [
        f"--onnx={name}.onnx",
        f"--saveEngine={target.plan_of(name)}",
        *(_precision_options(name, job) if target.implicit else ()),
        f"--inputIOFormats={','.join(map(_io_format, job.inputs))}",
        f"--outputIOFormats={','.join(map(_io_format, job.outputs))}",
        *device,
        *(("--sparsity=enable",) if job.spec.sparse else ()),
        "--profilingVerbosity=detailed",
        "--timingCacheFile=timing.cache",
        "--skipInference",
    ]


def run_options(accelerator: str, plan: Plan, jobs: Mapping[str, Job], target: Target) -> list[str]:
    """Return trtexec's options that run one accelerator's engine with full batches."""
    name = GPU if accelerator == GPU else "dla"
    job, options = jobs[name], []
    if accelerator != GPU:
        options = [f"--useDLACore={accelerator.removeprefix('dla')}"]
    elif job.spec.batch > 1:
        options = [f"--shapes={_shapes(job, job.spec.batch)}"]
    else:
        options = ["--useCudaGraph"]  # as the pipeline runs single samples
    return [
        f"--loadEngine={target.plan_of(name)}",
        *options,
        f"--infStreams={plan.depth(accelerator)}",
        "--noDataTransfers",
        f"--warmUp={WARM_UP_MS}",
        f"--duration={target.seconds}",
    ]


def export_trtexec(plan: Plan, jobs: Mapping[str, Job], folder: Path, target: Target) -> list[Path]:
    """Write networks, calibration caches, `build.sh`, `run.sh` and the plan; returns the files, each written whole."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes] = {"plan.yaml": plan.dumps().encode()}
    for name, job in jobs.items():
        model = job.model if target.implicit else typed(job)
        files[f"{name}.onnx"] = model.SerializeToString()
        if target.implicit and job.spec.amax_by_tensor:
            files[f"{name}.cache"] = _cache(job).encode()
    files["build.sh"] = build_script(jobs, target).encode()
    files["run.sh"] = run_script(plan, jobs, target).encode()
    for file, data in files.items():
        write_atomically(folder / file, data)
    for script in ("build.sh", "run.sh"):
        (folder / script).chmod(0o755)
    return [folder / file for file in files]


def build_script(jobs: Mapping[str, Job], target: Target) -> str:
    """Return the shell script that builds every engine, one after another."""
    lines = [*_head(f"Builds the engines that `orin build` makes of plan.yaml, with TensorRT {target.tensorrt}.")]
    folders = [str(Path(target.plan_of(name)).parent) for name in jobs]
    lines += [f"mkdir -p {shlex.quote(folder)}" for folder in folders if folder != "."]
    lines += [_line(build_options(name, job, target)) for name, job in jobs.items()]
    return "\n".join(lines) + "\n"


def run_script(plan: Plan, jobs: Mapping[str, Job], target: Target) -> str:
    """Return the shell script that runs every accelerator at once, one process each, and prints their throughput."""
    lines = [*_head("Runs each accelerator's engine at the same time; throughputs are batches a second (qps).")]
    for accelerator in plan.accelerators:
        lines += [f"{_line(run_options(accelerator, plan, jobs, target))} > {accelerator}.log 2>&1 &"]
        lines += [f"{accelerator}=$!"]
    lines += [f'wait "${accelerator}"' for accelerator in plan.accelerators]
    lines += ["grep Throughput: " + " ".join(f"{accelerator}.log" for accelerator in plan.accelerators)]
    return "\n".join(lines) + "\n"


# -- parts of a line --------------------------------------------------------------------------------------------------


def _precision_options(name: str, job: Job) -> list[str]:
    spec = job.spec
    options = ["--int8", f"--calib={name}.cache"] if spec.amax_by_tensor else []
    options += ["--fp16"] if spec.precision != "fp32" else []
    if spec.precision == "int8" and spec.fp16_layers:
        layers = ",".join(f"{_quoted(layer)}:fp16" for layer in spec.fp16_layers)
        options += ["--precisionConstraints=prefer", f"--layerPrecisions={layers}"]
    return options


def _gpu_options(job: Job) -> list[str]:
    batch = job.spec.batch
    if batch == 1:
        return []
    sizes = (("min", 1), ("opt", batch), ("max", batch))
    return [f"--{word}Shapes={_shapes(job, samples)}" for word, samples in sizes]


def _dla_options(job: Job) -> list[str]:
    pools = ",".join(f"{POOLS[name]}:{_size(size)}" for name, size in job.spec.pools_bytes.items())
    options = ["--useDLACore=0", f"--memPoolSize={pools}"]
    pinned = [layer for layer, device in job.spec.device_by_layer.items() if device == GPU]
    if pinned or _needs_gpu(job):
        options += ["--allowGPUFallback"]
    if pinned:
        options += ["--layerDeviceTypes=" + ",".join(f"{_quoted(layer)}:GPU" for layer in pinned)]
    return options


def _needs_gpu(job: Job) -> bool:
    """Whether TensorRT asks for the permission to fall back although no layer is placed on the GPU: for LINEAR ends,
    for constants, and for the shuffles around tensors of under four axes."""
    if any(binding.format == TensorFormat.LINEAR.value for binding in (*job.inputs, *job.outputs)):
        return True
    network = Imported(job.graph)
    constants = "" in network.folded.values()
    return constants or any(
        network.needs_shuffle_before(layer) or network.needs_shuffle_after(layer)
        for layer in network.layers
        if layer.name not in network.folded
    )


def _io_format(binding: Binding) -> str:
    layout = "chw" if binding.format == TensorFormat.LINEAR.value else binding.format.lower()
    return f"{TYPES.get(binding.dtype, binding.dtype)}:{layout}"


def _shapes(job: Job, samples: int) -> str:
    return ",".join(f"{_quoted(b.name)}:{'x'.join(map(str, (samples, *b.shape)))}" for b in job.inputs)


def _quoted(name: str) -> str:
    """Return a name as trtexec's lists take it: colons are safe inside quotes, commas are not."""
    if "," in name or "'" in name:
        raise OrinError(f"name {name!r} cannot stand in a list of trtexec's: rename it in the ONNX file")
    return f"'{name}'" if ":" in name else name


def _size(size_bytes: int) -> str:
    return f"{size_bytes // MIB}M" if size_bytes % MIB == 0 else f"{size_bytes}B"


def _cache(job: Job) -> str:
    spec = job.spec
    amax = {name: value for name, value in spec.amax_by_tensor.items() if value > 0 and math.isfinite(value)}
    return CalibrationCache.from_ranges(Ranges(amax, "spec", 0)).dumps()


def _head(text: str) -> Sequence[str]:
    return (
        "#!/bin/sh",
        f"# {text}",
        "set -eu",
        'cd "$(dirname "$0")"',
        f"TRTEXEC=${{TRTEXEC:-{TRTEXEC}}}",
    )


def _line(options: Sequence[str]) -> str:
    return " \\\n  ".join(['"$TRTEXEC"', *map(shlex.quote, options)])
