"""TensorRT's builder: one function, two strategies, chosen by what the imported TensorRT offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engines.bindings import check_dla_precision, input_bindings, native_outputs
from engines.build import Made
from engines.cache import write_atomically
from engines.engine import Binding
from engines.errors import EngineError
from engines.graph import Graph
from engines.spec import EngineSpec
from engines.tensorrt.adapt import adapt
from engines.tensorrt.calibrators import Calibrator, Feed, make_calibrator
from engines.tensorrt.device import BUILD_CORE, Placing, listed, place_layers, use_dla, use_gpu
from engines.tensorrt.explicit import ExplicitInt8
from engines.tensorrt.implicit import ImplicitInt8
from engines.tensorrt.inspect import check_ends, gpu_layers, layers_of
from engines.tensorrt.job import Job
from engines.tensorrt.log import BuildLog, Logger
from engines.tensorrt.module import has_implicit_int8, register_plugins
from engines.tensorrt.parse import batched, check_inputs, parse
from engines.tensorrt.progress import Monitor, Progress
from engines.tensorrt.refusals import explain

if TYPE_CHECKING:
    import onnx

BUILDER_REVISION = 1  # counted up when the same spec gives other engines


def _quiet(*_: object) -> None:
    return None


@dataclass(frozen=True)
class Options:
    """How to build, beside what.

    With `allow_gpu_layers` a DLA engine may hold layers and reformats that run on the GPU. The kernels' timings are
    kept in `timing_cache`. `calibration` is an algorithm ("minmax", "entropy") and its feed, in place of ranges.
    """

    allow_gpu_layers: bool = False
    verbose_log: bool = False
    timing_cache: Path | None = None
    calibration: tuple[str, Feed] | None = None
    say: Callable[[str], None] = _quiet
    progress: Progress = _quiet


class Strategy(Protocol):
    """How INT8 gets into the network."""

    name: str

    @property
    def network_flags(self) -> int:
        """Flags of the network."""

    def prepared(self, job: Job) -> onnx.ModelProto:
        """Return what is parsed."""

    def set_io(self, tensor: Any, binding: Binding) -> None:
        """Give an input or output its type and format."""

    def apply(self, network: Any, config: Any, job: Job) -> None:
        """Set what the parsed network and the configuration need."""


class TensorRtBuilder:
    """Builds GPU and DLA engines with the TensorRT module `trt`; see `engines.build.Builder`."""

    def __init__(self, trt: Any, options: Options | None = None) -> None:
        self._trt = trt
        self._options = options or Options()

    @property
    def calibrates(self) -> bool:
        """Whether INT8 needs no dynamic ranges."""
        return self._options.calibration is not None

    @property
    def name(self) -> str:
        """TensorRT's version, the strategy, and what it calibrates with."""
        strategy = ImplicitInt8.name if has_implicit_int8(self._trt) else ExplicitInt8.name
        calibration = self._options.calibration
        data = f" {calibration[0]} of {calibration[1].name}" if calibration else ""
        return f"tensorrt {self._trt.__version__} {strategy} {BUILDER_REVISION}{data}"

    def make(self, model: onnx.ModelProto, spec: EngineSpec, graph: Graph, log: Path) -> Made:
        """Build an engine and look into it; EngineError names TensorRT's reason, ours, and the next thing to try."""
        inputs, outputs = input_bindings(graph, spec), native_outputs(graph, spec)
        check_dla_precision(inputs, spec)
        job = Job(batched(model, spec), spec, graph, inputs, outputs)
        calibrator = Calibrator(self._options.calibration[1]) if self._options.calibration else None
        monitor = Monitor(f"building {spec.device}", self._options.progress)
        with BuildLog(log, self._options.verbose_log) as kept:
            try:
                made = _Build(self._trt, job, kept, self._options).run(self._strategy(calibrator), monitor)
            except EngineError as error:
                _raise_failures(monitor, calibrator)
                raise EngineError(f"{error}; log: {log}") from None
            _raise_failures(monitor, calibrator)  # batches that broke off let TensorRT build all the same
        return made

    def _strategy(self, calibrator: Calibrator | None) -> Strategy:
        if has_implicit_int8(self._trt):
            algorithm = self._options.calibration[0] if self._options.calibration else ""
            theirs = make_calibrator(self._trt, algorithm, calibrator) if calibrator else None
            return ImplicitInt8(self._trt, theirs)
        if calibrator is not None:
            make_calibrator(self._trt, "entropy", calibrator)  # says that there are none
        return ExplicitInt8(self._trt)


def _raise_failures(monitor: Monitor, calibrator: Calibrator | None) -> None:
    """Raise what went wrong in a callback, which TensorRT only knows as a refusal."""
    monitor.raise_failure()
    if calibrator is not None:
        calibrator.raise_failure()


class _Build:
    """One build; holds every object of TensorRT's until it is over."""

    def __init__(self, trt: Any, job: Job, log: BuildLog, options: Options) -> None:
        self._trt = trt
        self._job = job
        self._log = log
        self._options = options
        self._logger = adapt(trt.ILogger, Logger(log))
        self._builder = self._some(lambda: trt.Builder(self._logger), "builder")

    def run(self, strategy: Strategy, monitor: Monitor) -> Made:
        """Parse, configure, build and look into the engine."""
        job = self._job
        register_plugins(self._trt)
        network = self._some(lambda: self._builder.create_network(strategy.network_flags), "network")
        config = self._some(self._builder.create_builder_config, "builder configuration")
        parser = self._some(lambda: self._trt.OnnxParser(network, self._logger), "ONNX parser")
        parse(parser, strategy.prepared(job), job.name, self._log)
        check_inputs(network, job.graph)
        self._set_ends(network, strategy)
        self._configure(config, monitor)
        strategy.apply(network, config, job)
        self._use_device(network, config)
        data = self._built(network, config)
        del parser  # whose memory the network's weights were in
        return self._inspected(data)

    def _set_ends(self, network: Any, strategy: Strategy) -> None:
        for index, binding in enumerate(self._job.inputs):
            strategy.set_io(network.get_input(index), binding)
        for index, binding in enumerate(self._job.outputs):
            strategy.set_io(network.get_output(index), binding)

    def _use_device(self, network: Any, config: Any) -> None:
        calibration = self._options.calibration
        batch = calibration[1].batch_size if calibration else None
        if self._job.spec.device == "gpu":
            use_gpu(lambda: self._some(self._builder.create_optimization_profile, "profile"), config, self._job, batch)
            return
        use_dla(self._trt, self._builder, config, self._job, batch)
        placing = Placing(self._trt, network, config, self._job)
        place_layers(placing, self._job, self._log, self._options.allow_gpu_layers)

    def _configure(self, config: Any, monitor: Monitor) -> None:
        trt = self._trt
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector knows no layer's type
        if self._job.spec.sparse:
            config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
        self._monitor = adapt(trt.IProgressMonitor, monitor)  # has to live as long as the build
        config.progress_monitor = self._monitor
        self._load_timings(config)

    def _load_timings(self, config: Any) -> None:
        """Start from the kernels' timings of earlier builds, or afresh where TensorRT cannot use them."""
        path = self._options.timing_cache
        if path is None:
            return
        held = path.read_bytes() if path.is_file() else b""
        if held and not self._use_timings(config, held):
            self._options.say(f"timing cache {path} is of another TensorRT or GPU: starting afresh")
            held = b""
        if not held:
            self._use_timings(config, held)

    def _use_timings(self, config: Any, held: bytes) -> bool:
        timings = config.create_timing_cache(held)
        return timings is not None and bool(config.set_timing_cache(timings, False))

    def _built(self, network: Any, config: Any) -> bytes:
        """Build; the reason why there is no engine is in the log."""
        plan = self._builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(f"{self._job.name}: TensorRT refuses the build: {explain(self._reasons())}")
        self._keep_timings(config)
        return bytes(plan)

    def _keep_timings(self, config: Any) -> None:
        path, timings = self._options.timing_cache, config.get_timing_cache()
        held = timings.serialize() if timings is not None else None
        if path is None or held is None:
            return
        try:
            write_atomically(path, bytes(held))
        except OSError as error:
            self._options.say(f"timing cache {path} cannot be written ({error.strerror}): the next build takes as long")

    def _reasons(self) -> list[str]:
        return self._log.errors or self._log.warnings

    def _inspected(self, data: bytes) -> Made:
        """Read the engine back: its ends are what was asked for, and on the DLA nothing runs on the GPU unasked."""
        job, dla = self._job, self._job.spec.device == "dla"
        runtime = self._some(lambda: self._trt.Runtime(self._logger), "runtime")
        if dla:
            runtime.DLA_core = BUILD_CORE
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EngineError(f"{job.name}: TensorRT does not load the engine it built: {explain(self._reasons())}")
        check_ends(self._trt, engine, (*job.inputs, *job.outputs), job.name)
        left = gpu_layers(layers_of(self._trt, engine)) if dla else ()
        if left and not self._options.allow_gpu_layers:
            raise EngineError(
                f"{job.name}: the DLA's engine leaves {listed(left)} to the GPU; "
                f"`orin place MODEL --log LOG` tells why, --allow-gpu-layers allows it"
            )
        return Made(data, job.inputs, job.outputs, left)

    def _some(self, make: Callable[[], Any], what: str) -> Any:
        """Return what TensorRT makes; null is None from a method, and a TypeError from the bindings' constructors."""
        try:
            made = make()
        except TypeError as error:
            if "nullptr" not in str(error):
                raise
            made = None
        if made is not None:
            return made
        raise EngineError(f"{self._job.name}: TensorRT gives no {what}: {explain(self._reasons())}")
