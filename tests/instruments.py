"""Test instruments: a board whose engines take no time (or a given one) and read what they are bound to."""

from __future__ import annotations

import ctypes
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from engines.engine import Binding, Engine, Manifest, Workload
from engines.spec import EngineSpec
from orin.board import SharedTensor
from orin.soc import AGX_ORIN_64GB_SOC

SHAPE = (3, 224, 224)
SAMPLE_BYTES = 4 * 224 * 224


def engine(device="gpu", batch=8, shape=SHAPE, sample_bytes=SAMPLE_BYTES, fmt=None) -> Engine:
    """Describe an engine with one INT8 image input; there is no file behind it."""
    binding = Binding("input", shape, "int8", fmt or ("CHW4" if device == "gpu" else "DLA_HWC4"), 1.0, sample_bytes)
    spec = EngineSpec("null", device, batch)
    output = Binding("logits", (1,), "float32", "LINEAR", None, 4)
    manifest = Manifest(
        spec, "null", "none", "0", f"{device}-{batch}", (binding,), (output,), Workload(10**9, 10**6, 10**6)
    )
    return Engine(Path("/nowhere"), manifest)


class StepClock:
    """Time that passes only when someone waits for it: the machine's speed cannot show in what is tested."""

    def __init__(self):
        self._lock = threading.Lock()
        self._now_ns = 0

    def now_ns(self):
        return self._now_ns

    def sleep(self, seconds):
        with self._lock:
            self._now_ns += max(1000, round(seconds * 1e9))  # no sleep ends at once

    def spin_until(self, at_ns):
        with self._lock:
            self._now_ns = max(self._now_ns, at_ns) + 1000  # looking takes time


class NullEngine:
    """Records what it is bound to; answers each sample with the first INT8 value it finds at its address."""

    def __init__(self, board, loaded, accelerator):
        self.board, self.engine, self.accelerator = board, loaded, accelerator
        self.stride = loaded.manifest.inputs[0].sample_bytes
        self.pending = {}
        self.answers = {}
        self.closed = False
        self.copied_bytes = 0

    def enqueue(self, slot, addresses, samples):
        now = time.monotonic_ns()
        free = max(self.board.free_ns.get(self.accelerator, 0), now)
        took = self.board.ns_per_batch.get(self.accelerator, 0)
        self.board.free_ns[self.accelerator] = free + took
        self.pending.setdefault(slot, []).append((addresses[0], samples, free, free + took))
        if self.accelerator in self.board.failing and self.board.batches >= self.board.fail_after:
            raise RuntimeError("enqueueV3 returned false")
        self.board.batches += 1

    def wait(self, slot):
        done = self.pending.pop(slot)
        end = done[-1][3]
        while time.monotonic_ns() < end:
            time.sleep(max(0.0, (end - time.monotonic_ns()) / 1e9))
        if self.board.computes_outputs:
            values = [
                ctypes.c_int8.from_address(address + k * self.stride).value
                for address, samples, *_ in done
                for k in range(samples)
            ]
            self.answers[slot] = [np.array(values, dtype=np.float32)[:, None]]
        return done[0][2], end

    def outputs(self, slot):
        return self.answers.get(slot)

    def close(self):
        self.closed = True


class NullBoard:
    """Implements `orin.board.Board` on plain host memory."""

    name = "null"
    provenance = "simulated"

    def __init__(self, computes_outputs=False, ns_per_batch=None, failing=(), fail_after=0):
        self.soc = AGX_ORIN_64GB_SOC
        self.computes_outputs = computes_outputs
        self.ns_per_batch = ns_per_batch or {}
        self.failing, self.fail_after = failing, fail_after
        self.free_ns, self.batches, self.engines, self.held = {}, 0, [], 0

    def load(self, loaded, accelerator, depth, tail=None):
        self.engines.append(NullEngine(self, loaded, accelerator))
        return self.engines[-1]

    def allocate(self, nbytes):
        raw = np.zeros(nbytes + 4096, dtype=np.uint8)
        skip = -raw.ctypes.data % 4096
        array = raw[skip : skip + nbytes]
        return SharedTensor(array, array.ctypes.data)

    def meter(self, on_line=None):
        raise NotImplementedError  # no sensor: what measures power is tested on the virtual board

    def keeps_pace(self):
        return None

    @contextmanager
    def hold(self, plan):
        self.held += 1
        try:
            yield self.soc.clocks(plan.mode or "MAXN")
        finally:
            self.held -= 1
