"""The virtual board: the seam's other side where no Jetson is at hand; every number it gives is simulated."""

from __future__ import annotations

import ctypes
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from engines.engine import Engine
from orin.board import LoadedEngine, Provenance, SharedTensor, check_tail
from orin.errors import OrinError
from orin.plan import DEFAULT_STACK, Plan
from orin.soc import GPU, Clocks, Soc
from orin.virtual.machine import Job
from orin.virtual.model import CostModel, EngineShape, clocks_of
from orin.virtual.paced import Clock, PacedMachine
from orin.virtual.rails import RailsFile, RailsState
from power.meter import Meter
from power.tegrastats import Tegrastats

if TYPE_CHECKING:
    from engines.numerics import OrtRunner

Pacing = Literal["paced", "numerics"]
Run = Callable[[Sequence[NDArray[Any]]], list[NDArray[Any]]]
PAGE_BYTES = 4096
PUBLISH_S = 0.02
INTERVAL_MS = 100  # of tegrastats; the sensor's filter is slower
SILENCE_S = 30.0  # a busy host may take long to start a process, which says nothing of the board


class PacedEngine:
    """An engine on the machine: takes its time in wall time, computes nothing."""

    copied_bytes = 0

    def __init__(self, accelerator: str, shape: EngineShape, depth: int, machine: PacedMachine) -> None:
        self.accelerator = accelerator
        self._shape = shape
        self._machine = machine
        self._slots: list[list[Job]] = [[] for _ in range(depth)]

    def enqueue(self, slot: int, addresses: Sequence[int], samples: int) -> None:
        """Start one batch; see `orin.board.LoadedEngine`."""
        _check_samples(samples, self._shape, self.accelerator)
        self._slots[slot].append(self._machine.enqueue(self.accelerator, self._shape, samples))

    def wait(self, slot: int) -> tuple[int, int]:
        """Block until a slot is done; begin and end are the machine's exact times."""
        jobs, self._slots[slot] = self._slots[slot], []
        if not jobs:
            raise OrinError(f"{self.accelerator} slot {slot} holds no batch: enqueue comes before wait")
        self._machine.wait(self.accelerator, jobs[-1])
        begin_ns, end_ns = jobs[0].begin_ns, jobs[-1].end_ns
        assert begin_ns is not None and end_ns is not None
        origin_ns = self._machine.origin_ns
        return origin_ns + round(begin_ns), origin_ns + round(end_ns)

    def outputs(self, slot: int) -> list[NDArray[Any]] | None:
        """None: performance runs compute no outputs."""
        return None

    def close(self) -> None:
        """Release the engine."""
        self._slots = []


class NumericEngine:
    """An engine, and its tail, that computes its outputs through ONNX Runtime, at whatever speed this machine has."""

    copied_bytes = 0

    def __init__(self, accelerator: str, engine: Engine, depth: int, run: Run) -> None:
        self.accelerator = accelerator
        self._engine = engine
        self._shape = EngineShape.of(engine.manifest)
        self._run = run
        self._pending: list[list[tuple[tuple[int, ...], int]]] = [[] for _ in range(depth)]
        self._outputs: list[list[NDArray[Any]] | None] = [None] * depth

    def enqueue(self, slot: int, addresses: Sequence[int], samples: int) -> None:
        """Note one batch; it is computed when it is waited for."""
        _check_samples(samples, self._shape, self.accelerator)
        self._pending[slot].append((tuple(addresses), samples))

    def wait(self, slot: int) -> tuple[int, int]:
        """Compute what was enqueued on a slot."""
        begin_ns = time.monotonic_ns()
        pending, self._pending[slot] = self._pending[slot], []
        if not pending:
            raise OrinError(f"{self.accelerator} slot {slot} holds no batch: enqueue comes before wait")
        batches = [self._run(self._inputs(addresses, samples)) for addresses, samples in pending]
        self._outputs[slot] = [np.concatenate(column) for column in zip(*batches)]
        return begin_ns, time.monotonic_ns()

    def _inputs(self, addresses: tuple[int, ...], samples: int) -> list[NDArray[Any]]:
        bindings = self._engine.manifest.inputs
        return [_memory(address, samples, b.sample_bytes) for address, b in zip(addresses, bindings)]

    def outputs(self, slot: int) -> list[NDArray[Any]] | None:
        """Return the outputs of the slot's last wait, samples along the first axis."""
        return self._outputs[slot]

    def close(self) -> None:
        """Release the engine."""
        self._outputs = []


class VirtualBoard:
    """A SoC that is simulated: "paced" in wall time without outputs, or "numerics" with outputs and no speed."""

    provenance: Provenance = "simulated"

    def __init__(self, soc: Soc, *, pacing: Pacing = "paced", seed: int = 0, clock: Clock | None = None) -> None:
        if pacing not in ("paced", "numerics"):
            raise OrinError(f"pacing is {pacing!r}, expected paced or numerics")
        self.name = f"virtual:{soc.name}"
        self.soc = soc
        self.computes_outputs = pacing == "numerics"
        self._machine = PacedMachine(CostModel(soc, soc.clocks(soc.fullest_mode), DEFAULT_STACK), seed, clock)
        self._runners: dict[Path, OrtRunner] = {}

    def load(self, engine: Engine, accelerator: str, depth: int, tail: Engine | None = None) -> LoadedEngine:
        """Load an engine onto an accelerator; OrinError where it cannot run there.

        Paced, a tail on the GPU lengthens each job of its engine, by what the cost model expects of the bytes that it
        moves: suppression itself, which depends on what is found, is not modelled.
        """
        shape = EngineShape.of(engine.manifest)
        if accelerator not in self.soc.accelerators:
            raise OrinError(f"{self.name} has no {accelerator!r}: it has {', '.join(self.soc.accelerators)}")
        if (accelerator == GPU) != (shape.device == GPU):
            raise OrinError(f"engine {engine.path.name} was built for {shape.device}, it cannot run on {accelerator}")
        if tail is not None:
            check_tail(engine, tail)
        if self.computes_outputs:
            return NumericEngine(accelerator, engine, depth, self._chained(engine, tail))
        shape = replace(shape, tail=tail.manifest.workload if tail is not None else None)
        self._machine.model.cost(shape, shape.batch)  # what no DLA can run is said now, not in the middle of a run
        return PacedEngine(accelerator, shape, depth, self._machine)

    def allocate(self, nbytes: int) -> SharedTensor:
        """Allocate zeroed host memory, aligned to a page; the accelerators' address is the host's."""
        if nbytes <= 0:
            raise OrinError(f"cannot allocate {nbytes} bytes of shared memory, expected 1 or more")
        whole = np.zeros(nbytes + PAGE_BYTES, dtype=np.uint8)
        start = -whole.ctypes.data % PAGE_BYTES
        array = whole[start : start + nbytes]
        return SharedTensor(array, array.ctypes.data)

    @contextmanager
    def hold(self, plan: Plan) -> Iterator[Clocks]:
        """Hold the plan's clocks and stack; restore the former ones."""
        before = self._machine.model
        self._machine.change(CostModel(self.soc, clocks_of(plan, self.soc), plan.stack))
        try:
            yield self._machine.clocks
        finally:
            self._machine.change(before)

    @contextmanager
    def meter(self, on_line: Callable[[int, str], None] | None = None) -> Iterator[Meter]:
        """Read power as on a board: a tegrastats process prints what the rails show; `on_line` gets its raw lines."""
        with tempfile.TemporaryDirectory(prefix="orin-rails-") as folder:
            path = Path(folder) / "rails"
            program = ["-m", "orin.virtual.tegrastats", "--rails", str(path), "--interval", str(INTERVAL_MS)]
            program += ["--board", self.soc.name]
            tegrastats = Tegrastats([sys.executable, *program], on_line, SILENCE_S)
            with _Publisher(path, self._machine), tegrastats as source:
                yield Meter(self.soc.board, source)

    def keeps_pace(self) -> str | None:
        """Say in one line that this host is too slow for wall time; None where it keeps pace or none is asked for."""
        return None if self.computes_outputs else self._machine.keeps_pace()

    def _chained(self, engine: Engine, tail: Engine | None) -> Run:
        """Return what computes an engine, and its tail from its outputs."""
        if tail is None:
            return self._runner(engine).run
        names = [binding.name for binding in engine.manifest.outputs]
        order = [names.index(binding.name) for binding in tail.manifest.inputs]
        first, second = self._runner(engine), self._runner(tail)

        def run(inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
            made = first.run(inputs)
            return second.run([made[k].reshape(len(made[k]), -1).view(np.uint8) for k in order])

        return run

    def _runner(self, engine: Engine) -> OrtRunner:
        from engines.numerics import OrtRunner

        if engine.path not in self._runners:
            self._runners[engine.path] = OrtRunner(engine)
        return self._runners[engine.path]


class _Publisher:
    """A thread that publishes the machine's rails while a meter is open."""

    def __init__(self, path: Path, machine: PacedMachine) -> None:
        self._machine = machine
        self._file = RailsFile.create(path)
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="rails", daemon=True)

    def __enter__(self) -> _Publisher:
        self._file.publish(self._state(stopped=False))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._file.publish(self._state(stopped=True))
        self._file.close()
        if self._failure is not None and error[0] is None:
            raise OrinError(f"the virtual board stopped publishing its rails: {self._failure}")

    def _run(self) -> None:
        try:
            while not self._stop.wait(PUBLISH_S):
                self._file.publish(self._state(stopped=False))
        except Exception as failure:  # kept for the thread that closes the meter
            self._failure = failure

    def _state(self, stopped: bool) -> RailsState:
        stamp_ns, totals = self._machine.totals()
        clocks = self._machine.clocks
        busy_ns = {name: round(ns) for name, ns in totals.busy_ns.items()}
        return RailsState(
            monotonic_ns=stamp_ns,  # of the totals: one taken later would make them look too small
            energy_mj=tuple(joules * 1e3 for joules in totals.rail_j.values()),
            gpu_busy_ns=busy_ns[GPU],
            dla0_busy_ns=busy_ns.get("dla0", 0),
            dla1_busy_ns=busy_ns.get("dla1", 0),
            dram_bytes=round(totals.dram_bytes),
            gpu_mhz=clocks.gpu_mhz,
            dla_mhz=clocks.dla_mhz,
            emc_mhz=clocks.emc_mhz,
            cpu_mhz=clocks.cpu_mhz,
            stopped=stopped,
        )


def _check_samples(samples: int, shape: EngineShape, accelerator: str) -> None:
    if not 1 <= samples <= shape.batch:
        raise OrinError(f"{accelerator} got a batch of {samples} samples, its engine takes 1 to {shape.batch}")


def _memory(address: int, samples: int, sample_bytes: int) -> NDArray[Any]:
    """View host memory as uint8 [samples, sample_bytes]."""
    raw = (ctypes.c_uint8 * (samples * sample_bytes)).from_address(address)
    return np.ctypeslib.as_array(raw).reshape(samples, sample_bytes)
