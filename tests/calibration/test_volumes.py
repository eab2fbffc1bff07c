"""Volumes as calibration data: cut into windows that are read one at a time."""

from hashlib import sha256

import numpy as np
import pytest

from calibration.collect import collect_ranges
from calibration.errors import CalibrationError
from calibration.observers import MinMax
from calibration.volumes import Volumes, array_volumes
from tests.dla.networks import model, node


class Halves:
    """Cuts [D,H,W] into two windows [1,D/2,H,W], scaled."""

    settings = {"kind": "halves"}

    def count(self, shape):
        return 2

    def cut(self, volume):
        for half in np.split(volume, 2):
            yield half[None] * 0.5


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", rng.integers(-100, 100, (4, 2, 3)).astype(np.int16))
    return sorted(tmp_path.iterdir())


def test_windows_come_in_order_with_the_hash_of_their_volume(paths):
    source = Volumes(array_volumes(paths), Halves(), "x")
    made = list(source.batches())
    assert (source.total, len(made)) == (6, 6)
    whole = np.concatenate([np.load(path) for path in paths]).reshape(6, 1, 2, 2, 3)
    assert np.array_equal(np.concatenate([batch.arrays["x"] for batch in made]), whole.astype(np.float32) / 2)
    assert made[2].files == {"b.npy": sha256(paths[1].read_bytes()).hexdigest()}


def test_windows_passed_over_are_not_made(paths):
    source = Volumes(array_volumes(paths), Halves(), "x")
    whole, rest = list(source.batches()), list(source.batches(first=3))
    assert [batch.samples for batch in rest] == [0, 0, 0, 1, 1, 1]
    assert [batch.files for batch in rest] == [batch.files for batch in whole]
    assert all(np.array_equal(rest[k].arrays["x"], whole[k].arrays["x"]) for k in (3, 4, 5))


def test_a_3d_network_calibrates_on_them(paths):
    relu = model([node("Relu", "x", "y")], {"x": (1, 1, 2, 2, 3)}, {"y": None})
    batches = [batch.arrays for batch in Volumes(array_volumes(paths), Halves(), "x", batch=2).batches()]
    values = np.stack([np.load(path) for path in paths])
    amax = collect_ranges(relu, batches, MinMax()).amax_by_tensor
    assert dict(amax) == {"x": np.abs(values).max() / 2, "y": values.max() / 2}


def test_a_file_that_is_no_volume_is_named(tmp_path):
    (tmp_path / "x.npy").write_text("no array")
    with pytest.raises(CalibrationError, match="volume .*x.npy cannot be read"):
        list(Volumes(array_volumes([tmp_path / "x.npy"]), Halves(), "x").batches())
