"""Volumes as calibration data, cut by the sliding windows that segmentation uses."""

import numpy as np
import pytest

from calibration.volumes import Volumes, array_volumes
from engines.errors import EngineError
from engines.volumes.plan import plan_windows
from engines.volumes.split import Windows


def test_every_window_of_every_volume_comes_once_in_order(tmp_path):
    rng = np.random.default_rng(0)
    volumes = {"a.npy": rng.integers(-127, 128, (8, 12, 8), dtype=np.int8), "b.npy": rng.integers(-9, 9, (1, 6, 8, 8))}
    for name, volume in volumes.items():
        np.save(tmp_path / name, volume.astype(np.int8))
    windows = Windows((8, 8, 8), 0.5, scale=0.25)
    source = Volumes(array_volumes(sorted(tmp_path.iterdir())), windows, "input", batch=2)
    got = np.concatenate([batch.arrays["input"] for batch in source.batches()])
    first = [volumes["a.npy"][None, :, y : y + 8] * 0.25 for y in (0, 4)]
    second = np.full((1, 8, 8, 8), -2.2)
    second[:, 1:7] = volumes["b.npy"][0] * 0.25  # six planes in a window of eight
    np.testing.assert_allclose(got, [*first, second], rtol=1e-6)
    assert source.total == 3 and got.dtype == np.float32
    assert source.settings["windows"] == {
        "count": 3,
        "kind": "sliding",
        "window": [8, 8, 8],
        "overlap": 0.5,
        "scale": 0.25,
    }


def test_windows_are_counted_as_they_are_planned():
    assert Windows().count((1, 320, 448, 448)) == len(plan_windows((320, 448, 448))) == 144
    with pytest.raises(EngineError, match=r"shape \[2, 8, 8, 8\], expected \[D,H,W\] or \[1,D,H,W\]"):
        Windows().count((2, 8, 8, 8))
