import itertools

import numpy as np
import pytest

from engines.errors import EngineError
from engines.formats import pack, same_bytes, sample_bytes, unpack

SHAPES = [(1, 2, 3), (3, 5, 7), (4, 3, 16), (3, 2, 20)]


def offset(name, shape, index, itemsize):
    """Byte offset of one element, from the definition of each format, without numpy's indexing."""
    (channels, height, width), (c, h, w) = shape, index
    if name == "LINEAR":
        return ((c * height + h) * width + w) * itemsize
    if name == "DLA_LINEAR":
        row = -(-width * itemsize // 64) * 64
        return (c * height + h) * row + w * itemsize
    if name == "DLA_HWC4":
        stored = 1 if channels == 1 else 4
        row = -(-width * stored * itemsize // 64) * 64
        return h * row + (w * stored + c) * itemsize
    vector = int(name.removeprefix("CHW"))
    return ((((c // vector) * height + h) * width + w) * vector + c % vector) * itemsize


def packed_by_loops(array, name, nbytes):
    memory = np.zeros((len(array), nbytes), np.uint8)
    for n, *index in np.ndindex(array.shape):
        start = offset(name, array.shape[1:], index, array.itemsize)
        memory[n, start : start + array.itemsize] = np.frombuffer(array[(n, *index)].tobytes(), np.uint8)
    return memory


CASES = [
    *itertools.product(["LINEAR", "CHW4", "CHW16", "CHW32", "DLA_LINEAR", "DLA_HWC4"], SHAPES, ["int8", "float16"]),
    *itertools.product(["LINEAR", "CHW4", "CHW16", "CHW32", "DLA_LINEAR"], [(37, 2, 3)], ["int8", "float16"]),
]


@pytest.mark.parametrize(("name", "shape", "dtype"), CASES)
def test_every_element_lies_where_the_format_says_and_comes_back(name, shape, dtype):
    array = np.random.default_rng(0).integers(-127, 128, (2, *shape)).astype(dtype)
    packed = pack(array, name)
    assert packed.dtype == np.uint8
    assert packed.shape == (2, sample_bytes(name, shape, array.itemsize))
    assert np.array_equal(packed, packed_by_loops(array, name, packed.shape[1]))
    assert np.array_equal(unpack(packed, name, shape, dtype), array)


def test_bytes_of_known_samples():
    assert sample_bytes("CHW4", (3, 224, 224)) == 224 * 224 * 4
    assert sample_bytes("DLA_HWC4", (3, 224, 224)) == 224 * 896
    assert sample_bytes("DLA_HWC4", (3, 300, 300)) == 300 * 1216
    assert sample_bytes("CHW32", (3, 224, 224)) == 224 * 224 * 32
    assert sample_bytes("LINEAR", (1000,), 4) == 4000


@pytest.mark.parametrize(
    ("a", "b", "shape", "same"),
    [
        ("CHW4", "DLA_HWC4", (3, 224, 224), True),
        ("CHW4", "DLA_HWC4", (3, 800, 800), True),
        ("CHW4", "DLA_HWC4", (3, 300, 300), False),
        ("CHW4", "DLA_HWC4", (1, 64, 64), False),
        ("LINEAR", "DLA_LINEAR", (3, 5, 64), True),
        ("LINEAR", "DLA_LINEAR", (3, 5, 65), False),
        ("LINEAR", "CHW4", (3, 224, 224), False),
        ("CHW16", "CHW32", (32, 4, 4), False),
    ],
)
def test_same_bytes_agrees_with_the_bytes(a, b, shape, same):
    assert same_bytes(a, b, shape) is same
    array = np.random.default_rng(0).integers(-127, 128, (1, *shape)).astype(np.int8)
    assert np.array_equal(pack(array, a), pack(array, b)) is same


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_bytes("NHWC", (3, 2, 2)), "'NHWC' is not known, expected one of LINEAR, CHW4"),
        (lambda: sample_bytes("CHW4", (1000,)), "CHW4 holds samples of shape C,H,W"),
        (lambda: sample_bytes("DLA_HWC4", (8, 2, 2)), "1 to 4 channels, not 8"),
        (lambda: unpack(np.zeros((2, 5), np.uint8), "LINEAR", (3, 2, 2)), r"uint8\[2, 5\], expected uint8\[N, 12\]"),
    ],
)
def test_misuse_gets_one_line(call, message):
    with pytest.raises(EngineError, match=message):
        call()
