"""Damaged calibration caches: each is one clear line that names the line, or a cache that can be read."""

import math
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from calibration.cache import CalibrationCache, read_cache
from calibration.errors import CalibrationError
from engines.spec import Ranges

CACHES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "calibration_caches"
NAMES = ("input_1:0", "conv 1/BiasAdd", "(Unnamed Layer* 4) [Shuffle]_output", "logits", "größe", "a: b")


def well_formed(rng):
    """A cache as TensorRT writes it, in bytes: a few tensors, one of them perhaps with the scale 0."""
    amax = {f"{name}.{index}": rng.choice((0.0, rng.lognormvariate(1, 2))) for index, name in enumerate(NAMES)}
    version, algorithm = rng.choice(((8600, "EntropyCalibration2"), (100300, "MinMaxCalibration")))
    return CalibrationCache.from_ranges(Ranges(amax, "minmax", 1), version, algorithm).dumps().encode()


def _cut(data, at, rng):
    return data[:at]


def _byte_lost(data, at, rng):
    return data[:at] + data[at + 1 :]


def _byte_added(data, at, rng):
    return data[:at] + bytes([rng.randrange(256)]) + data[at:]


def _byte_changed(data, at, rng):
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def _bit_flipped(data, at, rng):
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _line_repeated(data, at, rng):
    lines = data.splitlines(keepends=True)
    return b"".join([*lines, rng.choice(lines)])


def _lines_shuffled(data, at, rng):
    lines = data.splitlines(keepends=True)
    return b"".join(rng.sample(lines, len(lines)))


def _windows_newlines(data, at, rng):
    return data.replace(b"\n", b"\r\n")


def _colons_lost(data, at, rng):
    return data.replace(b": ", rng.choice((b" ", b":", b" = ")))


def _block_zeroed(data, at, rng):
    return data[:at] + bytes(min(16, len(data) - at)) + data[at + 16 :]


DAMAGES = (
    *(_cut, _byte_lost, _byte_added, _byte_changed, _bit_flipped),
    *(_line_repeated, _lines_shuffled, _windows_newlines, _colons_lost, _block_zeroed),
)


def mutated(count, seed=0):
    """Damage `count` well-formed caches, each once, in every way in turn."""
    rng = random.Random(seed)
    for index in range(count):
        data = well_formed(rng)
        yield DAMAGES[index % len(DAMAGES)](data, rng.randrange(len(data)), rng)


def outcome(data, path):
    """Read damaged bytes as a file: 'refused' with one line that names a line of it, or 'read' and sound."""
    path.write_bytes(data)
    try:
        cache = read_cache(path)
    except CalibrationError as error:
        named = re.search(r" line (\d+) ", str(error))
        assert named, str(error)
        assert 1 <= int(named[1]) <= data.count(b"\n") + 1
        assert "\n" not in str(error)
        return "refused"
    assert cache.dumps().encode() == data
    assert all(math.isfinite(scale) and scale >= 0 for scale in cache.scales.values())
    return "read"


def test_each_of_200_mutated_caches_is_refused_in_one_line_or_read(tmp_path):
    seen = Counter(outcome(data, tmp_path / "damaged.cache") for data in mutated(200))
    assert seen.total() == 200
    assert seen["refused"] > 100
    assert seen["read"] > 20  # a name with another letter, a line twice


@pytest.mark.parametrize("lost", ["cut within a scale", "no header", "garbled scale"])
def test_what_must_be_refused_is(lost, tmp_path):
    data = b"TRT-8600-EntropyCalibration2\nx: 3f810204\ny: 3c010204\n"
    damaged = {"cut within a scale": data[:-4], "no header": data[29:], "garbled scale": data.replace(b"3f81", b"3q81")}
    assert outcome(damaged[lost], tmp_path / "damaged.cache") == "refused"


@pytest.mark.skipif(not CACHES.is_dir(), reason="real calibration caches are not here")
def test_real_caches_are_read_written_and_read_again_identical(tmp_path):
    paths = sorted(CACHES.glob("*.cache"))
    assert paths
    for path in paths:
        first = read_cache(path)
        copy = tmp_path / path.name
        copy.write_bytes(first.dumps().encode())
        assert copy.read_bytes() == path.read_bytes()
        assert read_cache(copy) == first


@pytest.mark.skipif(not CACHES.is_dir(), reason="real calibration caches are not here")
def test_damaged_real_caches_are_refused_or_read(tmp_path):
    rng = random.Random(1)
    for path in sorted(CACHES.glob("*.cache")):
        data = path.read_bytes()
        for damage in DAMAGES:
            outcome(damage(data, rng.randrange(len(data)), rng), tmp_path / "damaged.cache")


def test_scales_of_the_mutated_are_those_written():
    """The generator's own caches are sound before they are damaged: scale = float32(amax / 127)."""
    for seed in range(5):
        cache = read_cache(well_formed(random.Random(seed)).decode())
        assert len(cache.scales) == len(NAMES)
        assert all(scale == float(np.float32(scale)) for scale in cache.scales.values())
