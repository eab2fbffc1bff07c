"""Parameters of the virtual Orin: `parameters.yaml` as frozen values, each number there with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from engines.engine import Workload
from orin.errors import OrinError

PARAMETERS_PATH = Path(__file__).with_name("parameters.yaml")


@dataclass(frozen=True)
class GpuLaw:
    """One image on the reference GPU (16 SMs at 1300.5 MHz), and how much of that scales with SMs and clock."""

    image_ms: float
    compute_share: float


@dataclass(frozen=True)
class DlaLaw:
    """One image on one DLA core: compute in ms at 1 GHz, memory in ms at the reference DRAM clock, weights apart."""

    compute_ms_ghz: float
    activation_ms: float
    weight_ms: float


@dataclass(frozen=True)
class NetworkFit:
    """A measured network: its workload, its laws, and the GPU layers of its DLA engine when nothing is rewritten."""

    workload: Workload
    gpu: GpuLaw
    dla: DlaLaw
    unrewritten_gpu_layers: tuple[str, ...]


@dataclass(frozen=True)
class StackFit:
    """What a software stack changes on the GPU; `gpu_from` and `dla_from` name the stack whose rows were fitted."""

    name: str
    image_factor: float
    host_factor: float
    launch_floor_ms: float
    gpu_from: str
    dla_from: str


@dataclass(frozen=True)
class Parameters:
    """Every number of the model: shared physics and power by name, measured networks, stacks."""

    shared: Mapping[str, float]
    power: Mapping[str, float]
    networks: Mapping[str, NetworkFit]
    stacks: Mapping[str, StackFit]

    def stack(self, name: str) -> StackFit:
        """Return a stack's parameters; OrinError names the known ones."""
        try:
            return self.stacks[name]
        except KeyError:
            raise OrinError(f"stack {name!r} is not known; known: {', '.join(self.stacks)}") from None


@lru_cache(maxsize=4)
def load_parameters(path: Path = PARAMETERS_PATH) -> Parameters:
    """Read a parameter file; OrinError where it cannot be read."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Parameters(
            shared=_values(document["shared"]),
            power=_values(document["power"]),
            networks={name: _network(entry) for name, entry in document["networks"].items()},
            stacks=_stacks(document["stacks"]),
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise OrinError(f"virtual board parameters {path} cannot be used: {error!r}; restore the file") from None


def _values(section: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {name: float(entry["value"]) for name, entry in section.items()}


def _network(entry: Mapping[str, Any]) -> NetworkFit:
    fit = _values(entry["fit"])
    return NetworkFit(
        workload=Workload(**entry["workload"]),
        gpu=GpuLaw(fit["gpu_image_ms"], fit["gpu_compute_share"]),
        dla=DlaLaw(fit["dla_compute_ms_ghz"], fit["dla_activation_ms"], fit["dla_weight_ms"]),
        unrewritten_gpu_layers=tuple(entry["unrewritten_gpu_layers"]),
    )


def _stacks(section: Mapping[str, Mapping[str, Any]]) -> dict[str, StackFit]:
    stacks = {}
    for name, entry in section.items():
        source = section[entry["gpu_from"]]
        stacks[name] = StackFit(
            name=name, gpu_from=entry["gpu_from"], dla_from=entry["dla_from"], **_values(source["fit"])
        )
    return stacks
