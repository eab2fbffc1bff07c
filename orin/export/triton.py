"""A model repository for Triton Inference Server: one model for the GPU, one for both DLA cores.

Sources: `protobuf/model_config.proto` of triton-inference-server/common (secondary devices, non-linear I/O formats);
tensorrt_backend (a DLA plan has to be loaded with its core, which auto-complete does not; a batch that is not exactly
the static one is refused); NVIDIA's support matrix (24.08 holds TensorRT 10.3); NVIDIA/TensorRT#3524 (no CUDA graphs
with a DLA). 26.02 is the last release with images for JetPack 6, its TensorRT has no DLA.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.cache import write_atomically
from engines.engine import Binding
from engines.spec import TensorFormat
from engines.tensorrt.job import Job
from orin.errors import OrinError
from orin.export.trtexec import Target, export_trtexec
from orin.plan import Plan
from orin.soc import GPU

TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16"}  # of the others: TYPE_ and NumPy's name
QUEUE_DELAY_US = 2000
PLAN_FILE = "1/model.plan"
SPLIT = "split.json"
SPLIT_VERSION = 1
IMAGE_BY_TENSORRT = {"10.3": "nvcr.io/nvidia/tritonserver:24.08-py3-igpu"}  # JetPack 6.1 and 6.2
SERVER_OPTIONS = (
    "--model-repository=/repo/models",
    "--backend-directory=/opt/tritonserver/backends",
    "--disable-auto-complete-config",
    "--model-control-mode=explicit",
    "--backend-config=tensorrt,execution-policy=BLOCKING",  # so that a DLA's enqueue does not hold the GPU's up
)


@dataclass(frozen=True)
class Repository:
    """What is written: the plan, its jobs, the models' common name and TensorRT's version."""

    plan: Plan
    jobs: Mapping[str, Job]
    name: str
    tensorrt: str

    def model(self, device: str) -> str:
        """Return a model's name."""
        return f"{self.name}_{device}"


def config_text(repository: Repository, device: str) -> str:
    """Return `config.pbtxt` of the model "gpu" or "dla"."""
    job, plan = repository.jobs[device], repository.plan
    batches = device == GPU and job.spec.batch > 1
    ends = [
        f"{direction} [\n{_joined(_tensor(binding, None if batches else job.spec.batch) for binding in bindings)}\n]"
        for direction, bindings in (("input", job.inputs), ("output", job.outputs))
    ]
    return "\n".join(
        [
            f"name: {json.dumps(repository.model(device))}",
            'platform: "tensorrt_plan"',
            f"max_batch_size: {job.spec.batch if batches else 0}",
            *ends,
            'default_model_filename: "model.plan"',
            *(_gpu_lines(plan, batches) if device == GPU else _dla_lines(plan)),
            "",
        ]
    )


def export_triton(repository: Repository, folder: Path) -> list[Path]:
    """Write the models' configurations, what builds their engines, `start.sh`, `split.json` and a README.

    Returns the files. The engines are built on the board by the container that serves them: a plan runs only in the
    TensorRT that made it.
    """
    if "/" in repository.name or not repository.name:
        raise OrinError(f"model name is {repository.name!r}, expected a name without '/'")
    target = Target(repository.tensorrt, f"../models/{repository.name}_{{name}}/{PLAN_FILE}")
    files = export_trtexec(repository.plan, repository.jobs, folder / "engines", target)
    texts = {
        f"models/{repository.model(device)}/config.pbtxt": config_text(repository, device)
        for device in _devices(repository)
    }
    texts["start.sh"] = start_script(repository)
    texts[SPLIT] = json.dumps(_split(repository), indent=1)
    texts["README.md"] = _readme(repository)
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
        files.append(path)
    (folder / "start.sh").chmod(0o755)
    return files


def start_script(repository: Repository) -> str:
    """Return the script that builds what is missing and starts the server, in the image that fits TensorRT."""
    image = IMAGE_BY_TENSORRT.get(repository.tensorrt)
    models = [repository.model(device) for device in _devices(repository)]
    given = (
        f"IMAGE=${{IMAGE:-{image}}}"
        if image
        else f': "${{IMAGE:?set it to an arm64 tritonserver image whose TensorRT is {repository.tensorrt}.1 or later}}"'
    )
    options = [*SERVER_OPTIONS, *(f"--load-model={model}" for model in models)]
    return "\n".join(
        [
            "#!/bin/sh",
            f"# Serves {' and '.join(models)}; engines that are missing are built first, in the same image.",
            "set -eu",
            'cd "$(dirname "$0")"',
            given,
            "inside() {",
            '  docker run --rm --runtime nvidia --network host --ipc host -v "$PWD:/repo" -w /repo "$IMAGE" "$@"',
            "}",
            *(f"[ -s models/{model}/{PLAN_FILE} ] || missing=1" for model in models),
            '[ -z "${missing:-}" ] || inside engines/build.sh',
            "inside tritonserver \\\n  " + " \\\n  ".join(options),
            "",
        ]
    )


# -- parts of a configuration -----------------------------------------------------------------------------------------


def _devices(repository: Repository) -> tuple[str, ...]:
    return tuple(repository.jobs)


def _joined(entries: Any) -> str:
    return ",\n".join(f"  {{ {entry} }}" for entry in entries)


def _tensor(binding: Binding, batch: int | None) -> str:
    """One input or output; `batch` is the first of its dimensions where the model has no batches of its own."""
    shape = binding.shape if batch is None else (batch, *binding.shape)
    kind = TYPES.get(binding.dtype, f"TYPE_{binding.dtype.upper()}")
    linear = binding.format == TensorFormat.LINEAR.value
    layout = "" if linear else " is_non_linear_format_io: true"
    return f"name: {json.dumps(binding.name)} data_type: {kind} dims: [ {', '.join(map(str, shape))} ]{layout}"


def _gpu_lines(plan: Plan, batches: bool) -> list[str]:
    batching = [
        f"dynamic_batching {{ preferred_batch_size: [ {plan.gpu_batch} ]"
        f" max_queue_delay_microseconds: {QUEUE_DELAY_US} }}"
    ]
    return [
        f"instance_group [ {{ count: {plan.gpu_depth} kind: KIND_GPU gpus: [ 0 ] }} ]",
        *(batching if batches else ()),
        "optimization { cuda { busy_wait_events: true output_copy_stream: true } }",
    ]


def _dla_lines(plan: Plan) -> list[str]:
    groups = [
        f'name: "dla{core}" count: {plan.dla_depth} kind: KIND_GPU gpus: [ 0 ]'
        f" secondary_devices [ {{ kind: KIND_NVDLA device_id: {core} }} ]"
        for core in range(plan.dla_cores)
    ]
    return [
        f"instance_group [\n{_joined(groups)}\n]",
        "optimization { cuda { graphs: false } }",
        'parameters { key: "execution_context_allocation_strategy" value: { string_value: "STATIC" } }',
    ]


def _split(repository: Repository) -> dict[str, Any]:
    """What the client has to know: a lane for each accelerator, and the ends of each model as they lie in memory."""
    plan = repository.plan
    lanes = [
        {
            "accelerator": accelerator,
            "model": repository.model(GPU if accelerator == GPU else "dla"),
            "batch": repository.jobs[GPU if accelerator == GPU else "dla"].spec.batch,
            "static": accelerator != GPU or plan.gpu_batch == 1,
            "depth": plan.depth(accelerator),
        }
        for accelerator in plan.accelerators
    ]
    models = {
        repository.model(device): {
            "inputs": [dataclasses.asdict(binding) for binding in job.inputs],
            "outputs": [dataclasses.asdict(binding) for binding in job.outputs],
        }
        for device, job in repository.jobs.items()
    }
    return {"version": SPLIT_VERSION, "lanes": lanes, "models": models}


def _readme(repository: Repository) -> str:
    models = ", ".join(f"`{repository.model(device)}`" for device in _devices(repository))
    return f"""# {repository.name} on Triton Inference Server

Models: {models}. Written by orin-toolkit; see its docs/triton.md.

1. `./start.sh` on the board builds the engines in the server's own image and starts the server (gRPC on port 8001).
2. `orin export ask . --data samples.npy -o answers.npz` answers samples [N,C,H,W] through all models at once.
"""
