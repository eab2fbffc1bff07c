"""Arrays as calibration data: streamed in order, hashed on the way, checked against the inputs."""

from hashlib import sha256

import numpy as np
import pytest

from calibration.arrays import Arrays
from calibration.errors import CalibrationError
from calibration.source import Input

IMAGE = Input("x", (None, 2, 3), np.dtype(np.float32))
IDS = Input("ids", (1, None), np.dtype(np.int64))
MASK = Input("mask", (1, 4, 1), np.dtype(np.float32))


def floats(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def joined(source, name="x"):
    return np.concatenate([batch.arrays[name] for batch in source.batches() if batch.arrays])


@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ">f4"])
def test_a_file_of_samples_gives_them_as_the_input_takes_them(tmp_path, save, dtype):
    values = floats(40, 2, 3).astype(dtype)
    path = tmp_path / ("x.npy" if save is np.save else "x.npz")
    save(path, values)
    source = Arrays([path], [IMAGE])
    assert (source.total, source.batch) == (40, 32)
    assert [batch.samples for batch in source.batches()] == [32, 8]
    assert joined(source).dtype == np.float32
    assert np.array_equal(joined(source), values.astype(np.float32))


def test_files_of_one_sample_and_of_many_follow_each_other(tmp_path):
    parts = [floats(2, 3), floats(5, 2, 3), floats(1, 2, 3)]
    for index, part in enumerate(parts):
        np.save(tmp_path / f"{index}.npy", part)
    source = Arrays(sorted(tmp_path.iterdir()), [IMAGE], limit=7, fixed_batch=3)
    expected = np.concatenate([parts[0][None], *parts[1:]])
    assert [batch.samples for batch in source.batches()] == [3, 3, 1]
    assert np.array_equal(joined(source), expected[:7])


def test_the_digest_is_that_of_the_file_and_grows_while_it_is_read(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, floats(5, 2, 3))
    content = path.read_bytes()
    digests = [batch.files["x.npy"] for batch in Arrays([path], [IMAGE], fixed_batch=2).batches()]
    head = len(content) - 5 * 24
    assert digests == [sha256(content[: head + 24 * done]).hexdigest() for done in (2, 4, 5)]


def test_samples_passed_over_are_hashed_alone(tmp_path):
    np.savez(tmp_path / "x.npz", x=floats(7, 2, 3))
    source = Arrays([tmp_path / "x.npz"], [IMAGE], fixed_batch=2)
    whole, rest = list(source.batches()), list(source.batches(first=2))
    assert [batch.samples for batch in rest] == [0, 0, 2, 1]
    assert [batch.files for batch in rest] == [batch.files for batch in whole]
    assert np.array_equal(rest[2].arrays["x"], whole[2].arrays["x"])


def test_an_npz_feeds_several_inputs_by_name(tmp_path):
    ids, mask = np.arange(12, dtype=np.int32).reshape(3, 4), floats(3, 4, 1)
    np.savez_compressed(tmp_path / "text.npz", mask=mask, ids=ids, labels=np.arange(3))
    source = Arrays([tmp_path / "text.npz"], [IDS, MASK])
    assert [batch.samples for batch in source.batches()] == [1, 1, 1]  # one sample's activations are large
    assert np.array_equal(joined(source, "ids"), ids) and joined(source, "ids").dtype == np.int64
    assert np.array_equal(joined(source, "mask"), mask)
    assert list(next(source.batches()).files) == ["text.npz:ids", "text.npz:mask"]


def saved(folder, **arrays):
    path = folder / "bad.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("arrays", "inputs", "match"),
    [
        ({"x": floats(4, 2, 4)}, [IMAGE], r"has the shape \[4, 2, 4\], expected \[N,2,3\] for input 'x'"),
        ({"x": floats(3)}, [IMAGE], r"has the shape \[3\]"),
        ({"x": floats(0, 2, 3)}, [IMAGE], r"has the shape \[0, 2, 3\]"),
        ({"x": np.zeros((4, 2, 3), np.uint8)}, [IMAGE], "holds uint8, expected float32 for input 'x'"),
        ({"x": np.array([[["a"] * 3] * 2])}, [IMAGE], "holds <U1, expected float32"),
        ({"x": floats(4, 3, 2).transpose(0, 2, 1)}, [IMAGE], None),
        ({"x": np.asfortranarray(floats(4, 2, 3))}, [IMAGE], "is in Fortran order"),
        ({"ids": np.zeros((3, 4), int)}, [IDS, MASK], "'mask' is missing"),
        ({"ids": np.zeros((3, 4), int), "mask": floats(2, 4, 1)}, [IDS, MASK], "holds 2 samples, expected 3"),
        ({"ids": np.zeros((3, 4)), "mask": floats(3, 4, 1)}, [IDS, MASK], "holds float64, expected int64"),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(tmp_path, arrays, inputs, match):
    path = saved(tmp_path, **arrays)
    if match is None:
        assert Arrays([path], inputs).total == 4
        return
    with pytest.raises(CalibrationError, match=match) as caught:
        Arrays([path], inputs)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_arrays_are_one_line(tmp_path):
    np.save(tmp_path / "x.npy", floats(4, 2, 3))
    np.save(tmp_path / "pickled.npy", np.array([None, {}]), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("text.npy", "text.npz", "empty.npy", "none.npy"):
        with pytest.raises(CalibrationError, match=f"{name} cannot be read") as caught:
            Arrays([tmp_path / name], [IMAGE])
        assert "\n" not in str(caught.value)
    with pytest.raises(CalibrationError, match=r"pickled.npy has the shape \[2\]"):
        Arrays([tmp_path / "pickled.npy"], [IMAGE])
    with pytest.raises(CalibrationError, match="holds one array, expected one for each of ids, mask"):
        Arrays([tmp_path / "x.npy"], [IDS, MASK])
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-30])
    with pytest.raises(CalibrationError, match="cut.npy ends in sample 2 of 4"):
        list(Arrays([tmp_path / "cut.npy"], [IMAGE]).batches())


def test_samples_of_two_sizes_and_integers_too_large_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((1, 4), np.int64))
    np.save(tmp_path / "b.npy", np.zeros((1, 5), np.int64))
    with pytest.raises(CalibrationError, match=r"of b.npy has the shape \[5\], expected \[4\] as in a.npy"):
        Arrays([tmp_path / "a.npy", tmp_path / "b.npy"], [IDS])
    np.save(tmp_path / "c.npy", np.full((1, 4), 2**40))
    with pytest.raises(CalibrationError, match="holds 1099511627776, more than int32"):
        list(Arrays([tmp_path / "c.npy"], [Input("ids", (1, 4), np.dtype(np.int32))]).batches())
