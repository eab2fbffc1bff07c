"""How long an engine takes and what it draws from DRAM, alone on the SoC.

The sum over its fused layers (`orin.virtual.layers`), times what its network was measured to take over that, if it was;
then what depends on the software stack: launches, the host, non-maximum suppression behind detectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.engine import Manifest, Workload
from orin.errors import OrinError
from orin.plan import Plan
from orin.soc import AGX_ORIN_64GB_SOC, GPU, Clocks, Soc
from orin.virtual.layers import Rates, Spent, Table, dla_times, gpu_times, pruned, table
from orin.virtual.parameters import Parameters, load_parameters

REFERENCE = AGX_ORIN_64GB_SOC  # the module whose clocks the shared times are at
ELEMENT_BYTES = {"int8": 1, "fp16": 2, "fp32": 4}
GPU_SEGMENT = "gpu"
DLA_SEGMENT = "dla"
TAIL_PRECISION = "fp32"
UNMEASURED = "tail"  # the name of no network: its time is a prior from its work


@dataclass(frozen=True)
class EngineShape:
    """What the model has to know of an engine, built or not: `device` is "gpu" or "dla", `tail` the work of what
    follows it on the GPU, `sparse` whether it uses that 2 of 4 weights are zero."""

    network: str
    device: str
    batch: int
    precision: str
    workload: Workload
    gpu_layers: tuple[str, ...] = ()
    tail: Workload | None = None
    sparse: bool = False

    @classmethod
    def of(cls, manifest: Manifest) -> EngineShape:
        """Describe a built engine."""
        spec = manifest.spec
        sparse, work = spec.sparse, manifest.workload
        return cls(spec.network, spec.device, spec.batch, spec.precision, work, manifest.gpu_layers, sparse=sparse)


@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of one job on one resource ("gpu" or "dla"): times alone on the SoC, bytes, power.

    `activity` is the GPU's power over that of a kernel that multiplies nothing.
    """

    resource: str
    compute_ns: float
    memory_ns: float
    dram_bytes: float
    activity: float = 1.0

    @property
    def solo_ns(self) -> float:
        """Duration with nothing else running."""
        return self.compute_ns + self.memory_ns


@dataclass(frozen=True)
class LayerTime:
    """One fused layer of an enqueue, alone on the SoC; overhead is what it takes however little it does."""

    name: str
    op: str
    compute_ns: float
    memory_ns: float
    overhead_ns: float
    dram_bytes: float

    @property
    def solo_ns(self) -> float:
        """All of it."""
        return self.compute_ns + self.memory_ns + self.overhead_ns


@dataclass(frozen=True, eq=False)
class EngineCost:
    """One enqueue: submission (hidden behind a running job), its segments, what the host spends on it; and a tail, for
    which its accelerator does not wait."""

    submit_ns: float
    segments: tuple[Segment, ...]
    host_mj: float
    tail: Segment | None = None

    @property
    def chain(self) -> tuple[Segment, ...]:
        """The segments and the tail."""
        return self.segments if self.tail is None else (*self.segments, self.tail)

    @property
    def solo_ns(self) -> float:
        """Duration alone on the SoC, submission hidden."""
        return sum(segment.solo_ns for segment in self.chain)

    @property
    def dram_bytes(self) -> float:
        """Bytes moved to and from DRAM."""
        return sum(segment.dram_bytes for segment in self.chain)


def clocks_of(plan: Plan, soc: Soc) -> Clocks:
    """Return the clocks that a plan asks for: its mode, its locked clocks, or else the board's fullest mode."""
    if plan.clocks_mhz is None:
        return soc.clocks(plan.mode or soc.fullest_mode)
    return soc.free_clocks(plan.clocks_mhz)


class CostModel:
    """Costs of engines on one SoC at given clocks under one software stack."""

    def __init__(self, soc: Soc, clocks: Clocks, stack: str, parameters: Parameters | None = None) -> None:
        self.soc = soc
        self.clocks = clocks
        self.parameters = parameters or load_parameters()
        self.stack = self.parameters.stack(stack)
        self._shared = self.parameters.shared
        self._costs: dict[tuple[EngineShape, int], EngineCost] = {}

    def cost(self, shape: EngineShape, samples: int) -> EngineCost:
        """Return the cost of one enqueue; a DLA engine always runs its static batch."""
        count = samples if shape.device == GPU else shape.batch
        key = (shape, count)
        if key not in self._costs:
            cost = self._gpu(shape, count) if shape.device == GPU else self._dla(shape)
            self._costs[key] = (
                cost if shape.tail is None else replace(cost, tail=self._behind(shape, shape.tail, count))
            )
        return self._costs[key]

    def layers(self, shape: EngineShape, samples: int) -> tuple[LayerTime, ...]:
        """Return the layers of one enqueue on its own accelerator, without what the stack adds."""
        count = samples if shape.device == GPU else shape.batch
        spent = self._spent(shape, count)
        named = [(layer.name, layer.op) for layer in shape.workload.layers] or [(shape.network, "whole")]
        columns = (spent.compute_ms, spent.memory_ms, spent.overhead_ms)
        times_ns = zip(*((1e6 * part).tolist() for part in columns))
        return tuple(
            LayerTime(name, op, compute_ns, memory_ns, overhead_ns, moved)
            for (name, op), (compute_ns, memory_ns, overhead_ns), moved in zip(
                named, times_ns, spent.dram_bytes.tolist()
            )
        )

    def launch_ms(self, shape: EngineShape) -> float:
        """Return what the host needs to launch the kernels of a GPU enqueue, one after another; 0 in CUDA graphs."""
        return self.stack.launch_layer_ms * float(self._table(shape).kernels.sum()) * self._host_slowdown

    def tail(self) -> Segment:
        """Return the small GPU kernel (top-k) that follows a DLA engine where the plan's tail is "gpu"."""
        return Segment(GPU_SEGMENT, self._shared["gpu_tail_ms"] * 1e6 * self._gpu_slowdown, 0.0, 0.0, 0.0)

    def is_measured(self, shape: EngineShape) -> bool:
        """Say whether rows of a network on its accelerator were fitted (else the law of its layers stands alone)."""
        fit = self.parameters.networks.get(shape.network)
        return fit is not None and shape.device in fit.measured

    def speed_sd(self, shape: EngineShape) -> float:
        """Return the standard deviation of the logarithm of an engine's time: the network's factors and the rest."""
        dense_sd = self._dense_sd(shape)
        if not shape.sparse:
            return dense_sd
        cost = self.cost(shape, shape.batch)
        arithmetic = sum(part.compute_ns for part in cost.chain) / cost.solo_ns
        return float(np.hypot(dense_sd, self._shared["sparse_sd"] * arithmetic))

    def _dense_sd(self, shape: EngineShape) -> float:
        shared = self.parameters.shared
        if not self.is_measured(shape):
            return shared[f"{shape.device}_unmeasured_sd"]
        cost = self.cost(shape, shape.batch)
        own = [part for part in cost.segments if part.resource == (GPU_SEGMENT if shape.device == GPU else DLA_SEGMENT)]
        compute = sum(part.compute_ns for part in own) / cost.solo_ns
        memory = sum(part.memory_ns for part in own) / cost.solo_ns
        fit = self.parameters.networks[shape.network]
        cc, mm, cm = fit.spread[shape.device]
        variance = compute * compute * cc + memory * memory * mm + 2 * compute * memory * cm
        variance += shared[f"{shape.device}_measured_sd"] ** 2
        if shape.device == GPU and self.stack.name not in fit.stacks:
            variance += shared["stack_sd"] ** 2
        return float(np.sqrt(variance))

    def notes(self, shapes: Sequence[EngineShape]) -> tuple[str, ...]:
        """Say in words whose numbers are used in place of missing ones."""
        notes = []
        devices = {shape.device for shape in shapes}
        for device, source in (("gpu", self.stack.gpu_from), ("dla", self.stack.dla_from)):
            if device in devices and source != self.stack.name:
                notes.append(f"stack {self.stack.name} uses {source}'s {device.upper()} parameters: none published")
        for shape in shapes:
            if not self.is_measured(shape):
                notes.append(f"{shape.network} was never measured on the {shape.device.upper()}: its layers' law alone")
        if any(shape.sparse for shape in shapes):
            notes.append("2:4 sparsity: its speed is a prior, for weights that were pruned for it; power as if dense")
        return tuple(dict.fromkeys(notes))

    # -- scales relative to the module the shared times are of --------------------------------------------------------

    @property
    def _host_slowdown(self) -> float:
        return REFERENCE.max_clocks.cpu_mhz / self.clocks.cpu_mhz

    @property
    def _gpu_slowdown(self) -> float:
        return REFERENCE.max_clocks.gpu_mhz / self.clocks.gpu_mhz

    @property
    def _dram_slowdown(self) -> float:
        reference = REFERENCE.dram_peak_bytes_per_s(REFERENCE.max_clocks)
        return reference / self.soc.dram_peak_bytes_per_s(self.clocks)

    # -- layers -------------------------------------------------------------------------------------------------------

    def _spent(self, shape: EngineShape, samples: int) -> Spent:
        layers, law, clocks = self._table(shape), self.parameters.law, self.clocks
        if shape.device == GPU:
            peak = self.soc.gpu_peak_ops(clocks) / 2
            rates = Rates(peak, self.soc.gpu_dram_bytes_per_s(clocks), clocks.gpu_mhz, clocks.sms)
            spent = gpu_times(layers, samples, rates, law, ELEMENT_BYTES[shape.precision])
            slower = self.stack.image_factor * law.get(f"gpu_{shape.precision}_factor", 1.0)
        else:
            bytes_per_s = law["dla_gb_per_s"] * 1e9 / self._dram_slowdown
            rates = Rates(self.soc.dla_peak_ops(clocks) / 2, bytes_per_s, clocks.dla_mhz)
            spent = dla_times(layers, samples, rates, law)
            slower = self._shared["dla_fp16_factor"] if shape.precision == "fp16" else 1.0
        compute, memory = self.parameters.factors(shape.network, shape.device)
        # FP16 on a DLA takes its time with memory too: its power (row 101) shows the traffic per second of INT8.
        wider = slower if shape.device != GPU else 1.0
        return Spent(
            spent.compute_ms * (compute * slower) / self._sparse_speedup(shape),
            spent.memory_ms * (memory * slower),
            spent.overhead_ms * slower,
            spent.dram_bytes * wider,
        )

    def _table(self, shape: EngineShape) -> Table:
        return table(shape.workload, self.stack.one_kernel.get(shape.network) if shape.device == GPU else None)

    def _sparse_speedup(self, shape: EngineShape) -> NDArray[Any]:
        """By how much 2:4 sparsity shortens each layer's arithmetic, [layers]; DLAs have it in INT8 alone (guide)."""
        precisions = ("int8", "fp16") if shape.device == GPU else ("int8",)
        applies = pruned(table(shape.workload), shape.device == GPU)
        faster = self._shared["sparse_speedup"] if shape.sparse and shape.precision in precisions else 1.0
        return np.where(applies, faster, 1.0)

    # -- GPU ----------------------------------------------------------------------------------------------------------

    def _gpu(self, shape: EngineShape, samples: int) -> EngineCost:
        spent = self._spent(shape, samples)
        compute_ms = float(spent.compute_ms.sum() + spent.overhead_ms.sum())
        memory_ms = float(spent.memory_ms.sum())
        compute_ms += max(0.0, self.launch_ms(shape) - compute_ms - memory_ms)
        activity = self._activity(shape, samples, spent, compute_ms + memory_ms)
        whole = Segment(GPU_SEGMENT, compute_ms * 1e6, memory_ms * 1e6, float(spent.dram_bytes.sum()), activity)
        return EngineCost(
            submit_ns=self._shared["host_ms"] * self.stack.host_factor * self._host_slowdown * 1e6,
            segments=(whole, *self._detection(shape, samples)),
            host_mj=self.parameters.power["gpu_enqueue_mj"],
        )

    def _behind(self, shape: EngineShape, tail: Workload, samples: int) -> Segment:
        """A tail engine on the GPU; its kernels are launched while the engine before it runs."""
        if any(shape.network in stack.detections for stack in self.parameters.stacks.values()):
            return self._suppression(shape, samples)
        engine = EngineShape(UNMEASURED, GPU, samples, TAIL_PRECISION, tail)
        spent = self._spent(engine, samples)
        compute_ms, memory_ms = float(spent.compute_ms.sum() + spent.overhead_ms.sum()), float(spent.memory_ms.sum())
        activity = self._activity(engine, samples, spent, compute_ms + memory_ms)
        return Segment(GPU_SEGMENT, compute_ms * 1e6, memory_ms * 1e6, float(spent.dram_bytes.sum()), activity)

    def _detection(self, shape: EngineShape, samples: int) -> tuple[Segment, ...]:
        """Non-maximum suppression inside a detector's engine, where the stack has it there and no tail follows."""
        inside = shape.network in self.stack.detections and shape.tail is None
        return (self._suppression(shape, samples),) if inside else ()

    def _suppression(self, shape: EngineShape, samples: int) -> Segment:
        """Non-maximum suppression of a detector: passes over its outputs as FP32, and a part of its own."""
        law = self.parameters.law
        factor = self.stack.nms_factor
        moved = factor * samples * law["nms_passes"] * ELEMENT_BYTES["fp32"] * shape.workload.output_bytes
        memory_ns = moved / self.soc.gpu_dram_bytes_per_s(self.clocks) * 1e9
        return Segment(GPU_SEGMENT, factor * law["nms_ms"] * 1e6 * self._gpu_slowdown, memory_ns, moved)

    def _activity(self, shape: EngineShape, samples: int, spent: Spent, milliseconds: float) -> float:
        """Power of the GPU over that of kernels that multiply nothing: it grows with the share of time in arithmetic,
        and with the rate of multiplications in it."""
        if not milliseconds:
            return 1.0
        power = self.parameters.power
        operations = 2 * samples * shape.workload.macs * ELEMENT_BYTES[shape.precision]
        rate = operations / (milliseconds * 1e-3) / self.soc.gpu_peak_ops(self.clocks)
        share = float(spent.compute_ms.sum()) / milliseconds
        more_w = power["gpu_arithmetic_w"] * share + power["gpu_multiply_w"] * rate
        return (1 + more_w / power["gpu_w"]) * power.get(f"gpu_{shape.precision}_factor", 1.0)

    # -- DLA ----------------------------------------------------------------------------------------------------------

    def _dla(self, shape: EngineShape) -> EngineCost:
        if shape.precision == "fp32":
            raise OrinError(
                "a DLA has no fp32: plan field precision is 'fp32', expected int8 or fp16 (or dla_cores: 0)"
            )
        shared = self._shared
        host_ms = shared["dla_submit_host_ms"]
        spent = self._spent(shape, shape.batch)
        compute_ns = float(spent.compute_ms.sum() + spent.overhead_ms.sum()) * 1e6
        whole = Segment(DLA_SEGMENT, compute_ns, float(spent.memory_ms.sum()) * 1e6, float(spent.dram_bytes.sum()))
        return EngineCost(
            submit_ns=(shared["dla_submit_ms"] - host_ms + host_ms * self._host_slowdown) * 1e6,
            segments=(*self._split(whole, len(shape.gpu_layers)), *self._detection(shape, shape.batch)),
            host_mj=self.parameters.power["dla_enqueue_mj"],
        )

    def _split(self, whole: Segment, boundaries: int) -> tuple[Segment, ...]:
        """Cut a DLA job by its GPU layers; their kernels are small and run near idle power."""
        if not boundaries:
            return (whole,)
        part = Segment(
            DLA_SEGMENT, whole.compute_ns / boundaries, whole.memory_ns / boundaries, whole.dram_bytes / boundaries
        )
        gpu_ns = self._shared["gpu_boundary_ms"] * 1e6
        return (part, Segment(GPU_SEGMENT, gpu_ns, 0.0, 0.0, 0.0)) * boundaries
