"""The attached Jetson as a board: TensorRT engines on GPU and DLAs, memory that all of them share, tegrastats."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from engines.engine import Engine
from engines.errors import EngineError
from engines.tensorrt.adapt import adapt
from engines.tensorrt.log import BuildLog, Logger
from engines.tensorrt.module import check_dla, load_tensorrt, register_plugins
from engines.tensorrt.refusals import explain
from orin.board import LoadedEngine, OnLine, Provenance, SharedTensor, check_tail
from orin.errors import OrinError
from orin.jetson.chain import JetsonChain
from orin.jetson.cuda import CudaContext
from orin.jetson.detect import Machine, attached_soc, dla_trouble
from orin.jetson.engine import JetsonEngine, Part, Site
from orin.jetson.modes import clocks_in_force
from orin.jetson.volumes import WindowEngine
from orin.plan import AUTO_MEMORY, Plan
from orin.soc import GPU, Clocks, Soc
from power.hold import HoldRules, InForce, hold_mode
from power.hwmon import chip_filters
from power.meter import Meter
from power.nvpmodel import Caps
from power.tegrastats import Tegrastats

BUILDER = "tensorrt"
TEGRASTATS = ("tegrastats", "--interval", "100")
USUAL_MEMORY = "mapped"
MEND = "see `sudo dmesg`, and run `orin doctor`"

Kept = TypeVar("Kept", JetsonEngine, WindowEngine)


def open_jetson(machine: Machine | None = None) -> JetsonBoard:
    """Open the attached Jetson; it is closed when the program ends.

    OrinError where this machine is none, or none that is known; EngineError where TensorRT is missing.
    """
    machine = machine or Machine()
    board = JetsonBoard(attached_soc(machine), machine)
    atexit.register(board.close)
    return board


class JetsonBoard:
    """A Jetson: every number that it gives is measured.

    CUDA starts with the first engine or memory, so that a power mode can still be changed before: TPCs cannot be
    switched while the GPU is in use. `tegrastats` is the command that reads power; `rules` say how modes are held, and
    where what was there before is kept. `in_force` is the innermost mode that is held, None where none is.
    """

    name = "jetson"
    provenance: Provenance = "measured"
    computes_outputs = True

    def __init__(
        self,
        soc: Soc,
        machine: Machine,
        tegrastats: tuple[str, ...] = TEGRASTATS,
        rules: HoldRules | None = None,
    ) -> None:
        self.soc = soc
        self.in_force: InForce | None = None
        self._machine = machine
        self._tegrastats = tegrastats
        self._rules = rules or HoldRules(reboot_ok=True)
        self._trt: Any = load_tensorrt()
        register_plugins(self._trt)
        self._log = BuildLog(Path(os.devnull))
        self._logger = adapt(self._trt.ILogger, Logger(self._log))
        self._memory = USUAL_MEMORY
        self._cuda: CudaContext | None = None
        self._loaded: list[JetsonEngine | WindowEngine] = []

    @property
    def cuda(self) -> CudaContext:
        """The board's CUDA context, made when it is first asked for."""
        if self._cuda is None:
            self._cuda = CudaContext()
        return self._cuda

    def load(self, engine: Engine, accelerator: str, depth: int, tail: Engine | None = None) -> LoadedEngine:
        """Load an engine onto an accelerator; OrinError or EngineError where it cannot run there."""
        if tail is None:
            return self._load(engine, accelerator, depth)
        check_tail(engine, tail)
        backbone = self._load(engine, accelerator, depth, "backbone")
        with ExitStack() as undo:
            undo.callback(backbone.close)
            behind = self._load(tail, GPU, depth, "tail")
            undo.pop_all()
        return JetsonChain(backbone, behind)

    def load_windows(self, engine: Engine) -> WindowEngine:
        """Load an engine onto the GPU that labels whole volumes, window by window; errors as from `load`."""
        self._check(engine, GPU)
        with self.cuda.current():
            deserialized = self._deserialize(engine, GPU)
        return self._keep(WindowEngine(engine, deserialized, self.cuda, self._last_error))

    def _load(self, engine: Engine, accelerator: str, depth: int, part: Part = "whole") -> JetsonEngine:
        self._check(engine, accelerator)
        site = Site(accelerator, self.cuda, int(self._trt.__version__.split(".")[0]), self._last_error, part)
        with self.cuda.current():
            deserialized = self._deserialize(engine, accelerator)
        return self._keep(JetsonEngine(engine, deserialized, site, depth))

    def _keep(self, loaded: Kept) -> Kept:
        self._loaded = [other for other in self._loaded if not other.closed] + [loaded]
        return loaded

    def allocate(self, nbytes: int) -> SharedTensor:
        """Allocate zeroed shared memory, 4096-byte aligned, of the kind that is held."""
        return self.cuda.allocate(nbytes, self._memory)

    @contextmanager
    def hold(self, plan: Plan) -> Iterator[Clocks]:
        """Hold the plan's power mode or clocks, and its kind of memory; PowerError where they do not come into force.

        Where the rights are missing the run goes on in the mode that is there: that is said, and kept in `in_force`.
        """
        if plan.memory == AUTO_MEMORY:
            raise OrinError("plan field memory is auto, which is measured first: use orin bench or orin deploy")
        memory, in_force = self._memory, self.in_force
        try:
            with ExitStack() as held:
                if plan.mode is not None or plan.clocks_mhz:
                    self.in_force = held.enter_context(self._held_mode(plan))
                self._memory = plan.memory
                yield clocks_in_force(self.soc, self._machine, self.in_force)
        finally:
            self._memory, self.in_force = memory, in_force

    @contextmanager
    def meter(self, on_line: OnLine | None = None) -> Iterator[Meter]:
        """Read power through tegrastats; `on_line` gets its raw lines."""
        filters = chip_filters(self._machine.root)
        with Tegrastats(self._tegrastats, on_line, filters=filters) as source:
            yield Meter(self.soc.board, source)

    def keeps_pace(self) -> str | None:
        """None: a real board keeps its own time."""
        return None

    def close(self) -> None:
        """Release the engines, then memory and context; arrays of this board must not be used any more."""
        with ExitStack() as steps:
            if self._cuda is not None:
                steps.callback(self._cuda.close)
            for loaded in self._loaded:
                steps.callback(loaded.close)
        self._loaded, self._cuda = [], None

    @contextmanager
    def _held_mode(self, plan: Plan) -> Iterator[InForce]:
        clocks_mhz = plan.clocks_mhz or {}
        self.soc.free_clocks(clocks_mhz)  # refuses what this module does not reach
        rules = replace(self._rules, lock=bool(clocks_mhz))
        with hold_mode(plan.mode or Caps.of(clocks_mhz), self._machine.root, self._machine.power, rules) as found:
            for line in found.missing:
                rules.say(line)
            yield found

    def _check(self, engine: Engine, accelerator: str) -> None:
        manifest = engine.manifest
        if accelerator not in self.soc.accelerators:
            raise OrinError(f"{self.name} has no {accelerator!r}: it has {', '.join(self.soc.accelerators)}")
        if (accelerator == GPU) != (manifest.spec.device == GPU):
            raise OrinError(
                f"engine {engine.path.name} was built for {manifest.spec.device}, it cannot run on {accelerator}"
            )
        if not manifest.builder.startswith(BUILDER):
            raise OrinError(
                f"engine {engine.path.name} was built by {manifest.builder}, a Jetson runs TensorRT's: "
                "build it with `orin build --board jetson`"
            )

    def _deserialize(self, engine: Engine, accelerator: str) -> Any:
        """Return TensorRT's object of an engine; a plan is bound to a DLA core only by the runtime that reads it."""
        runtime = self._runtime()
        if accelerator != GPU:
            self._use_core(runtime, int(accelerator.removeprefix("dla")))
        try:
            deserialized = runtime.deserialize_cuda_engine(engine.path.read_bytes())
        except OSError as error:
            raise OrinError(f"engine {engine.path} cannot be read: {error.strerror or error}; build it again") from None
        if deserialized is None:
            raise OrinError(
                f"engine {engine.path} ({engine.manifest.builder}) does not load in TensorRT {self._trt.__version__}: "
                f"{self._last_error('delete it and build it here')}"
            )
        return deserialized

    def _runtime(self) -> Any:
        try:
            return self._trt.Runtime(self._logger)
        except TypeError:  # what the bindings make of a null pointer
            raise EngineError(f"TensorRT makes no runtime: {self._last_error()}") from None

    def _use_core(self, runtime: Any, core: int) -> None:
        cores = runtime.num_DLA_cores
        if core < cores:
            runtime.DLA_core = core
            return
        if not cores and (trouble := dla_trouble(self._machine)):
            raise OrinError(f"no engine runs on a DLA here: {trouble}")
        check_dla(self._trt, cores)
        raise EngineError(f"TensorRT sees {cores} DLA cores, the plan asks for dla{core}: lower dla_cores")

    def _last_error(self, mend: str = MEND) -> str:
        """Return what TensorRT said last and what to do: `mend` where its words do not tell."""
        return explain(self._log.errors[-1:], mend)
