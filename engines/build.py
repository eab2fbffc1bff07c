"""Building engines: what every builder has in common, and the one that works on any machine.

ONNX Runtime's engine is a Q/DQ network whose bytes are the engine; TensorRT's builder is in `engines.tensorrt`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engines.bindings import float_outputs, input_bindings
from engines.cache import EngineCache, engine_key, model_sha256
from engines.engine import Binding, Engine, Manifest
from engines.errors import EngineError
from engines.graph import Graph, read_graph
from engines.nms import portable
from engines.onnx_model import has_all_weights, keeps_batch, with_batch
from engines.qdq import insert_qdq
from engines.spec import EngineSpec

if TYPE_CHECKING:
    import onnx

BUILDER_REVISION = 2  # counted up when the same spec gives other bytes
PRECISIONS = ("int8", "fp16", "fp32")
BATCH = "N"


@dataclass(frozen=True)
class Made:
    """What a builder made: an engine's bytes, its inputs and outputs, and what of a DLA engine runs on the GPU."""

    data: bytes
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    gpu_layers: tuple[str, ...] = ()


class Builder(Protocol):
    """A program that makes engines; `name` has all beside model and spec that changes their bytes.

    `calibrates`: it finds the ranges of INT8 by itself, a spec needs none but the input's.
    """

    @property
    def name(self) -> str:
        """Name and version, as manifests carry them."""

    @property
    def calibrates(self) -> bool:
        """Whether INT8 needs no dynamic ranges."""

    def make(self, model: onnx.ModelProto, spec: EngineSpec, graph: Graph, log: Path) -> Made:
        """Build; `graph` is the model's at batch 1, `log` the file for what the builder says, if it says anything."""


class OrtBuilder:
    """ONNX Runtime's builder. "fp16" computes in float32 here, as CPUs do; outputs are float32 LINEAR."""

    calibrates = False

    @property
    def name(self) -> str:
        """Name and version, as manifests carry them."""
        return f"onnxruntime {version('onnxruntime')} qdq {BUILDER_REVISION}"

    def make(self, model: onnx.ModelProto, spec: EngineSpec, graph: Graph, log: Path) -> Made:
        """Return the network that runs, for any batch where the model allows it; nothing is logged."""
        model = portable(model)
        batch: int | str = BATCH if keeps_batch(model, BATCH) else 1
        if spec.precision == "int8":
            model = insert_qdq(model, spec.amax_by_tensor, spec.fp16_layers)
        data = with_batch(model, batch).SerializeToString()
        return Made(data, input_bindings(graph, spec), float_outputs(graph), _gpu_layers(spec))


def build(
    model: onnx.ModelProto, spec: EngineSpec, cache: EngineCache, weights: str, builder: Builder | None = None
) -> Engine:
    """Return the engine of a model and a spec, from the cache where it is there; `weights` says where those are from.

    Without a builder it is ONNX Runtime's.
    """
    builder = builder or OrtBuilder()
    digest, name = model_sha256(model), builder.name
    key = engine_key(digest, spec, name)
    found = cache.get(key)
    if found is not None:
        return replace(found, manifest=replace(found.manifest, weights=weights))
    graph = read_graph(with_batch(model, 1), spec.network)
    _check(model, spec, graph, builder.calibrates)
    made = builder.make(model, spec, graph, cache.log_path(key))
    manifest = Manifest(
        spec=spec,
        builder=name,
        weights=weights,
        model_sha256=digest,
        engine_sha256="",
        inputs=made.inputs,
        outputs=made.outputs,
        workload=graph.workload,
        gpu_layers=made.gpu_layers,
    )
    return cache.put(key, made.data, manifest)


def _check(model: onnx.ModelProto, spec: EngineSpec, graph: Graph, calibrates: bool) -> None:
    if spec.precision not in PRECISIONS:
        raise EngineError(f"precision is {spec.precision!r}, expected one of {', '.join(PRECISIONS)}")
    if not has_all_weights(model):
        raise EngineError(f"{spec.network} is declared without weights; make it with weights before it is built")
    if spec.precision != "int8":
        return
    missing = [name for name in graph.inputs if not spec.amax_by_tensor.get(name)]
    known = [name for name in spec.amax_by_tensor if name in graph.tensors]
    if missing or (len(known) <= len(graph.inputs) and not calibrates):
        # trtexec's dummy ranges gave 1.7 % top-1 with ResNet-50 on a board's DLA, against 76.2 %
        where = f"input {missing[0]!r}" if missing else "activations"
        raise EngineError(f"{spec.network}: int8 needs dynamic ranges, none for its {where}; calibrate it first")


def _gpu_layers(spec: EngineSpec) -> tuple[str, ...]:
    """Return the layers of a DLA engine that fall back to the GPU."""
    if spec.device != "dla":
        return ()
    return tuple(layer for layer, device in spec.device_by_layer.items() if device == "gpu")
