"""Which files calibration data is in: folders, single files, lists as MLPerf writes them."""

import pytest

from calibration.errors import CalibrationError
from calibration.files import are_arrays, data_files, listed_files


@pytest.fixture
def folder(tmp_path):
    for name in ("val/b.JPEG", "val/a.jpg", "val/deep/c.png", "val/two words.png", "val/two 2", "val/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path / "val"


def listing(folder, text):
    path = folder.parent / "list.txt"
    path.write_text(text)
    return path


def names(paths, folder):
    return [path.relative_to(folder).as_posix() for path in paths]


def test_a_folder_gives_its_photos_sorted(folder):
    paths = data_files(folder)
    assert names(paths, folder) == ["a.jpg", "b.JPEG", "deep/c.png", "two words.png"]
    assert not are_arrays(paths)


def test_arrays_come_from_a_folder_or_one_file(folder):
    (folder.parent / "x.npz").write_bytes(b"")
    (folder.parent / "arrays").mkdir()
    (folder.parent / "arrays" / "x.npy").write_bytes(b"")
    for data in (folder.parent / "x.npz", folder.parent / "arrays"):
        assert are_arrays(data_files(data))


def test_a_list_gives_order_labels_and_spaces(folder):
    text = "b.JPEG 65\n\n  deep/c.png\t7\ntwo words.png 3\na.jpg\ntwo 2\n"
    assert names(listed_files(listing(folder, text), folder), folder) == [
        "b.JPEG",
        "deep/c.png",
        "two words.png",
        "a.jpg",
        "two 2",
    ]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a.jpg\nx.jpg\ny.jpg 1\n", "2 of 3 files of .*list.txt are not in .*val: x.jpg, y.jpg; name their folder"),
        ("".join(f"{k}.jpg\n" for k in range(9)), "9 of 9 files .*: 0.jpg, 1.jpg, 2.jpg and 6 more"),
        ("a.jpg\nb.JPEG\na.jpg 3\n", "line 3 names 'a.jpg', as line 1 does"),
        ("\n", "names no file"),
        ("notes.txt\n", "holds .txt, expected .jpg"),
    ],
)
def test_lists_that_cannot_be_used_are_one_line(folder, text, match):
    with pytest.raises(CalibrationError, match=match) as caught:
        data_files(folder, listing(folder, text))
    assert "\n" not in str(caught.value)


def test_missing_empty_and_mixed_data_are_refused(folder):
    with pytest.raises(CalibrationError, match="is not a folder, expected a folder of photos or"):
        data_files(folder / "none")
    with pytest.raises(CalibrationError, match="cannot be read: No such file"):
        data_files(folder, folder / "none.txt")
    with pytest.raises(CalibrationError, match="cannot be read: it is no UTF-8 text"):
        (folder / "bad.txt").write_bytes(b"\xff\xfe")
        data_files(folder, folder / "bad.txt")
    (folder / "empty").mkdir()
    with pytest.raises(CalibrationError, match="holds none, expected .jpg"):
        data_files(folder / "empty")
    (folder / "x.npy").write_bytes(b"")
    with pytest.raises(CalibrationError, match="photos and array files, expected one kind"):
        data_files(folder)
