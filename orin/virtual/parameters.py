"""Parameters of the virtual Orin: `parameters.yaml` as frozen values, each number there with its source."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from engines.files import replace_file
from orin.errors import OrinError

PARAMETERS_PATH = Path(__file__).with_name("parameters.yaml")
FACTORS = ("gpu_compute", "gpu_memory", "dla_compute", "dla_memory")


@dataclass(frozen=True)
class NetworkFit:
    """A measured network: what its arithmetic and its memory times come to over the law of its layers.

    `measured` names the accelerators ("gpu", "dla") that rows were published of, `stacks` the software they were
    measured with; `spread` holds the variances of the logarithms of compute and memory factors, and their covariance.
    """

    factors: Mapping[str, float]
    measured: frozenset[str]
    spread: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    stacks: frozenset[str] = frozenset()
    unrewritten_gpu_layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class StackFit:
    """What a software stack changes on the GPU; `gpu_from` and `dla_from` name the stack whose rows were fitted.

    `detections` names the networks whose engines end in non-maximum suppression, `one_kernel` those of which it runs a
    stretch of fused layers (first, end) as one kernel on the GPU.
    """

    name: str
    image_factor: float
    host_factor: float
    launch_layer_ms: float
    nms_factor: float
    gpu_from: str
    dla_from: str
    detections: frozenset[str]
    one_kernel: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Belief:
    """What is known of fitted parameters: their names ("law.gpu_efficiency") and the covariance of their logarithms."""

    names: tuple[str, ...]
    covariance: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Parameters:
    """Every number of the model: law of the layers, shared constants, power, measured networks, stacks, the belief."""

    law: Mapping[str, float]
    shared: Mapping[str, float]
    power: Mapping[str, float]
    networks: Mapping[str, NetworkFit]
    stacks: Mapping[str, StackFit]
    belief: Belief

    def stack(self, name: str) -> StackFit:
        """Return a stack's parameters; OrinError names the known ones."""
        try:
            return self.stacks[name]
        except KeyError:
            raise OrinError(f"stack {name!r} is not known; known: {', '.join(self.stacks)}") from None

    def factors(self, network: str, device: str) -> tuple[float, float]:
        """Return a network's compute and memory factors on "gpu" or "dla"; 1 where it was never measured."""
        fit = self.networks.get(network)
        if fit is None:
            return 1.0, 1.0
        return fit.factors.get(f"{device}_compute", 1.0), fit.factors.get(f"{device}_memory", 1.0)

    def value(self, name: str) -> float:
        """Return a parameter by its full name, such as law.gpu_efficiency or networks.resnet50.dla_memory."""
        section, _, rest = name.partition(".")
        owner, _, key = rest.rpartition(".")
        if section == "networks":
            return self.networks[owner].factors.get(key, 1.0) if owner in self.networks else 1.0
        if section == "stacks":
            return float(getattr(self.stacks[owner], key))
        values: Mapping[str, float] = getattr(self, section)
        return values[rest]

    def with_values(self, names: Sequence[str], values: Iterable[float]) -> Parameters:
        """Return parameters with some of them replaced, by full name."""
        law, shared = dict(self.law), dict(self.shared)
        factors = {name: dict(fit.factors) for name, fit in self.networks.items()}
        stacks = dict(self.stacks)
        for name, value in zip(names, values):
            section, _, rest = name.partition(".")
            owner, _, key = rest.rpartition(".")
            if section == "networks":
                factors.setdefault(owner, {})[key] = float(value)
            elif section == "stacks":
                stacks[owner] = _with_field(stacks[owner], key, float(value))
            else:
                {"law": law, "shared": shared}[section][rest] = float(value)
        unknown = NetworkFit({}, frozenset())
        networks = {name: replace(self.networks.get(name, unknown), factors=found) for name, found in factors.items()}
        return replace(self, law=law, shared=shared, networks=networks, stacks=_borrowed(stacks))


def _with_field(stack: StackFit, name: str, value: float) -> StackFit:
    fields: dict[str, Any] = {name: value}
    return replace(stack, **fields)


def _borrowed(stacks: Mapping[str, StackFit]) -> dict[str, StackFit]:
    """Let stacks that have no rows of their own follow the one that they borrow from."""
    found = {}
    for name, stack in stacks.items():
        source = stacks[stack.gpu_from]
        found[name] = replace(
            stack,
            image_factor=source.image_factor,
            host_factor=source.host_factor,
            launch_layer_ms=source.launch_layer_ms,
            nms_factor=source.nms_factor,
        )
    return found


@lru_cache(maxsize=4)
def load_parameters(path: Path = PARAMETERS_PATH) -> Parameters:
    """Read a parameter file; OrinError where it cannot be read."""
    try:
        return parameters_of(yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise OrinError(
            f"virtual board parameters {path} cannot be used: {error!r}; restore it, or name another"
        ) from None


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same language, ten times as fast where libyaml is there


def parameters_of(document: Mapping[str, Any]) -> Parameters:
    """Return a parameter document's values; KeyError, TypeError or ValueError where it does not hold them."""
    return Parameters(
        law=_values(document["law"]),
        shared=_values(document["shared"]),
        power=_values(document["power"]),
        networks={name: _network(entry) for name, entry in document["networks"].items()},
        stacks=_stacks(document["stacks"]),
        belief=_belief(document["belief"]),
    )


def _values(section: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    found = {name: float(entry["value"]) for name, entry in section.items()}
    for name, value in found.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}")
    return found


def _network(entry: Mapping[str, Any]) -> NetworkFit:
    return NetworkFit(
        factors=_values(entry["fit"]),
        measured=frozenset(entry["spread"]),
        spread={device: (float(cc), float(mm), float(cm)) for device, (cc, mm, cm) in entry["spread"].items()},
        stacks=frozenset(entry.get("stacks", ())),
        unrewritten_gpu_layers=tuple(entry.get("unrewritten_gpu_layers", ())),
    )


def _stacks(section: Mapping[str, Mapping[str, Any]]) -> dict[str, StackFit]:
    return {
        name: StackFit(
            name=name,
            gpu_from=entry["gpu_from"],
            dla_from=entry["dla_from"],
            detections=frozenset(entry.get("detections", ())),
            one_kernel={network: _stretch(one["layers"]) for network, one in entry.get("one_kernel", {}).items()},
            **_values(section[entry["gpu_from"]]["fit"]),
        )
        for name, entry in section.items()
    }


def _stretch(layers: Sequence[int]) -> tuple[int, int]:
    first, end = layers
    return int(first), int(end)


def _belief(entry: Mapping[str, Any]) -> Belief:
    """Read the lower triangle of a covariance, row by row."""
    names = tuple(entry["names"])
    matrix = np.zeros((len(names), len(names)))
    for i, row in enumerate(entry["covariance"]):
        matrix[i, : i + 1] = row
        matrix[: i + 1, i] = row
    if len(entry["covariance"]) != len(names):
        raise ValueError(f"belief names {len(names)} parameters, its covariance has {len(entry['covariance'])} rows")
    return Belief(names, matrix)


def document_of(parameters: Parameters, source: str, document: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a parameter document with the fitted values of `parameters` in it, the rest as in `document` (shipped)."""
    made: dict[str, Any] = copy.deepcopy(dict(document or yaml.load(_shipped(), Loader=_LOADER)))
    for name in parameters.belief.names:
        section, _, rest = name.partition(".")
        owner, _, key = rest.rpartition(".")
        value = float(f"{parameters.value(name):.6g}")
        if section == "networks":
            networks = made["networks"]
            networks.setdefault(owner, {"fit": {}, "spread": {}})["fit"][key] = {"value": value, "source": source}
        else:
            (made["stacks"][owner]["fit"][key] if section == "stacks" else made[section][rest])["value"] = value
    for owner, fit in parameters.networks.items():
        made["networks"][owner]["spread"] = {
            device: [float(f"{part:.4g}") for part in fit.spread[device]] for device in sorted(fit.spread)
        }
        made["networks"][owner]["stacks"] = sorted(fit.stacks)
    rows = [[float(f"{part:.3g}") for part in row[: i + 1]] for i, row in enumerate(parameters.belief.covariance)]
    made["belief"] = {"names": list(parameters.belief.names), "covariance": rows}
    return made


def save_document(document: Mapping[str, Any], path: Path) -> None:
    """Write a parameter document, under the shipped file's heading; OrinError where it cannot be written."""
    head = "".join(line for line in _shipped().splitlines(keepends=True) if line.startswith("#"))
    body = yaml.safe_dump(copy.deepcopy(dict(document)), sort_keys=False, width=118, default_flow_style=None)
    try:
        replace_file(path, lambda file: file.write((head + body).encode()))
    except OSError as error:
        raise OrinError(f"parameters {path} cannot be written: {error.strerror}; name a folder that can") from None


def _shipped() -> str:
    return PARAMETERS_PATH.read_text(encoding="utf-8")
