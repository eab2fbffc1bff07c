"""Where the layers of an engine run: the GPU's shapes, the DLA's core, pools and the device of each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from engines.errors import EngineError
from engines.graph import Layer
from engines.importer import Imported, NodeNames
from engines.spec import TensorFormat
from engines.tensorrt.job import Job
from engines.tensorrt.log import BuildLog
from engines.tensorrt.module import check_dla
from engines.tensorrt.refusals import shortened

NAMES_SHOWN = 4
BUILD_CORE = 0  # a plan is bound to no core: it is built for the first and loaded on each


def use_gpu(make_profile: Callable[[], Any], config: Any, job: Job, calibration_batch: int | None = None) -> None:
    """Let a GPU engine take batches from 1 to the spec's, tuned for the largest; batch 1 alone is static."""
    batch = job.spec.batch
    if batch == 1:
        _check_calibration(job, calibration_batch)
        return
    if config.add_optimization_profile(_filled(make_profile(), job, (1, batch, batch))) < 0:
        raise EngineError(f"{job.name}: TensorRT refuses batches from 1 to {batch}; ask for another gpu_batch")
    if calibration_batch is not None and not config.set_calibration_profile(
        _filled(make_profile(), job, (calibration_batch,) * 3)
    ):
        raise EngineError(f"{job.name}: TensorRT refuses to calibrate with batches of {calibration_batch}; take others")


def _filled(profile: Any, job: Job, batches: tuple[int, int, int]) -> Any:
    """Return a profile with the least, usual and largest batch of the inputs."""
    for name in job.graph.inputs:
        rest = job.graph.tensors[name].shape[1:]
        profile.set_shape(name, *((batch, *rest) for batch in batches))
    return profile


def _check_calibration(job: Job, batch: int | None) -> None:
    """A network of static shapes calibrates with batches of its own size."""
    if batch not in (None, job.spec.batch):
        raise EngineError(f"{job.name}: calibration batches hold {batch} samples, expected {job.spec.batch}")


def use_dla(trt: Any, builder: Any, config: Any, job: Job, calibration_batch: int | None = None) -> None:
    """Let layers run on the DLA by default, in the spec's memory pools, its inputs and outputs as they are."""
    check_dla(trt, builder.num_DLA_cores)
    _check_calibration(job, calibration_batch)
    limit = builder.max_DLA_batch_size
    if job.spec.batch > limit:
        raise EngineError(f"{job.name}: batch {job.spec.batch} is over the DLA's {limit}; lower dla_batch")
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = BUILD_CORE
    if all(binding.format != TensorFormat.LINEAR.value for binding in (*job.inputs, *job.outputs)):
        config.set_flag(trt.BuilderFlag.DIRECT_IO)  # LINEAR ends are the GPU's: the inspector tells what it does there
    for name, size in job.spec.pools_bytes.items():
        pool = getattr(trt.MemoryPoolType, name, None)
        if pool is not None:
            config.set_memory_pool_limit(pool, size)
        if pool is None or config.get_memory_pool_limit(pool) != size:
            raise EngineError(
                f"{job.name}: TensorRT refuses {size} bytes for the pool {name}; expected a power of two, 4 KiB or more"
            )


class Placing:
    """Puts the layers of a DLA engine where the spec has them, and finds where TensorRT will not."""

    def __init__(self, trt: Any, network: Any, config: Any, job: Job) -> None:
        self._trt = trt
        self._config = config
        self._job = job
        self._layers = [network.get_layer(index) for index in range(network.num_layers)]
        self._names = NodeNames(job.graph)
        self._imported = Imported(job.graph)
        self._own = {layer.name for layer in self._imported.trt_layers}

    def pin(self) -> None:
        """Set the GPU for each layer that falls back, so that the chosen loadables stay."""
        for layer in self._layers:
            if self._job.spec.device_by_layer.get(self._names.node(layer.name) or "") == "gpu":
                self._to_gpu(layer)

    def refused(self, log: BuildLog) -> Mapping[str, str]:
        """Return the layers that TensorRT will not run on the DLA although they were placed there, with its words.

        It refuses constants too, and what is folded away later; that is no loss, it only needs the permission.
        """
        kinds = self._trt.LayerType
        found: dict[str, str] = {}
        for layer in self._layers:
            if layer.type in (kinds.QUANTIZE, kinds.DEQUANTIZE):  # scales of their neighbours (TensorRT 11)
                continue
            before = len(log.warnings)
            if self._config.can_run_on_DLA(layer):
                continue
            if self._leaves_nothing(layer):
                self._permit()
            else:
                found[layer.name] = shortened(next(iter(log.warnings[before:]), "it gives no reason"))
        return found

    def allow(self, refused: Mapping[str, str]) -> None:
        """Let refused layers run on the GPU, and the shuffles that TensorRT puts around tensors of under four axes."""
        if any(map(self._needs_shuffle, self._imported.layers)):
            self._permit()
        for layer in self._layers:
            if layer.name in refused:
                self._to_gpu(layer)

    def _needs_shuffle(self, node: Layer) -> bool:
        if node.name in self._imported.folded or self._job.spec.device_by_layer.get(node.name) == "gpu":
            return False
        return self._imported.needs_shuffle_before(node) or self._imported.needs_shuffle_after(node)

    def _leaves_nothing(self, layer: Any) -> bool:
        """Whether a layer is gone in the engine: a constant, or what the parser's view of the graph folds."""
        node = self._names.node(layer.name)
        if layer.type == self._trt.LayerType.CONSTANT or node in self._imported.folded:
            return True
        return node is None and layer.name not in self._own

    def _to_gpu(self, layer: Any) -> None:
        self._config.set_device_type(layer, self._trt.DeviceType.GPU)
        self._permit()

    def _permit(self) -> None:
        self._config.set_flag(self._trt.BuilderFlag.GPU_FALLBACK)


def listed(names: Iterable[str]) -> str:
    """Return the first names and how many more there are."""
    every = list(names)
    more = f" and {len(every) - NAMES_SHOWN} more" if len(every) > NAMES_SHOWN else ""
    return ", ".join(map(repr, every[:NAMES_SHOWN])) + more


def place_layers(placing: Placing, job: Job, log: BuildLog, allow_gpu_layers: bool) -> None:
    """Put each layer where the spec has it; one on the GPU, by the spec or by TensorRT, is an error unless allowed."""
    pinned = [layer for layer, device in job.spec.device_by_layer.items() if device == "gpu"]
    if pinned and not allow_gpu_layers:
        raise EngineError(
            f"{job.name}: the placement leaves {listed(pinned)} to the GPU; rewrite them (`orin place MODEL`), "
            f"or allow them there: --allow-gpu-layers"
        )
    placing.pin()
    refused = placing.refused(log)
    if refused and not allow_gpu_layers:
        name, reason = next(iter(refused.items()))
        raise EngineError(
            f"{job.name}: TensorRT does not run {listed(refused)} on the DLA, where the placement has them; "
            f"{name}: {reason}; rewrite them (`orin place MODEL`), or allow them on the GPU: --allow-gpu-layers"
        )
    if allow_gpu_layers:
        placing.allow(refused)
