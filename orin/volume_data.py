"""Volumes as what a network calibrates with: those that `orin segment` takes as arrays, cut into its windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engines.volumes.preprocess import AMAX, KITS19
from engines.volumes.split import Windows
from orin.cases import Source, read_case
from orin.errors import OrinError

if TYPE_CHECKING:
    from calibration.source import Input
    from calibration.volumes import Volumes


def volumes_for(inputs: Sequence[Input], paths: Sequence[Path], batch: int = 1) -> Volumes | None:
    """Return the windows of volumes [D,H,W] or [1,D,H,W], float32 or INT8 in the range of MLPerf's pre-processing.

    None where the network takes no windows [N,1,d,h,w], or the first file holds samples [N,...] of its input;
    OrinError where a file is no such volume, or its type is not that of the others.
    """
    from calibration.volumes import Volumes

    shape = inputs[0].shape
    if len(inputs) != 1 or len(shape) != 5 or shape[1] != 1 or paths[0].suffix != ".npy" or _axes(paths[0]) > 4:
        return None
    depth, height, width = shape[2:]
    if depth is None or height is None or width is None:
        raise OrinError(f"input {inputs[0].name!r} has windows of no fixed size; export the network with one")
    scales = {path: read_case(Source(path.stem, path), KITS19, AMAX).scale for path in paths}
    scale = scales[paths[0]]
    for path, other in scales.items():
        if other != scale:
            raise OrinError(f"{path} and {paths[0]} are of different types, expected float32 or int8 in all of them")
    return Volumes(paths, Windows((depth, height, width), scale=scale), inputs[0].name, batch)


def _axes(path: Path) -> int:
    """Return how many axes an array has; one that cannot be read is told of as the volume that it should be."""
    try:
        return int(np.load(path, mmap_mode="r", allow_pickle=False).ndim)
    except (OSError, ValueError, EOFError):
        return 0
