"""`Plan`: the one description that every command takes and writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engines.spec import TensorFormat
from orin.errors import OrinError
from orin.soc import DLAS, GPU

STACKS = ("mlperf-v2.0", "mlperf-v2.1", "mlperf-v3.0", "mlperf-v3.1", "trtexec-8.5", "trtexec-10.3")
DEFAULT_STACK = "trtexec-10.3"
MEMORY_KINDS = ("mapped", "managed", "device")
AUTO_MEMORY = "auto"
TAILS = ("none", "cpu", "gpu")
PRECISIONS = ("int8", "fp16", "fp32")
FORMATS = tuple(entry.value for entry in TensorFormat)

_COMMENTS = {
    "network": "name in the zoo, or path of an ONNX file",
    "weights": "path of an ONNX checkpoint for a zoo network; null: seeded, untrained",
    "preprocess": "how photos become inputs; null: the network's own way, imagenet for an ONNX file",
    "rewrites": "what is changed in the DLA's network so that no layer falls back",
    "calibration": "TensorRT calibration cache with the INT8 ranges; null: collected from the photos at hand",
    "precision": "int8 | fp16 | fp32",
    "sparsity": "use that 2 of 4 weights are zero; they must have been pruned so",
    "gpu_batch": "largest batch of the GPU engine; 0: the GPU runs no engine",
    "dla_batch": "static batch of the DLA engine",
    "dla_loop": "enqueues of that engine in one work item",
    "dla_cores": "how many DLA cores run it: 0, 1 or 2",
    "gpu_depth": "work items in flight on the GPU",
    "dla_depth": "work items in flight on each DLA core",
    "gpu_input_format": "layout of the GPU engine's input",
    "dla_input_format": "layout of the DLA engine's input",
    "tail": "where top-k, or decoding and NMS, behind the engines runs: none | cpu | gpu",
    "memory": "mapped | managed | device | auto: the fastest on the board, measured before the run",
    "mode": "nvpmodel mode to hold; null: leave the board as it is",
    "clocks_mhz": "locked clocks in place of a mode: gpu, dla, emc, cpu",
    "stack": "software whose speed the virtual board has; ignored on a real one",
}


@dataclass(frozen=True)
class Plan:
    """One way to run one network on one SoC; see the comments that `dumps` writes for each field."""

    network: str = "resnet50"
    weights: str | None = None
    preprocess: str | None = None
    rewrites: tuple[str, ...] = ("global-pool", "gemm-to-conv", "cut-tail")
    calibration: str | None = None
    precision: str = "int8"
    sparsity: bool = False
    gpu_batch: int = 256
    dla_batch: int = 2
    dla_loop: int = 1
    dla_cores: int = 2
    gpu_depth: int = 2
    dla_depth: int = 2
    gpu_input_format: str = "CHW4"
    dla_input_format: str = "DLA_HWC4"
    tail: str = "cpu"
    memory: str = "mapped"
    mode: str | None = None
    clocks_mhz: dict[str, float] | None = None
    stack: str = DEFAULT_STACK

    def __post_init__(self) -> None:
        _check(self)
        object.__setattr__(self, "rewrites", tuple(self.rewrites))

    @property
    def accelerators(self) -> tuple[str, ...]:
        """Accelerators that this plan uses, the GPU first."""
        gpu = (GPU,) if self.gpu_batch else ()
        return gpu + DLAS[: self.dla_cores]

    def item_samples(self, accelerator: str) -> int:
        """Return how many samples one work item of an accelerator holds at most."""
        return self.gpu_batch if accelerator == GPU else self.dla_batch * self.dla_loop

    def depth(self, accelerator: str) -> int:
        """Return how many work items an accelerator keeps in flight."""
        return self.gpu_depth if accelerator == GPU else self.dla_depth

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        return {**dataclasses.asdict(self), "rewrites": list(self.rewrites)}

    def dumps(self) -> str:
        """Return the plan as YAML, one commented line a field: easy to diff and to edit."""
        lines = []
        for name, value in self.as_json().items():
            text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
            lines.append(f"{name + ': ' + text:<48} # {_COMMENTS[name]}")
        return "\n".join(lines) + "\n"

    @classmethod
    def loads(cls, text: str, where: str = "plan") -> Plan:
        """Parse YAML as `dumps` writes it; fields left out keep their defaults."""
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise OrinError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise OrinError(f"{where} holds {type(values).__name__}, expected a mapping of plan fields")
        unknown = sorted(set(map(str, values)) - set(_COMMENTS))
        if unknown:
            raise OrinError(f"{where} has unknown field {unknown[0]!r}; fields are {', '.join(_COMMENTS)}")
        return cls(**values)

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan file."""
        try:
            return cls.loads(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise OrinError(f"plan {path} cannot be read: {error}") from None


def _check(plan: Plan) -> None:
    _check_counts(plan)
    _check_words(plan)
    choices = {
        "precision": PRECISIONS,
        "gpu_input_format": FORMATS,
        "dla_input_format": FORMATS,
        "tail": TAILS,
        "memory": (*MEMORY_KINDS, AUTO_MEMORY),
        "stack": STACKS,
    }
    for name, allowed in choices.items():
        value = getattr(plan, name)
        if value not in allowed:
            raise OrinError(f"plan field {name} is {value!r}, expected one of {', '.join(allowed)}")
    if not isinstance(plan.sparsity, bool):
        raise OrinError(f"plan field sparsity is {plan.sparsity!r}, expected true or false")
    if plan.mode is not None and plan.clocks_mhz is not None:
        raise OrinError("plan has both mode and clocks_mhz: keep one")
    if not plan.accelerators:
        raise OrinError("plan uses no accelerator: gpu_batch and dla_cores are both 0")


def _check_words(plan: Plan) -> None:
    """Refuse what YAML reads as something else than was meant, such as `mode: 30` in place of 30W."""
    for name in ("network", "weights", "preprocess", "calibration", "mode"):
        value = getattr(plan, name)
        if not (isinstance(value, str) and value) and not (value is None and name != "network"):
            raise OrinError(f"plan field {name} is {value!r}, expected text{'' if name == 'network' else ' or null'}")
    if not isinstance(plan.rewrites, (list, tuple)) or not all(isinstance(name, str) for name in plan.rewrites):
        raise OrinError(f"plan field rewrites is {plan.rewrites!r}, expected a list of names such as [global-pool]")
    if plan.clocks_mhz is not None and not isinstance(plan.clocks_mhz, Mapping):
        raise OrinError(f"plan field clocks_mhz is {plan.clocks_mhz!r}, expected a mapping such as {{gpu: 612}}")


def _check_counts(plan: Plan) -> None:
    limits = {
        "gpu_batch": (0, 4096),
        "dla_batch": (1, 4096),
        "dla_loop": (1, 1024),
        "dla_cores": (0, len(DLAS)),
        "gpu_depth": (1, 16),
        "dla_depth": (1, 16),
    }
    for name, (low, high) in limits.items():
        value = getattr(plan, name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise OrinError(f"plan field {name} is {value!r}, expected a whole number from {low} to {high}")
