"""How long an engine takes and what it draws from DRAM, alone on the SoC.

GPU:  T(n) = weights / BW + fixed * f0/f + n * image * (s * ops0/ops + (1 - s) * BW0/BW), at least the launch floor.
DLA:  T(n) = n * (a / f + (b_act + b_weight / n) * DRAM0/DRAM), n up to the batch that its SRAM amortises.
Compute and memory parts add: taking their maximum misses published modes by up to 6 %, the sum by 0.4 % (rms).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engines.engine import Manifest, Workload
from orin.errors import OrinError
from orin.plan import Plan
from orin.soc import AGX_ORIN_64GB_SOC, GPU, Clocks, Soc
from orin.virtual.parameters import DlaLaw, GpuLaw, Parameters, load_parameters

REFERENCE = AGX_ORIN_64GB_SOC  # the module whose measured times the parameters are
ELEMENT_BYTES = {"int8": 1, "fp16": 2, "fp32": 4}
GPU_SEGMENT = "gpu"
DLA_SEGMENT = "dla"
TAIL_PRECISION = "fp32"
UNMEASURED = "tail"  # the name of no network: its time is a prior from its work


@dataclass(frozen=True)
class EngineShape:
    """What the model has to know of an engine, built or not: `device` is "gpu" or "dla", `tail` the work of what
    follows it on the GPU."""

    network: str
    device: str
    batch: int
    precision: str
    workload: Workload
    gpu_layers: tuple[str, ...] = ()
    tail: Workload | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> EngineShape:
        """Describe a built engine."""
        spec = manifest.spec
        return cls(spec.network, spec.device, spec.batch, spec.precision, manifest.workload, manifest.gpu_layers)


@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of one job on one resource ("gpu" or "dla"): times alone on the SoC, bytes, power relative to INT8."""

    resource: str
    compute_ns: float
    memory_ns: float
    dram_bytes: float
    activity: float = 1.0

    @property
    def solo_ns(self) -> float:
        """Duration with nothing else running."""
        return self.compute_ns + self.memory_ns


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


RESTING_MODE = "MAXN"  # of the virtual board, where nobody asks for a mode


def clocks_of(plan: Plan, soc: Soc) -> Clocks:
    """Return the clocks that a plan asks for: its mode, its locked clocks, or else what the virtual board rests in."""
    if plan.clocks_mhz is None:
        return soc.clocks(plan.mode or RESTING_MODE)
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
            self._costs[key] = cost if shape.tail is None else self._followed(cost, shape.tail, count)
        return self._costs[key]

    def tail(self) -> Segment:
        """Return the small GPU kernel (top-k) that follows a DLA engine where the plan's tail is "gpu"."""
        return Segment(GPU_SEGMENT, self._shared["gpu_tail_ms"] * 1e6 * self._gpu_slowdown, 0.0, 0.0, 0.0)

    def is_measured(self, shape: EngineShape) -> bool:
        """Say whether a network has measured parameters (else its prior is used)."""
        return shape.network in self.parameters.networks

    def notes(self, shapes: Sequence[EngineShape]) -> tuple[str, ...]:
        """Say in words whose numbers are used in place of missing ones."""
        notes = []
        devices = {shape.device for shape in shapes}
        for device, source in (("gpu", self.stack.gpu_from), ("dla", self.stack.dla_from)):
            if device in devices and source != self.stack.name:
                notes.append(f"stack {self.stack.name} uses {source}'s {device.upper()} parameters: none published")
        for network in sorted({shape.network for shape in shapes if not self.is_measured(shape)}):
            notes.append(f"{network} was never measured: prior from its layers' work, within a factor of two")
        return tuple(notes)

    # -- scales relative to the module the parameters were measured on ------------------------------------------------

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

    # -- GPU ----------------------------------------------------------------------------------------------------------

    def _followed(self, cost: EngineCost, tail: Workload, samples: int) -> EngineCost:
        """Add a tail's work on the GPU; its kernels are launched while the engine before it runs."""
        compute_ms, memory_ms = self._gpu_image_ms(EngineShape(UNMEASURED, GPU, samples, TAIL_PRECISION, tail))
        drawn = ELEMENT_BYTES[TAIL_PRECISION] * self._shared["gpu_activation_share"] * tail.activation_bytes
        compute_ns = self.tail().compute_ns + samples * compute_ms * 1e6
        activity = self._activity(TAIL_PRECISION)
        behind = Segment(GPU_SEGMENT, compute_ns, samples * memory_ms * 1e6, samples * drawn, activity)
        return replace(cost, tail=behind)

    def _gpu(self, shape: EngineShape, samples: int) -> EngineCost:
        shared, workload = self._shared, shape.workload
        element_bytes = ELEMENT_BYTES[shape.precision]
        compute_ms, memory_ms = self._gpu_image_ms(shape)
        compute_ms = samples * compute_ms + shared["gpu_fixed_ms"] * self._gpu_slowdown
        weight_bytes = workload.weight_bytes * element_bytes
        memory_ms = samples * memory_ms + weight_bytes / self.soc.gpu_dram_bytes_per_s(self.clocks) * 1e3
        floor_ms = self.stack.launch_floor_ms * self._host_slowdown
        compute_ms += max(0.0, floor_ms - compute_ms - memory_ms)
        activations = samples * shared["gpu_activation_share"] * workload.activation_bytes
        bytes_ = element_bytes * activations + shared["gpu_weight_share"] * weight_bytes
        return EngineCost(
            submit_ns=shared["host_ms"] * self.stack.host_factor * self._host_slowdown * 1e6,
            segments=(
                Segment(GPU_SEGMENT, compute_ms * 1e6, memory_ms * 1e6, bytes_, self._activity(shape.precision)),
            ),
            host_mj=self.parameters.power["gpu_enqueue_mj"],
        )

    def _gpu_image_ms(self, shape: EngineShape) -> tuple[float, float]:
        """Compute and memory time of one more image."""
        law = self._gpu_law(shape)
        factor = (
            self.stack.image_factor
            * {
                "int8": 1.0,
                "fp16": self._shared["gpu_fp16_image_factor"],
                "fp32": self._shared["gpu_fp32_image_factor"],
            }[shape.precision]
        )
        top = REFERENCE.max_clocks
        slower = REFERENCE.gpu_peak_ops(top) / self.soc.gpu_peak_ops(self.clocks)
        thinner = REFERENCE.gpu_dram_bytes_per_s(top) / self.soc.gpu_dram_bytes_per_s(self.clocks)
        image_ms = law.image_ms * factor
        return image_ms * law.compute_share * slower, image_ms * (1 - law.compute_share) * thinner

    def _gpu_law(self, shape: EngineShape) -> GpuLaw:
        if shape.network in self.parameters.networks:
            return self.parameters.networks[shape.network].gpu
        top = REFERENCE.max_clocks
        rate = self._shared["gpu_prior_efficiency"] * REFERENCE.gpu_peak_ops(top)
        compute_ms = 2e3 * shape.workload.macs / rate
        drawn = self._shared["gpu_activation_share"] * shape.workload.activation_bytes
        memory_ms = 1e3 * drawn / REFERENCE.gpu_dram_bytes_per_s(top)
        image_ms = math.hypot(compute_ms, memory_ms)
        return GpuLaw(image_ms, (compute_ms / image_ms) ** 2 if image_ms else 1.0)

    def _activity(self, precision: str) -> float:
        power = self.parameters.power
        return {"int8": 1.0, "fp16": power["gpu_fp16_factor"], "fp32": power["gpu_fp32_factor"]}[precision]

    # -- DLA ----------------------------------------------------------------------------------------------------------

    def _dla(self, shape: EngineShape) -> EngineCost:
        shared = self._shared
        host_ms = shared["dla_submit_host_ms"]
        whole = self._dla_whole(shape)
        return EngineCost(
            submit_ns=(shared["dla_submit_ms"] - host_ms + host_ms * self._host_slowdown) * 1e6,
            segments=self._split(whole, len(shape.gpu_layers)),
            host_mj=self.parameters.power["dla_enqueue_mj"],
        )

    def _dla_whole(self, shape: EngineShape) -> Segment:
        if shape.precision == "fp32":
            raise OrinError(
                "a DLA has no fp32: plan field precision is 'fp32', expected int8 or fp16 (or dla_cores: 0)"
            )
        shared, workload, batch = self._shared, shape.workload, shape.batch
        law = self._dla_law(shape)
        factor = shared["dla_fp16_factor"] if shape.precision == "fp16" else 1.0
        wider = REFERENCE.dla_int8_macs_per_clk / self.soc.dla_int8_macs_per_clk
        compute_ms = factor * batch * law.compute_ms_ghz * wider * 1e3 / self.clocks.dla_mhz
        reads = batch / min(batch, shared["dla_amortised_batch"])
        memory_ms = factor * (batch * law.activation_ms + reads * law.weight_ms) * self._dram_slowdown
        activations = batch * shared["dla_activation_share"] * workload.activation_bytes
        # FP16 takes its time with memory too: its power (row 101) shows the traffic per second of INT8.
        bytes_ = factor * (activations + reads * workload.weight_bytes)
        return Segment(DLA_SEGMENT, compute_ms * 1e6, memory_ms * 1e6, bytes_)

    def _dla_law(self, shape: EngineShape) -> DlaLaw:
        if shape.network in self.parameters.networks:
            return self.parameters.networks[shape.network].dla
        shared, workload = self._shared, shape.workload
        macs_per_clk = shared["dla_prior_efficiency"] * REFERENCE.dla_int8_macs_per_clk
        prior_gb_per_s = shared["dla_prior_gb_per_s"]
        return DlaLaw(
            compute_ms_ghz=workload.macs / macs_per_clk * 1e-6,
            activation_ms=shared["gpu_activation_share"] * workload.activation_bytes / prior_gb_per_s * 1e-6,
            weight_ms=workload.weight_bytes / shared["dla_weight_gb_per_s"] * 1e-6,
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
