"""Whether an engine computes what its network does: the signal-to-noise ratio of its outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.engine import Binding, Engine
from engines.errors import EngineError
from engines.formats import pack

SAMPLES = 8
INT8_STEPS = 40.0  # standard deviation of the test samples: most of INT8's range, few values clipped

Run = Callable[[Sequence[NDArray[Any]]], list[NDArray[Any]]]


def check_numbers(
    engine: Engine, runner: Run, reference: Run, samples: Sequence[NDArray[Any]] | None = None
) -> list[float]:
    """Return the SQNR of each output in dB: what `runner` computes against `reference`; infinite where equal.

    Both take the packed inputs of some samples, in the manifest's order, and return real values, samples first.
    `samples` are unpacked inputs [N, ...]; without them, seeded noise.
    """
    inputs = engine.manifest.inputs
    values = noise(inputs) if samples is None else samples
    packed = [pack(array, binding.format) for array, binding in zip(values, inputs, strict=True)]
    got, expected = runner(packed), reference(packed)
    if [array.shape for array in got] != [array.shape for array in expected]:
        seen, wanted = ([list(array.shape) for array in arrays] for arrays in (got, expected))
        raise EngineError(f"engine {engine.path.name} computes outputs {seen}, its network {wanted}; build it again")
    return [sqnr_db(computed, real) for computed, real in zip(got, expected, strict=True)]


def noise(inputs: Sequence[Binding]) -> list[NDArray[Any]]:
    """Return `SAMPLES` samples of each input: normal noise, the same each time."""
    rng = np.random.default_rng(0)
    made = []
    for binding in inputs:
        values = rng.standard_normal((SAMPLES, *binding.shape))
        integer = np.dtype(binding.dtype).kind in "iu"
        values = np.clip(np.rint(values * INT8_STEPS), -127, 127) if integer else values
        made.append(values.astype(binding.dtype))
    return made


def sqnr_db(computed: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return 10 log10 of the expected values' power over that of the difference; -inf where there is NaN."""
    real = expected.astype(np.float64)
    noise_power = float(np.sum((computed.astype(np.float64) - real) ** 2))
    if not math.isfinite(noise_power):
        return -math.inf
    signal_power = float(np.sum(real**2))
    if noise_power == 0:
        return math.inf
    return 10 * math.log10(signal_power / noise_power) if signal_power else -math.inf
