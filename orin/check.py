"""Whether built engines compute on the board what their networks compute in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from engines.engine import Engine
from orin.board import Board, SharedTensor
from orin.build import Built
from orin.errors import OrinError
from orin.soc import DLAS, GPU

if TYPE_CHECKING:
    from engines.preprocess import Preprocess

SAMPLES = 8
LEAST_SQNR_DB = 20.0  # an INT8 engine beside another of the same scales: ties and sums round apart, no more


def check_engines(built: Built, board: Board, photos: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Return the SQNR in dB of each output of each engine against its reference, on a few photos.

    Without photos the samples are seeded noise.
    """
    from engines.numerics import OrtRunner
    from engines.tensorrt.check import check_numbers

    samples = _samples(photos, built.preprocess)
    found = {}
    for name, reference_engine in built.references.items():
        engine, reference = built.engines[name], OrtRunner(reference_engine).run
        sqnr_db = check_numbers(engine, device_runner(board, engine), reference, samples)
        found[name] = {binding.name: value for binding, value in zip(engine.manifest.outputs, sqnr_db, strict=True)}
    return found


def doubts(checked: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield one line for each output that is further from its reference than rounding explains."""
    for name, outputs in checked.items():
        for output, value_db in outputs.items():
            if value_db < LEAST_SQNR_DB:
                yield (
                    f"output {output!r} of the {name} engine is {value_db:.1f} dB from ONNX Runtime's, expected "
                    f"{LEAST_SQNR_DB:.0f} or more: do not trust it; build again with --verbose-log and read the log"
                )


def device_runner(board: Board, engine: Engine) -> Callable[[Sequence[NDArray[Any]]], list[NDArray[Any]]]:
    """Return a function that runs packed samples [N, bytes] of each input on the board, batch by batch."""

    def run(packed: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        import numpy as np

        batch = engine.manifest.spec.batch
        shared = [board.allocate(batch * binding.sample_bytes) for binding in engine.manifest.inputs]
        loaded = board.load(engine, GPU if engine.manifest.spec.device == "gpu" else DLAS[0], 1)
        try:
            parts = []
            for start in range(0, len(packed[0]), batch):
                count = _place([rows[start : start + batch] for rows in packed], shared)
                loaded.enqueue(0, [tensor.address for tensor in shared], count)
                loaded.wait(0)
                outputs = loaded.outputs(0)
                if outputs is None:
                    raise OrinError(f"board {board.name} computes no outputs to check; open it for results")
                parts.append([output[:count].copy() for output in outputs])
            return [np.concatenate(column) for column in zip(*parts, strict=True)]
        finally:
            loaded.close()

    return run


def _place(rows: Sequence[NDArray[Any]], shared: Sequence[SharedTensor]) -> int:
    """Write one batch of each input where the accelerator reads it; returns its samples."""
    for values, tensor in zip(rows, shared, strict=True):
        tensor.array[: values.nbytes] = values.reshape(-1)
        tensor.publish(0, values.nbytes)
    return len(rows[0])


def _samples(photos: Sequence[Path], preprocess: Preprocess) -> list[NDArray[Any]] | None:
    from calibration.dataset import prepare_images

    if not photos:
        return None
    crops = -(-SAMPLES // len(photos))
    return [prepare_images(list(photos[:SAMPLES]), preprocess, crops=crops).samples[:SAMPLES]]
