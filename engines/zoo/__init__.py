"""The networks that the toolkit knows by name: facts, graph and model of each."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import EngineError
from engines.graph import Graph, read_graph
from engines.onnx_model import load_model, model_inputs, opset_of, raise_opset, shape_of, with_batch
from engines.zoo import resnet50

if TYPE_CHECKING:
    import onnx

USUAL_OPSET = 13


@dataclass(frozen=True)
class Network:
    """What is fixed about a network: `preprocess` names an entry of `PREPROCESS`, `tail` says what follows its output.

    Parameters and MACs are as published, batch normalisation not folded; `qsl_samples` is how many samples MLPerf
    wants loaded; `build(with_weights)` makes the model with batch 1.
    """

    name: str
    title: str
    input_shape: tuple[int, int, int]
    classes: int
    preprocess: str
    tail: str
    published_params: int
    published_gmacs: float
    source: str
    build: Callable[[bool], onnx.ModelProto] = field(repr=False, compare=False)
    qsl_samples: int = 1024


_ALL = (
    Network(
        name="resnet50",
        title="ResNet-50 v1.5",
        input_shape=(3, 224, 224),
        classes=1000,
        preprocess="imagenet",
        tail="top-1",
        published_params=25_557_032,
        published_gmacs=4.089,
        source="torchvision ResNet50_Weights.IMAGENET1K_V1 metadata; MLPerf Inference (1,024 samples in the QSL)",
        build=resnet50.build,
    ),
)

NETWORKS: dict[str, Network] = {entry.name: entry for entry in _ALL}


def network(name: str) -> Network:
    """Return a network of the zoo by name; EngineError names the known ones and the nearest."""
    if name in NETWORKS:
        return NETWORKS[name]
    near = difflib.get_close_matches(name, NETWORKS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise EngineError(f"network {name!r} is not in the zoo, which has {', '.join(NETWORKS)}{hint}")


def model(name: str, weights: Path | None = None, with_weights: bool = True) -> onnx.ModelProto:
    """Return a network at batch 1: with seeded weights, with none at all, or the ONNX checkpoint at `weights`."""
    entry = network(name)
    return entry.build(with_weights) if weights is None else _checkpoint(weights, entry)


def graph(name: str) -> Graph:
    """Return the graph of a network, without making its weights."""
    return read_graph(model(name, with_weights=False), name)


def _checkpoint(path: Path, entry: Network) -> onnx.ModelProto:
    loaded = load_model(path)
    images = model_inputs(loaded)
    shapes = [shape_of(value) for value in images]
    if len(shapes) != 1 or (shapes[0] or ())[1:] != entry.input_shape:
        seen = ", ".join(f"{value.name}{list(shape or ())}" for value, shape in zip(images, shapes, strict=True))
        wanted = ",".join(map(str, entry.input_shape))
        raise EngineError(f"{path} has inputs {seen or 'none'}, expected one image input [N,{wanted}] for {entry.name}")
    if opset_of(loaded) < USUAL_OPSET:
        loaded = raise_opset(loaded, USUAL_OPSET)
    return with_batch(loaded, 1)
