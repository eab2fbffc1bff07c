"""Building engines. On any machine: ONNX Runtime's, a Q/DQ network whose bytes are the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING

from engines.cache import EngineCache, engine_key, model_sha256
from engines.engine import Binding, Engine, Manifest
from engines.errors import EngineError
from engines.formats import sample_bytes
from engines.graph import Graph, read_graph
from engines.onnx_model import has_all_weights, keeps_batch, with_batch
from engines.qdq import insert_qdq
from engines.spec import INT8_MAX, EngineSpec, TensorFormat

if TYPE_CHECKING:
    import onnx

BUILDER_REVISION = 2  # counted up when the same spec gives other bytes
PRECISIONS = ("int8", "fp16", "fp32")
BATCH = "N"


def build(model: onnx.ModelProto, spec: EngineSpec, cache: EngineCache, weights: str) -> Engine:
    """Return the engine of a model and a spec, from the cache where it is there; `weights` says where those are from.

    An input with a range is INT8 in its I/O format, else float32; outputs are float32 LINEAR. "fp16" computes
    in float32 here, as CPUs do.
    """
    digest, builder = model_sha256(model), builder_name()
    key = engine_key(digest, spec, builder)
    found = cache.get(key)
    if found is not None:
        return replace(found, manifest=replace(found.manifest, weights=weights))
    graph = read_graph(with_batch(model, 1), spec.network)
    _check(model, spec, graph)
    manifest = Manifest(
        spec=spec,
        builder=builder,
        weights=weights,
        model_sha256=digest,
        engine_sha256="",
        inputs=tuple(_input(graph, name, spec) for name in graph.inputs),
        outputs=tuple(_binding(graph, name, TensorFormat.LINEAR.value, None) for name in graph.outputs),
        workload=graph.workload,
        gpu_layers=_gpu_layers(spec),
    )
    return cache.put(key, _network(model, spec).SerializeToString(), manifest)


def builder_name() -> str:
    """Return the builder's name and version as manifests carry it."""
    return f"onnxruntime {version('onnxruntime')} qdq {BUILDER_REVISION}"


def _check(model: onnx.ModelProto, spec: EngineSpec, graph: Graph) -> None:
    if spec.precision not in PRECISIONS:
        raise EngineError(f"precision is {spec.precision!r}, expected one of {', '.join(PRECISIONS)}")
    if not has_all_weights(model):
        raise EngineError(f"{spec.network} is declared without weights; make it with weights before it is built")
    if spec.precision != "int8":
        return
    missing = [name for name in graph.inputs if not spec.amax_by_tensor.get(name)]
    known = [name for name in spec.amax_by_tensor if name in graph.tensors]
    if missing or len(known) <= len(graph.inputs):
        # trtexec's dummy ranges gave 1.7 % top-1 with ResNet-50 on a board's DLA, against 76.2 %
        where = f"input {missing[0]!r}" if missing else "activations"
        raise EngineError(f"{spec.network}: int8 needs dynamic ranges, none for its {where}; calibrate it first")


def _network(model: onnx.ModelProto, spec: EngineSpec) -> onnx.ModelProto:
    """Return the network that runs, for any batch where the model allows it."""
    batch: int | str = BATCH if keeps_batch(model, BATCH) else 1
    if spec.precision == "int8":
        model = insert_qdq(model, spec.amax_by_tensor, spec.fp16_layers)
    return with_batch(model, batch)


def _input(graph: Graph, name: str, spec: EngineSpec) -> Binding:
    amax = spec.amax_by_tensor.get(name)
    layout = spec.io_formats.get(name, TensorFormat.LINEAR.value)
    return _binding(graph, name, layout, amax / INT8_MAX if amax else None)


def _binding(graph: Graph, name: str, layout: str, scale: float | None) -> Binding:
    tensor = graph.tensors[name]
    dtype, itemsize = ("int8", 1) if scale else (tensor.dtype, _ITEMSIZE.get(tensor.dtype, 4))
    shape = tensor.shape[1:]
    return Binding(name, shape, dtype, str(TensorFormat(layout).value), scale, sample_bytes(layout, shape, itemsize))


_ITEMSIZE: Mapping[str, int] = {"int64": 8, "float64": 8, "float16": 2, "int8": 1, "uint8": 1, "bool": 1}


def _gpu_layers(spec: EngineSpec) -> tuple[str, ...]:
    """Return the layers of a DLA engine that fall back to the GPU."""
    if spec.device != "dla":
        return ()
    return tuple(layer for layer, device in spec.device_by_layer.items() if device == "gpu")
